"""How often the 95% intervals of metrics.json hold the truth, over simulated tables: one line a setting.

  python -m benchmarks.interval_coverage --tables 1000

Truth is the metric over 400,000 images of the same law. Logits are normal, the true class raised by `signal`; in
groups, by a normal effect of each group as well, and each group has its own mix of classes and its own size. Beside the
shares that hold stands, for balanced accuracy, what a percentile bootstrap of the same units would have held.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from dataclasses import dataclass
from datetime import date

import numpy as np
from scipy import special

from rcmnet_jax.evaluation import influence, reliability
from rcmnet_jax.evaluation.influence import Outcome
from rcmnet_jax.evaluation.intervals import Units, interval, proportion
from rcmnet_jax.evaluation.metrics import TAILS

METRICS = ("top1", "balanced_accuracy", "macro_f1", "auroc", "nll", "brier")
SHARPNESS = 1.5  # scale of the logits; `signal` would be the calibrated one


Stated = tuple[np.ndarray, np.ndarray]  # confidences (n,), and whether it was so (n,)


def of_top(rows: Outcome) -> list[Stated]:
    """The binning of the top class's ECE."""
    return [(rows.probabilities.max(1), (rows.truth == rows.prediction).astype(np.float64))]


def of_classes(rows: Outcome) -> list[Stated]:
    """The binnings of the class-wise ECE."""
    return list(zip(rows.probabilities.T, rows.one_hot.T, strict=True))


ERRORS = {
    "ece": (reliability.expected_calibration_error, of_top),
    "classwise_ece": (reliability.classwise_ece, of_classes),
}


@dataclass(frozen=True)
class Setting:
    """One law of tables. `imbalance` is the commonest class's share over the rarest's; groups=0: single images."""

    images: int
    classes: int
    signal: float
    groups: int = 0
    spread: float = 0.0
    imbalance: float = 1.0


SETTINGS = (
    Setting(200, 2, 1.5),
    Setting(300, 3, 2.0, imbalance=3),
    Setting(500, 8, 3.0),
    Setting(500, 8, 3.0, imbalance=20),
    Setting(1000, 4, 4.0, imbalance=5),
    Setting(2000, 2, 1.5, groups=100, spread=0.7),
    Setting(1000, 8, 3.0, groups=100, spread=1.0, imbalance=3),
    Setting(2000, 4, 4.0, groups=100, spread=1.0, imbalance=5),
    Setting(1800, 8, 4.5, groups=100, spread=0.7, imbalance=4),
    Setting(900, 3, 2.0, groups=30, spread=0.7),
    Setting(500, 3, 2.0, groups=10, spread=0.7),
    Setting(400, 3, 2.0, groups=6, spread=0.7),
    Setting(400, 3, 2.0, groups=4, spread=0.7),
)


def draw(setting: Setting, rng: np.random.Generator, images: int = 0) -> tuple[Outcome, np.ndarray]:
    """Rows of one table and each row's unit (n,)."""
    n = images or setting.images
    shares = setting.imbalance ** -np.linspace(0, 1, setting.classes)
    shares /= shares.sum()
    if setting.groups:
        count = setting.groups * n // setting.images
        sizes = rng.integers(1, 2 * setting.images // setting.groups, count)
        unit = np.repeat(np.arange(count), sizes)
        mix = rng.dirichlet(shares * setting.classes * 2, count).cumsum(1)
        truth = (mix[unit] < rng.random((len(unit), 1))).sum(1).clip(0, setting.classes - 1)
        raised = setting.signal + setting.spread * rng.normal(size=count)[unit]
    else:
        unit, truth = np.arange(n), rng.choice(setting.classes, n, p=shares)
        raised = np.full(n, setting.signal)
    logits = rng.normal(size=(len(unit), setting.classes))
    logits[np.arange(len(unit)), truth] += raised
    p = special.softmax(SHARPNESS * logits, axis=1)
    return Outcome(truth, p.argmax(1), p), unit


def values(rows: Outcome) -> dict[str, influence.Statistic]:
    """The metrics whose coverage is counted."""
    return {
        "top1": influence.top1(rows),
        "balanced_accuracy": influence.balanced_accuracy(rows),
        "macro_f1": influence.macro_f1(rows),
        "auroc": influence.macro_auroc(rows),
        "nll": influence.nll(rows),
        "brier": influence.brier(rows),
    }


def limits(units: Units, rows: Outcome) -> dict[str, dict[str, float]]:
    """The intervals as `compute` makes them, but for the ECEs'."""
    found = {}
    for name, part in values(rows).items():
        if name == "top1":
            found[name] = proportion(units, [part], len(rows.truth))
        else:
            scale = "positive" if name in ("nll", "brier") else "unit"
            by_class = name not in ("nll", "brier")
            found[name] = interval(units, [part], scale=scale, by_class=by_class, tails=TAILS.get(name, 1.0))
    return found


def coverage(setting: Setting, tables: int, seed: int = 0, *, calibration: bool = False) -> dict[str, float]:
    """Share of `tables` simulated tables whose interval holds the truth, for each metric."""
    rng = np.random.default_rng(seed)
    whole, _ = draw(setting, rng, 400_000)
    truth = {name: part.value for name, part in values(whole).items()}
    some = whole.select(np.arange(len(whole.truth) // 8))
    held = dict.fromkeys([*METRICS, *(ERRORS if calibration else [])], 0)
    for _ in range(tables):
        rows, unit = draw(setting, rng)
        units = Units(unit, rows.truth, (np.arange(len(unit)),), setting.classes, setting.groups > 0)
        found = limits(units, rows)
        for name in METRICS:
            held[name] += found[name]["low"] <= truth[name] <= found[name]["high"]
        if calibration:
            for name, (error, binnings) in ERRORS.items():
                entry = error(units, [rows], seed=seed)
                real = np.mean([binned_truth(*pair) for pair in zip(binnings(some), binnings(rows), strict=True)])
                held[name] += entry["low"] <= real <= entry["high"]
    return {name: count / tables for name, count in held.items()}


def binned_truth(whole: Stated, seen: Stated) -> float:
    """ECE of a large sample in the bins that a small sample's confidences set: what its ECE estimates."""
    place = reliability.bins_of(seen[0])
    edges = [float(seen[0][place == b].max()) for b in range(int(place.max()))]
    return float(np.abs(reliability.gaps(*whole, np.searchsorted(np.array(edges), whole[0]))).sum())


def percentile_bootstrap(setting: Setting, tables: int, seed: int = 0, draws: int = 400) -> float:
    """Coverage of balanced accuracy by the usual percentile bootstrap over units, for comparison."""
    rng = np.random.default_rng(seed)
    truth = influence.balanced_accuracy(draw(setting, rng, 400_000)[0]).value
    held = 0
    for _ in range(tables):
        rows, unit = draw(setting, rng)
        count, k = int(unit.max()) + 1, setting.classes
        right = np.zeros((count, k))
        seen = np.zeros((count, k))
        np.add.at(seen, (unit, rows.truth), 1)
        np.add.at(right, (unit, rows.truth), rows.truth == rows.prediction)
        weights = rng.multinomial(count, np.full(count, 1 / count), draws)
        with np.errstate(invalid="ignore"):
            means = np.nanmean((weights @ right) / (weights @ seen), axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        held += low <= truth <= high
    return held / tables


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, {given.tables} tables, {date.today()}\n")
    names = [*METRICS, *ERRORS, "bootstrap"]
    print(f"| images | classes | imbalance | groups | {' | '.join(names)} |\n|{'---|' * (4 + len(names))}")
    for setting in SETTINGS:
        start = time.time()
        found = coverage(setting, given.tables, given.seed, calibration=True)
        found["bootstrap"] = percentile_bootstrap(setting, min(given.tables, 300), given.seed)
        cells = " | ".join(f"{100 * found[name]:.1f}" for name in names)
        groups = setting.groups or "-"
        print(f"| {setting.images} | {setting.classes} | {setting.imbalance:g} | {groups} | {cells} |", flush=True)
        print(f"{time.time() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
