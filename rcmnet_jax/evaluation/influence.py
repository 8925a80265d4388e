"""Metrics as values with influences: what each image adds to the value, from which any sampling interval follows.

The influence of row i is the change of the metric, to first order, when row i gets more weight, divided by n: the rows'
influences sum to zero, and their sum of squares estimates the metric's variance (the infinitesimal jackknife, Efron
1982; for AUROC it is DeLong 1988). Summed within a patient or smear, it gives the variance under sampling of groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from rcmnet_jax.evaluation.table import Floats, Ints

SMALLEST = float(np.finfo(np.float64).eps)  # a probability of zero counts as this in the NLL, as in scikit-learn


@dataclass(frozen=True)
class Statistic:
    """A value over n rows with each row's influence (n,); without a value, `reason` says why."""

    value: float | None
    influence: Floats
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """Truth (n,) and prediction (n,) as class indices, probabilities (n, K): the rows that a metric is taken over."""

    truth: Ints
    prediction: Ints
    probabilities: Floats

    @property
    def one_hot(self) -> Floats:
        """(n, K): 1 at the true class."""
        return np.eye(self.probabilities.shape[1])[self.truth]

    def select(self, rows: Ints) -> Outcome:
        """The outcome at the given rows."""
        return Outcome(self.truth[rows], self.prediction[rows], self.probabilities[rows])


def undefined(n: int, reason: str) -> Statistic:
    """A statistic that has no value, with the reason."""
    return Statistic(None, np.zeros(n), reason)


def mean(values: Floats) -> Statistic:
    """The mean of a quantity of each row."""
    average = float(values.mean())
    return Statistic(average, (values - average) / len(values))


def ratio(above: Floats, below: Floats, reason: str) -> Statistic:
    """sum(above) / sum(below), both (n,); undefined with `reason` where nothing stands below."""
    total = float(below.sum())
    if total == 0:
        return undefined(len(below), reason)
    value = float(above.sum()) / total
    return Statistic(value, (above - value * below) / total)


def average(parts: list[Statistic], n: int, reason: str) -> Statistic:
    """Mean over the defined parts: macro averages; undefined with `reason` where no part is defined."""
    known = [part for part in parts if part.value is not None]
    if not known:
        return undefined(n, reason)
    value = float(np.mean([part.value for part in known if part.value is not None]))
    return Statistic(value, np.mean([part.influence for part in known], axis=0))


def top1(rows: Outcome) -> Statistic:
    """Share of rows whose prediction is the truth."""
    return mean((rows.truth == rows.prediction).astype(np.float64))


def nll(rows: Outcome) -> Statistic:
    """Mean of -ln p(truth), nats."""
    chosen = rows.probabilities[np.arange(len(rows.truth)), rows.truth]
    return mean(-np.log(chosen.clip(SMALLEST, 1)))


def brier(rows: Outcome) -> Statistic:
    """Mean over rows of the sum over classes of (p - one_hot)^2 (Brier 1950): 0 is best, 2 worst."""
    return mean(((rows.probabilities - rows.one_hot) ** 2).sum(1))


def rates(rows: Outcome, k: int) -> dict[str, Statistic]:
    """Sensitivity, specificity, predictive values and F1 of class k against the rest."""
    real, said = (rows.truth == k).astype(float), (rows.prediction == k).astype(float)
    return {
        "sensitivity": ratio(real * said, real, "no image of this class"),
        "specificity": ratio((1 - real) * (1 - said), 1 - real, "no image of another class"),
        "ppv": ratio(real * said, said, "never predicted"),
        "npv": ratio((1 - real) * (1 - said), 1 - said, "no other class is ever predicted"),
        "f1": ratio(2 * real * said, real + said, "neither present nor predicted"),
    }


def balanced_accuracy(rows: Outcome) -> Statistic:
    """Mean sensitivity over the classes present."""
    k = rows.probabilities.shape[1]
    return average([rates(rows, i)["sensitivity"] for i in range(k)], len(rows.truth), "no class is present")


def macro_f1(rows: Outcome) -> Statistic:
    """Mean F1 over the classes present or predicted."""
    k = rows.probabilities.shape[1]
    return average([rates(rows, i)["f1"] for i in range(k)], len(rows.truth), "no class is present")


def auroc_of(rows: Outcome, k: int) -> Statistic:
    """Area under class k's ROC curve, one against the rest, ties counted half; influence after DeLong et al. 1988."""
    real, scores = rows.truth == k, rows.probabilities[:, k]
    positives, negatives = int(real.sum()), int((~real).sum())
    if not positives or not negatives:
        return undefined(len(real), "no image of this class" if not positives else "no image of another class")
    ranks = stats.rankdata(scores)
    above = (ranks[real] - stats.rankdata(scores[real])) / negatives  # share of negatives below each positive
    below = 1 - (ranks[~real] - stats.rankdata(scores[~real])) / positives
    value = float(above.mean())
    influence = np.empty(len(real))
    influence[real] = (above - value) / positives
    influence[~real] = (below - value) / negatives
    return Statistic(value, influence)


def auprc_of(rows: Outcome, k: int) -> Statistic:
    """Average precision of class k against the rest: mean over its images of the precision at their score."""
    real, scores = rows.truth == k, rows.probabilities[:, k]
    positives = int(real.sum())
    if positives in (0, len(real)):  # without another class every order of the images has precision 1
        return undefined(len(real), "no image of another class" if positives else "no image of this class")
    levels, place = np.unique(scores, return_inverse=True)
    hits = np.bincount(place, real, minlength=len(levels))
    reached = np.bincount(place, minlength=len(levels))[::-1].cumsum()[::-1]  # rows at or above each level
    precision = hits[::-1].cumsum()[::-1] / reached
    value = float((hits * precision).sum() / positives)
    # A row at or above a positive's score shifts that positive's precision by (y - precision) / reached.
    gain, loss = (hits / reached).cumsum()[place], (hits * precision / reached).cumsum()[place]
    return Statistic(value, (real * (precision[place] - value) + real * gain - loss) / positives)


def macro_auroc(rows: Outcome) -> Statistic:
    """Mean of the classes' one-against-rest AUROC over the classes present."""
    k = rows.probabilities.shape[1]
    return average([auroc_of(rows, i) for i in range(k)], len(rows.truth), "fewer than two classes are present")


def macro_auprc(rows: Outcome) -> Statistic:
    """Mean average precision over the classes present."""
    k = rows.probabilities.shape[1]
    return average([auprc_of(rows, i) for i in range(k)], len(rows.truth), "fewer than two classes are present")


def mcc(rows: Outcome) -> Statistic:
    """Matthews' correlation of truth and prediction for K classes (Gorodkin 2004), in [-1, 1]."""
    n, k = rows.probabilities.shape
    cells = confusion(rows.truth, rows.prediction, k) / n
    real, said, right = cells.sum(1), cells.sum(0), np.trace(cells)
    spread_said, spread_real = 1 - (said**2).sum(), 1 - (real**2).sum()
    if min(spread_said, spread_real) < 1e-12:
        return undefined(n, "only one class is present or predicted")
    scale = np.sqrt(spread_said * spread_real)
    value = float((right - real @ said) / scale)
    slope = np.eye(k) + right - said[:, None] - real[None, :]
    slope = slope / scale - value * ((1 - said)[None, :] / spread_said + (1 - real)[:, None] / spread_real)
    return Statistic(value, slope[rows.truth, rows.prediction] / n)


def confusion(truth: Ints, prediction: Ints, classes: int) -> Ints:
    """(K, K) counts, rows the truth, columns the prediction."""
    return np.bincount(truth * classes + prediction, minlength=classes**2).reshape(classes, classes)
