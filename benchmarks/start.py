"""Seconds from the command to the first step that is logged: with an empty cache, and with the one that this leaves.

    python -m benchmarks.start -- --config=configs/cart.py

What follows `--` goes to launch.py. The run is stopped (SIGTERM) as soon as its first training step is in log.jsonl.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.contest import publish

ROOT = Path(__file__).parents[1]


def first_step(words: list[str], cache: Path) -> float:
    """Seconds until log.jsonl holds a line of training."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run" / "log.jsonl"
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), *words, f"--workdir={log.parent}"],
            env={**os.environ, "RCMNET_CACHE": str(cache)},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while process.poll() is None:
            if log.exists() and '"train"' in log.read_text():
                took = time.perf_counter() - start
                process.send_signal(signal.SIGTERM)
                process.communicate()
                return took
            time.sleep(0.02)
        said = process.stderr.read().decode() if process.stderr else ""
        sys.exit(f"the run ended with status {process.returncode} before its first step: {said[-500:]}")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--output", type=Path, help="JSON")
    words.add_argument("launch", nargs="+", help="arguments of launch.py, after --")
    chosen = words.parse_args()
    times: dict[str, list[float]] = {"nothing cached": [], "images prepared": [], "programs compiled as well": []}
    for _ in range(chosen.rounds):
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder)
            times["nothing cached"].append(first_step(chosen.launch, cache))
            for entry in cache.glob("xla-*/**/*"):
                if entry.is_file():
                    entry.unlink()
            times["images prepared"].append(first_step(chosen.launch, cache))
            times["programs compiled as well"].append(first_step(chosen.launch, cache))
    rows = [[k, f"{statistics.median(v):.1f}", f"{min(v):.1f}-{max(v):.1f}"] for k, v in times.items()]
    title = f"launch.py {' '.join(chosen.launch)}: seconds to the first step logged"
    publish(title, ["", "median", "range"], rows, times, chosen.output)


if __name__ == "__main__":
    main()
