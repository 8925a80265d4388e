"""The stages of a run in order: prepare, pretrain, transfer with its baselines, evaluate, report."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from rcmnet_jax import bundle as bundles
from rcmnet_jax import canary, conclusion, intake, runtime, stages
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.checkpoint import initial, published
from rcmnet_jax.checkpoint.transfer import transfer
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.console import Console
from rcmnet_jax.data.splits import Fold
from rcmnet_jax.evaluation import features, novelty, probe, shortcut
from rcmnet_jax.evaluation.predict import forward
from rcmnet_jax.files import recover_folders, write_json
from rcmnet_jax.intake import Data
from rcmnet_jax.models import Network
from rcmnet_jax.report import answers
from rcmnet_jax.stages import Job, Pixels, Run, Weights
from rcmnet_jax.training import optimizer as optimizers
from rcmnet_jax.training.loop import Surroundings
from rcmnet_jax.training.records import Records
from rcmnet_jax.training.sharding import Placement, agreed, barrier, is_main_process
from rcmnet_jax.training.stop import StopRequest
from rcmnet_jax.workdir import note_environment, opened


def run(config: ExperimentConfig, workdir: Path) -> None:
    """Does the whole run in `workdir`, or what is left of it.

    Raises:
      RunError: with the exit status that the reason has.
    """
    stop = StopRequest().install()
    placement = Placement.everywhere()
    runtime.enable_compilation_cache()
    console = Console(active=is_main_process(), images_per_step=config.batch_size)
    placement.check_batch(config.batch_size)
    with opened(workdir, config, console):
        if conclusion.is_finished(workdir):
            console.say(f"{workdir}: this run is finished; its report is {workdir / 'report.html'}")
            return
        canary.check()
        if is_main_process():
            note_environment(workdir, console)
            answers.ask(workdir)
        answers.read(workdir)  # refused now, not after the training
        records = Records(workdir, active=is_main_process())
        try:
            here = Run(config, workdir, placement, Surroundings(records, console, stop))
            _fetch_weights(config, console)
            data = intake.gather(config, workdir, console, stop)
            source = pretrain(here, data) if data.source is not None else None
            if data.target is not None:
                target(here, data, source)
            conclusion.conclude(here, data)
        finally:
            records.close()


def _fetch_weights(config: ExperimentConfig, console: Console) -> None:
    """Has published weights at hand before anything long begins; one process downloads for all."""
    if config.source.init_from == published.WORD:
        if is_main_process():
            published.fetch(config.model, console)
        barrier("weights")


@functools.cache
def network_of(config: ExperimentConfig, classes: int, size: int) -> Network:
    """The config's network for a number of classes at an image size; one object, so that stages share programs."""
    return Network(
        config.model, classes=classes, image_size=size, imported=initial.is_imported(config.source.init_from)
    )


def pretrain(here: Run, data: Data) -> Bundle:
    """Trains on the source, evaluates on `test`, else `val`, and returns the bundle."""
    config, folder = here.config, here.workdir / "pretrain"
    assert data.source is not None
    if not stages.is_done(folder):
        network = network_of(config, len(data.source.classes), config.source_size)
        start = network.init(here.seed("pretrain/init"))
        if config.source.init_from:
            start = _initialised(here, network, start, folder, "initialised")
        rows = data.holdout["train"]
        job = Job(
            "pretrain", Pixels(data.source, here), rows, network, start, config.source, stages.recipe(config.source),
            optimizers.total_steps(config.source.epochs, len(rows), config.batch_size), watch=data.holdout["val"],
        )  # fmt: skip
        trained = stages.fit(job)
        stages.leave(job, trained)
        split = "test" if len(data.holdout["test"]) else "val"
        made = bundles.load(folder / "bundle")
        table = stages.table_of(made, data.source, data.holdout[split], here.placement, split=split, seed=-1, fold=-1)
        features.leave(folder, made, data.source, data.holdout[split], here.placement)
        stages.report_leaf(here, folder, table, stages.provenance(job, trained))
        conclusion.say_leaf(here, folder, f"pretrain, {split}")
    return bundles.load(folder / "bundle")


def _initialised(
    here: Run, network: Network, start: Weights, folder: Path, what: str, *, aloud: bool = True
) -> Weights:
    params, stats, report = initial.load(here.config.source.init_from, network, start)
    _note_transfer(here, folder, f"{what} from {here.config.source.init_from}", report, aloud=aloud)
    return params, stats


def _note_transfer(here: Run, folder: Path, what: str, report: Any, *, aloud: bool = True) -> None:
    if is_main_process():
        write_json(folder / "transfer.json", report.to_dict())
    if aloud:
        here.around.console.say(f"{what}:")
        for line in report.lines():
            here.around.console.say(f"  {line}")


def target(here: Run, data: Data, source: Bundle | None) -> None:
    """All arms over all seeds and folds, then the final model on all target images."""
    assert data.target is not None
    pixels = Pixels(data.target, here)
    for arm in here.config.arms:
        for seed, folds in enumerate(data.folds):
            for number, fold in enumerate(folds):
                here.around.stop.check()
                name = f"{arm}/seed_{seed}/fold_{number}"
                if arm == "shortcut":
                    _shortcut_leaf(here, data, fold, name, seed, number)
                elif arm == "probe":
                    _probe_leaf(here, pixels, fold, name, seed, number, source)
                else:
                    _network_leaf(here, pixels, fold, name, seed, number, source if arm == "transfer" else None)
    _final(here, pixels, data, source)


def _job(here: Run, pixels: Pixels, name: str, rows: np.ndarray, source: Bundle | None, aloud: bool, arm: str) -> Job:
    config = here.config
    network = network_of(config, len(pixels.data.classes), config.target_size)
    start = network.init(here.seed(f"{name}/init"))
    folder = here.workdir / name
    if arm == "transfer" and source is not None:
        params, stats, report = transfer(
            source.params, source.batch_stats, *start, head=network.head, position=network.is_position_table
        )
        start = (params, stats)
        _note_transfer(here, folder, "transfer of the pretrained body", report, aloud=aloud)
    elif arm == "transfer":
        start = _initialised(here, network, start, folder, "transfer", aloud=aloud)
    steps = optimizers.total_steps(config.target.epochs, len(rows), config.batch_size)
    head = optimizers.total_steps(config.target.freeze_epochs, len(rows), config.batch_size)
    return Job(
        name, pixels, rows, network, start, config.target, stages.recipe(config.target), steps,
        head_steps=head if config.target.freeze_epochs > 0 and arm == "transfer" else 0,
    )  # fmt: skip


def _network_leaf(
    here: Run, pixels: Pixels, fold: Fold, name: str, seed: int, number: int, source: Bundle | None
) -> None:
    folder = here.workdir / name
    if stages.is_done(folder):
        return
    arm = name.split("/")[0]
    choose = here.config.target.select == "inner" and len(fold.inner) > 0
    rows = np.setdiff1d(fold.train, fold.inner) if choose else fold.train
    job = _job(here, pixels, name, rows, source, seed == 0 and number == 0, arm)
    if choose:
        job = dataclasses.replace(job, watch=fold.inner, choose=True)
    _leave_leaf(here, job, stages.fit(job), fold, seed, number)


def _leave_leaf(here: Run, job: Job, trained: stages.Trained, fold: Fold, seed: int, number: int) -> None:
    stages.leave(job, trained)
    made = bundles.load(job.folder_of / "bundle")
    data = job.pixels.data
    table = stages.table_of(made, data, fold.test, here.placement, split="oof", seed=seed, fold=number)
    if job.name.split("/")[0] in ("transfer", "probe"):
        features.leave(job.folder_of, made, data, fold.test, here.placement)
    stages.report_leaf(here, job.folder_of, table, stages.provenance(job, trained))
    conclusion.say_leaf(here, job.folder_of, job.name)


def _probe_leaf(
    here: Run, pixels: Pixels, fold: Fold, name: str, seed: int, number: int, source: Bundle | None
) -> None:
    if stages.is_done(here.workdir / name):
        return
    job = _job(here, pixels, name, fold.train, source, False, "transfer")
    params, batch_stats = job.start
    images = pixels.data.images(fold.train)
    embeddings = forward(job.network, params, batch_stats, images, here.placement, output="embedding")
    kernel, bias = probe.fit(embeddings, pixels.data.examples.label[fold.train], job.network.classes)
    trained = stages.Trained({**params, "fc": {"kernel": kernel, "bias": bias}}, batch_stats, 0)
    stages.keep(job, trained)
    _leave_leaf(here, job, trained, fold, seed, number)


def _shortcut_leaf(here: Run, data: Data, fold: Fold, name: str, seed: int, number: int) -> None:
    folder = here.workdir / name
    assert data.target is not None
    if stages.is_done(folder, network=False):
        return
    found = shortcut.fit_predict(data.target.examples, fold.train, fold.test, len(data.target.classes), here.seed(name))
    table = stages.as_table(data.target, fold.test, found, split="oof", seed=seed, fold=number)
    facts = {"stage": name, "model": "logistic regression on size, border, colour and file properties"}
    stages.report_leaf(here, folder, table, facts)


def _final(here: Run, pixels: Pixels, data: Data, source: Bundle | None) -> None:
    """The model to use: trained on every labelled target image for as long as the folds settled on."""
    folder = here.workdir / "transfer" / "final"
    if is_main_process() and folder.is_dir():
        recover_folders(folder)
    if agreed(bundles.is_sound(folder / "bundle")):
        return
    rows = np.flatnonzero(pixels.data.examples.label >= 0)
    job = _job(here, pixels, "transfer/final", rows, source, False, "transfer")
    if here.config.target.select == "inner":
        job = dataclasses.replace(job, steps=_settled_steps(here, data, len(rows), job.steps))
    trained = stages.fit(job)
    stages.leave(job, trained, _out_of_fold_ratios(here, data))


def _out_of_fold_ratios(here: Run, data: Data) -> np.ndarray:
    """(M,) how near each target image came to the threshold of the network that had not seen it, mean over seeds."""
    assert data.target is not None
    total, count = np.zeros((2, len(data.target.examples.path)))
    for seed, folds in enumerate(data.folds):
        for number, fold in enumerate(folds):
            leaf = bundles.load(here.workdir / f"transfer/seed_{seed}/fold_{number}/bundle")
            found = novelty.ratio(leaf, data.target, fold.test, here.placement)
            total[fold.test[: len(found)]] += found
            count[fold.test[: len(found)]] += 1
    ratios: np.ndarray = total[count > 0] / count[count > 0]
    return ratios


def _settled_steps(here: Run, data: Data, images: int, longest: int) -> int:
    """Mean over the folds of the chosen step, scaled to the number of images."""
    ratios = []
    for seed, folds in enumerate(data.folds):
        for number in range(len(folds)):
            facts = bundles.load(here.workdir / f"transfer/seed_{seed}/fold_{number}/bundle").provenance
            ratios.append(facts["steps"] / facts["data"]["train_images"])
    return min(longest, max(1, round(float(np.mean(ratios)) * images)))
