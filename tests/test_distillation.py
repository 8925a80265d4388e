"""Self-distillation between folds: who is held out from whom, and that a run learns from it and goes on with it."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest

from rcmnet_jax import distillation
from tests.commands import launch
from tests.small_job import small_job

FOLDS = "--config.source.soft_folds=2"
pytestmark = pytest.mark.usefixtures("quickly_compiled")


def rows_of(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_a_job_without_soft_labels_is_left_as_it_is(tmp_path):
    with small_job(tmp_path) as job:
        assert distillation.with_soft_labels(job) is job


@pytest.mark.slow
def test_targets_hold_what_the_network_that_had_not_seen_the_image_says_at_its_weight(tmp_path):
    with small_job(tmp_path, soft_folds=3, soft_weight=0.3) as job:
        made = distillation.with_soft_labels(job)
    data = job.pixels.data
    assert made.soft.shape == (len(data.examples.path), len(data.classes))
    np.testing.assert_allclose(made.soft[job.rows].sum(1), 0.3, atol=1e-6)
    assert not made.soft[job.watch].any()
    place = {path: row for row, path in enumerate(data.examples.path.tolist())}
    for fold in range(3):
        folder = tmp_path / f"pretrain/folds/fold_{fold}"
        held_out = rows_of(folder / "predictions.csv")
        trained_on = json.loads((folder / "metrics.json").read_text())["provenance"]["data"]["train_images"]
        assert trained_on == len(job.rows) - len(held_out)
        for row in held_out:
            said = [0.3 * float(row[f"p_{name}"]) for name in data.classes]
            np.testing.assert_allclose(made.soft[place[row["path"]]], said, atol=1e-6)


@pytest.mark.slow
def test_a_run_goes_on_within_a_fold_and_ends_as_one_that_was_not_stopped(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    words = FOLDS, "--config.checkpoint.every_steps=1"
    status, said, err = launch(whole, *words, config="configs/pbc.py:smoke")
    assert status == 0, err
    assert "pretrain/folds/fold_0:" in said + err
    assert re.search(r"(\d+) of \1 training images have soft labels", said + err)
    tables = [rows_of(whole / f"pretrain/folds/fold_{fold}/predictions.csv") for fold in (0, 1)]
    with (whole / "data/splits.csv").open(newline="") as file:
        train = sorted(row["path"] for row in csv.DictReader(file) if row["role"] == "train")
    assert sorted(row["path"] for table in tables for row in table) == train
    shutil.copytree(whole, stopped)
    (stopped / "report.html").unlink()
    for name in ("bundle", "checkpoints"):
        shutil.rmtree(stopped / "pretrain" / name)
    for name in ("predictions.csv", "metrics.json"):
        (stopped / "pretrain" / name).unlink()
        (stopped / "pretrain/folds/fold_1" / name).unlink()
    (stopped / "pretrain/soft_labels.json").unlink()
    shutil.rmtree(max((stopped / "pretrain/folds/fold_1/checkpoints").glob("step_*")))
    status, said, err = launch(stopped, *words, config="configs/pbc.py:smoke")
    assert status == 0, err
    assert "pretrain/folds/fold_0:" not in said + err
    assert "pretrain/folds/fold_1: going on from step" in said + err
    for name in ("folds/fold_1/predictions.csv", "soft_labels.json", "predictions.csv", "bundle/SHA256SUMS"):
        name = f"pretrain/{name}"
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name


def test_folds_beside_tables_are_refused(tmp_path):
    status, _, err = launch(tmp_path, FOLDS, "--config.source.soft_labels=a.csv", config="configs/pbc.py:smoke")
    assert status == 2
    assert "config.source.soft_folds=2: makes the tables that config.source.soft_labels gives" in err
