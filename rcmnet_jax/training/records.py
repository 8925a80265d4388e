"""What a run writes about itself while it goes: log.jsonl, one JSON object a line, and TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

_SHOWN_AFTER = 60.0  # seconds after which events are on disk


class Records:
    """Appends rows to log.jsonl and scalars to tensorboard/; silent in all processes but the first.

    A resumed stage has written some steps twice: of rows with equal (stage, kind, step) the last counts.
    """

    def __init__(self, workdir: Path, *, active: bool = True):
        self._file: TextIO | None = None
        self._boards: dict[str, _Board] = {}
        self._workdir = workdir
        if active:
            workdir.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(workdir / "log.jsonl")
            self._file = (workdir / "log.jsonl").open("a", encoding="utf-8")

    def write(self, stage: str, kind: str, step: int, **values: Any) -> None:
        """One row: stage, kind ('train', 'validation', 'checkpoint', 'event'), step, seconds since 1970, the values."""
        if self._file is None:
            return
        row = {"stage": stage, "kind": kind, "step": step, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        if numbers:
            if stage not in self._boards:
                self.close_boards()
                self._boards[stage] = _Board(self._workdir / "tensorboard" / stage)
            self._boards[stage].write({f"{kind}/{name}": value for name, value in numbers.items()}, step)

    def close_boards(self) -> None:
        """Closes the event files; the next row of a stage opens a new one."""
        for board in self._boards.values():
            board.close()
        self._boards.clear()

    def close(self) -> None:
        """Closes all files."""
        self.close_boards()
        if self._file is not None:
            self._file.close()
            self._file = None


class _Board:
    """An event file of TensorBoard's, written here and now.

    tensorboardX's own SummaryWriter leaves that to a thread, which a full disk ends in silence; what waits for it then
    waits for ever.
    """

    def __init__(self, folder: Path):
        writer, self._event, self._summary = _tensorboard()
        folder.mkdir(parents=True, exist_ok=True)
        self._writer, self._flushed = writer(str(folder / "events")), time.monotonic()

    def write(self, values: Mapping[str, float], step: int) -> None:
        """One event a value."""
        for name, value in values.items():
            event = self._event(summary=self._summary(name, value), step=step, wall_time=time.time())
            self._writer.write_event(event)
        if time.monotonic() - self._flushed > _SHOWN_AFTER:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


def _tensorboard() -> tuple[Any, Any, Any]:
    """tensorboardX's EventsWriter, Event and scalar, loaded as if there were no PyTorch: that would take seconds."""
    modules: dict[str, Any] = sys.modules
    loaded = "torch" in modules
    if not loaded:
        modules["torch"] = None  # has `import torch` raise ImportError
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar
    finally:
        if not loaded:
            del modules["torch"]
    return EventsWriter, Event, scalar


def _drop_torn_line(path: Path) -> None:
    """Cuts off a last line that a kill left unfinished, so that every line of the file is JSON."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a log.jsonl in the order of (stage's first appearance, kind, step), repeats dropped but the last."""
    if not path.exists():
        return []
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["stage"], row["kind"], row["step"]] = row
    stages = list(dict.fromkeys(stage for stage, _, _ in rows))
    return sorted(rows.values(), key=lambda row: (stages.index(row["stage"]), row["kind"], row["step"]))
