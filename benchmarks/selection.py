"""What the scripts share that look at a bundle on a part of a set."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from rcmnet_jax.errors import UserError


def options(about: str | None) -> argparse.ArgumentParser:
    """BUNDLE DATA [--split FILE.csv] [--part NAME]."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--split", default="", metavar="FILE.csv", help="CSV path,split")
    parser.add_argument("--part", default="", metavar="NAME", help="train, val or test; all images without")
    return parser


def rows_of(part: str, splits: np.ndarray) -> np.ndarray:
    """The rows of one part of a split; all where `part` is empty."""
    rows = np.flatnonzero(splits == part) if part else np.arange(len(splits))
    if not len(rows):
        raise UserError(f"--part={part}: the split has no such images.")
    return rows
