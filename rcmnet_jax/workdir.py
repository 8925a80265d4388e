"""The folder of a run: locked by one process, bound to one config, consistent after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rcmnet_jax import runtime
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.console import Console
from rcmnet_jax.errors import UserError
from rcmnet_jax.files import lock_folder, recover_folders, write_json
from rcmnet_jax.settings import to_dict
from rcmnet_jax.training.sharding import barrier, is_main_process


@contextmanager
def opened(workdir: Path, config: ExperimentConfig, console: Console) -> Iterator[None]:
    """Holds the workdir for this run; config.json stands in it when the block begins.

    Raises:
      UserError: another process holds it, or it belongs to a run with another config.
    """
    with lock_folder(workdir, console.warn) if is_main_process() else nullcontext():
        if is_main_process():
            _claim(workdir, config)
            recover_folders(workdir)
        barrier("workdir")
        yield


def _claim(workdir: Path, config: ExperimentConfig) -> None:
    path = workdir / "config.json"
    wanted = json.loads(json.dumps(to_dict(config)))
    if path.exists():
        found = read_json(path)
        if changed := _differences(found, wanted):
            raise UserError(
                f"{workdir}: holds a run with another config ({'; '.join(changed[:3])}). Give another --workdir."
            )
        return
    strangers = sorted(p.name for p in workdir.iterdir() if p.name != ".lock" and not p.name.startswith(".tmp-config"))
    if strangers:
        raise UserError(
            f"{workdir}: holds no run, but other things ({', '.join(strangers[:3])}). Give a new --workdir."
        )
    write_json(path, wanted)


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            text
            for key in {**old, **new}
            for text in _differences(old.get(key), new.get(key), f"{where}.{key}".strip("."))
        ]
    return [] if old == new else [f"{where} was {old!r}, is now {new!r}"]


def note_environment(workdir: Path, console: Console) -> None:
    """Writes environment.json, or warns where the run goes on in another environment than it began in."""
    path, now = workdir / "environment.json", runtime.environment()
    if path.exists():
        changed = _differences(read_json(path), json.loads(json.dumps(now)))
        if changed:
            console.warn(
                f"the environment has changed since this run began ({'; '.join(changed[:3])}): "
                "it goes on, but not with the same bits."
            )
            return
    write_json(path, now)


def read_json(path: Path) -> Any:
    """The file's value.

    Raises:
      UserError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error}). Remove it, or give another --workdir.") from error
