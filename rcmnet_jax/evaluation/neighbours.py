"""What the images of one set tell of one another: those that lie near each other are called alike.

Another laboratory moves all its images in the network's features, each class as a whole: the classes stay together
while the head's borders no longer run between them. Nothing is trained, and no label is asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from rcmnet_jax.evaluation.table import Floats

# Chosen in one network's laboratories 0 to 7 of benchmarks/shift.py; docs/shift.md has what they do in others.
NEAR = 5  # neighbours of an image
SET = 10  # images for each neighbour: a set of fewer than this is left as it is
TRUST = 0.5  # what the network's own log-probabilities count for: on images that are new to it, it is too sure
PULL = 10.0  # of a class's centre, in nats for a cosine of 1
SMOOTH = 1.5  # temperature of the result: neighbours that agree are not independent witnesses
_STEPS, _STILL, _TINY, _CHUNK = 100, 1e-6, 1e-12, 1024


def near(images: int) -> int:
    """How many neighbours each of so many images has."""
    return min(NEAR, images // SET)


def together(probabilities: Floats, features: NDArray[np.floating]) -> Floats:
    """Log-probabilities (N, K) of a set's images, from each one's own (N, K) and the features (N, C) of all.

    Each class has its centre among these images, weighed by the probabilities, to which an image is pulled by its
    cosine (as the centres of SHOT, Liang et al. 2020, of which the network is not trained on). Then each image takes
    over what its nearest have, until nothing changes (LAME, Boudiaf et al. 2022, eq. 8). A class that no image can be
    keeps the probability 0.
    """
    can = probabilities.max(0) > 0
    log_p: Floats = np.log(np.maximum(probabilities[:, can], _TINY))
    if not near(len(probabilities)):
        return _with(can, log_p)
    own = TRUST * log_p
    directions = _unit(features)
    centres = _unit(special.softmax(own, axis=1).T @ directions)
    own += PULL * directions @ centres.T
    graph, drawn = _graph(directions, near(len(probabilities))), own
    for _ in range(_STEPS):
        before, drawn = drawn, own + graph @ special.softmax(drawn, axis=1)
        if np.abs(drawn - before).max() < _STILL:
            break
    return _with(can, special.log_softmax(drawn / SMOOTH, axis=1))


def _with(can: NDArray[np.bool_], log_p: Floats) -> Floats:
    """The log-probabilities with a column of minus infinity for each class that cannot be."""
    found = np.full((len(log_p), len(can)), -np.inf)
    found[:, can] = log_p
    return found


def _unit(rows: NDArray[np.floating]) -> Floats:
    wide = np.asarray(rows, np.float64)
    lengths: Floats = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.maximum(lengths, _TINY)


def _graph(directions: Floats, count: int) -> sparse.csr_array:
    """(N, N): for each pair half for each of the two that is among the `count` nearest of the other."""
    images = len(directions)
    nearest = np.empty((images, count), np.int64)
    for start in range(0, images, _CHUNK):
        alike = directions[start : start + _CHUNK] @ directions.T
        rows = np.arange(len(alike))
        alike[rows, start + rows] = -np.inf
        nearest[start : start + _CHUNK] = np.argpartition(-alike, count - 1, axis=1)[:, :count]
    where = np.arange(images).repeat(count), nearest.ravel()
    graph = sparse.csr_array((np.full(images * count, 0.5), where), shape=(images, images))
    return graph + graph.T
