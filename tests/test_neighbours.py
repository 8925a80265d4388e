"""Images of a set speak for one another: classes that moved as a whole are called right again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from rcmnet_jax.evaluation.calibration import Calibrated
from rcmnet_jax.evaluation.neighbours import (
    CENTROID_WEIGHT,
    HUBNESS_POWER,
    NEIGHBOUR_WEIGHT,
    NUM_NEIGHBOURS,
    OUTPUT_TEMPERATURE,
    PRIOR_WEIGHT,
    neighbour_count,
    smooth,
    smoothed,
)

CLASSES = 4


def moved_set(images=200, seed=0, spread=1.0):
    """Labels, features of classes that lie apart, and what a head says that meets all of them nearer to one class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, images)
    centres = np.eye(CLASSES, 16)
    seen = centres[labels] + rng.normal(0, spread / 4, (images, 16))
    return labels, seen, softmax(6 * (seen + 0.8 * centres[-1]) @ centres.T, axis=1)


def right(log_p, labels):
    return (log_p.argmax(1) == labels).mean()


@pytest.mark.parametrize("seed", range(3))
def test_classes_that_moved_as_a_whole_are_called_right_again(seed):
    labels, features, p = moved_set(seed=seed)
    assert right(smoothed(p, features), labels) > right(np.log(p), labels) + 0.05


@pytest.mark.parametrize("images", [60, 1100])
def test_it_is_the_fixed_point_of_its_formula(images):
    """Against a dense computation of its own: means weighed by tempered probabilities, then sums over neighbours."""
    _, features, p = moved_set(images)
    unit = features / np.linalg.norm(features, axis=1)[:, None]
    tempered = p**PRIOR_WEIGHT / (p**PRIOR_WEIGHT).sum(1, keepdims=True)
    centres = np.stack([(tempered[:, [k]] * unit).sum(0) for k in range(CLASSES)])
    centres /= np.linalg.norm(centres, axis=1)[:, None]
    distances = np.linalg.norm(unit[:, None] - unit, axis=2) + np.diag(np.full(images, np.inf))
    reach = np.sort(distances, axis=1)[:, NUM_NEIGHBOURS - 1]
    counts = np.minimum(1, reach / distances) ** HUBNESS_POWER * (distances <= reach[:, None])
    z = OUTPUT_TEMPERATURE * smoothed(p, features)
    pairs = NEIGHBOUR_WEIGHT * (counts + counts.T) / 2
    wanted = PRIOR_WEIGHT * np.log(p) + CENTROID_WEIGHT * unit @ centres.T + pairs @ softmax(z, axis=1)
    np.testing.assert_allclose(softmax(z, axis=1), softmax(wanted, axis=1), atol=1e-4)


def test_the_order_of_the_images_does_not_matter():
    _, features, p = moved_set()
    order = np.random.default_rng(1).permutation(len(p))
    np.testing.assert_allclose(smoothed(p[order], features[order]), smoothed(p, features)[order], atol=1e-6)


def test_copies_of_an_image_are_answered_alike_and_do_not_outvote_the_rest():
    _, features, p = moved_set(60)
    copied = np.concatenate([np.arange(60), np.zeros(200, int)])
    np.testing.assert_allclose(
        smoothed(p[copied], features[copied]),
        smoothed(p, features)[copied],
        atol=1e-9,
    )


def test_a_lone_cell_of_a_class_is_not_outvoted():
    labels, features, _ = moved_set(spread=0.5)
    kept = (labels < 3) | (np.arange(200) == np.flatnonzero(labels == 3)[0])
    p = softmax(3 * features[kept] @ np.eye(CLASSES, 16).T, axis=1)
    assert (smoothed(p, features[kept]).argmax(1) == labels[kept])[labels[kept] == 3].all()


def test_a_class_that_cannot_be_stays_impossible_and_the_rest_sums_to_one():
    _, features, p = moved_set()
    p[:, 2] = 0
    found = np.exp(smoothed(p / p.sum(1, keepdims=True), features))
    assert (found[:, 2] == 0).all()
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found[:, [0, 1, 3]] > 0).all()


@pytest.mark.parametrize("images", [0, 1, 9])
def test_a_handful_is_left_as_it_is(images):
    _, features, p = moved_set(images)
    assert neighbour_count(images) == 0
    np.testing.assert_allclose(np.exp(smoothed(p, features)), p, atol=1e-9)


def test_features_of_nothing_leave_the_answers_where_they_were():
    p = np.tile([0.9, 0.1 - 2e-9, 1e-9, 1e-9], (40, 1)) - np.linspace(0, 1e-3, 40)[:, None] * [1, -1, 0, 0]
    found = np.exp(smoothed(p, np.zeros((40, 16), np.float32)))
    assert (found.argmax(1) == 0).all()
    np.testing.assert_allclose(found.sum(1), 1)


def test_an_image_that_is_called_otherwise_abstains_where_there_is_a_threshold():
    _, features, p = moved_set()
    alone = Calibrated(p, np.zeros(200, np.int64), np.full(200, -1))
    found = smooth(alone, features)
    changed = found.probabilities.argmax(1) != p.argmax(1)
    assert 0 < changed.sum() < 200
    np.testing.assert_array_equal(found.abstain, changed)
    unknown = smooth(Calibrated(p, np.full(200, -1), np.full(200, -1)), features)
    assert (unknown.abstain == -1).all()
