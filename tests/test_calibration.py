"""Temperature and conformal sets do what their papers say, on few rows too."""

import dataclasses

import numpy as np
import pytest
from scipy import special

from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation import calibration
from rcmnet_jax.evaluation.tables import make_table

CLASSES = ("a", "b", "c")


def drawn(n, temperature=1.0, seed=0, k=3):
    """Logits z and labels drawn from softmax(z / temperature)."""
    rng = np.random.default_rng(seed)
    z = 3 * rng.normal(size=(n, k))
    p = special.softmax(z / temperature, axis=1)
    return z, (p.cumsum(1) < rng.random((n, 1))).sum(1).clip(0, k - 1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    z, y = drawn(20_000, temperature)
    assert calibration.fit_temperature(z, y) == pytest.approx(temperature, rel=0.05)
    log_p = z - special.logsumexp(z, axis=1, keepdims=True)
    assert calibration.fit_temperature(log_p, y) == pytest.approx(calibration.fit_temperature(z, y), rel=1e-4)


def test_rows_that_are_all_right_do_not_make_it_certain():
    z = np.array([[2.0, 0.0]] * 20)
    assert calibration.fit_temperature(z, np.zeros(20, int)) > 0.1
    assert calibration.fit_temperature(z, np.full(20, -1)) == 1.0


def test_reliability_after_is_of_temperatures_that_did_not_see_the_rows():
    z, y = drawn(6000, 2.5)
    parts = np.arange(6000) % 5
    changed = calibration.before_and_after(z, y, parts)
    assert changed["after"]["ece"] < 0.25 * changed["before"]["ece"]
    assert changed["after"]["nll"] < changed["before"]["nll"]
    assert sum(b["count"] for b in changed["after"]["bins"]) == 6000
    odd = np.where(parts == 0, 0.2, 1.0)[:, None] * z  # the first part needs a temperature that the others do not know
    worse = calibration.before_and_after(odd, y, parts)
    own = calibration.apply_temperature(odd[parts == 0], calibration.fit_temperature(odd[parts == 0], y[parts == 0]))
    others = calibration.fit_temperature(odd[parts != 0], y[parts != 0])
    assert others == pytest.approx(2.5, rel=0.1)
    assert worse["after"]["nll"] > changed["after"]["nll"]
    assert own.max() > calibration.apply_temperature(odd[parts == 0], others).max()
    assert calibration.before_and_after(z, y, np.zeros(6000, int)) == {}


def uncalibrated(n, temperature=2.5, groups=0):
    """A table of validation images by a network that is too sure of itself."""
    z, y = drawn(n, temperature)
    group = [f"g{i % groups}" for i in range(n)] if groups else None
    p = special.softmax(z, axis=1)
    return make_table(
        [f"{i}.png" for i in range(n)], p, CLASSES, label=[CLASSES[k] for k in y], group=group, split="val"
    )


def test_a_table_without_folds_is_calibrated_with_its_groups_kept_together():
    facts = calibration.from_table(uncalibrated(2000, groups=40), alpha=0.05, fitted_on="validation images")
    assert (facts["rows"], facts["fitted_on"], facts["conformal"]["alpha"]) == (2000, "validation images", 0.05)
    assert facts["temperature"] == pytest.approx(2.5, rel=0.15)
    assert facts["reliability"]["after"]["ece"] < 0.5 * facts["reliability"]["before"]["ece"]
    # One group counts as none: its images are told apart.
    assert "reliability" in calibration.from_table(uncalibrated(100, groups=1), alpha=0.1, fitted_on="")


def test_fewer_than_twenty_labelled_images_calibrate_nothing():
    assert calibration.from_table(uncalibrated(19), alpha=0.1, fitted_on="") == {}
    assert calibration.from_table(uncalibrated(20), alpha=0.1, fitted_on="")["rows"] == 20
    table = uncalibrated(40)
    table.label[20:] = ""
    assert calibration.from_table(table, alpha=0.1, fitted_on="")["rows"] == 20


def test_undoing_a_temperature_gives_the_reliability_of_the_network_itself():
    table = uncalibrated(500)
    scaled = calibration.apply_temperature(np.log(table.probabilities), 2.5)
    found = calibration.before_temperature(dataclasses.replace(table, probabilities=scaled), 2.5)
    parts = np.arange(500) % 2
    before = calibration.before_and_after(np.log(table.probabilities), table.truth(), parts)["before"]
    assert found["ece"] == pytest.approx(before["ece"])
    assert found["nll"] == pytest.approx(before["nll"])


def test_temperature_keeps_the_order_and_sums_to_one():
    z, _ = drawn(50)
    p = calibration.apply_temperature(z, 3.0)
    np.testing.assert_array_equal(p.argmax(1), z.argmax(1))
    np.testing.assert_allclose(p.sum(1), 1)


def test_every_class_is_covered_as_promised():
    shares = []
    for seed in range(30):
        z, y = drawn(1200, seed=seed)
        p = calibration.apply_temperature(z, 1.0)
        facts = calibration.fit_conformal(p[:600], y[:600], CLASSES, alpha=0.1)
        sets = calibration.prediction_sets(p[600:], facts["thresholds"], CLASSES)
        shares.append([sets[y[600:] == k, k].mean() for k in range(3)])
    assert np.mean(shares, 0) == pytest.approx(0.9, abs=0.02)  # three standard errors


def test_a_rare_class_takes_the_pooled_threshold_and_is_named():
    z, y = drawn(300)
    y[y == 2] = 0
    y[:4] = 2
    facts = calibration.fit_conformal(calibration.apply_temperature(z, 1.0), y, CLASSES, alpha=0.1)
    assert facts["rare"] == ["c"]
    assert facts["counts"]["c"] == 4
    assert 0 <= facts["thresholds"]["c"] <= 1


def test_it_abstains_where_two_classes_fit_or_none():
    thresholds = {"a": 0.6, "b": 0.6, "c": 0.6}
    p = np.array([[0.9, 0.05, 0.05], [0.45, 0.45, 0.1], [0.34, 0.33, 0.33]])
    np.testing.assert_array_equal(calibration.abstain(p, thresholds, CLASSES), [False, True, True])


def test_the_energy_of_older_files_is_still_applied():
    facts = {"ood": {"score": "energy", "threshold": -3.0, "kept": 0.99}}
    z = np.array([[9.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(calibration.apply(facts, z, CLASSES).ood, [0, 1])


def test_a_calibration_file_is_applied_as_it_was_fitted():
    z, y = drawn(500, 2.0)
    facts = calibration.calibrate(z, y, CLASSES, alpha=0.1, fitted_on="500 rows")
    found = calibration.apply(facts, z, CLASSES)
    np.testing.assert_allclose(found.probabilities, calibration.apply_temperature(z, facts["temperature"]))
    assert set(found.abstain) <= {0, 1}
    assert (found.ood == -1).all()
    bare = calibration.apply({}, z, CLASSES)
    assert (bare.abstain == -1).all()
    assert (bare.ood == -1).all()


@pytest.mark.parametrize("facts", [{"temperature": 0}, {"temperature": "x"}, {"conformal": {"thresholds": {"a": 0.5}}}])
def test_a_calibration_that_does_not_fit_is_refused(facts):
    with pytest.raises(UserError, match=r"calibration\.json"):
        calibration.apply(facts, np.zeros((2, 3)), CLASSES)


def test_under_several_seeds_one_network_is_calibrated_and_not_their_mean():
    """The mean of networks that err apart is surer and better than the one that is shipped."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 600)
    logits = 2.0 * np.eye(3)[truth] + rng.normal(0, 1.5, (4, 600, 3))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    label, path, names = [("a", "b", "c")[k] for k in truth], [f"{i:03}" for i in range(600)], ("a", "b", "c")
    single = [make_table(path, p[s], names, label=label, seed=s) for s in range(4)]
    whole = make_table(path * 4, p.reshape(-1, 3), names, label=label * 4, seed=np.arange(4).repeat(600))
    alone = np.mean([calibration.from_table(table, alpha=0.1, fitted_on="")["temperature"] for table in single])
    facts = calibration.from_table(whole, alpha=0.1, fitted_on="")
    assert facts["rows"] == 600
    assert facts["temperature"] == pytest.approx(alone, rel=0.1)
