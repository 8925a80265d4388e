"""The report's sentences: what was trained on what, how good it is and how certain that is, and where it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rcmnet_jax.evaluation.metrics import chance_level
from rcmnet_jax.report.inputs import DataFacts, ReportInputs

Metrics = Mapping[str, Any]


def number(value: float, kind: str = "share") -> str:
    """A share in per cent with one decimal, two near the ends; anything else with three digits."""
    if kind == "plain":
        return f"{value:.3f}"
    return f"{100 * value:.{2 if value > 0.985 and value < 1 else 1}f}%"


def limits(entry: Mapping[str, Any]) -> str:
    """'95% interval 83.1% to 87.9%'."""
    return f"95% interval {number(entry['low'])} to {number(entry['high'])}"


def headline(metrics: Metrics) -> tuple[str, Mapping[str, Any]]:
    """The one number shown large: balanced accuracy, since top-1 flatters a model where one class is common."""
    return "Balanced accuracy", metrics["balanced_accuracy"]


def trained(inputs: ReportInputs, metrics: Metrics) -> list[str]:
    """What was trained on what, with counts."""
    lines = [f"Model: {inputs.model}."] if inputs.model else []
    lines += [_set(facts) for facts in inputs.data]
    lines += list(inputs.trained)
    if not inputs.data and not inputs.trained:
        lines.append("A predictions table alone was given; what the model was trained on is not stated in it.")
    groups = f" of {metrics['groups']} groups" if metrics["groups"] else ""
    held = f", each predicted by a model that never saw it ({fold_count(metrics)} folds)"
    held = held if out_of_fold(metrics) else ""
    if "train" in metrics["splits"]:
        held = ", some of which the model was trained on"
    lines.append(f"Tested on {metrics['n']} images{groups} in {len(metrics['classes'])} classes{held}.")
    return lines


def out_of_fold(metrics: Metrics) -> bool:
    """Whether the table says of every row that it was predicted out of its fold."""
    return list(metrics["splits"]) == ["oof"] and len(metrics["per_fold"]) > 1


def _set(facts: DataFacts) -> str:
    groups = f" of {facts.groups} groups" if facts.groups else ""
    kind = "SYNTHETIC " if facts.synthetic else ""
    return f"{facts.role.capitalize()}: {kind}{facts.name}, {facts.images} images{groups}."


def fold_count(metrics: Metrics) -> int:
    """Into how many folds each seed parts the images."""
    return len({part["fold"] for part in metrics["per_fold"]})


def certainty(metrics: Metrics) -> list[str]:
    """How good, with what certainty."""
    lines = []
    _, main = headline(metrics)
    if main["value"] is not None:
        chance = chance_level(metrics)
        guess = "one class alone is there to be told" if chance is None else f"guessing gives {number(chance)}"
        lines.append(f"{limits(main).capitalize()}; {guess}.")
    top = metrics["top1"]
    lines.append(f"Top-1 accuracy {number(top['value'])} ({number(top['low'])} to {number(top['high'])}).")
    if metrics["auroc"]["value"] is not None:
        low, high = metrics["auroc"]["low"], metrics["auroc"]["high"]
        lines.append(f"Macro AUROC {metrics['auroc']['value']:.3f} ({low:.3f} to {high:.3f}).")
    lines.append(confidence(metrics)[0])
    return lines


def confidence(metrics: Metrics) -> list[str]:
    """What the stated confidences are worth, and what abstention does."""
    ece, stated = metrics["ece"], metrics["calibration"]["mean_confidence"]
    gap = stated - metrics["top1"]["value"]
    if ece["low"] == 0:
        first = f"Confidences are as good as chance lets one tell: calibration error {number(ece['value'])}"
    elif abs(gap) < ece["value"] / 2:
        first = (
            "Confidences are off both ways, too sure at some and too modest at others: the model states "
            f"{number(stated)} on average; calibration error {number(ece['value'])}"
        )
    else:
        way = "too sure of itself" if gap > 0 else "too modest"
        first = f"The model is {way}: it states {number(stated)} on average; calibration error {number(ece['value'])}"
    lines = [f"{first} ({number(ece['low'])} to {number(ece['high'])})."]
    chosen = metrics["selective"]
    if chosen["coverage"] is not None:
        text = f"It answers {number(chosen['coverage'])} of the images"
        if chosen["top1_of_answered"] is not None:
            text += f", {number(chosen['top1_of_answered'])} of them rightly"
        if chosen["top1_of_abstained"] is not None:
            text += f"; of those it abstains on, {number(chosen['top1_of_abstained'])} would have been right"
        lines.append(text + ".")
    if chosen.get("out_of_distribution"):
        lines.append(f"{number(chosen['out_of_distribution'])} of the images are unlike those it was fitted on.")
    return lines


def calibrated(facts: Mapping[str, Any]) -> list[str]:
    """What a bundle's calibration.json does to its answers, and on how many images it was fitted."""
    lines = []
    if "temperature" in facts:
        rows = " ".join(str(facts[key]) for key in ("rows", "fitted_on") if facts.get(key))
        lines.append(f"Temperature {facts['temperature']:.3f}, fitted on {rows or 'held-out images'}.")
    if changed := facts.get("reliability"):
        before, after = (number(changed[when]["ece"]) for when in ("before", "after"))
        lines.append(
            f"Their calibration error is {before} before and {after} after, each part by the temperature of the others."
        )
    if conformal := facts.get("conformal"):
        rare = f" No promise for {', '.join(conformal['rare'])}: too few images." if conformal["rare"] else ""
        lines.append(
            "It abstains unless exactly one class is in the conformal set, which is to miss the true class of at most "
            f"{100 * conformal['alpha']:g}% of every class's images (evaluation.error_rate).{rare}"
        )
    if ood := facts.get("ood"):
        lines.append(
            f"Images farther out than {ood['kept']:.0%} of known ones are flagged as unlike them, by {ood['score']}."
        )
    return lines


def fails(metrics: Metrics) -> list[str]:
    """The weakest class, the commonest confusions, the worst group."""
    cells = np.array(metrics["confusion"])
    errors = cells.sum() - np.trace(cells)
    if not errors:
        return [f"No error among {cells.sum()} predictions; at such counts the interval tells more than the value."]
    lines = []
    # A class that one of several seeds lacks has no value.
    rated = [(v, name, c) for name, c in metrics["per_class"].items() if (v := c["sensitivity"]["value"]) is not None]
    if rated:
        worst, name, values = min(rated, key=lambda item: (item[0], item[1]))
        told = f"{number(values['sensitivity']['low'])} to {number(values['sensitivity']['high'])}"
        lines.append(f"Weakest class: {name}, sensitivity {number(worst)} ({told}) on {values['support']} images.")
    off = cells - np.diag(np.diag(cells))
    for place in np.argsort(-off, axis=None, kind="stable")[:3]:
        row, column = divmod(int(place), len(cells))
        if off[row, column]:
            share = off[row, column] / cells[row].sum()
            real, said = metrics["classes"][row], metrics["classes"][column]
            lines.append(f"{off[row, column]} × {real} taken for {said} ({number(share)} of {real}).")
    if len(metrics["per_group"]) > 1:
        lines.append(_groups(metrics["per_group"]))
    return lines


def _groups(parts: Sequence[Mapping[str, Any]]) -> str:
    """The groups that lie farthest apart beyond chance, else the range over all."""
    low = min(parts, key=lambda part: (part["top1"]["high"], part["group"]))
    high = max(parts, key=lambda part: (part["top1"]["low"], part["group"]))
    if low["top1"]["high"] < high["top1"]["low"]:
        return (
            f"Groups differ: {low['group']} has top-1 {number(low['top1']['value'])} of {low['n']} images, "
            f"{high['group']} {number(high['top1']['value'])} of {high['n']}."
        )
    values = [part["top1"]["value"] for part in parts]
    return (
        f"Top-1 of the {len(parts)} groups is {number(min(values))} to {number(max(values))}; no two have Wilson "
        "intervals that lie apart."
    )


def p_value(p: float | None) -> str:
    """A p-value with three decimals, as a table shows it."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def mcnemar(comparison: Mapping[str, Any]) -> list[str]:
    """What McNemar's test in the table of pairs means, or why it is not there."""
    pairs = comparison.get("pairs", [])
    if not pairs:
        return []
    held = [pair["mcnemar"] for pair in pairs if "mcnemar" in pair]
    lines = []
    if held:
        lines.append(
            f"McNemar's exact test is of the images that one of the two alone gets right; right alone counts those of "
            f"{comparison['reference']}, wrong alone those of the other."
        )
    if len(held) < len(pairs):
        lines.append("Where McNemar's test is missing, there are several seeds: it takes one prediction an image.")
    return lines + list(dict.fromkeys(f"McNemar's test {test['note']}." for test in held if "note" in test))


def seeds(metrics: Metrics) -> str:
    """The spread over training seeds, which the intervals leave out."""
    spread = metrics["per_seed"]["balanced_accuracy"]
    if spread["sd"] is None:
        return ""
    n = len(spread["values"])
    return (
        f"Over {n} training seeds balanced accuracy is {number(spread['mean'])} ± {number(spread['sd'])} (mean ± "
        "standard deviation): that is the luck of training, apart from the sampling that the intervals speak of."
    )


def lacks(inputs: ReportInputs, metrics: Metrics) -> list[str]:
    """What a reader would want and does not get here."""
    lines = []
    if not metrics["groups"]:
        lines.append("Patients or smears: no groups are given, so how results carry over to new ones is not known.")
    if not inputs.data:
        lines.append("Training data: which images, how many, and what was left out.")
    if inputs.findings is None:
        lines.append("An audit for duplicates, leakage and shortcuts: run `python -m rcmnet_jax audit DATA`.")
    if len(inputs.arms) < 2 and not inputs.comparison:
        lines.append("A baseline: without one, no value above says whether the method is worth its trouble.")
    if inputs.images is None:
        lines.append("Example images.")
    elif inputs.explain is None:
        lines.append("What the network looked at: `python -m rcmnet_jax predict --explain` shows it.")
    if inputs.embedding is None:
        lines.append("A map of the images by the network's features, which a run with the arm probe has.")
    if not inputs.log:
        lines.append("Learning curves.")
    if metrics["per_seed"]["top1"]["sd"] is None:
        lines.append("The luck of training: all predictions are of one seed.")
    lines.append("Images from another hospital, stain or camera: no such test is in this table unless you know it is.")
    return lines
