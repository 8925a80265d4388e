"""Probabilities that mean what they say, and when not to answer: the content of a bundle's calibration.json.

Everything is fitted on rows that the network was not trained on: out-of-fold rows, or an inner split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation import ood, reliability
from rcmnet_jax.evaluation.intervals import make_units
from rcmnet_jax.evaluation.table import Floats, Ints, Table

Mask = NDArray[np.bool_]

COLDEST, HOTTEST = 0.05, 20.0
FEWEST = 20  # images: on fewer a temperature says more about chance than about the network
CALIBRATION_FOLDS = 5  # into which rows without folds are divided, to show what a temperature does
TINY = 1e-12  # probabilities below count as this where their logarithm is taken


@dataclass(frozen=True)
class Calibrated:
    """Probabilities (N, K) float64; `abstain` and `ood` (N,) int64: 1, 0, or -1 where the bundle has no threshold."""

    probabilities: Floats
    abstain: Ints
    ood: Ints


def fit_temperature(log_probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The T that minimises the NLL of softmax(z / T) (Guo et al. 2017), for z logits or log p (N, K), labels (N,).

    A wide prior, log T normal with deviation 1, counted once and not by the row, keeps T from running off where all
    rows are right: there the NLL alone would like certainty. Rows with a negative label are left out; 1.0 where none
    is left.
    """
    z, y = np.asarray(log_probabilities, np.float64), np.asarray(labels)
    z, y = z[y >= 0], y[y >= 0]
    if not len(y):
        return 1.0
    if not np.isfinite(z).all():
        raise ValueError("log probabilities must be finite: clip the probabilities before the logarithm")

    def loss(log_t: float) -> float:
        scaled = z / math.exp(log_t)
        nll = special.logsumexp(scaled, axis=1) - scaled[np.arange(len(y)), y]
        return float(nll.sum()) + log_t**2 / 2

    bounds = (math.log(COLDEST), math.log(HOTTEST))
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def apply_temperature(log_probabilities: NDArray[np.floating], temperature: float) -> Floats:
    """softmax(z / T), (N, K) float64, of logits or log p."""
    scaled: Floats = special.softmax(np.asarray(log_probabilities, np.float64) / temperature, axis=1)
    return scaled


def fit_conformal(
    probabilities: Floats, labels: NDArray[np.integer], classes: Sequence[str], alpha: float
) -> dict[str, Any]:
    """Class-conditional (Mondrian) conformal thresholds (Vovk 2005; score 1 - p of the true class).

    Class k belongs to the prediction set where 1 - p_k <= thresholds[k]; over new images like these, the true class
    is in the set for at least 1 - alpha of the images of every class. That needs ceil((n + 1)(1 - alpha)) <= n images;
    a class with fewer takes the pooled threshold and is named in `rare`: for it nothing is promised.

    Returns:
      {"alpha", "thresholds": {class: float}, "counts": {class: int}, "rare": [class]}
    """
    y = np.asarray(labels)
    known = y >= 0
    scores = 1 - probabilities[known, y[known]]
    pooled = conformal_quantile(scores, alpha)
    pooled = 1.0 if pooled is None else pooled
    thresholds, counts, rare = {}, {}, []
    for k, name in enumerate(classes):
        own = scores[y[known] == k]
        level = conformal_quantile(own, alpha)
        if level is None:
            rare.append(name)
            level = max([pooled, *own.tolist()])
        thresholds[name], counts[name] = level, len(own)
    return {"alpha": alpha, "thresholds": thresholds, "counts": counts, "rare": rare}


def conformal_quantile(scores: Floats, alpha: float) -> float | None:
    """The ceil((n + 1)(1 - alpha))-th smallest score, None where that is beyond the n there are."""
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else None


def prediction_sets(probabilities: Floats, thresholds: Mapping[str, float], classes: Sequence[str]) -> Mask:
    """(N, K): whether each class is in the row's prediction set."""
    sets: Mask = 1 - probabilities <= np.array([thresholds[name] for name in classes]) + 1e-12
    return sets


def abstain(
    probabilities: Floats, thresholds: Mapping[str, float], classes: Sequence[str], possible: Mask | bool = True
) -> Mask:
    """(N,): whether the prediction set is anything but the one predicted class: none fits, or more than one does.

    A class that is not `possible`, (N, K), is in no set.
    """
    sets = prediction_sets(probabilities, thresholds, classes) & possible
    told = sets[np.arange(len(sets)), probabilities.argmax(1)]
    unsure: Mask = (sets.sum(1) != 1) | ~told
    return unsure


def energy(logits: NDArray[np.floating]) -> Floats:
    """(N,) energy -logsumexp(logits) (Liu et al. 2020): higher for images unlike those trained on."""
    value: Floats = -special.logsumexp(np.asarray(logits, np.float64), axis=1)
    return value


def calibrate(
    log_probabilities: NDArray[np.floating],
    labels: NDArray[np.integer],
    classes: Sequence[str],
    *,
    alpha: float,
    fitted_on: str = "",
) -> dict[str, Any]:
    """The content of calibration.json from held-out rows: temperature and conformal thresholds.

    Args:
      log_probabilities: (N, K), as the uncalibrated network gives them; logits do as well.
      alpha: share of each class's images whose true class may be missing from the prediction set.
      fitted_on: words on the rows, kept.
    """
    y = np.asarray(labels)
    temperature = fit_temperature(log_probabilities, y)
    facts: dict[str, Any] = {"temperature": temperature, "fitted_on": fitted_on, "rows": int((y >= 0).sum())}
    facts["conformal"] = fit_conformal(apply_temperature(log_probabilities, temperature), y, classes, alpha)
    return facts


def from_table(table: Table, *, alpha: float, fitted_on: str) -> dict[str, Any]:
    """`calibrate` on the images of a table that an uncalibrated network has not seen, with `reliability` beside it.

    That is `before_and_after` by folds, or where there are none by five parts, no group in two. Of an image under
    several seeds one row counts, each seed's in turn: a bundle is one network, and the seeds' mean would be too good.
    Empty where fewer than 20 images have a label.
    """
    rows = _one_of_each(table)
    log_p, truth = np.log(np.maximum(table.probabilities[rows], TINY)), table.truth()[rows]
    known = truth >= 0
    if known.sum() < FEWEST:
        return {}
    parts = table.fold[rows] if (table.fold >= 0).any() else make_units(table).unit[rows] % CALIBRATION_FOLDS
    facts = calibrate(log_p, truth, table.classes, alpha=alpha, fitted_on=fitted_on)
    changed = before_and_after(log_p[known], truth[known], parts[known])
    return {**facts, "reliability": changed} if changed else facts


def _one_of_each(table: Table) -> Ints:
    """(M,) a row of each of the M images in the order of paths: of image i the row at i, counted round its seeds'."""
    image, count = np.unique(table.path, return_inverse=True, return_counts=True)[1:]
    order = np.lexsort((table.seed, image))
    places: Ints = order[count.cumsum() - count + np.arange(len(count)) % count]
    return places


def per_image(table: Table) -> tuple[Floats, Ints]:
    """Mean log p (M, K) over the seeds of each of the M images, and their labels (M,): no image may count twice."""
    _, first, image = np.unique(table.path, return_index=True, return_inverse=True)
    log_p = np.zeros((len(first), len(table.classes)))
    np.add.at(log_p, image, np.log(np.maximum(table.probabilities, TINY)))
    return log_p / np.bincount(image)[:, None], table.truth()[first]


def before_temperature(table: Table, temperature: float) -> dict[str, Any]:
    """Reliability of a table's labelled rows as it was before their probabilities were scaled by a temperature."""
    truth = table.truth()
    log_p = np.log(np.maximum(table.probabilities[truth >= 0], TINY))
    return _reliability(apply_temperature(log_p, 1 / temperature), truth[truth >= 0])


def before_and_after(
    log_probabilities: NDArray[np.floating], labels: NDArray[np.integer], parts: NDArray[np.integer]
) -> dict[str, Any]:
    """What a temperature does to the reliability: each part's rows by the temperature of the other parts' rows.

    Args:
      parts: (N,), such as folds; labels are all known.

    Returns:
      {"before", "after"}, each with "nll", "ece" and "bins" as in metrics.json; empty with fewer than two parts.
    """
    z, y = np.asarray(log_probabilities, np.float64), np.asarray(labels)
    if len(np.unique(parts)) < 2:
        return {}
    after = np.empty_like(z)
    for part in np.unique(parts):
        own = parts == part
        after[own] = apply_temperature(z[own], fit_temperature(z[~own], y[~own]))
    return {"before": _reliability(apply_temperature(z, 1.0), y), "after": _reliability(after, y)}


def _reliability(p: Floats, y: NDArray[np.integer]) -> dict[str, Any]:
    stated, right = p.max(1), (p.argmax(1) == y).astype(np.float64)
    error = np.abs(reliability.gaps(stated, right, reliability.bins_of(stated))).sum()
    nll = -np.log(np.maximum(p[np.arange(len(y)), y], TINY)).mean()
    return {"nll": float(nll), "ece": float(error), "bins": reliability.reliability(stated, right)}


def apply(
    facts: Mapping[str, Any],
    logits: NDArray[np.floating],
    classes: Sequence[str],
    seen: ood.Spaces | None = None,
) -> Calibrated:
    """Calibrated probabilities and flags of logits (N, K), by the content of calibration.json (may be empty).

    A class that cannot be has the logit -inf. `seen` holds what `ood.spaces` gives for the same images; without it
    only an energy can flag them.

    Raises:
      UserError: a calibration that does not fit these classes, or is not one.
    """
    unknown = np.full(len(logits), -1, np.int64)
    try:
        temperature = float(facts.get("temperature", 1.0))
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature {temperature}")
        p = apply_temperature(logits, temperature)
        flags, strange = unknown, unknown
        if "conformal" in facts:
            flags = abstain(p, facts["conformal"]["thresholds"], classes, np.isfinite(logits)).astype(np.int64)
        if facts.get("ood", {}).get("score") == "energy":
            strange = (energy(logits) > float(facts["ood"]["threshold"])).astype(np.int64)
        elif facts.get("ood") and seen is not None:
            strange = (ood.score(facts["ood"], seen) > float(facts["ood"]["threshold"])).astype(np.int64)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"calibration.json: does not fit this bundle ({error}). Take a sound copy.") from error
    return Calibrated(p, flags, strange)
