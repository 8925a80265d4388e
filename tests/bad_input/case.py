"""What a case is, and the rows of the docs that cases stand for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.commands import ROOT, run

BUNDLE = ROOT / "tests" / "bundles" / "format_1" / "bundle"
Plant = Callable[[Path], Sequence[Any]]  # fills a folder, and returns the words that name DATA


@dataclass(frozen=True)
class Refused:
    """Input that a command refuses: status 2 and a sentence that holds `says`."""

    row: str  # in docs/data.md
    name: str
    plant: Plant
    says: str
    by: str = "audit"  # audit | predict | launch, where `plant` returns flags

    def run(self, here: Path, words: Sequence[Any]) -> tuple[int, str, str]:
        """Runs the command on what is planted in here/in, from here/work/deep, over what is in `here`."""
        command = {
            "audit": ("-m", "rcmnet_jax", "audit", "--output", here / "out"),
            "predict": ("-m", "rcmnet_jax", "predict", "--output", here / "predictions.csv", BUNDLE),
            "launch": (
                *(ROOT / "launch.py", f"--config={ROOT / 'configs' / 'cart.py'}:smoke"),
                *(f"--workdir={here / 'run'}", "--config.target.data="),
            ),
        }[self.by]
        # A sitecustomize.py planted in site/ is what Python itself runs first.
        path = os.pathsep.join((str(ROOT), str(here / "in" / "site")))
        more = {"PYTHONPATH": path, "TFDS_DATA_DIR": str(here / "in" / "tfds")}
        return run(*command, *words, cwd=here / "work" / "deep", **more)


@dataclass(frozen=True)
class Listed:
    """Input that the command `audit` takes, some of it left out."""

    name: str
    plant: Plant
    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # row -> path -> how the reason begins
    used: Mapping[str, Callable[[dict[str, Any]], bool]] = field(default_factory=dict)  # row -> what audit.json says


def rows_of_the_docs() -> dict[str, str]:
    """Each row of the table, with `refused`, `listed` or, where neither is said, `used`."""
    text = (ROOT / "docs" / "data.md").read_text("utf-8")
    lines = text.split("\n## Odd and hostile input\n")[1].split("\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    found = {}
    for row, outcome in cells[1:]:
        if outcome:
            assert row not in found, f"docs/data.md has '{row}' twice"
            found[row] = next((word for word in ("refused", "listed") if word in outcome), "used")
    return found
