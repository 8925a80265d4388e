"""What a trained network leaves in its folder of the workdir: bundle, predictions and metrics."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from rcmnet_jax import __version__
from rcmnet_jax import bundle as bundles
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.data import appearance
from rcmnet_jax.data.prepare import PreparedSet
from rcmnet_jax.evaluation import features, ood
from rcmnet_jax.evaluation.metrics import compute, to_json
from rcmnet_jax.evaluation.tables import Table, make_table, write_table
from rcmnet_jax.files import recover_folders, remove, write_atomic
from rcmnet_jax.settings import config_hash
from rcmnet_jax.training.sharding import Placement, barrier, is_main_process, main_process_value
from rcmnet_jax.training_job import Job, Run, Trained


def provenance(job: Job, trained: Trained) -> dict[str, Any]:
    """What a bundle says of its making; the same for every repetition of the same run."""
    data = job.pixels.data
    return {
        "package": f"rcmnet_jax {__version__}",
        "config_hash": config_hash(job.pixels.run.config),
        "stage": job.name,
        "steps": trained.step,
        **({"recipe": job.chosen} if job.chosen else {}),
        "data": {
            "spec": data.spec,
            "fingerprint": data.fingerprint,
            "synthetic": data.synthetic,
            "train_images": len(job.rows),
            "train_groups": len(set(data.examples.group[job.rows].tolist()) - {""}),
        },
    }


def bundle_of(job: Job, trained: Trained) -> Bundle:
    """The network as a bundle in memory, without calibration."""
    data = job.pixels.data
    made = Bundle(job.network, data.classes, data.rule, trained.params, trained.batch_stats, provenance(job, trained))
    return dataclasses.replace(made, views=job.pixels.run.config.evaluation.views)


def write_bundle(job: Job, trained: Trained, ratios: np.ndarray | None = None) -> None:
    """Writes the network's bundle into its folder; `ratios` are as for `ood.with_raised_threshold`."""
    data, made = job.pixels.data, bundle_of(job, trained)
    try:
        facts = ood.fit_to(made, data, job.rows, job.pixels.run.placement)
    finally:
        trained.settle()  # nothing is written of a network whose last checkpoint is not kept
    facts = facts if ratios is None else ood.with_raised_threshold(facts, ratios)
    if is_main_process():
        looks = appearance.describe(data.images(ood.evenly(job.rows, appearance.MAX_APPEARANCE_IMAGES)))
        known = {"ood": facts, "appearance": looks and looks.to_dict()}
        made = dataclasses.replace(made, calibration={key: value for key, value in known.items() if value})
        remove(job.folder_of / "metrics.json")  # of an earlier bundle: it would mark this one as done with
        bundles.write(job.folder_of / "bundle", made)
    barrier(f"{job.name}/bundle")


def table_of(
    bundle: Bundle,
    data: PreparedSet,
    rows: np.ndarray,
    placement: Placement,
    *,
    split: str,
    seed: int,
    fold: int,
    features_in: Path | None = None,
) -> Table:
    """Predictions of a bundle on prepared rows: what `predict` gives on the same images.

    `features_in` is a folder for their features, which cost nothing here. All processes must come.
    """
    images = data.images(rows)
    found, embedding = bundle.answers_and_features(images, placement)
    if features_in is not None:
        features.write_features(features_in, bundle, data.examples.path[rows], embedding)
    table = as_table(data, rows, found.probabilities, split=split, seed=seed, fold=fold)
    return dataclasses.replace(table, abstain=found.abstain, ood=found.ood)


def as_table(
    data: PreparedSet, rows: np.ndarray, probabilities: np.ndarray, *, split: str, seed: int, fold: int
) -> Table:
    """Probabilities (n, K) of prepared rows (n,) as a predictions table."""
    examples = data.examples
    return make_table(
        examples.path[rows],
        probabilities,
        data.classes,
        label=[data.classes[k] if k >= 0 else "" for k in examples.label[rows]],
        group=examples.group[rows],
        sha256=examples.sha256[rows],
        split=split,
        seed=seed,
        fold=fold,
    )


def write_results(run: Run, folder: Path, table: Table, facts: dict[str, Any]) -> None:
    """Writes predictions.csv, then metrics.json, whose presence marks the leaf as done."""
    if is_main_process():
        write_table(table, folder / "predictions.csv")
        metrics = compute(table, seed=run.config.seed, provenance=facts)
        write_atomic(folder / "metrics.json", to_json(metrics))
    barrier(f"{folder.name}/metrics")


def is_done(folder: Path, *, network: bool = True) -> bool:
    """Whether a leaf is complete and its bundle, if it has one, undamaged."""
    if is_main_process() and folder.is_dir():
        recover_folders(folder)
    done = (folder / "metrics.json").exists() and (folder / "predictions.csv").exists()
    return main_process_value(done and (not network or bundles.is_sound(folder / "bundle")))
