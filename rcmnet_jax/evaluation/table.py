"""The predictions table in memory: one row an image, a seed; the hinge between training and all that people read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("path", "sha256", "group", "split", "seed", "fold", "label", "prediction", "confidence", "abstain", "ood")
SPLITS = ("train", "val", "test", "oof", "")

Text = NDArray[np.str_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """N predictions over K classes.

    `path` with '/', relative to the data's root, is the join key; `label` is '' where unknown; `seed` and `fold` are
    -1 where there are none; `abstain` and `ood` are 1 (yes), 0 (no) or -1 (not assessed); `probabilities` is (N, K)
    float64.
    """

    path: Text
    sha256: Text
    group: Text
    split: Text
    seed: Ints
    fold: Ints
    label: Text
    prediction: Text
    confidence: Floats
    abstain: Ints
    ood: Ints
    probabilities: Floats
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.path)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Table:
        """The table of the given rows (mask or positions), in that order."""
        return Table(classes=self.classes, **{name: getattr(self, name)[rows] for name in (*COLUMNS, "probabilities")})

    def truth(self) -> Ints:
        """(N,) class index of each label, -1 where the label is unknown."""
        index = {name: i for i, name in enumerate(self.classes)}
        return np.array([index.get(label, -1) for label in self.label.tolist()], np.int64)


def make_table(
    path: Sequence[str] | Text,
    probabilities: NDArray[np.floating],
    classes: Sequence[str],
    *,
    label: Sequence[str] | Text | None = None,
    group: Sequence[str] | Text | None = None,
    sha256: Sequence[str] | Text | None = None,
    split: str | Sequence[str] | Text = "",
    seed: int | Ints = -1,
    fold: int | Ints = -1,
    abstain: NDArray[np.integer | np.bool_] | int = -1,
    ood: NDArray[np.integer | np.bool_] | int = -1,
) -> Table:
    """A table with `prediction` and `confidence` taken from the (N, K) probabilities; what is not given is unknown."""
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or p.shape != (len(path), len(classes)):
        raise ValueError(f"probabilities are {p.shape}, expected ({len(path)}, {len(classes)})")
    n, best = len(p), p.argmax(1) if len(p) else np.zeros(0, np.int64)

    def text(values: Sequence[str] | Text | str | None) -> Text:
        given = [""] * n if values is None else [values] * n if isinstance(values, str) else values
        return np.asarray(given, dtype=np.str_)

    def whole(values: NDArray[np.integer | np.bool_] | int) -> Ints:
        return np.broadcast_to(np.asarray(values, np.int64), (n,)).copy()

    return Table(
        path=text(path),
        sha256=text(sha256),
        group=text(group),
        split=text(split),
        seed=whole(seed),
        fold=whole(fold),
        label=text(label),
        prediction=np.asarray([classes[i] for i in best], dtype=np.str_),
        confidence=p.max(1) if n else np.zeros(0),
        abstain=whole(abstain),
        ood=whole(ood),
        probabilities=p,
        classes=tuple(classes),
    )


def reorder(table: Table, classes: tuple[str, ...]) -> Table:
    """The same table with its probabilities in another order of the same classes."""
    columns = [table.classes.index(name) for name in classes]
    return dataclasses.replace(table, probabilities=table.probabilities[:, columns], classes=classes)
