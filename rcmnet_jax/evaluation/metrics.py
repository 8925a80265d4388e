"""All that is measured on a predictions table, each value with a 95% interval: the content of metrics.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation import influence, reliability
from rcmnet_jax.evaluation.influence import Outcome, Statistic
from rcmnet_jax.evaluation.intervals import (
    FEW_GROUPS,
    Units,
    interval,
    make_units,
    proportion,
    wilson,
    without_variance,
)
from rcmnet_jax.evaluation.table import Table

# Heavy tails of single images, as of a few wrong answers, leave few degrees of freedom for the variance. On the logit
# scale that is too careful for metrics of right and wrong alone; the simulation in docs/evaluation.md chose these.
TAILS = {"balanced_accuracy": 0.5, "macro_f1": 0.0}
HEADLINES = {
    "top1": "Top-1 accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "auroc": "Macro AUROC",
    "nll": "NLL (nats)",
    "brier": "Brier score",
    "ece": "Calibration error",
}


def compute(table: Table, seed: int = 0, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Metrics of the table's labelled rows, with 95% intervals, ready for JSON and equal for equal input.

    Rows of one image under several seeds are one observation: each metric is taken for each seed and averaged, sampling
    is of images, or of groups where there are any, and the seeds' own spread stands apart in `per_seed`.

    Args:
      seed: of the draws behind the ECEs' intervals; all else is deterministic.
      provenance: kept as it is under "provenance".

    Raises:
      UserError: no row has a label.
    """
    labelled = table.select(np.flatnonzero(table.truth() >= 0))
    if not len(labelled):
        raise UserError("the predictions table has no labels to evaluate against. Fill column 'label'.")
    units = make_units(labelled)
    outcomes = _outcomes(labelled, units)
    groups = {g for g in labelled.group.tolist() if g}
    truth, prediction = units.truth, np.concatenate([o.prediction for o in outcomes])
    order = np.concatenate(units.seeds)
    return {
        "n": len(set(labelled.path.tolist())),
        "groups": len(groups),
        "classes": list(table.classes),
        "rows": len(labelled),
        "unlabelled": len(table) - len(labelled),
        "splits": {name: int((labelled.split == name).sum()) for name in sorted(set(labelled.split.tolist()))},
        "groups_cut": _groups_cut(labelled),
        **_headlines(units, outcomes, seed),
        "macro_auprc": _macro(units, outcomes, influence.macro_auprc),
        "mcc": _macro(units, outcomes, influence.mcc, "signed", by_class=False),
        "classwise_ece": reliability.classwise_ece(units, outcomes, seed=seed),
        "calibration": _calibration(outcomes),
        "per_class": {name: _per_class(labelled, units, outcomes, k) for k, name in enumerate(table.classes)},
        "confusion": influence.confusion(truth[order], prediction, len(table.classes)).tolist(),
        "per_seed": _per_seed(labelled, units, outcomes),
        "per_fold": _per_part(labelled, "fold") if (labelled.fold >= 0).any() else [],
        "per_group": _per_part(labelled, "group") if groups else [],
        "selective": _selective(labelled),
        "warnings": _warnings(labelled, units, groups),
        "provenance": dict(provenance or {}),
    }


def balanced_accuracy(right: np.ndarray, label: np.ndarray) -> float:
    """The mean recall of the classes that `label` (N,) has; `right` (N,) says which rows are called so."""
    return float(np.mean([right[label == k].mean() for k in np.unique(label)]))


def chance_level(metrics: Mapping[str, Any]) -> float | None:
    """The balanced accuracy of a guess among the classes that are there; None where there is but one."""
    present = sum(c["support"] > 0 for c in metrics["per_class"].values())
    return 1 / present if present > 1 else None


def to_json(metrics: Mapping[str, Any]) -> str:
    """The file's text: equal metrics give equal bytes; no NaN or infinity can get in."""
    return json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def summary_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, 95% interval) of each headline metric, as text for a terminal; shares in per cent."""
    rows = []
    for key, name in HEADLINES.items():
        entry = metrics[key]
        if entry["value"] is None:
            rows.append((name, "-", entry["reason"]))
        else:
            scale, unit = (1, "") if key in ("nll", "brier", "auroc") else (100, "%")
            digits = 2 if unit else 4
            value, low, high = (f"{entry[part] * scale:.{digits}f}" for part in ("value", "low", "high"))
            rows.append((name, value + unit, f"{low} to {high}"))
    return rows


def _outcomes(table: Table, units: Units) -> list[Outcome]:
    index = {name: k for k, name in enumerate(table.classes)}
    prediction = np.array([index[name] for name in table.prediction.tolist()], np.int64)
    rows = Outcome(units.truth, prediction, table.probabilities)
    return [rows.select(seed) for seed in units.seeds]


def _allowing_for_unseen(units: Units, outcomes: list[Outcome], entry: dict[str, Any], scale: str) -> dict[str, Any]:
    """An interval that allows for what none of the images shows, where all are right or all are wrong.

    The spread of the probabilities alone is then next to nothing, and says nothing of the errors to come.
    """
    right = np.concatenate([rows.truth == rows.prediction for rows in outcomes])
    if entry["value"] is None or 0 < right.mean() < 1:
        return entry
    (low, high), method = without_variance(units, entry["value"], scale)
    limits = {"low": min(low, entry["low"]), "high": max(high, entry["high"])}
    return {**entry, **limits, "method": f"{entry['method']}; at least {method}"}


def _headlines(units: Units, outcomes: list[Outcome], seed: int) -> dict[str, Any]:
    brier = _macro(units, outcomes, influence.brier, "positive", by_class=False)
    brier = _allowing_for_unseen(units, outcomes, brier, "positive")
    nll = _macro(units, outcomes, influence.nll, "positive", by_class=False)
    ece = reliability.expected_calibration_error(units, outcomes, seed=seed)
    if brier["high"] is not None:
        brier["high"] = max(min(brier["high"], 2.0), brier["value"])
    return {
        "top1": proportion(units, [influence.top1(o) for o in outcomes], len(outcomes[0].truth)),
        "balanced_accuracy": _macro(units, outcomes, influence.balanced_accuracy, tails=TAILS["balanced_accuracy"]),
        "macro_f1": _macro(units, outcomes, influence.macro_f1, tails=TAILS["macro_f1"]),
        "auroc": _macro(units, outcomes, influence.macro_auroc),
        "nll": _allowing_for_unseen(units, outcomes, nll, "positive"),
        "brier": brier,
        "ece": _allowing_for_unseen(units, outcomes, ece, "unit"),
    }


def _macro(
    units: Units,
    outcomes: list[Outcome],
    metric: Callable[[Outcome], Statistic],
    scale: str = "unit",
    *,
    by_class: bool = True,
    tails: float = 1.0,
) -> dict[str, Any]:
    return interval(units, [metric(rows) for rows in outcomes], scale=scale, by_class=by_class, tails=tails)


def _per_class(table: Table, units: Units, outcomes: list[Outcome], k: int) -> dict[str, Any]:
    rates = [influence.rates(rows, k) for rows in outcomes]
    first = outcomes[0]
    real, said = len(set(table.path[units.truth == k].tolist())), int((first.prediction == k).sum())
    ours = int(units.per_class[k])
    called = np.zeros(len(units.unit), bool)
    for rows, outcome in zip(units.seeds, outcomes, strict=True):
        called[rows] = outcome.prediction == k
    over = {"sensitivity": units.truth == k, "specificity": units.truth != k, "ppv": called, "npv": ~called}
    of = {name: len(np.unique(units.unit[rows])) for name, rows in over.items()}
    below = {"sensitivity": real, "specificity": len(first.truth) - real, "ppv": said, "npv": len(first.truth) - said}
    return {
        "support": real,
        **{name: proportion(units, [rate[name] for rate in rates], n, True, of[name]) for name, n in below.items()},
        "f1": interval(units, [rate["f1"] for rate in rates], tails=TAILS["macro_f1"], of=ours),
        "auroc": interval(units, [influence.auroc_of(rows, k) for rows in outcomes], of=ours),
        "auprc": interval(units, [influence.auprc_of(rows, k) for rows in outcomes], of=ours),
    }


def _calibration(outcomes: list[Outcome]) -> dict[str, Any]:
    stated = np.concatenate([rows.probabilities.max(1) for rows in outcomes])
    right = np.concatenate([(rows.truth == rows.prediction).astype(np.float64) for rows in outcomes])
    return {
        "equal_width_ece": reliability.equal_width_ece(stated, right),
        "mean_confidence": float(stated.mean()),
        "aurc": reliability.risk_coverage(stated, right)[2],
        **{f"top_label_{name}": value for name, value in reliability.brier_parts(stated, right).items()},
        "bins": reliability.reliability(stated, right),
    }


def _per_seed(table: Table, units: Units, outcomes: list[Outcome]) -> dict[str, Any]:
    """Spread over seeds, which is of training and not of sampling."""
    metrics = {"top1": influence.top1, "balanced_accuracy": influence.balanced_accuracy, "macro_f1": influence.macro_f1}
    spread: dict[str, Any] = {"seeds": [int(table.seed[rows[0]]) for rows in units.seeds]}
    for name, metric in metrics.items():
        values = [v for rows in outcomes if (v := metric(rows).value) is not None]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        spread[name] = {"mean": float(np.mean(values)), "sd": deviation, "values": values}
    return spread


def _per_part(table: Table, column: str) -> list[dict[str, Any]]:
    """Top-1 and balanced accuracy of each group, or of each fold of each seed."""
    truth = table.truth()
    right = (table.label == table.prediction).astype(np.float64)
    values = getattr(table, column)
    places: dict[tuple[int, Any], list[int]] = {}
    for row, (value, seed) in enumerate(zip(values.tolist(), table.seed.tolist(), strict=True)):
        if value not in ("", -1):
            places.setdefault((-1 if column == "group" else seed, value), []).append(row)
    parts = []
    for key in sorted(places):
        rows = np.array(places[key])
        images = len(set(table.path[rows].tolist()))
        low, high = wilson(float(right[rows].mean()), images)
        name = {"group": key[1]} if column == "group" else {"seed": key[0], "fold": key[1]}
        parts.append(
            {
                **name,
                "n": images,
                "top1": {"value": float(right[rows].mean()), "low": low, "high": high},
                "balanced_accuracy": balanced_accuracy(right[rows], truth[rows]),
                "classes_present": len(np.unique(truth[rows])),
            }
        )
    return parts


def _selective(table: Table) -> dict[str, Any]:
    """What abstention and the out-of-distribution flag do, where the bundle set them."""
    known, flagged = table.abstain >= 0, table.ood[table.ood >= 0]
    strange = float((flagged == 1).mean()) if len(flagged) else None
    if not known.any():
        reason = "the table does not say where the model abstains"
        return {"coverage": None, "reason": reason, "out_of_distribution": strange}
    answered = known & (table.abstain == 0)
    right = table.label == table.prediction
    return {
        "coverage": float(answered.sum() / known.sum()),
        "top1_of_answered": float(right[answered].mean()) if answered.any() else None,
        "top1_of_abstained": float(right[known & ~answered].mean()) if (known & ~answered).any() else None,
        "out_of_distribution": strange,
    }


def _groups_cut(table: Table) -> int:
    """Number of groups that stand in more than one fold of one seed: a leak, unless the groups mean something else."""
    rows = zip(table.group.tolist(), table.seed.tolist(), table.fold.tolist(), strict=True)
    held = {(group, seed, fold) for group, seed, fold in rows if group and fold >= 0}
    folds: dict[tuple[str, int], int] = {}
    for group, seed, _ in held:
        folds[group, seed] = folds.get((group, seed), 0) + 1
    return len({group for (group, _), count in folds.items() if count > 1})


def _warnings(table: Table, units: Units, groups: set[str]) -> list[str]:
    said = []
    absent = [name for name in table.classes if not (table.label == name).any()]
    if absent:
        said.append(f"No image of {', '.join(absent)}: averages over classes leave them out.")
    if len(groups) > 1 and units.count < FEW_GROUPS:
        said.append(
            f"Only {len(groups)} groups: the t intervals over groups are wide and rough. Read the values per group."
        )
    if len(groups) == 1 and (table.group != "").all():
        said.append("All images come from one group: the intervals say nothing about other groups.")
    if not groups:
        said.append("No groups are given: if images share patients or smears, the intervals are too narrow.")
    elif (table.group == "").any():
        alone = int((table.group == "").sum())
        said.append(f"{alone} rows have no group; each of their images counts as a group of its own.")
    if units.grouped:
        held = units.per_class
        single = [name for k, name in enumerate(table.classes) if held[k] == 1]
        if single:
            said.append(
                f"All images of {', '.join(single)} come from one group: class and group cannot be told apart, "
                "and the intervals take these images as if each were a group."
            )
    if cut := _groups_cut(table):
        said.append(f"{cut} groups stand in more than one fold: their images were trained on as well as tested.")
    if (table.split == "train").any():
        said.append(f"{int((table.split == 'train').sum())} rows were trained on: the values are too good.")
    worst = min(_per_part(table, "group"), key=lambda part: float(part["top1"]["high"]), default=None)
    if worst and len(groups) > 1 and worst["top1"]["high"] < (table.label == table.prediction).mean():
        said.append(f"Worst group: {worst['group']}, top-1 {worst['top1']['value']:.1%} of {worst['n']} images.")
    return said
