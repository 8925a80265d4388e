"""Do stated confidences hold? Reliability diagrams and the expected calibration error, with what chance alone gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from rcmnet_jax.evaluation.influence import Outcome
from rcmnet_jax.evaluation.intervals import Units, bounded
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


def classwise_ece(rows: Outcome, bins: int = BINS) -> float:
    """Mean over classes of the ECE of p_k against 'is class k' (Kull et al. 2019), equal-mass bins."""
    p, real = rows.probabilities, rows.one_hot
    return float(np.mean([np.abs(gaps(p[:, k], real[:, k], bins_of(p[:, k], bins))).sum() for k in range(p.shape[1])]))


def expected_calibration_error(units: Units, outcomes: list[Outcome], *, seed: int = 0) -> dict[str, Any]:
    """ECE of the top class over 15 bins of equal mass, its interval, and the value with the bias of chance taken out.

    The plain ECE of a perfectly calibrated model is above zero, since every bin's gap is taken as absolute. So the
    interval asks which true gaps, s times those seen, would give an ECE such as the one seen once sampling noise
    (normal, with the covariance of units) is added: it holds all s for which the seen ECE is within the
    central 95%; `corrected` is the s whose median is the seen ECE, times it.

    Args:
      outcomes: rows of each seed, in the order of `units.seeds`.

    Returns:
      {"value", "low", "high", "method", "corrected"}, from the mean over seeds.
    """
    rng = np.random.default_rng(seed)
    confidences = [rows.probabilities.max(1) for rows in outcomes]
    rights = [(rows.truth == rows.prediction).astype(np.float64) for rows in outcomes]
    places = [bins_of(confidence) for confidence in confidences]
    seen, noise = [], []
    for rows, confidence, right, place in zip(units.seeds, confidences, rights, places, strict=True):
        gap = gaps(confidence, right, place)
        noise.append(_noise(units, rows, right - confidence, place, gap, rng))
        seen.append(gap)
    value = float(np.mean([np.abs(gap).sum() for gap in seen]))
    curve = _Curve(seen, noise)
    low, middle, high = (curve.scale(value, share) * value for share in (0.975, 0.5, 0.025))
    method = f"{BINS} equal-mass bins of the top class; limits by inverting the ECE's distribution over {units.name}"
    return {**bounded(value, low, min(high, 1.0), method), "corrected": min(middle, value)}


def _noise(units: Units, rows: Ints, residual: Floats, place: Ints, gap: Floats, rng: np.random.Generator) -> Floats:
    """(DRAWS, bins) sampling noise of the gaps: normal with the units' covariance, few units with Student's tails."""
    count, bins = units.count, len(gap)
    sums = np.bincount(units.unit[rows] * bins + place, residual, count * bins).reshape(count, bins) / len(rows)
    held = np.bincount(units.unit[rows], minlength=count) / len(rows)
    centred = sums - held[:, None] * gap
    freedom = max(count - 1, 1)
    scale = np.sqrt(count / freedom) * np.sqrt(freedom / rng.chisquare(freedom, (DRAWS, 1)))
    spread, directions = np.linalg.eigh(centred.T @ centred)
    steps = np.sqrt(spread.clip(min=0)) * directions  # columns scaled: steps @ steps.T is the covariance
    drawn: Floats = scale * (rng.standard_normal((DRAWS, bins)) @ steps.T)
    return drawn


class _Curve:
    """Distribution of the ECE, mean over seeds, when the true gaps are s times the seen ones."""

    def __init__(self, gaps: list[Floats], noise: list[Floats]):
        self.gaps, self.noise = gaps, noise

    def quantile(self, s: float, share: float) -> float:
        """The share-quantile at s."""
        draws = [np.abs(s * gap + drawn).sum(1) for gap, drawn in zip(self.gaps, self.noise, strict=True)]
        return float(np.quantile(np.mean(draws, axis=0), share))

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
