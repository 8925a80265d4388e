"""The end of a run: each image counts once in the calibration, however many seeds predicted it."""

from __future__ import annotations

import numpy as np

from rcmnet_jax.conclusion import interval
from rcmnet_jax.evaluation.calibration import per_image
from rcmnet_jax.evaluation.tables import make_table


def test_seeds_of_one_image_are_averaged_before_calibration():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    table = make_table(["b", "a", "b", "a"], p, ["x", "y"], label=["x", "y", "x", "y"], seed=np.array([0, 0, 1, 1]))
    log_p, truth = per_image(table)
    assert truth.tolist() == [1, 0]
    np.testing.assert_allclose(log_p, [np.log(p[[1, 3]]).mean(0), np.log(p[[0, 2]]).mean(0)])


def test_an_undefined_metric_is_shown_with_its_reason():
    assert interval({"value": None, "low": None, "high": None, "reason": "one class"}) == "undefined: one class"
    assert interval({"value": 0.5, "low": 0.25, "high": 0.75}) == "0.500 (0.250-0.750)"
