"""The end of a run: tables joined, the final bundle calibrated, the report written, and the result shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcmnet_jax import bundle as bundles
from rcmnet_jax import selection
from rcmnet_jax.evaluation import calibration, label_review
from rcmnet_jax.evaluation.compare import compare
from rcmnet_jax.evaluation.metrics import compute, to_json
from rcmnet_jax.evaluation.shortcut_warning import shortcut_warning
from rcmnet_jax.evaluation.tables import Table, join, read_table, write_table
from rcmnet_jax.files import write_atomic
from rcmnet_jax.report import card_answers, run_report
from rcmnet_jax.report.card import CardFacts, render_card
from rcmnet_jax.settings import to_dict
from rcmnet_jax.training.sharding import barrier, is_main_process, main_process_value
from rcmnet_jax.workdir import read_json

if TYPE_CHECKING:
    from rcmnet_jax.intake import Data
    from rcmnet_jax.training_job import Run

SHOWN = ("balanced_accuracy", "top1", "auroc")  # three fit a terminal of 80 columns; metrics.json has the rest


def is_finished(workdir: Path) -> bool:
    """Whether the run has left its report, which is written last, and its bundle is undamaged and knows card.yaml."""
    done = (workdir / "report.html").exists() and bundles.is_sound(workdir / "bundle")
    return main_process_value(done and card_answers.is_current(workdir))


def interval(metric: dict[str, Any]) -> str:
    """'0.912 (0.880-0.941)', or why there is no value."""
    if metric["value"] is None:
        return f"undefined: {metric['reason']}"
    return f"{metric['value']:.3f} ({metric['low']:.3f}-{metric['high']:.3f})"


def print_result(run: Run, folder: Path, name: str) -> None:
    """One line on a leaf that is done."""
    metrics = read_json(folder / "metrics.json")
    run.services.console.say(f"{name}: balanced accuracy {interval(metrics['balanced_accuracy'])}, n={metrics['n']}")


def conclude(run: Run, data: Data) -> None:
    """Makes the top of the workdir from the leaves: predictions.csv, metrics.json, bundle/, and report.html last."""
    if is_main_process():
        tables = arm_tables(run, data)
        table = next(iter(tables.values()))
        metrics = {arm: compute(each, seed=run.config.seed) for arm, each in tables.items()}
        main = next(iter(metrics.values()))
        facts = _calibrated(run, data, table)
        _note_calibration(main, facts, table)
        doubts = _doubts(metrics)
        said = [*selection.summary(run, data.folds), label_review.write_review(run.workdir, table)]
        main["warnings"] += [*doubts, *said]
        write_table(table, run.workdir / "predictions.csv")
        for arm, values in metrics.items():
            if arm != "pretrain":
                write_atomic(run.workdir / arm / "metrics.json", to_json(values))
        write_atomic(run.workdir / "metrics.json", to_json(main))
        comparison = compare(tables, seed=run.config.seed) if len(tables) > 1 else None
        _final_bundle(run, data, facts, main, comparison)
        run_report.write(run, data, tables, metrics, facts, comparison, doubts)
        _show(run, data, metrics, [*([] if comparison is None else comparison["sentences"]), *said], doubts)
    barrier("conclusion")


def _doubts(metrics: Mapping[str, dict[str, Any]]) -> list[str]:
    """What a reader has to know before the numbers: that a shortcut does nearly as well."""
    main = next(iter(metrics.values()))
    found = shortcut_warning(main, metrics["shortcut"]) if "shortcut" in metrics else ""
    return [found] if found else []


def arm_tables(run: Run, data: Data) -> dict[str, Table]:
    """The joined table of each arm, the main one first; without a target, pretrain's and the shortcut's."""
    if data.target is None:
        folders = {"pretrain": "pretrain", "shortcut": "shortcut/seed_0/fold_0"}
        return {arm: read_table(run.workdir / folder / "predictions.csv") for arm, folder in folders.items()}
    return {
        arm: join(
            [
                read_table(run.workdir / arm / f"seed_{seed}" / f"fold_{number}" / "predictions.csv")
                for seed, folds in enumerate(data.folds)
                for number in range(len(folds))
            ]
        )
        for arm in sorted(run.config.arms, key=lambda arm: arm != "transfer")
    }


def _calibrated(run: Run, data: Data, table: Table) -> dict[str, Any]:
    """The content of the top bundle's calibration.json, but for what is fitted to training images.

    Fitted on rows that the networks of the table had not seen, out of fold or `val`; a table on `test` comes from a
    bundle that was calibrated on `val` before. Empty where too few rows are at hand.
    """
    if (table.split == "test").all():
        made = bundles.load(run.workdir / "pretrain" / "bundle").calibration
        return {key: value for key, value in made.items() if key not in ("ood", "appearance")}
    rows = "validation images" if data.target is None else "out-of-fold images"
    return calibration.from_table(table, alpha=run.config.evaluation.error_rate, fitted_on=rows)


def _note_calibration(metrics: dict[str, Any], facts: dict[str, Any], table: Table) -> None:
    """Adds to the metrics what a temperature changed: on the table's own rows where these are calibrated by others'."""
    if not facts:
        metrics["warnings"].append(
            f"Not calibrated: fewer than {calibration.FEWEST} labelled images were held out for it. The probabilities "
            "are the network's own, and it never abstains."
        )
    elif (table.split == "test").all():
        metrics["calibration"]["before_temperature"] = calibration.before_temperature(table, facts["temperature"])
    elif changed := facts.get("reliability"):
        metrics["calibration"]["after_temperature"] = changed["after"]


def _final_bundle(
    run: Run, data: Data, calibrated: dict[str, Any], metrics: dict[str, Any], comparison: dict[str, Any] | None
) -> None:
    made = bundles.load(run.workdir / ("pretrain" if data.target is None else "transfer/final") / "bundle")
    facts = {**made.calibration, **calibrated}
    card = CardFacts(
        model=made.network.config.name,
        classes=made.classes,
        config=to_dict(run.config),
        preprocessing=dataclasses.asdict(made.rule),
        data=run_report.data_facts(data),
        metrics=metrics,
        calibration=facts,
        findings=data.audit.to_json()["findings"],
        comparison=comparison,
        provenance=made.provenance,
        answers=card_answers.read(run.workdir),
    )
    bundles.write(run.workdir / "bundle", dataclasses.replace(made, calibration=facts), render_card(card))


def _show(
    run: Run, data: Data, metrics: dict[str, dict[str, Any]], compared: Sequence[str], doubts: Sequence[str]
) -> None:
    console = run.services.console
    main = data.target or data.source
    assert main is not None
    kind = "SYNTHETIC DATA, " if main.synthetic else ""
    rows = [[arm, *(interval(values[name]) for name in SHOWN)] for arm, values in metrics.items()]
    number = next(iter(metrics.values()))["n"]
    title = f"{kind}{main.spec}: {number} images, 95% intervals"
    console.table(title, ["", *(name.replace("_", " ") for name in SHOWN)], rows)
    for sentence in compared:
        console.say(sentence)
    for doubt in doubts:
        console.warn(doubt)
    console.say(bundles.DISCLAIMER)
    console.say(f"Bundle: {run.workdir / 'bundle'}")
    if open_questions := len(set(card_answers.ASKED) - set(card_answers.read(run.workdir))):
        console.say(f"Card: {open_questions} things only you know are asked in {run.workdir / card_answers.FILE}")
    console.say(f"Report: {run.workdir / 'report.html'}")
