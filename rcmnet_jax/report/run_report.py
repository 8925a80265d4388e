"""The report of a run: gathers what the workdir and the data hold, and renders it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rcmnet_jax import bundle as bundles
from rcmnet_jax.evaluation import features
from rcmnet_jax.evaluation.metrics import to_json
from rcmnet_jax.evaluation.table import Table
from rcmnet_jax.files import write_atomic
from rcmnet_jax.report.html import render
from rcmnet_jax.report.inputs import DataFacts, Embedding, Explainer, ImageReader, ReportInputs
from rcmnet_jax.settings import to_dict
from rcmnet_jax.training.records import read_rows
from rcmnet_jax.workdir import read_json

if TYPE_CHECKING:
    from rcmnet_jax.data.prepare import PreparedSet
    from rcmnet_jax.intake import Data
    from rcmnet_jax.training_job import Run


def write(
    run: Run,
    data: Data,
    tables: Mapping[str, Table],
    metrics: Mapping[str, dict[str, Any]],
    calibration: Mapping[str, Any],
    comparison: Mapping[str, Any] | None = None,
    doubts: Sequence[str] = (),
) -> None:
    """Writes comparison.json, if arms were compared, then report.html, whose presence marks the run as done.

    Args:
      tables: each arm's joined table, the main one first.
      metrics: of the same arms.
      calibration: of the top's bundle, as in calibration.json; empty where it is not calibrated.
      comparison: of the same arms, as `compare` gives it.
      doubts: sentences that stand before the numbers.
    """
    if comparison is not None:
        write_atomic(run.workdir / "comparison.json", to_json(comparison))
    main = data.target or data.source
    assert main is not None
    arm = next(iter(tables))
    kind = " (synthetic cells)" if main.synthetic else ""
    inputs = ReportInputs(
        table=tables[arm],
        metrics=metrics[arm],
        title=f"{run.config.model.name}: {main.spec}{kind}",
        model=run.config.model.name,
        data=data_facts(data),
        trained=_trained(run, data),
        arms=metrics,
        log=read_rows(run.workdir / "log.jsonl"),
        images=reader(main),
        explain=explainer(run, main, arm),
        embedding=_embedding(run, data),
        doubts=doubts,
        findings=data.audit.to_json()["findings"],
        comparison=comparison,
        calibration=calibration,
        notes=data.notes,
        provenance={
            "Configuration": to_dict(run.config),
            "Environment": read_json(run.workdir / "environment.json"),
            "Data sets": read_json(run.workdir / "data" / "sets.json"),
        },
        synthetic=any(part.synthetic for part in (data.source, data.target) if part is not None),
    )
    write_atomic(run.workdir / "report.html", render(inputs))


def reader(data: PreparedSet) -> ImageReader:
    """From a path of the set to its prepared image."""
    rows = {path: row for row, path in enumerate(data.examples.path.tolist())}

    def read(path: str) -> np.ndarray | None:
        return None if path not in rows else data.images(np.array([rows[path]]))[0]

    return read


def explainer(run: Run, data: PreparedSet, arm: str) -> Explainer:
    """From rows of an arm's table to what the network of each row's own fold looked at; it has not seen the image."""
    places = {path: row for row, path in enumerate(data.examples.path.tolist())}

    def explain(table: Table) -> list[dict[str, np.ndarray]]:
        from rcmnet_jax.evaluation.overlay import blend, explained

        shown: list[dict[str, np.ndarray]] = [{} for _ in range(len(table))]
        for seed, fold in sorted(set(zip(table.seed.tolist(), table.fold.tolist(), strict=True))):
            leaf = run.workdir / arm if fold < 0 else run.workdir / arm / f"seed_{seed}" / f"fold_{fold}"
            if not bundles.is_sound(leaf / "bundle"):
                continue
            rows = np.flatnonzero((table.seed == seed) & (table.fold == fold))
            images = data.images([places[path] for path in table.path[rows].tolist()])
            classes = np.array([table.classes.index(name) for name in table.prediction[rows].tolist()])
            for title, maps in explained(bundles.load(leaf / "bundle"), images, classes).items():
                for k, row in enumerate(rows.tolist()):
                    shown[row][title] = blend(images[k], maps[k])
        return shown

    return explain


def _embedding(run: Run, data: Data) -> Embedding | None:
    """The pretrained body's features: of the target, which it never saw, by way of the probe; else of the source."""
    if data.target is None:
        found = features.read(run.workdir / "pretrain")
        whose = "the trained network, which was not trained on these images"
    else:
        leaves = [run.workdir / "probe" / "seed_0" / f"fold_{k}" for k in range(len(data.folds[0]))]
        found = features.joined([features.read(leaf) for leaf in leaves])
        whose = "the pretrained network, before it saw any of these images"
    return None if found is None else Embedding(found.path, found.values, whose)


def data_facts(data: Data) -> list[DataFacts]:
    """Counts of images, groups, classes and skipped files of each data set."""
    facts = []
    for role, part in (("source", data.source), ("target", data.target)):
        if part is None:
            continue
        examples = part.examples
        counts = np.bincount(examples.label[examples.label >= 0], minlength=len(part.classes))
        parts = {name: len(rows) for name, rows in data.holdout.items() if len(rows)}
        if role == "target":
            parts = {f"fold {k}": len(fold.test) for k, fold in enumerate(data.folds[0])}
        facts.append(
            DataFacts(
                role=role,
                name=part.spec,
                images=len(examples.label),
                groups=len(set(examples.group.tolist()) - {""}),
                found=len(examples.label) + len(part.skipped),
                skipped=dict(Counter(item.reason for item in part.skipped)),
                classes={name: int(n) for name, n in zip(part.classes, counts, strict=True)},
                parts=parts,
                synthetic=part.synthetic,
            )
        )
    return facts


def _trained(run: Run, data: Data) -> list[str]:
    config, sentences = run.config, []
    start = f"the weights of {config.source.init_from}" if config.source.init_from else "random weights"
    if data.source is not None:
        sentences.append(f"Pretraining took {config.source.epochs:g} epochs from {start}.")
        if config.source.soft_folds or config.source.soft_labels:
            said = "networks that had not seen it say of it" if config.source.soft_folds else "the tables given say"
            sentences.append(
                f"Of each image's target there {100 * config.source.soft_weight:g}% is what {said}, the rest its label."
            )
    if data.target is not None and len(config.target.recipes) == 1:
        sentences.append(f"Each fold was fine-tuned by the recipe '{config.target.recipes[0]}'.")
    elif data.target is not None and config.target.recipes:
        sentences.append("Each fold was fine-tuned by the recipe that did best on its inner split.")
    elif data.target is not None:
        sentences.append(
            f"Each fold was fine-tuned for {config.target.epochs:g} epochs"
            + (" from the pretrained body with a new head." if data.source is not None else f" from {start}.")
        )
    return sentences
