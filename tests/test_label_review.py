"""Wrong labels come first in label_review.csv, by the published rule."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy.special import softmax

from rcmnet_jax.evaluation.label_review import review, write_review
from rcmnet_jax.evaluation.tables import make_table

CLASSES = ("a", "b", "c", "d")


def simulated(noise=0.05, n=400, seed=0):
    """Probabilities of a good model, labels of which a share is wrong, and which those are."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, n)
    logits = rng.normal(size=(n, 4))
    logits[np.arange(n), truth] += np.array([2.0, 3.0, 4.0, 5.0])[truth]  # classes known better and worse
    wrong = rng.random(n) < noise
    return softmax(logits, axis=1), np.where(wrong, (truth + rng.integers(1, 4, n)) % 4, truth), wrong


def test_planted_wrong_labels_come_first(tmp_path):
    p, labels, wrong = simulated()
    paths = [f"{i:03}.png" for i in range(len(p))]
    told = write_review(tmp_path, make_table(paths, p, CLASSES, label=[CLASSES[k] for k in labels]))
    with (tmp_path / "label_review.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "suggested", "score", "rank"]
    assert [int(row["rank"]) for row in rows] == list(range(1, len(p) + 1))
    first = [paths.index(row["path"]) for row in rows[: wrong.sum()]]
    assert wrong[first].mean() > 0.8
    assert f"{sum(row['suggested'] != '' for row in rows)} of 400 labels are worth a second look" in told
    assert all(row["suggested"] != row["label"] for row in rows)


def test_predictions_of_several_seeds_are_one_image_and_unlabelled_ones_are_none(tmp_path):
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    table = make_table(["x", "x", "y"], p, ("a", "b"), label=["b", "b", ""], seed=[0, 1, 0])
    write_review(tmp_path, table)
    assert (tmp_path / "label_review.csv").read_text().splitlines()[1].startswith("x,b,")
    assert len((tmp_path / "label_review.csv").read_text().splitlines()) == 2


def test_scores_and_suspects_are_cleanlabs():
    """`pip install cleanlab` (2.9 is what it was compared with) to run it; nothing else needs that."""
    pytest.importorskip("cleanlab")
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    p, labels, _ = simulated(noise=0.15)
    found = review(p, labels)
    theirs = get_label_quality_scores(labels, p, method="normalized_margin", adjust_pred_probs=True)
    np.testing.assert_allclose(found.score, theirs, rtol=1e-12)
    suspects = find_label_issues(labels, p, filter_by="confident_learning", n_jobs=1)
    np.testing.assert_array_equal(found.suggested >= 0, suspects)


def test_a_class_without_images_is_not_suggested():
    p = np.array([[0.5, 0.1, 0.4], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.3, 0.6]])
    found = review(p, np.array([0, 1, 0, 1]))
    assert 2 not in found.suggested
    assert np.isfinite(found.score).all()
