"""Where a finished run's time went, from its own records: one row a kind of work.

    python -m benchmarks.whole_run WORKDIR

Reads log.jsonl and the times at which the leaves' files were written. `steps` is the time between rows of training,
`first step` from a stage's beginning to its first row (compilation, loading, the first batches).
"""

from __future__ import annotations

import argparse
import collections
import json
from pathlib import Path

from benchmarks.contest import publish
from rcmnet_jax.training.records import read_rows


def split(workdir: Path) -> dict[str, float]:
    """Seconds by kind of work, from the writing of config.json to that of report.html."""
    rows = sorted(read_rows(workdir / "log.jsonl"), key=lambda row: row["time"])
    clock = (workdir / "config.json").stat().st_mtime
    spent: dict[str, float] = collections.defaultdict(float)
    stages: set[str] = set()
    for row in rows:
        seconds = row["time"] - clock
        if row["kind"] == "checkpoint":
            kind, seconds = "held up by checkpoints", row["held_up"]  # the rest of the time was the steps' before it
            spent["steps"] += row["time"] - clock - seconds
        elif row["kind"] == "validation":
            kind = "looks at watched images"
        elif row["stage"] not in stages:
            kind = "data, to the first step" if not stages else "between stages: leaves, loading, first step"
        else:
            kind = "steps"
        stages.add(row["stage"])
        spent[kind] += seconds
        clock = row["time"]
    spent["last leaves, conclusion, report"] = (workdir / "report.html").stat().st_mtime - clock
    return dict(spent)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("workdir", type=Path)
    words.add_argument("--output", type=Path, help="JSON")
    chosen = words.parse_args()
    spent = split(chosen.workdir)
    total = sum(spent.values())
    rows = [[kind, f"{seconds:.0f}", f"{100 * seconds / total:.0f}%"] for kind, seconds in spent.items()]
    model = json.loads((chosen.workdir / "config.json").read_text())["model"]["name"]
    publish(f"{model}: {total:.0f} s in all", ["", "seconds", ""], rows, spent, chosen.output)


if __name__ == "__main__":
    main()
