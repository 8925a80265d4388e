"""Images of a set speak for one another: classes that moved as a whole are called right again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from rcmnet_jax.evaluation.neighbours import NEAR, PULL, SMOOTH, TRUST, near, together

CLASSES = 4


def moved_set(images=200, seed=0, spread=0.35):
    """Labels, features of classes that lie apart, and what a head says that meets all of them nearer to one class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, images)
    centres = np.eye(CLASSES, 16)
    seen = centres[labels] + rng.normal(0, spread / 4, (images, 16))
    return labels, seen, softmax(6 * (seen + 0.8 * centres[-1]) @ centres.T, axis=1)


def right(log_p, labels):
    return (log_p.argmax(1) == labels).mean()


def test_classes_that_moved_as_a_whole_are_called_right_again():
    labels, features, p = moved_set(spread=1.0)
    assert right(together(p, features), labels) > right(np.log(p), labels) + 0.05


def test_it_is_the_fixed_point_of_its_formula():
    """Against a dense computation of its own: means weighed by tempered probabilities, then sums over neighbours."""
    _, features, p = moved_set(60)
    unit = features / np.linalg.norm(features, axis=1)[:, None]
    tempered = p**TRUST / (p**TRUST).sum(1, keepdims=True)
    centres = np.stack([(tempered[:, [k]] * unit).sum(0) for k in range(CLASSES)])
    centres /= np.linalg.norm(centres, axis=1)[:, None]
    cosines = unit @ unit.T - 2 * np.eye(60)
    is_near = cosines >= np.sort(cosines, axis=1)[:, [-NEAR]]
    pairs = (is_near + is_near.T.astype(float)) / 2
    z = SMOOTH * together(p, features)
    wanted = TRUST * np.log(p) + PULL * unit @ centres.T + pairs @ softmax(z, axis=1)
    np.testing.assert_allclose(softmax(z, axis=1), softmax(wanted, axis=1), atol=1e-5)


def test_the_order_of_the_images_does_not_matter():
    _, features, p = moved_set()
    order = np.random.default_rng(1).permutation(len(p))
    np.testing.assert_allclose(together(p[order], features[order]), together(p, features)[order], atol=1e-6)


def test_a_class_that_cannot_be_stays_impossible_and_the_rest_sums_to_one():
    _, features, p = moved_set()
    p[:, 2] = 0
    found = np.exp(together(p / p.sum(1, keepdims=True), features))
    assert (found[:, 2] == 0).all()
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found[:, [0, 1, 3]] > 0).all()


@pytest.mark.parametrize("images", [1, 9])
def test_a_handful_is_left_as_it_is(images):
    _, features, p = moved_set(images)
    assert near(images) == 0
    np.testing.assert_allclose(np.exp(together(p, features)), p, atol=1e-9)


def test_features_and_probabilities_of_nothing_do_not_fail():
    p = np.zeros((40, CLASSES))
    p[:, 0] = 1
    found = np.exp(together(p, np.zeros((40, 16), np.float32)))
    np.testing.assert_allclose(found[:, 0], 1, atol=1e-6)
