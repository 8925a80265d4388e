"""The real commands, as processes of their own, for the tests that look at what a user would see."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiled in less time, to slower code: no test is about speed


def environment(**more: str) -> dict[str, str]:
    """As a user has it: one device, nothing of the tests' own settings but the cache folder, `QUICKLY`, and `more`."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_ENABLE_X64")}
    return {**kept, **QUICKLY, "PYTHONPATH": str(ROOT), **more}


def free_port() -> int:
    """A port of the loopback interface that nobody listens at just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(*words: Any, cwd: Path = ROOT, **more: str) -> subprocess.Popen[bytes]:
    """Starts `python WORDS`; `more` are environment variables."""
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, cwd=cwd, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*words: Any, cwd: Path = ROOT, **more: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `python WORDS`; `more` are environment variables."""
    process = start(*words, cwd=cwd, **more)
    out, err = process.communicate(timeout=900)
    return process.returncode, out.decode(), err.decode()


def launch(workdir: Path, *words: str, config: str = "configs/cart.py:smoke", **more: str) -> tuple[int, str, str]:
    """Runs launch.py; `more` are environment variables."""
    return run(ROOT / "launch.py", f"--config={config}", f"--workdir={workdir}", *words, **more)


def state_of(leaf: Path) -> dict[str, np.ndarray]:
    """All arrays of a leaf's last checkpoint by path: weights, statistics, optimiser state, averages."""
    import jax

    from rcmnet_jax.checkpoint.store import Store

    newest = max((leaf / "checkpoints").glob("step_*"))
    like: dict[str, Any] = {}
    for path, leaf_facts in json.loads((newest / "leaves.json").read_text()).items():
        place = like
        *folders, name = path.split("/")
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = jax.ShapeDtypeStruct(tuple(leaf_facts["shape"]), leaf_facts["dtype"])
    with Store(leaf / "checkpoints") as store:
        found = store.restore(like)
    assert found is not None
    flat, _ = jax.tree_util.tree_flatten_with_path(found[1])
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in flat}
