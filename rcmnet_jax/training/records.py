"""What a run writes about itself while it goes: log.jsonl, one JSON object a line, and TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO


class Records:
    """Appends rows to log.jsonl and scalars to tensorboard/; silent in all processes but the first.

    A resumed stage has written some steps twice: of rows with equal (stage, kind, step) the last counts.
    """

    def __init__(self, workdir: Path, *, active: bool = True):
        self._file: TextIO | None = None
        self._boards: dict[str, Any] = {}
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
            board = self._board(stage)
            for name, value in numbers.items():
                board.add_scalar(f"{kind}/{name}", value, step)

    def _board(self, stage: str) -> Any:
        if stage not in self._boards:
            self.close_boards()
            self._boards[stage] = _summary_writer()(str(self._workdir / "tensorboard" / stage))
        return self._boards[stage]

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


def _summary_writer() -> Any:
    """tensorboardX's SummaryWriter, loaded as if there were no PyTorch: it would load that too, which takes seconds."""
    modules: dict[str, Any] = sys.modules
    loaded = "torch" in modules
    if not loaded:
        modules["torch"] = None  # has `import torch` raise ImportError
    try:
        from tensorboardX import SummaryWriter
    finally:
        if not loaded:
            del modules["torch"]
    return SummaryWriter


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
