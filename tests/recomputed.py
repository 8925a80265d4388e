"""Definitions of docs/evaluation.md written anew with scikit-learn, SciPy and plain loops, apart from the package."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
from scipy import optimize, special, stats
from sklearn import metrics as sk

from rcmnet_jax.report.evaluate import evaluate_tables
from tests.real_tables import NAMES, unpacked

NUMBER = r"(-?\d+(?:\.\d+)?%?)"


def evaluate(folder):
    """`folder`, with the evaluation of PBC in pbc/ and that of the T cells' three arms together in tcell/."""
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


def counts(t, k):
    """Hits and cases behind each rate of class k."""
    is_k, said_k = t.truth == k, t.said == k
    return {
        "sensitivity": ((is_k & said_k).sum(), is_k.sum()),
        "specificity": ((~is_k & ~said_k).sum(), (~is_k).sum()),
        "ppv": ((is_k & said_k).sum(), said_k.sum()),
        "npv": ((~is_k & ~said_k).sum(), (~said_k).sum()),
    }


class Page(HTMLParser):
    """A page's tables (rows of cells), its lines (text outside tables, labels of figures), and the figures' legends."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.lines, self.legends, self.into = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "aria-label" in attrs:
            self.lines.append([attrs["aria-label"]])
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append([])
            self.into.append(self.tables[-1][-1][-1])
        elif tag in ("p", "li", "caption", "figcaption") or attrs.get("class") == "big":
            self.lines.append([])
            self.into.append(self.lines[-1])
        elif tag == "text":
            self.legends.append([])
            self.into.append(self.legends[-1])

    def handle_endtag(self, tag):
        if tag in ("td", "th", "p", "li", "caption", "figcaption", "text", "div") and self.into:
            self.into.pop()

    def handle_data(self, data):
        if self.into:
            self.into[-1].append(data)

    def headed(self, *names):
        """The first table whose heading row holds the names: rows of text."""
        for rows in self.tables:
            text = [["".join(cell) for cell in row] for row in rows]
            if text and set(names) <= set(text[0]):
                return text
        raise LookupError(names)

    def told(self):
        """Lines that hold a number, each once."""
        lines = dict.fromkeys("".join(parts).strip() for parts in self.lines)
        return [line for line in lines if re.search(r"\d", line) and not line.startswith("Made by")]


def shown(text, value):
    """Whether the first number of the text is the value, rounded to the digits that it shows."""
    number, percent = re.match(r"(-?\d+(?:\.\d+)?)(%?)", text).groups()
    digits = len(number.partition(".")[2])
    return abs(float(number) - value * (100 if percent else 1)) <= 0.5 * 10.0**-digits + 1e-9


def p_shown(p):
    """A p-value as a table shows it."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def matches(line, template, values):
    """Whether the line is the template, in which each # stands for a number, with these values, rounded."""
    found = re.fullmatch(NUMBER.join(re.escape(part) for part in template.split("#")), line)
    return bool(found) and all(shown(text, v) for text, v in zip(found.groups(), values, strict=True))


def weighted(t, w):
    """Every metric that has a t interval, of rows with weights w (n,), by name; class values by (class, name)."""
    one_hot, n = np.eye(len(t.classes))[t.truth], len(t.truth)
    found = {
        "top1": np.average(t.right, weights=w),
        "balanced_accuracy": sk.balanced_accuracy_score(t.truth, t.said, sample_weight=w),
        "macro_f1": sk.f1_score(t.truth, t.said, average="macro", sample_weight=w),
        "mcc": sk.matthews_corrcoef(t.truth, t.said, sample_weight=w),
        "nll": np.average(-np.log(t.p[np.arange(n), t.truth]), weights=w),
        "brier": np.average(((t.p - one_hot) ** 2).sum(1), weights=w),
    }
    for k, label in enumerate(t.classes):
        is_k, said_k = t.truth == k, t.said == k
        found[label, "sensitivity"] = sk.recall_score(is_k, said_k, sample_weight=w)
        found[label, "specificity"] = sk.recall_score(~is_k, ~said_k, sample_weight=w)
        found[label, "ppv"] = sk.precision_score(is_k, said_k, sample_weight=w)
        found[label, "npv"] = sk.precision_score(~is_k, ~said_k, sample_weight=w)
        found[label, "f1"] = sk.f1_score(is_k, said_k, sample_weight=w)
        found[label, "auroc"] = sk.roc_auc_score(is_k, t.p[:, k], sample_weight=w)
        found[label, "auprc"] = sk.average_precision_score(is_k, t.p[:, k], sample_weight=w)
    for key, name in (("auroc", "auroc"), ("macro_auprc", "auprc")):
        found[key] = np.mean([found[label, name] for label in t.classes])
    return found


def influences(t, step=1e-4):
    """Name to (groups, classes): the metric's slope in the weight of each group's images of each class."""
    groups = np.unique(t.group)
    slopes = {name: np.zeros((len(groups), len(t.classes))) for name in weighted(t, np.ones(len(t.path)))}
    for g, group in enumerate(groups):
        for k in range(len(t.classes)):
            cell = (t.group == group) & (t.truth == k)
            more, less = weighted(t, 1 + step * cell), weighted(t, 1 - step * cell)
            for name, slope in slopes.items():
                slope[g, k] = (more[name] - less[name]) / (2 * step)
    return slopes


def student(t, name, value, cells):
    """(low, high, degrees of freedom): the interval over groups that docs/evaluation.md defines, from influences."""
    share = np.array([np.mean(t.group == group) for group in np.unique(t.group)])
    count = len(share)
    cells = cells * ((1 - 1 / count) / (1 - share))[:, None]
    bounds = [1 / np.sum(share**2) - 1]
    if name in ("top1", "mcc", "nll", "brier"):
        cells = cells * np.sqrt(count / (count - 1))
    else:
        held = np.array([len(set(t.group[t.truth == k])) for k in range(len(t.classes))])
        cells = cells * np.sqrt(held / (held - 1))
        spread = (cells**2).sum(0)
        bounds.append(spread.sum() ** 2 / (spread**2 / (held - 1)).sum())
    total = cells.sum(1)
    if (kurtosis := count * (total**4).sum() / (total**2).sum() ** 2) > 1:
        bounds.append(2 * count / (kurtosis - 1))
    freedom = max(1, min(bounds))
    step = stats.t.ppf(0.975, freedom) * np.sqrt((total**2).sum())
    if name in ("nll", "brier"):
        return value * np.exp(-step / value), value * np.exp(step / value), freedom
    if name == "mcc":
        ends = special.logit((value + 1) / 2) + np.array([-1, 1]) * 2 * step / (1 - value**2)
        return *(2 * special.expit(ends) - 1), freedom
    ends = special.logit(value) + np.array([-1, 1]) * step / (value * (1 - value))
    return *special.expit(ends), freedom


def cells_of(stated, real_):
    """(n, bins): each row's part of the gap of its bin."""
    place = np.unique(equal_mass(stated, 15), return_inverse=True)[1]
    return np.eye(place.max() + 1)[place] * (real_ - stated)[:, None] / len(stated)


def of_top(t):
    return cells_of(t.p.max(1), t.right)


def of_classes(t):
    count = len(t.classes)
    return np.hstack([cells_of(t.p[:, k], t.truth == k) for k in range(count)]) / count


def ece_interval(inside, unit, rng, draws=2000):
    """(low, high, corrected) as docs/evaluation.md defines them, of cells (n, bins); noise by multipliers."""
    names, seen = np.unique(unit), inside.sum(0)
    member = (unit[None, :] == names[:, None]).astype(float)
    pulls = member @ inside - member.mean(1)[:, None] * seen
    count = len(names)
    tails = np.sqrt((count - 1) / rng.chisquare(count - 1, (draws, 1)))
    noise = tails * (rng.standard_normal((draws, count)) @ pulls) * np.sqrt(count / (count - 1))
    value = abs(seen).sum()

    def ece(s):
        return abs(s * seen + noise).sum(1)

    def reached(share):
        if np.quantile(ece(0), share) >= value:
            return 0
        return value * optimize.brentq(lambda s: np.quantile(ece(s), share) - value, 0, 8, xtol=1e-6)

    high = max(reached(0.025), np.quantile(ece(1), 0.975) - (ece(1).mean() - value))
    return reached(0.975), min(high, 1), min(reached(0.5), value)
