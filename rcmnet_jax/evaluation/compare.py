"""Several models on the same images: paired differences with intervals, McNemar's test, a plain sentence on each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation import influence
from rcmnet_jax.evaluation.alignment import align
from rcmnet_jax.evaluation.influence import Outcome
from rcmnet_jax.evaluation.intervals import FEW_GROUPS, Units, by_classes, make_units, without_variance
from rcmnet_jax.evaluation.table import Floats, Ints, Table

LEVEL = 0.05
DRAWS = 4000
COMPARED = {"top1": "top-1 accuracy", "balanced_accuracy": "balanced accuracy"}


def compare(tables: Mapping[str, Table], *, seed: int = 0) -> dict[str, Any]:
    """Compares the first table with each other one on the labelled images that all of them hold.

    For each pair and metric: the difference, a 95% paired bootstrap interval and two-sided p-value (images, or groups
    where there are any, drawn with replacement, the same for both; studentised, so that few groups give wide limits).
    For top-1 also McNemar's exact test, which needs independent images and one seed. Holm's correction over all pairs
    keeps the chance of any false claim at 5%. Tables that disagree on an image's group are settled by `alignment`, and
    a warning says so, as it does where they disagree on a file's SHA-256.

    Returns:
      {"reference", "images", "groups", "classes", "pairs": [...], "sentences": [...], "shared_errors": {...},
      "warnings": [...]}

    Raises:
      UserError: fewer than two tables, other classes, no image in common, or one image with two labels.
    """
    if len(tables) < 2:
        raise UserError("a comparison needs at least two tables. Give another one.")
    names = list(tables)
    aligned, dropped, clashes = align(tables)
    units = make_units(aligned[names[0]])
    pairs = [_pair(units, aligned[names[0]], aligned[name], names[0], name, seed) for name in names[1:]]
    for metric in COMPARED:
        corrected = holm([pair[metric]["p"] for pair in pairs])
        for pair, p in zip(pairs, corrected, strict=True):
            pair[metric]["p_holm"] = p
    first = aligned[names[0]]
    groups = {g for g in first.group.tolist() if g}
    return {
        "reference": names[0],
        "images": len(set(first.path.tolist())),
        "groups": len(groups),
        "classes": list(first.classes),
        "pairs": pairs,
        "sentences": [sentence(pair) for pair in pairs],
        "shared_errors": shared_errors(aligned),
        "warnings": [*clashes, *_warnings(dropped, units, groups)],
    }


def shared_errors(tables: Mapping[str, Table]) -> dict[str, Any]:
    """The images that no table has right under any seed; where all say the same class, the label is in doubt.

    Returns:
      {"images", "same_class": how many of them all call alike, "doubtful": [{"path", "label", "said"}] of these,
      "sentence": empty where there are none}.
    """
    label: dict[str, str] = {}
    said: dict[str, set[str]] = {}
    for table in tables.values():
        for path, true, prediction in zip(
            *(c.tolist() for c in (table.path, table.label, table.prediction)), strict=True
        ):
            label[path] = true
            said.setdefault(path, set()).add(prediction)
    wrong = sorted(path for path, classes in said.items() if label[path] not in classes)
    doubtful = [{"path": p, "label": label[p], "said": next(iter(said[p]))} for p in wrong if len(said[p]) == 1]
    everyone = "Both" if len(tables) == 2 else f"All {len(tables)}"
    words = f"{everyone} models are wrong on {len(wrong)} of {len(said)} images" if wrong else ""
    if doubtful:
        words += f" and call {len(doubtful)} of them alike: look at those labels first"
    return {"images": len(wrong), "same_class": len(doubtful), "doubtful": doubtful, "sentence": words and f"{words}."}


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's step-down correction (1979); an undefined p stays undefined and counts for nothing."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[i] = highest
    return corrected


def mcnemar(first: Ints, second: Ints) -> dict[str, Any]:
    """McNemar's exact test (1947) of two 0/1 arrays (n,), 1 where that model is right."""
    only_first, only_second = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    discordant = only_first + only_second
    p = float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return {"only_first_right": only_first, "only_second_right": only_second, "p": p}


def sentence(pair: Mapping[str, Any]) -> str:
    """What can be said of a pair, in words."""
    entry = pair["balanced_accuracy"]
    first, second = pair["first"], pair["second"]
    if entry["difference"] is None:
        return f"{first} and {second} cannot be compared: {entry['reason']}."
    points, low, high = (100 * entry[key] for key in ("difference", "low", "high"))
    told = f"95% interval {low:.1f} to {high:.1f} points; p {_p(entry['p_holm'])} after Holm's correction"
    if entry["p_holm"] < LEVEL:
        way = "higher" if points > 0 else "lower"
        return f"{first} has {abs(points):.1f} points {way} balanced accuracy than {second} ({told})."
    return (
        f"{first} and {second} cannot be told apart by balanced accuracy: the difference is {points:.1f} ({told}). "
        "That does not show them to be equal."
    )


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _outcomes(table: Table) -> list[tuple[Ints, Outcome]]:
    index = {name: k for k, name in enumerate(table.classes)}
    said = np.array([index[name] for name in table.prediction.tolist()], np.int64)
    whole = Outcome(table.truth(), said, table.probabilities)
    seeds = [np.flatnonzero(table.seed == seed) for seed in np.unique(table.seed)]
    return [(rows, whole.select(rows)) for rows in seeds]


def _pair(units: Units, first: Table, second: Table, name: str, other: str, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"first": name, "second": other}
    paths, image = np.unique(first.path, return_inverse=True)
    place = {path: i for i, path in enumerate(paths.tolist())}
    unit, truth = np.zeros((2, len(paths)), np.int64)
    unit[image], truth[image] = units.unit, units.truth
    metrics = {"top1": influence.top1, "balanced_accuracy": influence.balanced_accuracy}
    images = [np.array([place[path] for path in table.path.tolist()]) for table in (first, second)]
    hits = [
        np.bincount(at, table.label == table.prediction, len(paths)) / len(np.unique(table.seed))
        for at, table in zip(images, (first, second), strict=True)
    ]
    for key, metric in metrics.items():
        values, pull = [], np.zeros(len(paths))
        for sign, at, table in zip((1, -1), images, (first, second), strict=True):
            parts = [(rows, metric(outcome)) for rows, outcome in _outcomes(table)]
            values.append(float(np.mean([part.value for _, part in parts if part.value is not None])))
            for rows, part in parts:
                pull += sign * np.bincount(at[rows], part.influence, len(paths)) / len(parts)
        shift = _Shift(values[0] - values[1], pull, unit, truth, hits[0] - hits[1], by_class=key == "balanced_accuracy")
        found[key] = {"first": values[0], "second": values[1], **_difference(shift, units, seed)}
    if len(np.unique(first.seed)) == len(np.unique(second.seed)) == 1:
        order = {path: i for i, path in enumerate(second.path.tolist())}
        match = np.array([order[path] for path in first.path.tolist()])
        rights = [(t.label == t.prediction).astype(np.int64) for t in (first, second)]
        found["mcnemar"] = mcnemar(rights[0], rights[1][match])
        if units.grouped:
            found["mcnemar"]["note"] = "takes images as independent, which groups forbid: read the grouped p-values"
    return found


@dataclasses.dataclass(frozen=True)
class _Shift:
    """How far one model is ahead of another, and of each of the M images what that comes from."""

    value: float
    pull: Floats  # (M,) its influence on the value
    unit: Ints  # (M,)
    truth: Ints  # (M,)
    right: Floats  # (M,) by how much the first has it right more often, as a share of the seeds
    by_class: bool  # whether classes count alike

    def spread(self, units: Units) -> tuple[Floats, float, float]:
        """Influences summed by unit, the difference's standard error, and the degrees of freedom of that."""
        count, classes = units.count, units.classes
        few = count / (count - 1)
        cells: Floats = np.zeros((count, classes))
        np.add.at(cells, (self.unit, self.truth), self.pull)
        if not self.by_class:
            pull: Floats = cells.sum(1)
            return pull, math.sqrt(few * float((pull**2).sum())), count - 1
        squares = np.bincount(self.truth, self.pull**2, classes)
        single = np.where(units.per_class == 1, squares, 0.0) * units.grouped
        cells, degrees = by_classes(cells, units.per_class, single)
        pull = cells.sum(1) / math.sqrt(few)
        return pull, math.sqrt(few * float((pull**2).sum()) + float(single.sum())), max(min(degrees, count - 1), 1.0)


def _difference(shift: _Shift, units: Units, seed: int) -> dict[str, Any]:
    """Studentised paired bootstrap of the summed influences of the difference, by unit."""
    value = shift.value
    if units.count < 2:
        return {**dict.fromkeys(_KEYS), "reason": "there is but one group or image"}
    if not np.abs(shift.right).max() > 0:
        return {"difference": value, "low": value, "high": value, "p": 1.0, "method": "they agree on every image"}
    pull, error, degrees = shift.spread(units)
    if error < 1e-12:
        return _without_spread(shift, units)
    ratios = _ratios(pull, np.random.default_rng(seed), error)
    # A t quantile is the least: with few units the bootstrap has too few distinct draws to show its own tails.
    least = float(stats.t.ppf(0.975, degrees))
    reach = max(float(np.quantile(np.abs(ratios), 0.95)), least)
    drawn = (1 + int((np.abs(ratios) >= abs(value) / error).sum())) / (1 + len(ratios))
    p = max(drawn, float(2 * stats.t.sf(abs(value) / error, degrees)))
    return {
        "difference": value,
        "low": max(value - reach * error, -1.0),
        "high": min(value + reach * error, 1.0),
        "p": min(p, 1.0),
        "method": f"studentised paired bootstrap over {units.name}, {DRAWS} draws",
    }


def _without_spread(shift: _Shift, units: Units) -> dict[str, Any]:
    """Where each class is all right or all wrong in both models: a sign test, and what may yet be seen as limits."""
    weights = 1 / np.bincount(shift.truth)[shift.truth] if shift.by_class else np.ones(len(shift.truth))
    more = np.sign(np.bincount(shift.unit, shift.right * weights, units.count).round(9)) * np.sign(shift.value)
    for_it, against = int((more > 0).sum()), int((more < 0).sum())
    p = float(stats.binomtest(for_it, for_it + against).pvalue) if for_it > against else 1.0
    (low, high), method = without_variance(units, shift.value, "signed")
    if low <= 0 <= high and p < LEVEL:  # the test counts units, the limits bound what none has shown: both must speak
        p, method = LEVEL, f"{method}, which hold 0: so p is no less than {LEVEL:g}"
    return {"difference": shift.value, "low": low, "high": high, "p": p, "method": f"sign test; {method}"}


_KEYS = ("difference", "low", "high", "p")


def _ratios(pull: Floats, rng: np.random.Generator, error: float) -> Floats:
    """(DRAWS,) deviation of each resample of the units over its own standard error, or over half of `error`.

    A resample without the one unit that is unlike the others has next to no spread of its own; without that least of
    it a few such decide the limits, which ten donors of whom nine agree made as wide as 65 points.
    """
    count, done = len(pull), []
    chunk = max(1, 2_000_000 // count)  # draws at a time: 16 MB of indices
    for start in range(0, DRAWS, chunk):
        drawn = pull[rng.integers(0, count, (min(chunk, DRAWS - start), count))]
        total, squares = drawn.sum(1), (drawn**2).sum(1)
        own = np.sqrt(np.maximum(squares - total**2 / count, 0) * count / (count - 1))
        done.append(total / np.maximum(own, error / 2))
    return np.concatenate(done)


def _warnings(dropped: Mapping[str, int], units: Units, groups: set[str]) -> list[str]:
    lost = {name: n for name, n in dropped.items() if n}
    said = [f"{name}: {n} rows left out, which another table lacks or has unlabelled." for name, n in lost.items()]
    if len(groups) > 1 and units.count < FEW_GROUPS:
        said.append(f"Only {len(groups)} groups: hardly any difference can be shown.")
    if not units.grouped:
        said.append("No groups are used: if images share patients or smears, differences look surer than they are.")
    return said
