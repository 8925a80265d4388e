"""The model card: what a reader of TRIPOD+AI or CLAIM would ask, what is known of it, and what is missing.

An item is filled in only from facts at hand, and the rest is listed for a person to fill in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rcmnet_jax.evaluation.metrics import summary_rows
from rcmnet_jax.report import methods, sentences
from rcmnet_jax.report.inputs import DataFacts
from rcmnet_jax.report.items import ITEMS, Item

NOTICE = "Research use only, not a medical device: never for diagnosis or the care of a patient."
MARK = "Taken in: "


@dataclass(frozen=True)
class CardFacts:
    """What the card is made from; all but the model and classes may be missing.

    `config` is the run's, as `to_dict` gives it; `preprocessing`, `calibration` and `provenance` are as in the bundle;
    `metrics` from `compute`; `answers` maps an
    item's key (see ITEMS) to words of the person who publishes the model, which take the place of anything derived.
    """

    model: str
    classes: Sequence[str]
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    data: Sequence[DataFacts] = ()
    metrics: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict)
    findings: Sequence[Mapping[str, Any]] | None = None
    comparison: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)


def render_card(facts: CardFacts) -> str:
    """The card in Markdown, equal for equal facts; names from data cannot become markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Markdown, not HTML: `plain` escapes what both would take as markup.
    jinja = Environment(loader=PackageLoader("rcmnet_jax.report"), autoescape=False, undefined=StrictUndefined)
    jinja.filters["plain"] = plain
    known = answers(facts)
    sections: dict[str, list[tuple[Item, list[str]]]] = {}
    for item in ITEMS:
        if item.key in known:
            sections.setdefault(item.section, []).append((item, known[item.key]))
    text: str = jinja.get_template("card.md").render(
        model=facts.model,
        count=len(facts.classes),
        notice=NOTICE,
        synthetic=any(data.synthetic for data in facts.data),
        sections=sections,
        missing=[item for item in ITEMS if item.key not in known],
        total=len(ITEMS),
        answered=len(known),
        mark=mark(facts.answers),
        rows=summary_rows(facts.metrics) if facts.metrics else [],
        n=facts.metrics["n"] if facts.metrics else 0,
        groups=facts.metrics["groups"] if facts.metrics else 0,
    )
    return text


def answers(facts: CardFacts) -> dict[str, list[str]]:
    """Lines for each item that is known, by key."""
    config = methods.under(facts.config, str(facts.provenance.get("recipe", "")))
    known = {
        "out_of_scope": [NOTICE],
        "classes": [", ".join(facts.classes)],
        "architecture": [facts.model],
        "input": _input(facts.preprocessing),
        "sources": [_set(data) for data in facts.data],
        "exclusions": [_exclusions(data) for data in facts.data],
        "audit": _audit(facts.findings),
        "baselines": list((facts.comparison or {}).get("sentences", [])),
        "calibration": sentences.calibrated(facts.calibration),
        "training": [*_words(facts.provenance), *methods.settings(config)],
        **(_evaluated(facts.metrics) if facts.metrics else {}),
        **(methods.of_run(config) if config else {}),
        **(methods.of_evaluation(facts.model, facts.metrics, facts.comparison) if facts.metrics else {}),
        **(methods.of_data(facts.data, facts.metrics) if facts.data else {}),
    }
    known |= {key: [text] for key, text in facts.answers.items()}
    return {item.key: known[item.key] for item in ITEMS if known.get(item.key)}


def mark(answers: Mapping[str, str]) -> str:
    """The line on the answers taken in, empty without any: by it one sees whether a card has the latest."""
    if not answers:
        return ""
    digest = hashlib.sha256(repr(sorted(answers.items())).encode()).hexdigest()[:16]
    return f"{MARK}{len(answers)} answers of its maker, {digest}."


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it stands, on one line."""
    line = " ".join(str(text).split())
    for mark, shown in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        line = line.replace(mark, shown)
    return "".join("\\" + c if c in "\\`*_[]|#" else c for c in line)


def _input(rule: Mapping[str, Any]) -> list[str]:
    if not rule:
        return []
    words = {"pad": "padded to a square", "crop": "cropped to a square", "stretch": "stretched to a square"}
    shape = words.get(str(rule.get("square")), "made square")
    size, kept = rule.get("size"), float(rule.get("crop", 1.0))
    if rule.get("frame"):
        shape = f"laid in the middle of a square of {rule['frame']} of their pixels"
    part = f"the central {kept:.0%} of the side kept, " if kept < 1 else ""
    resample = rule.get("resample", "bilinear")
    return [f"RGB images of single cells, {shape}, {part}resized to {size} x {size} pixels ({resample}, antialiased)."]


def _set(data: DataFacts) -> str:
    groups = f" of {data.groups} groups" if data.groups else ", no groups given"
    kind = " (SYNTHETIC)" if data.synthetic else ""
    shares = ", ".join(f"{count} {name}" for name, count in data.classes.items())
    return f"{data.role}: {data.name}{kind}, {data.images} images{groups}" + (f": {shares}." if shares else ".")


def _exclusions(data: DataFacts) -> str:
    if not data.skipped:
        return f"{data.role}: nothing was left out." if data.found is not None else f"{data.role}: not known."
    return f"{data.role}: " + "; ".join(f"{count} x {reason}" for reason, count in data.skipped.items()) + "."


def _audit(findings: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if findings is None:
        return []
    told = [f"{f['level']}, {f['name']}: {f['message']}" for f in findings]
    return told or ["Looked for; nothing found."]


def _evaluated(metrics: Mapping[str, Any]) -> dict[str, list[str]]:
    name, main = sentences.headline(metrics)
    first = [] if main["value"] is None else [f"{name} {sentences.number(main['value'])}."]
    known = {
        "partitions": _partitions(metrics),
        "results": [*first, *sentences.certainty(metrics)],
        "failures": sentences.fails(metrics),
        "limits": list(metrics["warnings"]),
    }
    if len(metrics["per_group"]) > 1:
        values = sorted(float(part["top1"]["value"]) for part in metrics["per_group"])
        spread = f"{sentences.number(values[0])} to {sentences.number(values[-1])}"
        known["groups"] = [f"Top-1 over {len(values)} groups: {spread}. By sex, age or disease: not known."]
    return known


def _partitions(metrics: Mapping[str, Any]) -> list[str]:
    folds = sentences.fold_count(metrics)
    lines = (
        [f"{folds} folds, each predicted by a model that had not seen it."] if sentences.out_of_fold(metrics) else []
    )
    if not metrics["groups"]:
        return [*lines, "Parted by single images, since no groups are given."]
    if folds > 1 and metrics["groups_cut"] == 0:
        lines.append("No group (patient or smear) stands in two folds.")
    return lines


def _words(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{key}: {item}" for key, item in sorted(value.items()) if not isinstance(item, Mapping)]
    return [str(value)] if value else []
