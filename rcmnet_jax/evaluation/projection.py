"""How images lie to each other by their features: a view in two dimensions, and what the nearest neighbour says."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def principal(values: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first two principal components (N, 2) and the share of the variance that each explains, (2,).

    The sign of each is such that its largest weight is positive.
    """
    x = values.astype(np.float64) - values.astype(np.float64).mean(0)
    variances, axes = np.linalg.eigh(x.T @ x)
    axes, variances = axes[:, ::-1][:, :2], np.maximum(variances[::-1], 0)
    axes = axes * np.where(axes[np.abs(axes).argmax(0), [0, 1]] < 0, -1, 1)
    return x @ axes, variances[:2] / max(variances.sum(), 1e-300)


def neighbours_agree(values: NDArray[np.floating], label: NDArray[Any], group: NDArray[Any]) -> tuple[float, float]:
    """Share of images whose nearest neighbour has their label, and the share that a random one would.

    Neighbours of the own group do not count: two cells of one smear are near for other reasons than their class.
    """
    x = values.astype(np.float64)
    square = (x**2).sum(1)
    distance = square[:, None] + square[None] - 2 * x @ x.T
    own = np.eye(len(x), dtype=bool) | ((group[:, None] == group[None]) & (group[:, None] != ""))
    asked = ~own.all(1)
    if not asked.any():
        return float("nan"), float("nan")
    same = label[:, None] == label[None]
    nearest = np.where(own, np.inf, distance).argmin(1)
    chance = (same & ~own).sum(1)[asked] / (~own).sum(1)[asked]
    return float(same[np.arange(len(x)), nearest][asked].mean()), float(chance.mean())
