"""The report: one HTML file that holds all it shows, runs no script, and loads nothing."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rcmnet_jax import __version__
from rcmnet_jax.evaluation.compare import COMPARED
from rcmnet_jax.evaluation.metrics import HEADLINES, chance_level, compute
from rcmnet_jax.evaluation.table import Table
from rcmnet_jax.report import figures as drawing
from rcmnet_jax.report import plots, sentences
from rcmnet_jax.report.figures import Figure
from rcmnet_jax.report.inputs import ReportInputs

THUMBNAIL = 112  # pixels
WRONG, RIGHT = 18, 8  # examples shown
LONGEST = 40_000  # characters of one provenance block
COLUMNS = (  # of the table of arms: key in metrics.json, heading, how a value is written
    ("top1", "Top-1", "share"),
    ("balanced_accuracy", "Balanced accuracy", "share"),
    ("macro_f1", "Macro F1", "share"),
    ("auroc", "Macro AUROC", "plain"),
    ("macro_auprc", "Macro AUPRC", "plain"),
    ("mcc", "MCC", "plain"),
    ("nll", "NLL", "plain"),
    ("brier", "Brier", "plain"),
    ("ece", "ECE", "share"),
)
CONTENTS = (
    ("glance", "At a glance"),
    ("results", "Results"),
    ("errors", "Where it errs"),
    ("groups", "Folds, groups, seeds"),
    ("confidence", "Confidence"),
    ("data", "Data"),
    ("embedding", "Map of the images"),
    ("learning", "Learning curves"),
    ("provenance", "Provenance"),
)


def render(inputs: ReportInputs) -> str:
    """The report's HTML: self-contained, a few hundred KiB, equal for equal inputs. Names from data are always text.

    Raises:
      UserError: a table without labels.
    """
    metrics = inputs.metrics or compute(inputs.table)
    return render_with(inputs, metrics, draw(inputs, metrics))


def draw(inputs: ReportInputs, metrics: Mapping[str, Any]) -> dict[str, Figure | None]:
    """The report's figures by name; None where there is nothing to draw."""
    known = inputs.table.select(np.flatnonzero(inputs.table.truth() >= 0))
    return {
        "forest": plots.forest(inputs.arms or {"this table": metrics}, *reversed(_headline_key())),
        "curves": plots.curves(known, metrics),
        "reliability": plots.reliability_plot(metrics, known),
        "risk": plots.risk_coverage_plot(known),
        "group": plots.parts_plot(metrics["per_group"], "group", metrics["top1"]),
        "fold": plots.parts_plot(metrics["per_fold"], "fold", metrics["top1"]),
        "learning": plots.learning(inputs.log),
        "embedding": plots.embedding_map(inputs.embedding, known),
    }


def _headline_key() -> tuple[str, str]:
    return HEADLINES["balanced_accuracy"], "balanced_accuracy"


def render_with(inputs: ReportInputs, metrics: Mapping[str, Any], figures: Mapping[str, Figure | None]) -> str:
    """As `render`, of figures drawn before."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    jinja = Environment(loader=PackageLoader("rcmnet_jax.report"), autoescape=True, undefined=StrictUndefined)
    jinja.filters["metric"] = sentences.number
    jinja.filters["p_value"] = sentences.p_value

    css = jinja.get_template("report.css").render(light=drawing.LIGHT, dark=drawing.DARK)
    name, main = sentences.headline(metrics)
    wrong, right = examples(inputs)
    synthetic = inputs.synthetic or any(facts.synthetic for facts in inputs.data)
    text: str = jinja.get_template("report.html").render(
        title=inputs.title,
        lead=_lead(inputs, metrics),
        css=css,
        version=__version__,
        synthetic=synthetic,
        contents=[(id, text) for id, text in CONTENTS if figures.get(id, True)],
        trained=sentences.trained(inputs, metrics),
        headline=main,
        headline_name=name,
        chance=chance_level(metrics),
        certainty=sentences.certainty(metrics),
        fails=sentences.fails(metrics),
        doubts=list(inputs.doubts),
        warnings=[line for line in (*inputs.notes, *metrics["warnings"]) if line not in inputs.doubts],
        metrics=metrics,
        columns=COLUMNS,
        arms=inputs.arms or {"this table": metrics},
        figures=figures,
        comparison={
            "sentences": [],
            "pairs": [],
            "warnings": [],
            "shared_errors": {"sentence": ""},
            **(inputs.comparison or {}),
        },
        compared=COMPARED,
        mcnemar=sentences.mcnemar(inputs.comparison or {}),
        seeds=sentences.seeds(metrics),
        confusion=_confusion(metrics),
        wrong=wrong,
        right=right,
        part_tables=_part_tables(metrics),
        confidence=[*sentences.confidence(metrics), *sentences.calibrated(inputs.calibration)],
        data=inputs.data,
        findings=list(inputs.findings or []),
        audit_note=_audit_note(inputs.findings),
        provenance=[(heading, _pretty(value)) for heading, value in inputs.provenance.items()],
        lacks=sentences.lacks(inputs, metrics),
    )
    return drawing.legible(text)


def _lead(inputs: ReportInputs, metrics: Mapping[str, Any]) -> str:
    parts = [inputs.model, f"{metrics['n']} images", f"{len(metrics['classes'])} classes"]
    if metrics["groups"]:
        parts.append(f"{metrics['groups']} groups")
    return " · ".join(part for part in parts if part)


def _audit_note(findings: Sequence[Mapping[str, Any]] | None) -> str:
    if findings is None:
        return "No audit was made: duplicates, leakage and shortcuts have not been looked for."
    return "The audit found nothing to report."


def _pretty(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n… {len(text) - LONGEST} characters more"


def _confusion(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for i, (name, counts) in enumerate(zip(metrics["classes"], metrics["confusion"], strict=True)):
        total = max(sum(counts), 1)
        cells = []
        for k, count in enumerate(counts):
            share = 100 * count / total
            kinds = ["right"] * (i == k) + ["deep"] * (share > 55) + ["none"] * (count == 0)
            cells.append({"count": count, "shade": round(share, 1), "kind": " ".join(kinds)})
        rows.append({"name": name, "cells": cells})
    return rows


def _part_tables(metrics: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    tables = []
    for key, parts in (("group", metrics["per_group"]), ("fold", metrics["per_fold"])):
        if parts:
            named = [{**part, "name": _part_name(key, part)} for part in parts]
            tables.append((key, sorted(named, key=lambda part: float(part["top1"]["value"]))))
    return tables


def _part_name(key: str, part: Mapping[str, Any]) -> str:
    if key == "group":
        return str(part["group"])
    return f"fold {part['fold']}" if part["seed"] < 0 else f"seed {part['seed']}, fold {part['fold']}"


def examples(inputs: ReportInputs) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Thumbnails of the most confident errors, with what the network looked at, and of images that are right."""
    if inputs.images is None:
        return [], []
    table, order = inputs.table, np.argsort(-inputs.table.confidence, kind="stable")
    known, right = table.label != "", table.label == table.prediction
    wrong = _shots(inputs, [i for i in order.tolist() if known[i] and not right[i]], WRONG)
    each = {name: [i for i in order.tolist() if right[i] and table.label[i] == name] for name in table.classes}
    middle = [rows[len(rows) // 2] for rows in each.values() if rows]  # typical, not the easiest
    return wrong, _shots(inputs, middle, RIGHT)


def _shots(inputs: ReportInputs, rows: list[int], most: int) -> list[dict[str, Any]]:
    pictures: dict[int, NDArray[np.uint8]] = {}
    seen: set[str] = set()
    table, read = inputs.table, inputs.images
    for row in rows:
        path = str(table.path[row])
        if len(pictures) == most or read is None:
            break
        if path in seen or (image := read(path)) is None:
            continue
        seen.add(path)
        pictures[row] = image
    chosen = list(pictures)
    looked = inputs.explain(table.select(np.array(chosen))) if inputs.explain and chosen else [{} for _ in chosen]
    return [_shot(table, row, pictures[row], maps) for row, maps in zip(chosen, looked, strict=True)]


def _shot(table: Table, row: int, image: NDArray[np.uint8], maps: Mapping[str, NDArray[np.uint8]]) -> dict[str, Any]:
    label, said, confidence = str(table.label[row]), str(table.prediction[row]), float(table.confidence[row])
    alt = f"{label}, predicted {said} with confidence {confidence:.2f}"
    views = [(thumbnail(image), alt)]
    views += [(thumbnail(view), f"{title} of the image before, for {said}") for title, view in maps.items()]
    words = {"label": label, "prediction": said, "confidence": sentences.number(confidence)}
    return {"views": views, "titles": ["input", *maps], "path": str(table.path[row]), **words}


def thumbnail(image: NDArray[np.uint8]) -> str:
    """A data URI: the image (H, W, 3) uint8 as a JPEG of at most 112 pixels a side."""
    from PIL import Image

    small = Image.fromarray(np.ascontiguousarray(image))
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, format="JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
