"""Every number in a report's sentences, captions, labels and legends is computed anew, and found there, rounded."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from tests.real_tables import NAMES, real
from tests.recomputed import (
    Page,
    equal_mass,
    evaluate,
    influences,
    matches,
    p_shown,
    point_values,
    shown,
    stored,
    student,
)

MORE = " That does not show them to be equal."


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The folder of the evaluations of both sets."""
    return evaluate(tmp_path_factory.mktemp("sentences"))


def wilson(right):
    limits = stats.binomtest(int(right.sum()), len(right)).proportion_ci(0.95, "wilson")
    return limits.low, limits.high


def ends(entry):
    """Limits from metrics.json, which tests/test_recomputation.py computes anew."""
    return [entry["low"], entry["high"]]


def on_certainty(t, found, values):
    """(template, numbers) of what is said of the whole: a # stands for a number."""
    main, ece = ends(found["balanced_accuracy"]), ends(found["ece"])
    chance, stated = 1 / len(set(t.truth)), t.p.max(1).mean()
    way = "too sure of itself" if stated > t.right.mean() else "too modest"
    start, more = "Confidences are as good as chance lets one tell:", []
    if ece[0] > 0:
        start, more = (f"The model is {way}: it states # on average;", [stated])
    return [
        ("# balanced accuracy", [values["balanced_accuracy"]]),
        ("#% interval # to #; guessing gives #.", [95, *main, chance]),
        ("# to # on a scale from 0 to 100 per cent; chance is #", [*main, chance]),
        ("Top-1 accuracy # (# to #).", [values["top1"], *ends(found["top1"])]),
        ("Macro AUROC # (# to #).", [values["auroc"], *ends(found["auroc"])]),
        (f"{start} calibration error # (# to #).", [*more, values["ece"], *ece]),
    ]


def on_failures(t, found):
    rates = {label: t.right[t.truth == k].mean() for k, label in enumerate(t.classes)}
    weak = min(rates, key=lambda label: (rates[label], label))
    limits = ends(found["per_class"][weak]["sensitivity"])
    support = (t.truth == t.classes.index(weak)).sum()
    lines = [(f"Weakest class: {weak}, sensitivity # (# to #) on # images.", [rates[weak], *limits, support])]
    pairs = list(itertools.permutations(range(len(t.classes)), 2))
    often = {pair: ((t.truth == pair[0]) & (t.said == pair[1])).sum() for pair in pairs}
    for a, b in sorted(pairs, key=lambda pair: -often[pair])[:3]:
        one, share = t.classes[a], often[a, b] / (t.truth == a).sum()
        lines.append((f"# × {one} taken for {t.classes[b]} (# of {one}).", [often[a, b], share]))
    return lines


def on_figures(t, values):
    right = t.right[np.argsort(-t.p.max(1), kind="stable")]
    errors = [1 - right[: int(share * len(right))].mean() for share in (0.5, 0.8, 1)]
    risk = "Risk against coverage. #% answered: # errors, #% answered: # errors, #% answered: # errors. Area #."
    place = equal_mass(t.p.max(1), 10)
    bins = [(t.p.max(1)[place == b].mean(), t.right[place == b].mean()) for b in np.unique(place)]
    area = {label: sk.roc_auc_score(t.truth == k, t.p[:, k]) for k, label in enumerate(t.classes)}
    order = sorted(area, key=lambda label: (area[label], t.classes.index(label)))
    roc = ", ".join(f"{label} #" for label in order)
    return [
        (risk, [50, errors[0], 80, errors[1], 100, errors[2], values["aurc"]]),
        ("Risk against coverage; area under the curve #.", [values["aurc"]]),
        (f"Reliability diagram. Bins: {', '.join(['# stated and # right'] * len(bins))}.", np.ravel(bins)),
        (f"ROC and precision-recall curves. AUROC: {roc}.", [area[label] for label in order]),
    ]


def limits_of(t, key):
    """(value, low, high) over donors."""
    value = point_values(t)[key]
    return value, *student(t, key, value, influences(t)[key])[:2]


def on_donors(t, arms):
    n, donors = len(t.path), np.unique(t.group)
    limits = {donor: wilson(t.right[t.group == donor]) for donor in donors}
    low, high = min(donors, key=lambda d: limits[d][1]), max(donors, key=lambda d: limits[d][0])
    told = [number for d in (low, high) for number in (t.right[t.group == d].mean(), (t.group == d).sum())]
    apart = limits[low][1] < limits[high][0]
    parts = [t.right[t.group == donor].mean() for donor in donors]
    forest = "; ".join(f"{name} # (# to #)" for name in arms)
    given = [limits_of(real(name), "balanced_accuracy") for name in arms]
    lines = [
        ("# images · # classes · # groups", [n, len(t.classes), len(donors)]),
        (
            "Tested on # images of # groups in # classes, each predicted by a model that never saw it (# folds).",
            [n, len(donors), len(t.classes), len(set(t.fold))],
        ),
        ("# images of # groups. Each value with its #% interval.", [n, len(donors), 95]),
        ("Only # groups: the t intervals over groups are wide and rough. Read the values per group.", [len(donors)]),
        (f"Groups differ: {low} has top-1 # of # images, {high} # of #.", told)
        if apart
        else (
            "Top-1 of the # groups is # to #; no two have Wilson intervals that lie apart.",
            [len(donors), min(parts), max(parts)],
        ),
        (f"Balanced accuracy of each arm: {forest}.", np.ravel(given)),
    ]
    for key in ("groups", "folds"):  # here every donor is a fold
        line = (f"Top-1 of # {key}, from # to #; all images #.", [len(parts), min(parts), max(parts), t.right.mean()])
        lines += [line, (f"Top-1 of each {key[:-1]} with its Wilson interval.", [])]
    return lines


def shared_errors(arms, n):
    said = [dict(zip(real(name).path, real(name).said, strict=True)) for name in arms]
    truth = dict(zip(real(arms[0]).path, real(arms[0]).truth, strict=True))
    calls = [{one[path] for one in said} for path in truth if all(one[path] != truth[path] for one in said)]
    return len(calls), n, sum(len(called) == 1 for called in calls)


@pytest.mark.parametrize(("folder", "arms"), [("pbc", NAMES[:1]), ("tcell", NAMES[1:])])
def test_every_number_in_the_running_text(evaluated, folder, arms):
    page = Page((evaluated / folder / "report.html").read_text(encoding="utf-8"))
    t, found = real(arms[0]), stored(evaluated, arms[0])
    values, n = point_values(t), len(t.path)
    expected = on_certainty(t, found, values) + on_failures(t, found) + on_figures(t, values)
    if folder == "tcell":
        expected += on_donors(t, arms)
        together = f"{arms[0]} against each other arm, on the # images that all predicted."
        expected += [
            (f"{together} A difference with its #% interval, in points.", [n, 95]),
            ("Only # groups: hardly any difference can be shown.", [len(set(t.group))]),
            ("All # models are wrong on # of # images and call # of them alike: look at those labels first.",
             [len(arms), *shared_errors(arms, n)]),
        ]  # fmt: skip
    else:
        expected += [
            ("# images · # classes", [n, len(t.classes)]),
            ("Tested on # images in # classes.", [n, len(t.classes)]),
            ("# images. Each value with its #% interval.", [n, 95]),
        ]
    expected += [
        ("One class against the rest, each with its #% interval.", [95]),
        ("Expected calibration error, each with its #% interval, and with the bias of chance taken out.", [95]),
    ]
    lines = [line for line in page.told() if "Holm" not in line]
    lost = [line for line in lines if not any(matches(line, *pair) for pair in expected)]
    unsaid = [template for template, numbers in expected if not any(matches(line, template, numbers) for line in lines)]
    assert (lost, unsaid) == ([], [])
    for k, label in enumerate(t.classes):
        areas = [score(t.truth == k, t.p[:, k]) for score in (sk.roc_auc_score, sk.average_precision_score)]
        legends = [text.split()[1] for text in map("".join, page.legends) if text.startswith(f"{label}  ")]
        assert all(shown(text, area) for text, area in zip(legends, areas, strict=True)), (label, legends)


def resampled(pull):
    """Each resample of the groups, all as likely: its deviation over its standard error, half the sample's at least."""
    n = len(pull)
    drawn = pull[np.array(list(itertools.product(range(n), repeat=n)))]
    own, least = (np.sqrt(n * np.var(of, axis=-1, ddof=1)) for of in (drawn, pull))
    return abs(drawn.sum(1)) / np.maximum(own, least / 2)


def test_the_intervals_p_values_and_sentences_of_the_comparison(evaluated):
    found = json.loads((evaluated / "tcell/comparison.json").read_text())
    page = Page((evaluated / "tcell/report.html").read_text(encoding="utf-8"))
    first, (name, *others) = real(NAMES[1]), NAMES[1:]
    pulls = {arm: influences(real(arm)) for arm in NAMES[1:]}
    told = [line for line in page.told() if "Holm" in line]
    rows = page.headed("against", "p (Holm)")[1:]
    for other, pair, line, row in zip(others, found["pairs"], told, rows, strict=True):
        for key, cells in zip(("top1", "balanced_accuracy"), (row[1:3], row[3:5]), strict=True):
            shown_ = [100 * pair[key][part] for part in ("low", "high")]
            gain = point_values(first)[key] - point_values(real(other))[key]
            assert matches(cells[0], "# # to #", [100 * gain, *shown_]), row
            assert cells[1] == p_shown(pair[key]["p_holm"])
        for key in ("top1", "balanced_accuracy"):
            entry = pair[key]
            pull = (pulls[name][key] - pulls[other][key]).sum(1)
            gain = point_values(first)[key] - point_values(real(other))[key]
            error, ratios = np.sqrt(4 / 3 * (pull**2).sum()), resampled(pull)
            # 4,000 draws know a share to 4 standard errors; the quantile lies between those of the shares around 95%.
            slack = 4 * np.sqrt(0.05 * 0.95 / 4000)
            least, most = (max(np.quantile(ratios, 0.95 + s), stats.t.ppf(0.975, 3)) for s in (-slack, slack))
            for reach in (gain - entry["low"], entry["high"] - gain):
                assert least * error * (1 - 1e-5) <= reach <= most * error * (1 + 1e-5), (other, key)
            drawn = (ratios >= abs(gain) / error * (1 - 1e-6)).mean()
            p = max(drawn, 2 * stats.t.sf(abs(gain) / error, 3))
            assert entry["p"] == pytest.approx(p, rel=1e-5, abs=4 * np.sqrt(p * (1 - p) / 4000) if p == drawn else 0)
        told_apart = entry["p_holm"] < 0.05
        start, more = f"{name} and {other} cannot be told apart by balanced accuracy: the difference is #", MORE
        if told_apart:
            way = "higher" if gain > 0 else "lower"
            start, more = f"{name} has # points {way} balanced accuracy than {other}", ""
        template = f"{start} (#% interval # to # points; p = # after Holm's correction).{more}"
        points = 100 * (abs(gain) if told_apart else gain)
        assert matches(line, template, [points, 95, 100 * entry["low"], 100 * entry["high"], entry["p_holm"]]), line
