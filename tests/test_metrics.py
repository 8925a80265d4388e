"""Metrics agree with scikit-learn, and their intervals hold what they promise."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation import influence
from rcmnet_jax.evaluation.influence import Outcome
from rcmnet_jax.evaluation.intervals import interval, make_units, wilson
from rcmnet_jax.evaluation.metrics import HEADLINES, compute, summary_rows, to_json
from rcmnet_jax.evaluation.tables import join, make_table


def fake(n=120, k=3, *, signal=2.0, groups=0, seed=0, run=0, absent=()):
    """A table of n images whose logits are normal and raised by `signal` at the true class."""
    rng = np.random.default_rng(seed)
    allowed = [i for i in range(k) if i not in absent]
    truth = rng.choice(allowed, n)
    logits = np.random.default_rng(seed + 1000 * (run + 1)).normal(size=(n, k))
    logits[np.arange(n), truth] += signal
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    group = [f"g{i % groups}" for i in range(n)] if groups else None
    classes = [f"c{i}" for i in range(k)]
    label = [classes[i] for i in truth]
    return make_table(
        [f"{i}.png" for i in range(n)], p, classes, label=label, group=group, seed=run, fold=np.arange(n) % 4
    )


def outcome(table):
    return Outcome(table.truth(), table.probabilities.argmax(1), table.probabilities)


@pytest.mark.parametrize(("k", "signal"), [(2, 1.0), (5, 2.0)])
def test_values_agree_with_scikit_learn(k, signal):
    sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    table = fake(200, k, signal=signal)
    y, p = table.truth(), table.probabilities
    said, one_hot = p.argmax(1), np.eye(k)[y]
    found = compute(table)
    expected = {
        "top1": sk.accuracy_score(y, said),
        "balanced_accuracy": sk.balanced_accuracy_score(y, said),
        "macro_f1": sk.f1_score(y, said, average="macro"),
        "auroc": sk.roc_auc_score(one_hot, p, average="macro"),
        "nll": sk.log_loss(y, p),
        "brier": sk.brier_score_loss(y, p, scale_by_half=False),
        "macro_auprc": sk.average_precision_score(one_hot, p, average="macro"),
        "mcc": sk.matthews_corrcoef(y, said),
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-12), name
    precision, recall, f1, support = sk.precision_recall_fscore_support(y, said)
    for i in range(k):
        entry = found["per_class"][f"c{i}"]
        assert entry["ppv"]["value"] == pytest.approx(precision[i])
        assert entry["sensitivity"]["value"] == pytest.approx(recall[i])
        assert entry["f1"]["value"] == pytest.approx(f1[i])
        assert entry["support"] == support[i]
        assert entry["auroc"]["value"] == pytest.approx(sk.roc_auc_score(one_hot[:, i], p[:, i]))
    np.testing.assert_array_equal(found["confusion"], sk.confusion_matrix(y, said))


def test_tied_scores_count_as_scikit_learn_counts_them():
    sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    table = fake(150, 3)
    p = np.round(table.probabilities, 1)
    rows = Outcome(table.truth(), p.argmax(1), p)
    for k in range(3):
        assert influence.auroc_of(rows, k).value == pytest.approx(sk.roc_auc_score(rows.truth == k, p[:, k]))
        assert influence.auprc_of(rows, k).value == pytest.approx(sk.average_precision_score(rows.truth == k, p[:, k]))


METRICS = ["top1", "nll", "brier", "balanced_accuracy", "macro_f1", "macro_auroc", "macro_auprc", "mcc"]


@pytest.mark.parametrize("name", METRICS)
def test_an_influence_is_the_change_when_a_row_is_doubled(name):
    rows, metric = outcome(fake(400, 3, signal=1.0)), getattr(influence, name)
    whole = metric(rows)
    assert whole.influence.sum() == pytest.approx(0, abs=1e-10)
    for i in range(0, 400, 57):
        more = metric(rows.select(np.append(np.arange(400), i)))
        assert more.value - whole.value == pytest.approx(whole.influence[i], abs=6e-5)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 30),
    k=st.integers(2, 4),
    groups=st.sampled_from([0, 1, 2, 3, 12]),
    signal=st.sampled_from([0.0, 2.0, 50.0, 500.0, -50.0]),
    seed=st.integers(0, 50),
)
def test_every_interval_holds_its_value_or_gives_a_reason(n, k, groups, signal, seed):
    found = compute(fake(n, k, groups=groups, signal=signal, seed=seed))
    entries = [found[name] for name in [*HEADLINES, "mcc", "macro_auprc"]]
    entries += [e for c in found["per_class"].values() for e in c.values() if isinstance(e, dict)]
    for entry in entries:
        if entry["value"] is None:
            assert (entry["low"], entry["high"]) == (None, None)
            assert entry["reason"]
        else:
            assert entry["low"] <= entry["value"] <= entry["high"]
            assert entry["method"]
    json.loads(to_json(found))


def test_the_accuracy_of_single_images_has_wilsons_interval():
    assert wilson(0.9963, 3418) == pytest.approx((0.99363, 0.99785), abs=1e-4)
    found = compute(fake(100, signal=50))["top1"]
    assert (found["value"], found["high"]) == (1.0, 1.0)
    assert found["low"] == pytest.approx(wilson(1.0, 100)[0])


def test_equal_input_gives_equal_bytes():
    assert to_json(compute(fake(groups=12), seed=3)) == to_json(compute(fake(groups=12), seed=3))


def test_repeated_seeds_do_not_narrow_an_interval_and_their_spread_stands_apart():
    one = fake(200, signal=1)
    same = [one, *(make_table(one.path, one.probabilities, one.classes, label=one.label, seed=s) for s in (1, 2, 3))]
    single = interval(make_units(one), [influence.top1(outcome(one))], by_class=False)
    many = compute(join(same))
    assert many["n"] == 200
    assert many["rows"] == 800
    assert many["top1"]["high"] - many["top1"]["low"] == pytest.approx(single["high"] - single["low"])
    assert many["per_seed"]["top1"]["sd"] == pytest.approx(0, abs=1e-12)
    narrow, wide = many["ece"], compute(one)["ece"]
    assert narrow["high"] - narrow["low"] > 0.8 * (wide["high"] - wide["low"])
    spread = compute(join([fake(200, signal=1, run=s) for s in range(4)]))["per_seed"]["top1"]
    assert spread["sd"] == pytest.approx(np.std(spread["values"], ddof=1))
    assert len(spread["values"]) == 4


def test_groups_widen_an_interval_when_their_images_fail_together():
    p = np.repeat([[0.9, 0.1], [0.2, 0.8]], [160, 40], axis=0)
    paths, labels, groups = [str(i) for i in range(200)], ["x"] * 200, [f"g{i // 10}" for i in range(200)]
    alone, grouped = (compute(make_table(paths, p, ("x", "y"), label=labels, group=g))["top1"] for g in (None, groups))
    assert grouped["high"] - grouped["low"] > 2 * (alone["high"] - alone["low"])


def test_few_groups_warn_and_show_each_group():
    found = compute(fake(groups=4))
    assert found["groups"] == len(found["per_group"]) == 4
    assert any("Only 4 groups" in line for line in found["warnings"])
    assert "4 groups" in found["top1"]["method"]
    assert len(found["per_fold"]) == 4


def test_a_class_without_images_is_left_out_and_said():
    found = compute(fake(absent=(2,)))
    assert found["per_class"]["c2"]["sensitivity"]["value"] is None
    assert any("No image of c2" in line for line in found["warnings"])
    alone = compute(fake(absent=(1, 2)))
    assert alone["auroc"]["value"] is None
    assert alone["auroc"]["reason"]
    assert ("Macro AUROC", "-", alone["auroc"]["reason"]) in summary_rows(alone)


def test_areas_of_a_class_without_an_image_of_another_are_undefined():
    found = compute(fake(absent=(1, 2)))
    for key in ("auroc", "auprc"):
        assert found["per_class"]["c0"][key]["value"] is None
        assert found["per_class"]["c0"][key]["reason"] == "no image of another class"
        assert found["per_class"]["c1"][key]["reason"] == "no image of this class"
    assert found["macro_auprc"]["value"] is None
    assert found["macro_auprc"]["reason"] == "fewer than two classes are present"


@pytest.mark.parametrize("key", ["ece", "classwise_ece"])
def test_a_calibration_error_without_visible_variance_has_an_interval_all_the_same(key):
    alone = compute(fake(1))[key]
    assert (alone["low"], alone["high"], alone["corrected"]) == (0, 1, None)
    paths = [str(i) for i in range(20)]
    widths = []
    for n in (20, 10):
        same = make_table(paths[:n], np.tile([0.8, 0.2], (n, 1)), ("x", "y"), label=["x"] * n)
        entry = compute(same)[key]
        assert entry["value"] == pytest.approx(0.2)
        assert entry["low"] < 0.15 < 0.25 < entry["high"] < 1
        widths.append(entry["high"] - entry["low"])
    assert widths[1] > widths[0]


def test_one_group_and_rows_without_a_group_are_not_called_all_of_one_group():
    table = fake(40, groups=1)
    assert any("come from one group: the intervals" in line for line in compute(table)["warnings"])
    table.group[:7] = ""
    lines = compute(table)["warnings"]
    assert any("7 rows have no group" in line for line in lines)
    assert not any("All images come from one group" in line for line in lines)


def test_unlabelled_rows_do_not_count_and_none_labelled_is_refused():
    table = fake(40)
    blank = make_table(["x"], np.array([[0.2, 0.3, 0.5]]), table.classes, seed=0)
    found = compute(join([table, blank]))
    assert (found["n"], found["unlabelled"]) == (40, 1)
    with pytest.raises(UserError, match="no labels"):
        compute(blank)


def test_the_calibration_error_of_a_calibrated_model_has_zero_in_its_interval():
    hold, zero = 0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p = rng.dirichlet([1, 1, 1], 300)
        truth = (p.cumsum(1) < rng.random((300, 1))).sum(1)
        table = make_table([str(i) for i in range(300)], p, ("a", "b", "c"), label=[("a", "b", "c")[i] for i in truth])
        entry = compute(table)["ece"]
        hold += entry["low"] <= entry["value"] <= entry["high"]
        zero += entry["low"] == 0
        assert entry["corrected"] <= entry["value"]
    assert hold == 40
    assert zero >= 36


def test_no_warning_is_raised_on_an_ordinary_table():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compute(fake(60, groups=12))


@pytest.mark.slow
@pytest.mark.parametrize("groups", [0, 100])
def test_intervals_cover_the_truth_at_their_level(groups):
    from benchmarks.interval_coverage import Setting, coverage

    found = coverage(Setting(images=500, classes=3, signal=2.0, groups=groups, spread=0.7), tables=300, seed=1)
    for name, share in found.items():
        assert 0.915 <= share <= 0.98, name


def test_a_group_in_two_folds_is_warned_of():
    cut, whole = fake(groups=10), fake(groups=12)  # folds go by fours: 12 groups fit them, 10 do not
    assert compute(cut)["groups_cut"] == 10
    assert any("more than one fold" in line for line in compute(cut)["warnings"])
    assert compute(whole)["groups_cut"] == 0


def test_rows_that_were_trained_on_are_warned_of():
    table = fake(40)
    more = make_table(
        table.path, table.probabilities, table.classes, label=table.label, split=["train"] + ["test"] * 39
    )
    found = compute(more)
    assert found["splits"] == {"test": 39, "train": 1}
    assert any("1 rows were trained on" in line for line in found["warnings"])


def test_a_rare_class_that_is_all_right_is_bounded_by_its_own_images_under_seeds_and_groups_too():
    truth = np.r_[np.zeros(3, int), np.repeat([1, 2], 50)]
    label = [("x", "y", "z")[k] for k in truth]
    p, path, ones = np.eye(3)[truth], [str(i) for i in range(103)], np.ones(103, int)
    whole = make_table(path * 2, np.r_[p, p], ("x", "y", "z"), label=label * 2, seed=np.r_[0 * ones, ones])
    for name in ("sensitivity", "f1", "auroc"):
        low = compute(whole)["per_class"]["x"][name]["low"]
        assert low == pytest.approx(wilson(1.0, 3)[0], abs=1e-9), name
    assert compute(whole)["per_class"]["x"]["specificity"]["low"] == pytest.approx(wilson(1.0, 100)[0], abs=1e-9)


def test_how_sure_a_predictive_value_is_hangs_on_the_rows_that_were_called_so():
    truth = np.repeat([0, 1], 100)
    said = np.where(np.arange(200) < 2, 0, 1)  # of the first class two are called so, both rightly
    path, label, p = [str(i) for i in range(200)], [("x", "y")[k] for k in truth], np.eye(2)[said]
    twice = make_table(path * 2, np.r_[p, p], ("x", "y"), label=label * 2, seed=np.arange(2).repeat(200))
    grouped = make_table(path, p, ("x", "y"), label=label, group=[f"g{i}" for i in range(200)])
    for table in (twice, grouped):
        assert compute(table)["per_class"]["x"]["ppv"]["low"] == pytest.approx(wilson(1.0, 2)[0], abs=1e-9)


def test_a_class_in_one_group_has_the_spread_of_its_images():
    """Without it nothing is unsure here: within its one group the influences of its images sum to nothing."""
    truth = np.r_[np.zeros(20, int), np.ones(200, int)]
    said = np.r_[np.arange(20) % 10 >= 8, np.ones(200, bool)].astype(int)  # of the first class 16 of 20 right, else all
    group = ["a"] * 20 + [f"b{i}" for i in range(200)]
    label = [("x", "y")[k] for k in truth]
    table = make_table([str(i) for i in range(220)], np.eye(2)[said], ("x", "y"), label=label, group=group)
    entry = compute(table)["balanced_accuracy"]
    alone = 0.5 * np.sqrt(0.8 * 0.2 / 20)  # of the class's recall, half of which counts; one degree of freedom
    step = stats.t.ppf(0.975, 1) * alone / (0.9 * 0.1)
    limits = [special.expit(special.logit(0.9) + sign * step) for sign in (-1, 1)]
    np.testing.assert_allclose([entry["low"], entry["high"]], limits, rtol=1e-6)
    assert any("the intervals take these images as if each were a group" in line for line in compute(table)["warnings"])


def labelled(right, confidence, *, seed=0, group=None, classes=("a", "b"), truth=None):
    """A table of two classes whose rows are right or not, at the confidence given."""
    right, n = np.asarray(right), len(right)
    truth = np.arange(n) % 2 if truth is None else np.asarray(truth)
    said = np.where(right, truth, 1 - truth)
    p = np.full((n, 2), 1 - np.broadcast_to(confidence, n)[:, None])
    p[np.arange(n), said] = confidence
    label = [classes[k] for k in truth]
    return make_table([f"{i}.png" for i in range(n)], p, classes, label=label, group=group, seed=seed)


@pytest.mark.parametrize(("accuracy", "n"), [(0.97, 60), (0.99, 200)])
def test_where_every_image_is_right_the_intervals_allow_for_errors_to_come(accuracy, n):
    """A model of this accuracy often has none in so few; what it states says nothing of the truth then."""
    stated = np.random.default_rng(0).uniform(0.985, 0.999, n)
    found = compute(labelled(np.ones(n, bool), stated))
    wrong = np.array([(1 - accuracy) * (-np.log(1 - s)) + accuracy * -np.log(s) for s in stated]).mean()
    assert found["nll"]["low"] <= found["nll"]["value"] < wrong < found["nll"]["high"]
    assert found["ece"]["low"] <= stated.mean() - accuracy <= found["ece"]["high"]
    assert found["brier"]["high"] > 2 * (1 - accuracy)


def test_limits_of_perfect_groups_hold_their_value():
    found = compute(labelled(np.ones(40, bool), 0.9, group=[f"g{i % 4}" for i in range(40)]))
    for part in found["per_group"]:
        assert part["top1"]["low"] <= part["top1"]["value"] <= part["top1"]["high"], part


def test_support_counts_the_images_of_all_seeds():
    one, two = labelled(np.ones(10, bool), 0.9), labelled(np.ones(6, bool), 0.9, seed=1)
    two = dataclasses.replace(two, path=np.array([f"other{i}.png" for i in range(6)]))
    found = compute(join([one, two]))
    assert (found["n"], [found["per_class"][name]["support"] for name in "ab"]) == (16, [8, 8])
    again = compute(join([one, labelled(np.ones(10, bool), 0.9, seed=1)]))
    assert [again["per_class"][name]["support"] for name in "ab"] == [5, 5]
