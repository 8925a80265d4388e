"""Every figure of an evaluation of real cells is computed anew, by scikit-learn, SciPy and plain loops, and agrees.

What is left out is said under "Values" in docs/evaluation.md.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scipy import special, stats
from sklearn import metrics as sk

from tests.real_tables import NAMES, real
from tests.recomputed import (
    Page,
    counts,
    ece_interval,
    equal_mass,
    evaluate,
    influences,
    of_classes,
    of_top,
    p_shown,
    point_values,
    shown,
    stored,
    student,
    weighted,
)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The folder of the evaluations of both sets."""
    return evaluate(tmp_path_factory.mktemp("evaluated"))


@pytest.mark.parametrize("name", ["pbc_val", "tcell_transfer"])
def test_every_value_of_the_whole_table(evaluated, name):
    t, found = real(name), stored(evaluated, name)
    for key, value in point_values(t).items():
        entry = found[key]["value"] if key in found else found["calibration"][key]
        assert entry == pytest.approx(value, abs=1e-9), key
    assert (found["n"], found["rows"], found["unlabelled"]) == (len(t.path), len(t.path), 0)
    assert found["groups"] == len(set(t.group) - {""})
    assert found["classes"] == t.classes
    np.testing.assert_array_equal(found["confusion"], sk.confusion_matrix(t.truth, t.said))
    for key in ("top1", "balanced_accuracy", "macro_f1"):
        assert found["per_seed"][key]["values"] == [pytest.approx(found[key]["value"])]
        assert found["per_seed"][key]["sd"] is None


@pytest.mark.parametrize("name", ["pbc_val", "tcell_transfer"])
def test_the_reliability_diagram_and_murphys_parts(evaluated, name):
    t, found = real(name), stored(evaluated, name)["calibration"]
    stated = t.p.max(1)
    place = equal_mass(stated, 10)
    expected = [(stated[place == b].mean(), t.right[place == b].mean(), (place == b).sum()) for b in np.unique(place)]
    assert [(b["confidence"], b["accuracy"], b["count"]) for b in found["bins"]] == [
        (pytest.approx(said), pytest.approx(seen), count) for said, seen, count in expected
    ]
    place, base = equal_mass(stated, 15), t.right.mean()
    parts = [(np.mean(place == b), stated[place == b].mean(), t.right[place == b].mean()) for b in np.unique(place)]
    assert found["top_label_reliability"] == pytest.approx(sum(w * (s - a) ** 2 for w, s, a in parts))
    assert found["top_label_resolution"] == pytest.approx(sum(w * (a - base) ** 2 for w, _, a in parts))
    assert found["top_label_uncertainty"] == pytest.approx(base * (1 - base))


@pytest.mark.parametrize("name", ["pbc_val", "tcell_transfer"])
def test_every_value_of_each_class(evaluated, name):
    t, found = real(name), stored(evaluated, name)["per_class"]
    f1 = sk.f1_score(t.truth, t.said, average=None)
    for k, label in enumerate(t.classes):
        entry = found[label]
        for key, (hits, cases) in counts(t, k).items():
            assert entry[key]["value"] == pytest.approx(hits / cases), (label, key)
            if name == "pbc_val":  # images on their own: Wilson's interval, to the digit
                limits = stats.binomtest(int(hits), int(cases)).proportion_ci(0.95, "wilson")
                assert (entry[key]["low"], entry[key]["high"]) == pytest.approx((limits.low, limits.high))
        assert entry["support"] == (t.truth == k).sum()
        assert entry["f1"]["value"] == pytest.approx(f1[k])
        assert entry["auroc"]["value"] == pytest.approx(sk.roc_auc_score(t.truth == k, t.p[:, k]))
        assert entry["auprc"]["value"] == pytest.approx(sk.average_precision_score(t.truth == k, t.p[:, k]))


def test_every_donor_and_every_fold(evaluated):
    t, found = real("tcell_transfer"), stored(evaluated, "tcell_transfer")
    for key, column in (("group", t.group), ("fold", t.fold)):
        assert [str(part[key]) for part in found[f"per_{key}"]] == sorted(set(column))
        for part in found[f"per_{key}"]:
            rows = column == str(part[key])
            limits = stats.binomtest(int(t.right[rows].sum()), int(rows.sum())).proportion_ci(0.95, "wilson")
            assert part["n"] == rows.sum()
            assert part["top1"]["value"] == pytest.approx(t.right[rows].mean())
            assert (part["top1"]["low"], part["top1"]["high"]) == pytest.approx((limits.low, limits.high))
            balanced = np.mean([t.right[rows & (t.truth == k)].mean() for k in np.unique(t.truth[rows])])
            assert part["balanced_accuracy"] == pytest.approx(balanced)


SCALES = {
    "unit": (special.logit, ("balanced_accuracy", "macro_f1", "auroc", "macro_auprc")),
    "signed": (lambda v: special.logit((v + 1) / 2), ("mcc",)),
    "positive": (np.log, ("nll", "brier")),
}


def fast_values(t, rows):
    """Those metrics of a resample that the intervals are of, by counting."""
    k, truth, said, p = len(t.classes), t.truth[rows], t.said[rows], t.p[rows]
    of_class = class_values(t, rows)
    return {
        "of_class": of_class,
        "balanced_accuracy": sk.balanced_accuracy_score(truth, said),
        "macro_f1": sk.f1_score(truth, said, average="macro"),
        "auroc": of_class[1].mean(),
        "macro_auprc": of_class[2].mean(),
        "mcc": sk.matthews_corrcoef(truth, said),
        "nll": -np.log(p[np.arange(len(rows)), truth]).mean(),
        "brier": ((p - np.eye(k)[truth]) ** 2).sum(1).mean(),
    }


def class_values(t, rows):
    """(3, K): F1, AUROC and AUPRC of each class."""
    k, truth, p = len(t.classes), t.truth[rows], t.p[rows]
    area = [sk.roc_auc_score(truth == c, p[:, c]) for c in range(k)]
    average = [sk.average_precision_score(truth == c, p[:, c]) for c in range(k)]
    return np.array([sk.f1_score(truth, t.said[rows], average=None), area, average])


def delong(t, k):
    """Standard error of class k's AUROC after DeLong et al. 1988."""
    real_, others = t.p[t.truth == k, k], t.p[t.truth != k, k]
    wins = (real_[:, None] > others) + 0.5 * (real_[:, None] == others)
    return np.sqrt(wins.mean(1).var(ddof=1) / len(real_) + wins.mean(0).var(ddof=1) / len(others))


def nearly_whole(t, k, step=1e-4):
    """Standard error of class k's AUPRC from its slope in each image's weight, where it is above 0.9999, else None.

    There a few pairs of images decide, and a resample's values vary more than slopes, the first order, can say.
    """
    is_k, whole = t.truth == k, sk.average_precision_score(t.truth == k, t.p[:, k])
    if whole < 0.9999:
        return None
    weights = np.ones((len(is_k), len(is_k))) + step * np.eye(len(is_k))
    moved = [sk.average_precision_score(is_k, t.p[:, k], sample_weight=w) for w in weights]
    return np.sqrt((((np.array(moved) - whole) / step) ** 2).sum())


EXACT = (delong, nearly_whole)


@pytest.mark.slow
def test_intervals_of_single_images_are_as_wide_as_a_bootstrap_makes_them(evaluated):
    t, found = real("pbc_val"), stored(evaluated, "pbc_val")
    n, rng = len(t.truth), np.random.default_rng(0)
    draws = [fast_values(t, rng.integers(0, n, n)) for _ in range(200)]
    limits = stats.binomtest(int(t.right.sum()), n).proportion_ci(0.95, "wilson")
    assert (found["top1"]["low"], found["top1"]["high"]) == pytest.approx((limits.low, limits.high))
    for to_scale, names in SCALES.values():
        for name in names:
            spread = np.std([to_scale(draw[name]) for draw in draws], ddof=1)
            low, high = (to_scale(found[name][end]) for end in ("low", "high"))
            freedom = float(re.search(r"\(([\d.e+]+) degrees", found[name]["method"]).group(1))
            expected = 2 * stats.t.ppf(0.975, freedom) * spread
            assert high - low == pytest.approx(expected, rel=0.2), name  # 200 draws know the spread to 5% (sd)
    spreads = np.std([draw["of_class"] for draw in draws], axis=0, ddof=1)
    spreads[1:] = [[exact(t, k) or s for k, s in enumerate(row)] for exact, row in zip(EXACT, spreads[1:], strict=True)]
    for key, spread_of in zip(("f1", "auroc", "auprc"), spreads, strict=True):
        for label, spread in zip(t.classes, spread_of, strict=True):
            entry = found["per_class"][label][key]
            value, freedom = entry["value"], float(re.search(r"\(([\d.e+]+) degrees", entry["method"]).group(1))
            half = (special.logit(entry["high"]) - special.logit(entry["low"])) / 2
            assert special.logit([entry["low"], entry["high"]]).mean() == pytest.approx(special.logit(value))
            expected = stats.t.ppf(0.975, freedom) * spread / (value * (1 - value))
            close = 0.01 if key == "auroc" else 0.2
            assert half == pytest.approx(expected, rel=close), (label, key)


def test_intervals_of_four_donors_are_students_over_donors_to_the_digit(evaluated):
    t, found = real("tcell_transfer"), stored(evaluated, "tcell_transfer")
    values = weighted(t, np.ones(len(t.path)))
    for name, cells in influences(t).items():
        entry = found["per_class"][name[0]][name[1]] if isinstance(name, tuple) else found[name]
        low, high, freedom = student(t, name, values[name], cells)
        assert (entry["low"], entry["high"]) == pytest.approx((low, high), rel=1e-5), name
        assert f"over 4 groups ({freedom:.3g} degrees" in entry["method"]


@pytest.mark.parametrize("name", ["pbc_val", "tcell_transfer"])
@pytest.mark.parametrize("key", ["ece", "classwise_ece"])
def test_the_interval_of_each_ece_and_its_corrected_value(evaluated, name, key):
    t, found = real(name), stored(evaluated, name)[key]
    unit, rng = t.path if name == "pbc_val" else t.group, np.random.default_rng(1)
    cells = of_top(t) if key == "ece" else of_classes(t)
    again = np.array([ece_interval(cells, unit, rng) for _ in range(20)])
    given = [found[key] for key in ("low", "high", "corrected")]
    # Both sides draw 2,000 times: the mean of the 20 and their spread tell where one more may lie.
    assert (abs(given - again.mean(0)) <= 4 * again.std(0, ddof=1) + 1e-6).all(), (given, again.mean(0))


ERRORS = ("ece", "classwise_ece", "equal_width_ece")


def over_donors(t, keys):
    """Name to {"low", "high"}: the intervals over donors."""
    values, slopes = weighted(t, np.ones(len(t.path))), influences(t)
    return {key: dict(zip(("low", "high"), student(t, key, values[key], slopes[key])[:2], strict=True)) for key in keys}


def limits_shown(text, entry):
    """Whether a table's cell, such as '95.3% 94.1–96.4%', ends with the entry's limits, rounded."""
    low, high, percent = re.search(r"(-?[\d.]+)–(-?[\d.]+)(%?)$", text.strip()).groups()
    return shown(low + percent, entry["low"]) and shown(high + percent, entry["high"])


@pytest.mark.parametrize(("folder", "arms"), [("pbc", NAMES[:1]), ("tcell", NAMES[1:])])
def test_every_table_of_the_report(evaluated, folder, arms):
    page = Page((evaluated / folder / "report.html").read_text(encoding="utf-8"))
    keys = ("top1", "balanced_accuracy", "macro_f1", "auroc", "macro_auprc", "mcc", "nll", "brier", "ece")
    found = stored(evaluated, arms[0])
    for name, row in zip(arms, page.headed("arm", "n")[1:], strict=True):
        values = point_values(real(name))
        assert all(shown(cell, values[key]) for key, cell in zip(keys, row[1:-1], strict=True)), row
        assert row[-1] == str(len(real(name).path))
        limits = found if name == arms[0] else over_donors(real(name), keys[:-1])
        assert all(limits_shown(cell, limits[key]) for key, cell in zip(keys, row[1:-1], strict=True) if key in limits)
    t = real(arms[0])
    matrix = [[int(cell) for cell in row[1:]] for row in page.headed(r"truth \ predicted", *t.classes)[1:]]
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(t.truth, t.said))
    values = point_values(t)
    for row, key in zip(page.headed("calibration error", "value")[1:], ERRORS, strict=True):
        assert shown(row[1], values[key]), row
        if key in found:  # its interval and corrected value are computed anew above
            assert limits_shown(row[1], found[key])
            assert shown(row[2], found[key]["corrected"]), row
    f1 = sk.f1_score(t.truth, t.said, average=None)
    for k, row in enumerate(page.headed("class", "PPV")[1:]):
        rates = [hits / cases for hits, cases in counts(t, k).values()]
        areas = [score(t.truth == k, t.p[:, k]) for score in (sk.roc_auc_score, sk.average_precision_score)]
        assert row[:2] == [t.classes[k], str((t.truth == k).sum())]
        assert all(shown(cell, value) for cell, value in zip(row[2:], [*rates, f1[k], *areas], strict=True)), row
        entries = [found["per_class"][t.classes[k]][key] for key in (*counts(t, k), "f1", "auroc", "auprc")]
        assert all(limits_shown(cell, entry) for cell, entry in zip(row[2:], entries, strict=True)), row
    if folder == "tcell":
        for column, values in (("group", t.group), ("fold", t.fold)):
            for name, images, top, balanced, present in page.headed(column, "images")[1:]:
                rows = values == name.split()[-1]
                low, high = stats.binomtest(int(t.right[rows].sum()), int(rows.sum())).proportion_ci(0.95, "wilson")
                assert (images, present) == (str(rows.sum()), str(len(set(t.truth[rows]))))
                assert shown(top, t.right[rows].mean())
                assert limits_shown(top, {"low": low, "high": high})
                assert shown(balanced, sk.balanced_accuracy_score(t.truth[rows], t.said[rows]))


def test_the_comparison_of_the_arms(evaluated):
    found = json.loads((evaluated / "tcell/comparison.json").read_text())
    first = real("tcell_transfer")
    page = Page((evaluated / "tcell/report.html").read_text(encoding="utf-8"))
    counted = {row[0]: row[-3:] for row in page.headed("against", "McNemar's p")[1:]}
    for name, pair in zip(NAMES[2:], found["pairs"], strict=True):
        other = real(name)
        at = {path: i for i, path in enumerate(other.path)}
        rows = [at[path] for path in first.path]
        right = other.right[rows]
        only, alone = int(((first.right == 1) & (right == 0)).sum()), int(((first.right == 0) & (right == 1)).sum())
        assert pair["mcnemar"]["p"] == pytest.approx(stats.binomtest(only, only + alone).pvalue)
        difference = sk.balanced_accuracy_score(first.truth, first.said)
        difference -= sk.balanced_accuracy_score(other.truth, other.said)
        assert pair["balanced_accuracy"]["difference"] == pytest.approx(difference)
        assert pair["top1"]["difference"] == pytest.approx(first.right.mean() - right.mean())
        assert counted[name] == [str(only), str(alone), p_shown(stats.binomtest(only, only + alone).pvalue)]
    for key in ("top1", "balanced_accuracy"):
        least, most = sorted(found["pairs"], key=lambda pair: pair[key]["p"])
        assert least[key]["p_holm"] == pytest.approx(min(2 * least[key]["p"], 1))
        assert most[key]["p_holm"] == pytest.approx(max(least[key]["p_holm"], most[key]["p"]))
