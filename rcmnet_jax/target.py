"""The transfer stage: every arm over all seeds and folds, then the final model on all target images."""

from __future__ import annotations

import dataclasses

import numpy as np

from rcmnet_jax import bundle as bundles
from rcmnet_jax import conclusion, jobs, run_outputs, selection, training_job
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.config import TargetConfig
from rcmnet_jax.data import shortcut
from rcmnet_jax.data.prepare import PreparedSet
from rcmnet_jax.data.splits import Fold
from rcmnet_jax.evaluation import ood
from rcmnet_jax.files import recover_folders, write_json
from rcmnet_jax.intake import Data
from rcmnet_jax.recipes import RECIPES
from rcmnet_jax.selection import CHOOSING, Search
from rcmnet_jax.training.sharding import is_main_process, main_process_value
from rcmnet_jax.training_job import Job, Run, TrainingImages

FINAL = "transfer/final"


def run_transfer(run: Run, data: Data, source: Bundle | None) -> None:
    """All arms over all seeds and folds, then the final model."""
    assert data.target is not None
    pixels = TrainingImages(data.target, run)
    search = selection.search(run, pixels, data, source)
    for arm in run.config.arms:
        for seed, folds in enumerate(data.folds):
            for number, fold in enumerate(folds):
                run.services.stop.check()
                name = f"{arm}/seed_{seed}/fold_{number}"
                if _is_done(run, name):
                    continue
                if arm == "shortcut":
                    write_shortcut(run, data.target, fold.train, fold.test, name, split="oof", seed=seed, fold=number)
                else:
                    job = _fold_job(run, pixels, fold, name, source, search)
                    _write_fold(run, job, training_job.fit(job), fold, seed, number)
    _final(run, pixels, data, source, search)


def _is_done(run: Run, name: str) -> bool:
    """Whether a leaf is complete; the shortcut's has no network."""
    return run_outputs.is_done(run.workdir / name, network=not name.startswith("shortcut/"))


def _fold_job(
    run: Run, pixels: TrainingImages, fold: Fold, name: str, source: Bundle | None, search: Search | None
) -> Job:
    """What a fold trains in an arm. Anything chosen is chosen on the inner split of its training part."""
    arm, place = name.split("/", 1)
    verbose = arm in CHOOSING and place == "seed_0/fold_0"
    settings, chosen = run.config.target, ""
    if arm == "probe":
        settings = RECIPES["probe"].apply(settings)
    elif search is not None and arm in CHOOSING:
        chosen = search.choose(fold, arm, place)
        settings = search.settings(chosen)
    by_epoch = settings.select == "inner" and arm != "probe" and len(fold.inner) > 0
    rows = np.setdiff1d(fold.train, fold.inner) if by_epoch else fold.train
    job = jobs.make_job(run, pixels, name, arm, rows, source, settings, verbose=verbose)
    job = dataclasses.replace(job, chosen=chosen)
    return dataclasses.replace(job, watch=fold.inner, choose=True) if by_epoch else job


def _write_fold(run: Run, job: Job, trained: training_job.Trained, fold: Fold, seed: int, number: int) -> None:
    run_outputs.write_bundle(job, trained)
    made = bundles.load(job.folder_of / "bundle")
    data = job.pixels.data
    mapped = job.folder_of if job.name.split("/")[0] in ("transfer", "probe") else None
    table = run_outputs.table_of(
        made, data, fold.test, run.placement, split="oof", seed=seed, fold=number, features_in=mapped
    )
    run_outputs.write_results(run, job.folder_of, table, run_outputs.provenance(job, trained))
    conclusion.print_result(run, job.folder_of, job.name)


def write_shortcut(
    run: Run, data: PreparedSet, train: np.ndarray, test: np.ndarray, name: str, *, split: str, seed: int, fold: int
) -> None:
    """Table and metrics of a classifier that sees no cell but its size, border and colour."""
    found = shortcut.fit_predict(data.examples, train, test, len(data.classes))
    table = run_outputs.as_table(data, test, found, split=split, seed=seed, fold=fold)
    facts = {"stage": name, "model": "logistic regression on size, border, colour and file properties"}
    run_outputs.write_results(run, run.workdir / name, table, facts)


def _final(run: Run, pixels: TrainingImages, data: Data, source: Bundle | None, search: Search | None) -> None:
    """The model to use: trained on every labelled target image, as and for as long as the folds settled on."""
    folder = run.workdir / FINAL
    if is_main_process() and folder.is_dir():
        recover_folders(folder)
    if main_process_value(bundles.is_sound(folder / "bundle")):
        return
    settings, chosen = run.config.target, ""
    if search is not None:
        chosen = selection.settled(run.workdir, data.folds)
        settings = search.settings(chosen)
        if is_main_process():
            write_json(folder / "choice.json", {"recipe": chosen})
    job = final_job(run, pixels, data, source, settings)
    trained = training_job.fit(job)
    run_outputs.write_bundle(dataclasses.replace(job, chosen=chosen), trained, _out_of_fold_ratios(run, data))


def final_job(run: Run, pixels: TrainingImages, data: Data, source: Bundle | None, settings: TargetConfig) -> Job:
    """The training on every labelled image, for as many steps as the folds took."""
    rows = np.flatnonzero(pixels.data.examples.label >= 0)
    # Under a limit epochs are of the folds' few images: of all of them they would be many times the steps.
    few = max(len(fold.train) for folds in data.folds for fold in folds) if settings.limit else 0
    job = jobs.make_job(run, pixels, FINAL, "transfer", rows, source, settings, images=few)
    if settings.select == "inner":
        return dataclasses.replace(job, steps=_settled_steps(run, data, few or len(rows), job.steps))
    return job


def _out_of_fold_ratios(run: Run, data: Data) -> np.ndarray:
    """(M,) how near each target image came to the threshold of the network that had not seen it, mean over seeds."""
    assert data.target is not None
    total, count = np.zeros((2, len(data.target.examples.path)))
    for seed, folds in enumerate(data.folds):
        for number, fold in enumerate(folds):
            leaf = bundles.load(run.workdir / f"transfer/seed_{seed}/fold_{number}/bundle")
            found = ood.ratio(leaf, data.target, fold.test, run.placement)
            total[fold.test[: len(found)]] += found
            count[fold.test[: len(found)]] += 1
    ratios: np.ndarray = total[count > 0] / count[count > 0]
    return ratios


def _settled_steps(run: Run, data: Data, images: int, longest: int) -> int:
    """Mean over the folds of the chosen step, scaled to the number of images."""
    ratios = []
    for seed, folds in enumerate(data.folds):
        for number in range(len(folds)):
            facts = bundles.load(run.workdir / f"transfer/seed_{seed}/fold_{number}/bundle").provenance
            ratios.append(facts["steps"] / facts["data"]["train_images"])
    return min(longest, max(1, round(float(np.mean(ratios)) * images)))
