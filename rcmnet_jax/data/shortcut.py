"""What can be told without seeing a cell: a linear classifier on size, border, colour and file properties.

Any network has to beat it; where it does well, the way the data came marks the class. scikit-learn's logistic
regression, fitted to convergence without randomness.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rcmnet_jax.data.partition import Rows, deal, units

if TYPE_CHECKING:
    from rcmnet_jax.data.prepare import Examples

Probabilities = npt.NDArray[np.float64]

# Beginnings of the names in `Examples.signal_names`. Colour is partly the cell itself; the others should say nothing.
FAMILIES: dict[str, tuple[str, ...]] = {
    "image size": ("height", "width"),
    "aspect ratio": ("aspect",),
    "border colour": ("border",),
    "colour and brightness": ("mean", "std"),
    "file size": ("file_bytes", "bytes", "file"),
    "file format": ("format",),
    "size and brightness": ("height", "width", "mean"),
    "all of these": ("",),
}
_MOST_ROWS = 8000  # of a set, drawn evenly over its rows: seconds, and a standard error below 0.01
_FOLDS = 5


@dataclass(frozen=True)
class Usefulness:
    """How well one family of signals tells the classes apart on rows it was not fitted to."""

    family: str
    signals: tuple[str, ...]
    balanced_accuracy: float
    chance: float  # 1 / number of classes
    error: float  # standard error over images; images of one patient are alike, so the true one is larger
    folds: int
    rows: int
    by: str  # 'group': no group on both sides of a fold | 'image'


def fit_predict(examples: Examples, train_rows: npt.ArrayLike, test_rows: npt.ArrayLike, classes: int) -> Probabilities:
    """Class probabilities (N_test, K) float64 of the shortcut classifier, fitted on the training rows alone.

    Args:
      examples: their `signals` (N, F) are all that is looked at.
      train_rows: unlabelled rows among them are left out. A class that they lack gets probability 0.
      test_rows: in the order of the answer.
      classes: K.
    """
    design = _design(examples, list(examples.signal_names))
    return _fit_predict(design, examples.label, np.asarray(train_rows, int), np.asarray(test_rows, int), classes)


def usefulness(examples: Examples, classes: int, *, seed: int = 0) -> list[Usefulness]:
    """Balanced accuracy of each family of signals by grouped, stratified cross-validation; the own split is ignored.

    Five folds, or one group left out at a time where there are fewer; by image where all is one group. At most
    8,000 rows. Empty where fewer than two classes can be tested. A family whose signals never vary stands at chance.
    """
    rows = np.flatnonzero(examples.label >= 0)
    if len(rows) > _MOST_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _MOST_ROWS, replace=False))
    label = examples.label[rows]
    if len(rows) < 4 or len(np.unique(label)) < 2:
        return []
    unit, by = units(examples.group[rows], examples.pixel_sha256[rows]), "group"
    if unit.max() < 1 or not (examples.group[rows] != "").any():
        unit, by = units(np.full(len(rows), ""), examples.pixel_sha256[rows]), "image"
    folds = min(_FOLDS, int(unit.max()) + 1)
    if folds < 2:
        return []
    part = deal(unit, label, classes, np.full(folds, 1 / folds), seed)
    found = []
    for family, beginnings in FAMILIES.items():
        names = [n for n in examples.signal_names if n.startswith(beginnings)]
        if names:
            value, error = _cross_validated(_design(examples, names)[rows], label, part, classes)
            chance = 1 / len(np.unique(label))
            found.append(Usefulness(family, tuple(names), value, chance, error, folds, len(rows), by))
    return found


def _cross_validated(design: Probabilities, label: npt.NDArray[Any], part: Rows, classes: int) -> tuple[float, float]:
    """Balanced accuracy over the pooled held-out rows, and its standard error over images."""
    present, counts = np.unique(label, return_counts=True)
    if not (design != design[0]).any():
        return 1 / len(present), 0.0
    guess = np.empty(len(label), np.int64)
    for k in np.unique(part):
        guess[part == k] = _fit_predict(
            design, label, np.flatnonzero(part != k), np.flatnonzero(part == k), classes
        ).argmax(1)
    recall = np.array([(guess[label == k] == k).mean() for k in present])
    return float(recall.mean()), float(np.sqrt((recall * (1 - recall) / counts).sum()) / len(present))


def _design(examples: Examples, names: list[str]) -> Probabilities:
    """Signals (N, F') float64: bytes on a log scale, the format's code as one column a format, the rest as it is."""
    columns = []
    for name in names:
        column = np.asarray(examples.signals[:, examples.signal_names.index(name)], np.float64)
        column = np.where(np.isfinite(column), column, 0.0)
        if name.startswith(FAMILIES["file format"]):
            columns += [(column == code).astype(np.float64) for code in np.unique(column)]
        else:
            columns.append(np.log1p(column) if name.startswith(FAMILIES["file size"]) else column)
    return np.stack(columns, axis=1) if columns else np.zeros((len(examples.label), 1))


def _fit_predict(
    design: Probabilities, label: npt.NDArray[Any], train: Rows, test: Rows, classes: int
) -> Probabilities:
    from scipy.linalg import LinAlgWarning
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    train = train[label[train] >= 0]
    seen = np.unique(label[train])
    if not len(seen):
        return np.full((len(test), classes), 1 / classes)
    answer = np.zeros((len(test), classes))
    if len(seen) == 1 or not len(test):
        answer[:, seen[0]] = 1.0
        return answer
    # Few features and many rows: Newton's steps are exact there, and some 25 times faster than L-BFGS.
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", solver="newton-cholesky"))
    # One thread: the matrices are small, and threads that wait for busy cores took several times longer.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Signals that repeat each other make a singular step, which the solver mends by itself.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", LinAlgWarning)
        model.fit(design[train], label[train])
    answer[:, seen] = model.predict_proba(design[test])
    return answer
