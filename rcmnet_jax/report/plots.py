"""Figures of the report: each function takes results and returns one figure with its alternative text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rcmnet_jax.evaluation.projection import neighbours_agree, principal
from rcmnet_jax.evaluation.reliability import risk_coverage
from rcmnet_jax.evaluation.table import Floats, Table
from rcmnet_jax.report.figures import Figure, canvas, dash, faint, figure, ink, legible, series
from rcmnet_jax.report.inputs import Embedding

POINTS = 160  # of a curve: more cannot be seen
PARTS = 500  # groups or folds, each with a line of its own
DOTS = 1500  # of the map of features
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")  # of the classes: colour is never the only mark
CURVES = 8  # classes drawn one by one; beyond it, those with the lowest area


def forest(arms: Mapping[str, Mapping[str, Any]], metric: str, name: str) -> Figure | None:
    """One line an arm: the value and its 95% interval."""
    shown = [(arm, values[metric]) for arm, values in arms.items() if values[metric]["value"] is not None]
    if not shown:
        return None
    with canvas(7.2, 0.55 + 0.42 * len(shown)) as (drawing, axes):
        ax = axes[0, 0]
        for i, (_, entry) in enumerate(shown):
            low, high, value = (100 * entry[part] for part in ("low", "high", "value"))
            ax.plot([low, high], [i, i], color=series(i), linewidth=3, solid_capstyle="round", alpha=0.55)
            ax.plot(value, i, "o", color=series(i), markersize=8)
            ax.annotate(f"{value:.1f}", (value, i), (0, 8), textcoords="offset points", ha="center", fontsize=9)
        ax.set_yticks(range(len(shown)), [short(arm) for arm, _ in shown], color=ink())
        ax.set_ylim(len(shown) - 0.5, -0.75)
        ax.set_xlabel(f"{name}, per cent, with 95% interval")
        ax.grid(visible=False, axis="y")
        ax.spines["left"].set_visible(False)
        said = "; ".join(f"{arm} {e['value']:.1%} ({e['low']:.1%} to {e['high']:.1%})" for arm, e in shown)
        return figure(drawing, f"forest_{metric}", f"{name} of each arm: {said}.", f"{name} of each arm.")


def reliability_plot(metrics: Mapping[str, Any], table: Table) -> Figure:
    """Stated confidence against the share that was right, with how many images state it."""
    bins = metrics["calibration"]["bins"]
    stated, seen = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    with canvas(4.4, 4.1, 2, 1) as (drawing, axes):
        top, bottom = axes[0, 0], axes[1, 0]
        top.get_gridspec().set_height_ratios([4, 1])
        top.plot([0, 1], [0, 1], color=faint(), linestyle=dash(1), linewidth=1, label="perfect")
        for b in bins:
            spread = 1.96 * np.sqrt(max(b["accuracy"] * (1 - b["accuracy"]), 0.25 / b["count"]) / b["count"])
            low, high = max(b["accuracy"] - spread, 0), min(b["accuracy"] + spread, 1)
            top.plot([b["confidence"]] * 2, [low, high], color=series(0), alpha=0.45, linewidth=2)
        top.plot(stated, seen, "o-", color=series(0), markersize=5, label="this model")
        said = _stated(bins)
        for when in ("before", "after"):
            if others := metrics["calibration"].get(f"{when}_temperature", {}).get("bins"):
                name = f"{when} temperature scaling"
                places = [[b[key] for b in others] for key in ("confidence", "accuracy")]
                top.plot(*places, "s", linestyle=dash(2), color=series(1), markersize=4, label=name)
                said += f". {name.capitalize()}: {_stated(others)}"
        start = max(0.0, min(*stated, *seen, float(table.confidence.min())) - 0.05)
        top.set(xlim=(start, 1.01), ylim=(start, 1.02), ylabel="share right", title="Are stated confidences true?")
        top.legend(loc="upper left")
        bottom.hist(table.confidence, bins=np.linspace(start, 1, 30).tolist(), color=series(0), alpha=0.7)
        bottom.set(xlim=(start, 1.01), xlabel="stated confidence", ylabel="images")
        caption = "Reliability, in bins of equal mass. Below the dashed line the model is too sure of itself."
        return figure(drawing, "reliability", f"Reliability diagram. Bins: {said}.", caption)


def _stated(bins: Sequence[Mapping[str, float]]) -> str:
    return ", ".join(f"{b['confidence']:.2f} stated and {b['accuracy']:.2f} right" for b in bins)


def risk_coverage_plot(table: Table) -> Figure:
    """Error rate among the most confident share of images."""
    right = (table.label == table.prediction).astype(np.float64)
    share, risk, area = risk_coverage(table.confidence, right)
    keep = _thin(len(share))
    with canvas(4.4, 4.1) as (drawing, axes):
        ax = axes[0, 0]
        ax.plot(100 * share[keep], 100 * risk[keep], color=series(0))
        ax.fill_between(100 * share[keep], 0, 100 * risk[keep], color=series(0), alpha=0.12, linewidth=0)
        ax.set(xlim=(0, 100), xlabel="images answered, most confident first, %", ylabel="errors among them, %")
        ax.set_ylim(0, max(100 * float(risk[len(risk) // 20 :].max()) * 1.15, 1))
        ax.set_title("What abstaining would buy")
        last = {s: risk[max(int(s * len(risk)) - 1, 0)] for s in (0.5, 0.8, 1)}
        points = ", ".join(f"{s:.0%} answered: {errors:.1%} errors" for s, errors in last.items())
        alt = f"Risk against coverage. {points}. Area {area:.4f}."
        return figure(drawing, "risk_coverage", alt, f"Risk against coverage; area under the curve {area:.4f}.")


def curves(table: Table, metrics: Mapping[str, Any]) -> Figure | None:
    """ROC and precision-recall, one class against the rest, side by side."""
    truth = table.truth()
    known = [
        (values["auroc"]["value"], k, name)
        for k, (name, values) in enumerate(metrics["per_class"].items())
        if values["auroc"]["value"] is not None
    ]
    if not known:
        return None
    known.sort()
    with canvas(9, 4.1, 1, 2) as (drawing, axes):
        roc, pr = axes[0]
        roc.plot([0, 1], [0, 1], color=faint(), linestyle=dash(2), linewidth=1)
        for i, (area, k, name) in enumerate(known[:CURVES]):
            hit, false, precision = _rates(table.probabilities[:, k], truth == k)
            style = {"color": series(i), "linestyle": dash(i // 2), "linewidth": 1.6}
            keep = _thin(len(hit))
            roc.plot(false[keep], hit[keep], label=f"{short(name)}  {area:.3f}", **style)
            average = metrics["per_class"][name]["auprc"]["value"]
            pr.step(hit[keep][1:], precision[keep][1:], where="post", label=f"{short(name)}  {average:.3f}", **style)
        roc.set(xlabel="false alarms (1 - specificity)", ylabel="sensitivity", title="ROC, area")
        pr.set(xlabel="sensitivity (recall)", ylabel="precision", title="Precision-recall, average precision")
        for ax in (roc, pr):
            ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
            ax.legend(loc="lower left" if ax is pr else "lower right")
        said = ", ".join(f"{name} {area:.3f}" for area, _, name in known)
        more = f" The {CURVES} classes with the lowest area of {len(known)}." if len(known) > CURVES else ""
        alt = f"ROC and precision-recall curves. AUROC: {said}."
        return figure(drawing, "roc_pr", alt, f"Each class against the rest.{more}")


def parts_plot(parts: Sequence[Mapping[str, Any]], key: str, overall: Mapping[str, Any]) -> Figure | None:
    """Top-1 of each group or fold with Wilson limits, sorted, against the whole."""
    if len(parts) < 2:
        return None
    ordered = sorted(parts, key=lambda part: float(part["top1"]["value"]))
    worst, best = ordered[0]["top1"]["value"], ordered[-1]["top1"]["value"]
    drawn = f"{len(ordered)} {key}s,"
    if len(ordered) > PARTS:
        ordered = [ordered[place] for place in _thin(len(ordered), PARTS)]
        drawn += f" of which {len(ordered)} are drawn,"
    with canvas(7.2, 3.0) as (drawing, axes):
        ax = axes[0, 0]
        places = np.arange(len(ordered))
        low, value, high = (100 * np.array([p["top1"][part] for p in ordered]) for part in ("low", "value", "high"))
        ax.vlines(places, low, high, color=series(0), alpha=0.35, linewidth=min(3, 180 / len(ordered)))
        ax.plot(places, value, "o", color=series(0), markersize=max(2.5, min(6, 180 / len(ordered))))
        ax.axhline(100 * overall["value"], color=series(1), linestyle=dash(1), linewidth=1.2, label="all images")
        if len(ordered) <= 16:
            names = [short(str(p["group"]), 10) if key == "group" else _fold_name(p) for p in ordered]
            ax.set_xticks(places, names, rotation=35 if max(map(len, names)) > 4 else 0)
        else:
            ax.set_xticks([])
        ax.set(ylabel="top-1, %", xlabel=f"each {key}, worst first")
        ax.grid(visible=False, axis="x")
        ax.legend(loc="lower right")
        alt = f"Top-1 of {drawn} from {worst:.1%} to {best:.1%}; all images {overall['value']:.1%}."
        return figure(drawing, f"per_{key}", alt, f"Top-1 of each {key} with its Wilson interval.")


def embedding_map(found: Embedding | None, table: Table) -> Figure | None:
    """Features of the labelled images on their first two principal components, errors ringed."""
    if found is None:
        return None
    row_of = {path: row for row, path in enumerate(table.path.tolist())}
    shown = np.array([k for k, path in enumerate(found.path.tolist()) if path in row_of], np.int64)
    shown = shown[np.linspace(0, len(shown) - 1, min(len(shown), DOTS)).astype(int)]
    if len(shown) < 3:
        return None
    rows = np.array([row_of[path] for path in found.path[shown].tolist()])
    label, wrong = table.label[rows], table.label[rows] != table.prediction[rows]
    places, shares = principal(found.values[shown])
    agree, chance = neighbours_agree(found.values[shown], label, table.group[rows])
    with canvas(7.2, 5.0) as (drawing, axes):
        ax = axes[0, 0]
        for i, name in enumerate(n for n in table.classes if (label == n).any()):
            here = places[label == name]
            style = {"color": series(i), "marker": MARKS[i % len(MARKS)], "markersize": 4.5, "alpha": 0.75}
            ax.plot(here[:, 0], here[:, 1], linestyle="", markeredgewidth=0, label=short(name), **style)
        ring = {"marker": "o", "markerfacecolor": "none", "markeredgecolor": ink(), "markersize": 8}
        ax.plot(
            places[wrong, 0], places[wrong, 1], linestyle="", markeredgewidth=0.8, label="predicted wrongly", **ring
        )
        ax.set(xlabel=f"first component ({shares[0]:.0%} of the variance)", ylabel=f"second ({shares[1]:.0%})")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        told = f"{agree:.0%} of the images have a nearest neighbour of their own class, {chance:.0%} by chance"
        told = "no neighbour outside the own group" if np.isnan(agree) else told
        text = f"{len(rows)} images by the features of {found.whose}: {told}, in all {found.values.shape[1]} features"
        other = " and outside their own group" if (table.group[rows] != "").any() else ""
        caption = f"{text}{other}. What lies together here need not do so in all features."
        return figure(drawing, "embedding", f"Map of features, a dot an image. {text}{other}.", caption)


def learning(log: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Training loss, what was watched, and the learning rate, against the step, one column an arm."""
    log = [row for row in log if "/folds/" not in str(row["stage"])]  # networks that only make soft targets
    trained = [row for row in log if row.get("loss") is not None and row.get("kind", "train") == "train"]
    arms = list(dict.fromkeys(str(row["stage"]).split("/")[0] for row in trained))[:4]
    if not arms:
        return None
    with canvas(2.6 + 2.2 * len(arms), 4.4, 2, len(arms)) as (drawing, axes):
        said = [_learning_column(axes[:, i], arm, trained, log) for i, arm in enumerate(arms)]
        axes[0, 0].set_ylabel("training loss")
        axes[1, 0].set_ylabel("learning rate")
        caption = "Training loss, one thin line a fold, and the learning rate; squares: top-1 on watched images."
        return figure(drawing, "learning", f"Learning curves. {' '.join(said)}", caption)


def _learning_column(
    axes: Any, arm: str, trained: Sequence[Mapping[str, Any]], log: Sequence[Mapping[str, Any]]
) -> str:
    rows = [row for row in trained if str(row["stage"]).split("/")[0] == arm]
    stages = list(dict.fromkeys(str(row["stage"]) for row in rows))
    ends = []
    for stage in stages:
        here = [row for row in rows if row["stage"] == stage]
        here = [here[i] for i in _thin(len(here))]
        steps = [row["step"] for row in here]
        alpha = 0.9 if len(stages) == 1 else 0.5
        axes[0].plot(steps, [row["loss"] for row in here], color=series(0), alpha=alpha, linewidth=1.3)
        rates = [row.get("learning_rate", np.nan) for row in here]
        axes[1].plot(steps, rates, color=series(4), alpha=alpha, linewidth=1.3)
        ends.append(here[-1]["loss"])
    watched = [row for row in log if row.get("top1") is not None and str(row["stage"]).split("/")[0] == arm]
    if watched:
        twin = axes[0].twinx()
        shown = [watched[i] for i in _thin(len(watched))]
        twin.plot([r["step"] for r in shown], [100 * r["top1"] for r in shown], "s", color=series(1), markersize=3.5)
        twin.set_ylabel("watched top-1, %", color=series(1))
        twin.grid(visible=False)
    axes[0].set_title(short(arm))
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(bottom=0)
    axes[1].set_xlabel("step")
    return f"{arm}: {len(stages)} runs, last loss {np.mean(ends):.3f}."


def short(text: str, most: int = 22) -> str:
    """The text on one line, cut to `most` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in legible(text)).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _fold_name(part: Mapping[str, Any]) -> str:
    return f"{part['fold']}" if part["seed"] < 0 else f"{part['seed']}/{part['fold']}"


def _thin(n: int, most: int = POINTS) -> list[int]:
    return sorted(set(np.linspace(0, n - 1, min(n, most)).astype(int).tolist()))


def _rates(scores: Floats, real: Any) -> tuple[Floats, Floats, Floats]:
    """Sensitivity, false alarms and precision at each distinct score from above, starting at (0, 0, 1)."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits, seen = real[order].cumsum()[ends], ends + 1
    sensitivity = hits / max(real.sum(), 1)
    alarms = (seen - hits) / max((~real).sum(), 1)
    return (
        np.concatenate([[0.0], sensitivity]),
        np.concatenate([[0.0], alarms]),
        np.concatenate([[1.0], hits / seen]),
    )
