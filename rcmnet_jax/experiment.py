"""The stages of a run in order: prepare, pretrain, transfer with its baselines, evaluate, report."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from rcmnet_jax import bundle as bundles
from rcmnet_jax import canary, conclusion, distillation, intake, jobs, precompile, run_outputs, runtime, training_job
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.checkpoint import initial, published
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.console import Console
from rcmnet_jax.evaluation import calibration
from rcmnet_jax.intake import Data
from rcmnet_jax.report import card_answers
from rcmnet_jax.target import run_transfer, write_shortcut
from rcmnet_jax.training import optimizer as optimizers
from rcmnet_jax.training.loop import RunServices
from rcmnet_jax.training.records import Records
from rcmnet_jax.training.sharding import Placement, barrier, is_main_process
from rcmnet_jax.training.stop import StopRequest
from rcmnet_jax.training_job import Job, Run, TrainingImages
from rcmnet_jax.workdir import note_environment, opened


def run(config: ExperimentConfig, workdir: Path) -> None:
    """Does the whole run in `workdir`, or what is left of it.

    Raises:
      RunError: with the exit status that the reason has.
    """
    stop = StopRequest().install()
    programs = runtime.set_up()
    placement = Placement.everywhere()
    console = Console(active=is_main_process(), images_per_step=config.batch_size)
    placement.check_batch(config.batch_size)
    with opened(workdir, config, console):
        if conclusion.is_finished(workdir):
            console.say(f"{workdir}: this run is finished; its report is {workdir / 'report.html'}")
            return
        canary.check(programs)
        if is_main_process():
            note_environment(workdir, console)
            card_answers.ask(workdir)
        card_answers.read(workdir)  # refused now, not after the training
        records = Records(workdir, active=is_main_process())
        try:
            run = Run(config, workdir, placement, RunServices(records, console, stop))
            _find_weights(config, console)
            data = intake.gather(config, workdir, console, stop, functools.partial(precompile.begin, run))
            source = pretrain(run, data) if data.source is not None else None
            if data.target is not None:
                run_transfer(run, data, source)
            else:
                _source_baseline(run, data)
            conclusion.conclude(run, data)
        finally:
            records.close()


def _find_weights(config: ExperimentConfig, console: Console) -> None:
    """Has the weights to start from at hand before anything long begins; one process downloads for all."""
    path = config.source.init_from
    if path == published.WORD:
        if is_main_process():
            published.fetch(config.model, console)
        barrier("weights")
    elif path:
        initial.place_of(path)


def pretrain(run: Run, data: Data) -> Bundle:
    """Trains on the source, evaluates on `test`, else `val`, and returns the bundle.

    With a `test` part the bundle is calibrated on `val`. Without one it stays as the network is: rows that a
    calibration saw are not reported by it.
    """
    config, folder = run.config, run.workdir / "pretrain"
    assert data.source is not None
    if not run_outputs.is_done(folder):
        network = jobs.network_of(config, len(data.source.classes), config.source_size)
        start = jobs.Start(network.init(run.seed("pretrain/init")))
        if config.source.init_from:
            start = jobs.initialised(run, network, start.weights, folder, "initialised")
        rows = data.holdout["train"]
        job = Job(
            "pretrain", TrainingImages(data.source, run), rows, network, start.weights, config.source,
            optimizers.total_steps(config.source.epochs, len(rows), config.batch_size),
            transferred=start.transferred, watch=data.holdout["val"],
        )  # fmt: skip
        job = distillation.with_soft_labels(job)
        trained = training_job.fit(job)
        run_outputs.write_bundle(job, trained)
        split = _reported(data)
        if split == "test":
            _calibrate(run, folder / "bundle", data)
        made = bundles.load(folder / "bundle")
        table = run_outputs.table_of(
            made, data.source, data.holdout[split], run.placement, split=split, seed=-1, fold=-1, features_in=folder
        )
        run_outputs.write_results(run, folder, table, run_outputs.provenance(job, trained))
        conclusion.print_result(run, folder, f"pretrain, {split}")
    return bundles.load(folder / "bundle")


def _reported(data: Data) -> str:
    """The part of the source that results are given for."""
    return "test" if len(data.holdout["test"]) else "val"


def _source_baseline(run: Run, data: Data) -> None:
    """The shortcut's leaf of a run without a target: on the rows that pretraining reports on."""
    name, source = "shortcut/seed_0/fold_0", data.source
    assert source is not None
    if not run_outputs.is_done(run.workdir / name, network=False):
        split = _reported(data)
        train, reported = data.holdout["train"], data.holdout[split]
        write_shortcut(run, source, train, reported, name, split=split, seed=-1, fold=-1)


def _calibrate(run: Run, folder: Path, data: Data) -> None:
    """Adds to the pretrained bundle what `val` tells of its probabilities; too few rows leave it as it is."""
    assert data.source is not None
    made, rows = bundles.load(folder), data.holdout["val"]
    table = run_outputs.table_of(made, data.source, rows, run.placement, split="val", seed=-1, fold=-1)
    facts = calibration.from_table(table, alpha=run.config.evaluation.error_rate, fitted_on="validation images")
    if is_main_process():
        bundles.write(folder, dataclasses.replace(made, calibration={**made.calibration, **facts}))
    barrier("pretrain/calibration")
