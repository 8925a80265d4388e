"""The splits as a file that people and scripts read: who was where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rcmnet_jax.data.partition import Rows
from rcmnet_jax.data.splits import Fold
from rcmnet_jax.files import csv_text, write_atomic

if TYPE_CHECKING:
    from rcmnet_jax.data.prepare import Examples

COLUMNS = ("set", "path", "label", "group", "seed", "fold", "role")

SourcePart = tuple["Examples", Sequence[str], Mapping[str, Rows]]
TargetPart = tuple["Examples", Sequence[str], Mapping[int, Sequence[Fold]]]


def write_splits(path: Path, *, source: SourcePart | None = None, target: TargetPart | None = None) -> None:
    """Writes every role of every image as CSV: one line for each (set, seed, fold, image), so that one filter gives
    one part.

    Columns: set (source|target), path, label, group, seed, fold, role (train|inner|val|test). A row of role inner
    belongs to the fold's training part too. The source has one split, so its seed and fold are empty. Lines are in
    the order of rows; UTF-8, LF, the same bytes for the same splits. The file appears whole or not at all.

    Args:
      source: (examples, classes, parts of `holdout`).
      target: (examples, classes, {seed number as in the folder's name: folds of `cross_validation`}).
    """
    rows: list[tuple[object, ...]] = [COLUMNS]
    if source:
        rows += _rows("source", source[0], source[1], "", "", source[2])
    if target:
        for seed, folds in sorted(target[2].items()):
            for k, fold in enumerate(folds):
                roles = {"train": np.setdiff1d(fold.train, fold.inner), "inner": fold.inner, "test": fold.test}
                rows += _rows("target", target[0], target[1], seed, k, roles)
    write_atomic(path, csv_text(rows).encode("utf-8", "backslashreplace"))


def _rows(
    name: str,
    examples: Examples,
    classes: Sequence[str],
    seed: object,
    fold: object,
    parts: Mapping[str, Rows],
) -> Iterator[tuple[object, ...]]:
    for i, role in sorted((int(i), role) for role, part in parts.items() for i in part):
        label = classes[examples.label[i]] if examples.label[i] >= 0 else ""
        yield name, examples.path[i], label, examples.group[i], seed, fold, role
