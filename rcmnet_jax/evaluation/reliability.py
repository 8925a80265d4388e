"""Do stated confidences hold? Reliability diagrams and the expected calibration error, with what chance alone gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from rcmnet_jax.evaluation.influence import Outcome
from rcmnet_jax.evaluation.intervals import Units, bounded, without_variance
from rcmnet_jax.evaluation.table import Floats, Ints

BINS = 15
DRAWS = 2000


def bins_of(confidence: Floats, bins: int = BINS) -> Ints:
    """(n,) bin of each row: `bins` of equal mass in order of confidence, equal confidences always together."""
    levels, place, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    middle = (counts.cumsum() - counts / 2) / counts.sum()
    merged = np.minimum((middle * bins).astype(np.int64), bins - 1)
    _, merged = np.unique(merged, return_inverse=True)
    return np.asarray(merged[place], np.int64) if len(levels) else np.zeros(0, np.int64)


def gaps(confidence: Floats, right: Floats, bins: Ints) -> Floats:
    """(bins,) sum over each bin of (right - confidence), divided by n: their absolute sum is the ECE."""
    return np.bincount(bins, right - confidence) / len(right)


def reliability(confidence: Floats, right: Floats, bins: int = 10) -> list[dict[str, float]]:
    """Equal-mass bins for a diagram: mean confidence, share right, count."""
    place = bins_of(confidence, bins)
    return [
        {
            "confidence": float(confidence[place == b].mean()),
            "accuracy": float(right[place == b].mean()),
            "count": int((place == b).sum()),
        }
        for b in range(int(place.max()) + 1)
    ]


def equal_width_ece(confidence: Floats, right: Floats, bins: int = BINS) -> float:
    """ECE as Guo et al. 2017: bins of equal width."""
    return float(np.abs(gaps(confidence, right, np.minimum((confidence * bins).astype(int), bins - 1))).sum())


def expected_calibration_error(units: Units, outcomes: list[Outcome], *, seed: int = 0) -> dict[str, Any]:
    """ECE of the top class over 15 bins of equal mass, with its interval and the value less the bias of chance.

    Args:
      outcomes: rows of each seed, in the order of `units.seeds`.
      seed: of the draws.

    Returns:
      {"value", "low", "high", "method", "corrected"}, from the mean over seeds, as `_inverted` gives them.
    """
    parts = []
    for rows in outcomes:
        confidence = rows.probabilities.max(1)
        parts.append([((rows.truth == rows.prediction) - confidence, bins_of(confidence))])
    return _inverted(units, parts, f"{BINS} equal-mass bins of the top class", seed)


def classwise_ece(units: Units, outcomes: list[Outcome], *, seed: int = 0) -> dict[str, Any]:
    """Mean over classes of the ECE of p_k against 'is class k' (Kull et al. 2019); else as the ECE of the top class."""
    parts = []
    for rows in outcomes:
        p, real, count = rows.probabilities, rows.one_hot, rows.probabilities.shape[1]
        parts.append([((real[:, k] - p[:, k]) / count, bins_of(p[:, k])) for k in range(count)])
    return _inverted(units, parts, f"mean over classes of {BINS} equal-mass bins each", seed)


def _inverted(units: Units, parts: list[list[tuple[Floats, Ints]]], what: str, seed: int) -> dict[str, Any]:
    """A sum of absolute gaps, its interval and its value without bias.

    The plain ECE of a perfectly calibrated model is above zero, since every bin's gap is taken as absolute. So the
    interval asks which true gaps, s times those seen, would give an ECE such as the one seen once sampling noise
    (normal, with the covariance of units) is added: it holds all s for which the seen ECE is within the
    central 95%; `corrected` is the s whose median is the seen ECE, times it. Noise may also have hidden gaps, so the
    upper limit is at least the 97.5% quantile of the ECE with noise added, less the bias that this adds. Where no unit
    differs from another there is no noise to go by, and the limits are those of `without_variance`; of one unit alone
    the bias is not known, and `corrected` is None.

    Args:
      parts: for each seed its binnings, each as residuals and bins, both (n,), whose gaps add up.
    """
    seen, pulls = [], []
    for rows, binnings in zip(units.seeds, parts, strict=True):
        each = [np.bincount(place, residual) / len(rows) for residual, place in binnings]
        pulls += [_pulls(units, rows, *binning, gap) for binning, gap in zip(binnings, each, strict=True)]
        seen.append(np.concatenate(each))
    joint = np.concatenate(pulls, axis=1)
    value = float(np.mean([np.abs(gap).sum() for gap in seen]))
    if np.abs(joint).max() < 1e-12:
        (low, high), method = without_variance(units, value, "unit")
        return {**bounded(value, low, high, f"{what}; {method}"), "corrected": value if units.count > 1 else None}
    noise = _noise(joint, [len(gap) for gap in seen], np.random.default_rng(seed))
    curve = _Curve(seen, noise)
    low, middle, high = (curve.scale(value, share) * value for share in (0.975, 0.5, 0.025))
    high = max(high, curve.quantile(1.0, 0.975) - (curve.mean(1.0) - value))
    method = f"{what}; limits by inverting the ECE's distribution over {units.name}"
    return {**bounded(value, low, min(high, 1.0), method), "corrected": min(middle, value)}


def _pulls(units: Units, rows: Ints, residual: Floats, place: Ints, gap: Floats) -> Floats:
    """(units, bins) what each unit adds to the gaps, less what a unit of its size adds on average."""
    count, bins = units.count, len(gap)
    sums = np.bincount(units.unit[rows] * bins + place, residual, count * bins).reshape(count, bins) / len(rows)
    held = np.bincount(units.unit[rows], minlength=count) / len(rows)
    centred: Floats = sums - held[:, None] * gap
    return centred


def _noise(joint: Floats, widths: list[int], rng: np.random.Generator) -> list[Floats]:
    """For each seed (DRAWS, width) noise of the gaps: normal with the units' covariance, Student's tails for few units.

    The seeds are drawn together, side by side in joint (units, sum of widths), since they share the units: repeating a
    prediction adds no knowledge.
    """
    freedom = max(len(joint) - 1, 1)
    scale = np.sqrt(len(joint) / rng.chisquare(freedom, (DRAWS, 1)))
    spread, directions = np.linalg.eigh(joint.T @ joint)
    steps = np.sqrt(spread.clip(min=0)) * directions  # columns scaled: steps @ steps.T is the covariance
    drawn = scale * (rng.standard_normal((DRAWS, joint.shape[1])) @ steps.T)
    return np.split(drawn, np.cumsum(widths)[:-1], axis=1)


class _Curve:
    """Distribution of the ECE, mean over seeds, when the true gaps are s times the seen ones."""

    def __init__(self, gaps: list[Floats], noise: list[Floats]):
        self.gaps, self.noise = gaps, noise

    def draws(self, s: float) -> Floats:
        """(DRAWS,) values at s."""
        each = [np.abs(s * gap + drawn).sum(1) for gap, drawn in zip(self.gaps, self.noise, strict=True)]
        together: Floats = np.mean(each, axis=0)
        return together

    def mean(self, s: float) -> float:
        """The mean at s."""
        return float(self.draws(s).mean())

    def quantile(self, s: float, share: float) -> float:
        """The share-quantile at s."""
        return float(np.quantile(self.draws(s), share))

    def scale(self, value: float, share: float) -> float:
        """The s in [0, 8] at which the share-quantile is the value: 0 where even no gap gives as much."""
        low, high = 0.0, 8.0
        if self.quantile(low, share) >= value:
            return 0.0
        for _ in range(25):
            half = (low + high) / 2
            low, high = (half, high) if self.quantile(half, share) < value else (low, half)
        return high


def risk_coverage(confidence: Floats, right: Floats) -> tuple[Floats, Floats, float]:
    """Coverage (n,), error rate among the most confident share (n,), and the area under it (AURC; Geifman 2017)."""
    order = np.argsort(-confidence, kind="stable")
    risk = (1 - right[order]).cumsum() / np.arange(1, len(right) + 1)
    return np.arange(1, len(right) + 1) / len(right), risk, float(risk.mean())


def brier_parts(confidence: Floats, right: Floats) -> dict[str, float]:
    """Murphy's parts of the top class's Brier score in equal-mass bins; of reliability 0 is best."""
    place = bins_of(confidence)
    share = np.bincount(place) / len(right)
    stated, seen = np.bincount(place, confidence) / len(right) / share, np.bincount(place, right) / len(right) / share
    base = float(right.mean())
    return {
        "reliability": float((share * (stated - seen) ** 2).sum()),
        "resolution": float((share * (seen - base) ** 2).sum()),
        "uncertainty": base * (1 - base),
    }
