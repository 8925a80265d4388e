"""Every figure of an evaluation of real cells is computed anew, by scikit-learn, SciPy and plain loops, and agrees."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import special, stats
from sklearn import metrics as sk

from rcmnet_jax.report.evaluate import evaluate_tables
from tests.real_tables import NAMES, real, unpacked

RATES = ("sensitivity", "specificity", "ppv", "npv")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Each table's own metrics.json, and the folder of the evaluation of the T cells' three arms together."""
    folder = tmp_path_factory.mktemp("evaluated")
    paths = {name: unpacked(name, folder) for name in NAMES}
    evaluate_tables([paths["pbc_val"]], folder / "pbc")
    evaluate_tables([paths[name] for name in NAMES[1:]], folder / "tcell")
    return folder


def stored(folder, name):
    return json.loads((folder / ("pbc" if name == "pbc_val" else "tcell") / "metrics.json").read_text())


def equal_mass(scores, bins):
    """Bin of each row by its middle rank, ties together."""
    return np.floor((stats.rankdata(scores) - 0.5) / len(scores) * bins).astype(int)


def gap(stated, real_, place):
    return sum(abs((real_ - stated)[place == b].sum()) for b in np.unique(place)) / len(stated)


def point_values(t):
    one_hot, n = np.eye(len(t.classes))[t.truth], len(t.truth)
    stated = t.p.max(1)
    order = np.argsort(-stated, kind="stable")
    risks = [1 - t.right[order[: i + 1]].mean() for i in range(n)]
    own = [gap(t.p[:, k], one_hot[:, k], equal_mass(t.p[:, k], 15)) for k in range(len(t.classes))]
    clipped = np.clip(t.p[np.arange(n), t.truth], np.finfo(float).eps, 1)
    return {
        "top1": sk.accuracy_score(t.truth, t.said),
        "balanced_accuracy": sk.balanced_accuracy_score(t.truth, t.said),
        "macro_f1": sk.f1_score(t.truth, t.said, average="macro"),
        "auroc": np.mean([sk.roc_auc_score(one_hot[:, k], t.p[:, k]) for k in range(len(t.classes))]),
        "macro_auprc": np.mean([sk.average_precision_score(one_hot[:, k], t.p[:, k]) for k in range(len(t.classes))]),
        "mcc": sk.matthews_corrcoef(t.truth, t.said),
        "nll": -np.log(clipped).mean(),
        "brier": ((t.p - one_hot) ** 2).sum(1).mean(),
        "ece": gap(stated, t.right, equal_mass(stated, 15)),
        "equal_width_ece": gap(stated, t.right, np.minimum((stated * 15).astype(int), 14)),
        "classwise_ece": np.mean(own),
        "mean_confidence": stated.mean(),
        "aurc": np.mean(risks),
    }


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


def counts(t, k):
    """Hits and cases behind each rate of class k."""
    is_k, said_k = t.truth == k, t.said == k
    return {
        "sensitivity": ((is_k & said_k).sum(), is_k.sum()),
        "specificity": ((~is_k & ~said_k).sum(), (~is_k).sum()),
        "ppv": ((is_k & said_k).sum(), said_k.sum()),
        "npv": ((~is_k & ~said_k).sum(), (~said_k).sum()),
    }


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
    return {
        "balanced_accuracy": sk.balanced_accuracy_score(truth, said),
        "macro_f1": sk.f1_score(truth, said, average="macro"),
        "auroc": np.mean([sk.roc_auc_score(truth == c, p[:, c]) for c in range(k)]),
        "macro_auprc": np.mean([sk.average_precision_score(truth == c, p[:, c]) for c in range(k)]),
        "mcc": sk.matthews_corrcoef(truth, said),
        "nll": -np.log(p[np.arange(len(rows)), truth]).mean(),
        "brier": ((p - np.eye(k)[truth]) ** 2).sum(1).mean(),
    }


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


@pytest.mark.parametrize("name", ["top1", "balanced_accuracy", "macro_f1", "nll", "brier", "mcc"])
def test_intervals_of_four_donors_are_students_with_a_jackknife_over_donors(evaluated, name):
    t, entry = real("tcell_transfer"), stored(evaluated, "tcell_transfer")[name]
    donors = sorted(set(t.group))

    def value(rows):
        return t.right[rows].mean() if name == "top1" else fast_values(t, np.flatnonzero(rows))[name]

    left_out = [value(t.group != donor) for donor in donors]
    error = np.sqrt(3 / 4 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    whole = value(np.full(len(t.path), True))
    freedom = float(re.search(r"\(([\d.]+) degrees", entry["method"]).group(1))
    assert freedom <= 3
    scale = {"nll": "positive", "brier": "positive", "mcc": "signed"}.get(name, "unit")
    slope = {"unit": 1 / (whole * (1 - whole)), "positive": 1 / whole, "signed": 2 / (1 - whole**2)}[scale]
    to_scale = SCALES[scale][0]
    low, high = to_scale(entry["low"]), to_scale(entry["high"])
    assert (low + high) / 2 == pytest.approx(to_scale(whole), rel=1e-6)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, freedom) * error * slope, rel=0.25)


class Tables(HTMLParser):
    """Cells of each table of a page, by caption or heading row, as lists of text."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.cell = [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):  # noqa: ARG002
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.cell = None if tag in ("td", "th") else self.cell

    def handle_data(self, data):
        if self.cell:
            self.tables[-1][-1][-1] += data

    def headed(self, *names):
        return next(rows for rows in self.tables if rows and set(names) <= set(rows[0]))


def shown(text, value):
    """Whether the first number of a cell is the value, rounded to the digits that it shows."""
    number, percent = re.match(r"(\d+(?:\.\d+)?)(%?)", text).groups()
    digits = len(number.partition(".")[2])
    return abs(float(number) - value * (100 if percent else 1)) <= 0.5 * 10.0**-digits + 1e-9


@pytest.mark.parametrize(("folder", "arms"), [("pbc", NAMES[:1]), ("tcell", NAMES[1:])])
def test_every_table_of_the_report(evaluated, folder, arms):
    page = Tables((evaluated / folder / "report.html").read_text(encoding="utf-8"))
    keys = ("top1", "balanced_accuracy", "macro_f1", "auroc", "nll", "brier", "ece")
    for name, row in zip(arms, page.headed("arm", "n")[1:], strict=True):
        values = point_values(real(name))
        assert all(shown(cell, values[key]) for key, cell in zip(keys, row[1:-1], strict=True)), row
        assert row[-1] == str(len(real(name).path))
    t = real(arms[0])
    matrix = [[int(cell) for cell in row[1:]] for row in page.headed(r"truth \ predicted", *t.classes)[1:]]
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(t.truth, t.said))
    f1 = sk.f1_score(t.truth, t.said, average=None)
    for k, row in enumerate(page.headed("class", "PPV")[1:]):
        rates = [hits / cases for hits, cases in counts(t, k).values()]
        area = sk.roc_auc_score(t.truth == k, t.p[:, k])
        assert row[:2] == [t.classes[k], str((t.truth == k).sum())]
        assert all(shown(cell, value) for cell, value in zip(row[2:], [*rates, f1[k], area], strict=True)), row
    if folder == "tcell":
        for row in page.headed("group", "images")[1:]:
            rows = t.group == row[0]
            assert row[1] == str(rows.sum())
            assert shown(row[2], t.right[rows].mean())


def test_the_comparison_of_the_arms(evaluated):
    found = json.loads((evaluated / "tcell/comparison.json").read_text())
    first = real("tcell_transfer")
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
    for key in ("top1", "balanced_accuracy"):
        least, most = sorted(found["pairs"], key=lambda pair: pair[key]["p"])
        assert least[key]["p_holm"] == pytest.approx(min(2 * least[key]["p"], 1))
        assert most[key]["p_holm"] == pytest.approx(max(least[key]["p_holm"], most[key]["p"]))
