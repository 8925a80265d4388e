"""The linear probe's folded weights give scikit-learn's own probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rcmnet_jax.evaluation.probe import fit


@pytest.mark.parametrize("classes", [2, 4])
def test_the_head_answers_as_the_regression_does(classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 80)
    x = (rng.normal(size=(80, 6)) * [1, 2, 3, 4, 5, 100] + labels[:, None] + 7).astype(np.float32)
    kernel, bias = fit(x, labels, classes)
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    wanted = model.fit(x.astype(np.float64), labels).predict_proba(x)
    np.testing.assert_allclose(softmax(x @ kernel + bias, axis=1), wanted, atol=1e-4)


def test_a_class_that_was_not_seen_is_never_predicted_and_a_constant_feature_is_ignored():
    rng = np.random.default_rng(0)
    labels = np.array([0, 3] * 20)
    x = rng.normal(size=(40, 5)).astype(np.float32)
    x[:, 2] = 4
    kernel, bias = fit(x, labels, 4)
    p = softmax(x @ kernel + bias, axis=1)
    assert p[:, [1, 2]].max() < 1e-6
    assert not kernel[2].any()
