"""Smoothing of predictions over the images of one set: those with similar features are called alike.

Another laboratory moves its images in the network's features, more or less each class as a whole: what belongs
together then still lies together, where the head's borders no longer run between. Nothing is trained, and no label is
asked for.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from rcmnet_jax.evaluation.calibration import TINY, Calibrated
from rcmnet_jax.evaluation.table import Floats

# Chosen on adapted sets of two networks, in laboratories 0 to 13 of benchmarks/shift.py.
NUM_NEIGHBOURS = 5  # neighbours of an image
IMAGES_PER_NEIGHBOUR = 10  # images for each neighbour: a set of fewer than this is left as it is
PRIOR_WEIGHT = 0.5  # what the network's own log-probabilities count for: on images that are new to it, it is too sure
CENTROID_WEIGHT = 10.0  # nats: of a class's centre, for a cosine of 1
NEIGHBOUR_WEIGHT = 0.7  # nats: of a neighbour that is sure of its class
HUBNESS_POWER = 4  # by which a neighbour counts less that has nearer ones itself: a rare cell is not to be outvoted
OUTPUT_TEMPERATURE = 1.5  # neighbours that agree are not independent witnesses
_STEPS = 1000  # more than the slowest sets need; a step is cheap
_STILL = 1e-6  # nats of change after which it is at rest
_BLOCK = 1024  # images whose neighbours are looked for at once


def neighbour_count(images: int) -> int:
    """How many neighbours each of so many images has."""
    return min(NUM_NEIGHBOURS, images // IMAGES_PER_NEIGHBOUR)


def smooth(alone: Calibrated, features: NDArray[np.floating]) -> Calibrated:
    """The answers to a set's images smoothed over similar ones, from each image's own and the features (N, C) of all.

    Where an image is called otherwise than by itself, it abstains: the network and its neighbours disagree.
    """
    p = np.exp(smoothed(alone.probabilities, features))
    changed = p.argmax(1) != alone.probabilities.argmax(1)
    abstain = np.where(changed & (alone.abstain == 0), 1, alone.abstain)
    return dataclasses.replace(alone, probabilities=p, abstain=abstain)


def smoothed(probabilities: Floats, features: NDArray[np.floating]) -> Floats:
    """Log-probabilities (N, K) of a set's images, from each one's own (N, K) and the features (N, C) of all.

    Each class has its centre among these images, weighed by the probabilities, to which an image is pulled by its
    cosine (the centres are those of SHOT, Liang et al. 2020, which trains the network on them). Then each image takes
    over what its nearest have, until nothing changes (LAME, Boudiaf et al. 2022, eq. 8). A class that no image can be
    keeps the probability 0; images with the same features and probabilities are one.
    """
    one_row = np.concatenate([np.asarray(features, np.float64), probabilities], axis=1)
    _, kept, copies = np.unique(one_row, axis=0, return_index=True, return_inverse=True)
    possible = probabilities.max(0, initial=0) > 0
    log_p: Floats = np.log(np.maximum(probabilities[np.ix_(kept, possible)], TINY))
    if neighbour_count(len(kept)):
        log_p = _at_rest(log_p, _unit(features[kept]))
    found = np.full(probabilities.shape, -np.inf)
    found[:, possible] = log_p[copies.ravel()]
    return found


def _at_rest(log_p: Floats, directions: Floats) -> Floats:
    own = PRIOR_WEIGHT * log_p
    centres = _unit(special.softmax(own, axis=1).T @ directions)
    pulled = own + CENTROID_WEIGHT * directions @ centres.T
    graph, after = _graph(directions, neighbour_count(len(directions))), pulled
    for _ in range(_STEPS):
        before, after = after, pulled + graph @ special.softmax(after, axis=1)
        if np.abs(after - before).max() < _STILL:
            break
    rest: Floats = special.log_softmax(after / OUTPUT_TEMPERATURE, axis=1)
    return rest


def _unit(rows: NDArray[np.floating]) -> Floats:
    wide = np.asarray(rows, np.float64)
    lengths: Floats = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.maximum(lengths, TINY)


def _graph(directions: Floats, count: int) -> sparse.csr_array:
    """(N, N), symmetric: what each image counts for another, of which one is among the `count` nearest of the other."""
    images, narrow = len(directions), directions.astype(np.float32)
    nearest, distances = np.empty((images, count), np.int64), np.empty((images, count))
    for start in range(0, images, _BLOCK):
        alike = narrow[start : start + _BLOCK] @ narrow.T
        rows = np.arange(len(alike))[:, None]
        alike[rows[:, 0], start + rows[:, 0]] = -np.inf
        chosen = np.argpartition(alike, -count, axis=1)[:, -count:]
        nearest[start : start + _BLOCK] = chosen
        distances[start : start + _BLOCK] = np.sqrt(np.maximum(2 - 2 * alike[rows, chosen], TINY))
    reach = distances.max(1)
    weights = NEIGHBOUR_WEIGHT / 2 * np.minimum(1, reach[nearest] / distances) ** HUBNESS_POWER
    where = np.arange(images).repeat(count), nearest.ravel()
    graph = sparse.csr_array((weights.ravel(), where), shape=(images, images))
    return graph + graph.T
