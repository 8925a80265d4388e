"""Self-distillation: what networks that had not seen a training image say of it becomes a part of its target.

The tables come with the config (`source.soft_labels`), or from networks trained here on all folds of the training part
but one (`source.soft_folds`). A label that the other images contradict then counts for less, and a cell between two
classes may be both (Furlanello et al. 2018, with held-out teachers as confident learning has them, Northcutt et al.
2021).
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from rcmnet_jax import conclusion, run_outputs, training_job
from rcmnet_jax.data import audit, splits
from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation import soft_labels
from rcmnet_jax.files import write_json
from rcmnet_jax.training import optimizer as optimizers
from rcmnet_jax.training.sharding import barrier, is_main_process
from rcmnet_jax.training_job import Job
from rcmnet_jax.workdir import read_json


def with_soft_labels(job: Job) -> Job:
    """The job with soft targets where the config asks for them; notes a digest of them in its folder.

    Raises:
      UserError: tables that cannot be read or do not fit, or that have changed since the run began.
    """
    run, data = job.pixels.run, job.pixels.data
    asked = run.config.source
    if not (asked.soft_labels or asked.soft_folds):
        return job
    files = asked.soft_labels or tuple(map(str, _folds(job, asked.soft_folds)))
    found = np.zeros((len(data.examples.path), len(data.classes)), np.float32)
    found[job.rows] = asked.soft_weight * soft_labels.read(files, data.examples.path[job.rows], data.classes)
    facts = {"sha256": hashlib.sha256(found.tobytes()).hexdigest(), "images": int(found.any(1).sum())}
    note = job.folder_of / "soft_labels.json"
    if note.exists() and read_json(note) != facts:
        name = "soft_labels" if asked.soft_labels else "soft_folds"
        raise UserError(
            f"config.source.{name}: the predictions in {', '.join(files)} have changed since {run.workdir} began to "
            "learn from them. Restore them, or give another --workdir."
        )
    if is_main_process():
        write_json(note, facts)
    barrier(f"{job.name}/soft_labels")
    run.services.console.say(f"{job.name}: {facts['images']} of {len(job.rows)} training images have soft labels")
    return dataclasses.replace(job, soft=found)


def _folds(job: Job, count: int) -> list[Path]:
    """The held-out predictions of each fold, by networks trained as the job's is, on the other folds' images."""
    run, data = job.pixels.run, job.pixels.data
    config = run.config
    folds, said = splits.source_folds(
        data.examples, data.classes, job.rows, count=count, seed=config.seed, twins=audit.twins(data, config.audit)
    )
    run.services.console.say(f"{job.name}: {said}")
    label, tables = data.examples.label, []
    for number, fold in enumerate(folds):
        run.services.stop.check()
        # Of a class that it was not shown a network knows nothing: such images keep their labels.
        held_out = fold.test[np.isin(label[fold.test], label[fold.train])]
        if not len(held_out):
            continue
        name = f"{job.name}/folds/fold_{number}"
        tables.append(run.workdir / name / "predictions.csv")
        if not run_outputs.is_done(run.workdir / name, network=False):
            steps = optimizers.total_steps(config.source.epochs, len(fold.train), config.batch_size)
            fold_job = dataclasses.replace(job, name=name, rows=fold.train, steps=steps, watch=fold.inner)
            _write_held_out(fold_job, held_out, number)
    return tables


def _write_held_out(job: Job, rows: np.ndarray, fold: int) -> None:
    """Trains a fold's network and leaves what it says of the rows that it has not seen."""
    run = job.pixels.run
    trained = training_job.fit(job)
    made = run_outputs.bundle_of(job, trained)
    try:
        table = run_outputs.table_of(made, job.pixels.data, rows, run.placement, split="oof", seed=-1, fold=fold)
    finally:
        trained.settle()  # nothing is written of a network whose last checkpoint is not kept
    run_outputs.write_results(run, job.folder_of, table, run_outputs.provenance(job, trained))
    conclusion.print_result(run, job.folder_of, job.name)
