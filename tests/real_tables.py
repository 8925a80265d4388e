"""Predictions on real cells, and a reader of its own for them: nothing here uses the package."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "tables"
NAMES = ("pbc_val", "tcell_transfer", "tcell_scratch", "tcell_shortcut")


@dataclass
class Real:
    """One table: N paths, groups, folds; truth and prediction as class numbers; p (N, K)."""

    path: np.ndarray
    group: np.ndarray
    fold: np.ndarray
    classes: list[str]
    truth: np.ndarray
    said: np.ndarray
    p: np.ndarray

    @property
    def right(self):
        return (self.truth == self.said).astype(float)


def real(name):
    """The table of that name."""
    with gzip.open(FOLDER / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = [key[2:] for key in rows[0] if key.startswith("p_")]

    def column(key):
        return np.array([row[key] for row in rows])

    truth, said = (np.array([classes.index(value) for value in column(key)]) for key in ("label", "prediction"))
    p = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    return Real(column("path"), column("group"), column("fold"), classes, truth, said, p)


def unpacked(name, folder):
    """The table as a CSV file in `folder`."""
    path = folder / f"{name}.csv"
    path.write_bytes(gzip.decompress((FOLDER / f"{name}.csv.gz").read_bytes()))
    return path
