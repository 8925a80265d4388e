"""The transfer stage on embedded cells, from stored weights: starts, pulls, and who chooses what on which rows."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs.base import SMOKE, change
from rcmnet_jax import bundle as bundles
from rcmnet_jax import jobs, run_outputs, training_job
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.console import Console
from rcmnet_jax.data.audit import twins
from rcmnet_jax.data.partition import limited
from rcmnet_jax.data.splits import Fold
from rcmnet_jax.evaluation import probe
from rcmnet_jax.evaluation.predict import forward
from rcmnet_jax.files import write_json
from rcmnet_jax.intake import _limited, gather
from rcmnet_jax.recipes import RECIPES, Recipe
from rcmnet_jax.selection import Search, search, summary
from rcmnet_jax.target import final_job
from rcmnet_jax.training.loop import RunServices
from rcmnet_jax.training.records import Records
from rcmnet_jax.training.sharding import Placement
from rcmnet_jax.training.step import Controls
from rcmnet_jax.training.stop import StopRequest
from rcmnet_jax.training_job import Run, Trained, TrainingImages
from tests.bad_input.case import BUNDLE
from tests.commands import ROOT, launch, start

SMALL = {"data": "synthetic:cart-tiny", "folds": "2", "epochs": 1.0}


def config(**target):
    source = {"data": "none", "init_from": str(BUNDLE)}
    return change(ExperimentConfig(), **{**SMOKE, "source": source}, target={**SMALL, **target})


@pytest.fixture
def begin(tmp_path):
    """From target settings and a folder's name to a run, its target's pixels and its data."""
    opened = []

    def made(name="run", **target):
        folder = tmp_path / name
        opened.append(Records(folder))
        services = RunServices(opened[-1], Console(active=False), StopRequest())
        run = Run(config(**target), folder, Placement.everywhere(), services)
        data = gather(run.config, folder, services.console, services.stop)
        return run, TrainingImages(data.target, run), data

    yield made
    for records in opened:
        records.close()


def job_of(run, pixels, data, arm="transfer", name="transfer/seed_0/fold_0"):
    return jobs.make_job(run, pixels, name, arm, data.folds[0][0].train, None, run.config.target)


def test_statistics_are_reestimated_on_batches_in_which_classes_are_mixed(begin, monkeypatch):
    seen = []
    monkeypatch.setattr(training_job, "reestimate", lambda *given: seen.append(given[3]) or given[2])
    run, pixels, data = begin(batch_norm="reestimate", epochs=1.0)
    job = job_of(run, pixels, data)
    training_job.fit(job)
    (images,) = seen
    label = pixels.data.examples.label[job.rows]
    place = {image.tobytes(): k for image, k in zip(pixels.data.images(job.rows), label, strict=True)}
    mixed = np.array([place[image.tobytes()] for image in images])
    assert sorted(mixed) == sorted(label)
    assert (np.diff(mixed) != 0).sum() > 2 * (np.diff(label) != 0).sum()


@pytest.mark.slow
def test_a_leafs_bundle_has_the_weights_that_were_trained(begin):
    run, pixels, data = begin()  # four classes, which are trained in a head of eight columns
    job = job_of(run, pixels, data)
    trained = training_job.fit(job)
    run_outputs.write_bundle(job, trained)
    made = bundles.load(job.folder_of / "bundle")
    jax.tree.map(np.testing.assert_array_equal, made.params, trained.params)
    jax.tree.map(np.testing.assert_array_equal, made.batch_stats, trained.batch_stats)


def test_the_head_starts_as_the_probe_of_the_folds_training_rows_alone(begin):
    run, pixels, data = begin(head="probe")
    job, rows = job_of(run, pixels, data), data.folds[0][0].train
    embeddings = forward(job.network, *job.start, pixels.data.images(rows), run.placement, output="embedding")
    kernel, bias = probe.fit(embeddings, pixels.data.examples.label[rows], 4)
    np.testing.assert_array_equal(job.start[0]["fc"]["kernel"], kernel)
    np.testing.assert_array_equal(job.start[0]["fc"]["bias"], bias)
    assert job.steps > 0  # and then everything is trained
    scratch = job_of(run, pixels, data, arm="scratch")  # there is nothing to probe in random weights
    drawn = job.network.init(run.seed(scratch.name + "/init"))[0]
    np.testing.assert_array_equal(scratch.start[0]["fc"]["kernel"], drawn["fc"]["kernel"])


def test_a_pull_acts_on_what_was_transferred_and_its_anchor_is_the_same_again(begin):
    run, pixels, data = begin(pull=0.5)
    first, again = (training_job.prepared(job_of(run, pixels, data))[0].anchor for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    strength = jax.tree_util.tree_flatten_with_path(first.strength)[0]
    held = {jax.tree_util.keystr(path): float(value) for path, value in strength}
    assert {name for name, value in held.items() if value == 0} == {"['fc']['bias']", "['fc']['kernel']"}
    assert set(held.values()) == {0.0, 0.5}
    assert training_job.prepared(job_of(run, pixels, data, arm="scratch"))[0].anchor is None


@pytest.mark.slow
def test_folds_and_arms_share_one_compiled_step(begin, caplog):
    run, pixels, data = begin(optimizer={"ema_decay": 0.75})  # that no other test compiles
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for arm, fold in (("transfer", 0), ("transfer", 1), ("scratch", 0)):
            name, rows = f"{arm}/seed_0/fold_{fold}", data.folds[0][fold].train
            job = jobs.make_job(run, pixels, name, arm, rows, None, run.config.target)
            stage, state, step, loader = training_job.prepared(job)
            for k in range(2):
                state, _ = step(state, loader.batch(k), Controls.on_host(0.1, True, stage.class_weights, stage.seed))
    compiled = [line for line in caplog.messages if "train_step" in line and "Finished XLA compilation" in line]
    assert len(compiled) == 1


@pytest.mark.slow
def test_labels_of_the_reported_fold_cannot_change_the_choice_and_those_of_the_inner_split_can(begin, monkeypatch):
    monkeypatch.setitem(RECIPES, "untrained", Recipe(epochs=0))

    def chosen(name, shuffled):
        run, pixels, data = begin(name)
        fold, examples = data.folds[0][0], data.target.examples
        labels, rows = examples.label.copy(), getattr(fold, shuffled) if shuffled else fold.test[:0]
        labels[rows] = np.roll(labels[rows], 3)
        assert (labels[rows] != examples.label[rows]).any() == bool(shuffled)
        mixed = dataclasses.replace(pixels.data, examples=dataclasses.replace(examples, label=labels))
        made = Search(run, TrainingImages(mixed, run), None, ("untrained", "probe"))
        made.choose(fold, "transfer", "seed_0/fold_0")
        note = json.loads((run.workdir / "transfer/seed_0/fold_0/choice.json").read_text())
        return made, fold, note

    made, fold, honest = chosen("as_they_are", "")
    assert honest["scores"].keys() == {"untrained", "probe"}
    assert chosen("test", "test")[2] == honest
    assert chosen("inner", "inner")[2]["scores"] != honest["scores"]
    monkeypatch.setattr(training_job, "fit", lambda job: pytest.fail(f"{job.name} is trained again"))
    assert made.choose(fold, "transfer", "seed_0/fold_0") == honest["recipe"]


def test_candidates_train_on_neither_the_inner_split_nor_the_reported_fold(begin, monkeypatch):
    run, pixels, data = begin()
    fold, seen = data.folds[0][0], []
    monkeypatch.setattr(training_job, "fit", lambda job: seen.append(job) or Trained(*job.start, 0))
    Search(run, pixels, None, ("default", "long")).choose(fold, "transfer", "seed_0/fold_0")
    assert [job.steps for job in seen] == [2, 3]
    for job in seen:
        np.testing.assert_array_equal(np.sort(np.concatenate([job.rows, fold.inner, fold.test])), np.arange(64))


def test_a_run_that_goes_on_tries_the_recipes_that_it_began_with(begin):
    run, pixels, data = begin(recipes=("default", "probe", "long"), budget_minutes=1.0)
    plan = {"tried": ["default", "probe"], "left_out": ["long"], "images_per_second": 9.0, "budget_minutes": 1.0}
    (run.workdir / "candidates").mkdir()
    (run.workdir / "candidates/plan.json").write_text(json.dumps(plan))
    assert search(run, pixels, data, None).names == ("default", "probe")


def test_checkpoints_of_a_candidate_that_a_kill_left_are_removed_when_its_score_is_read(begin):
    run, pixels, data = begin(recipes=("default", "probe"))
    left = run.workdir / "candidates/transfer/seed_0/fold_0/default"
    for name in ("default", "probe"):
        write_json(left.with_name(name) / "score.json", {"balanced_accuracy": 0.5, "nll": 1.0})
    (left / "checkpoints").mkdir()
    search(run, pixels, data, None).choose(data.folds[0][0], "transfer", "seed_0/fold_0")
    assert not (left / "checkpoints").exists()


def test_the_final_model_takes_as_many_steps_under_a_limit_as_its_folds(begin):
    run, pixels, data = begin(limit=3, epochs=8.0, freeze_epochs=2.0)
    folds = [jobs.make_job(run, pixels, f"f{k}", "transfer", fold.train, None, run.config.target)
             for k, fold in enumerate(data.folds[0])]  # fmt: skip
    made = final_job(run, pixels, data, None, run.config.target)
    assert len(made.rows) == (data.target.examples.label >= 0).sum() > max(len(job.rows) for job in folds)
    assert made.steps == max(job.steps for job in folds)
    assert made.head_steps == max(job.head_steps for job in folds) < made.steps
    whole, fold = (training_job.prepared(job)[0] for job in (made, max(folds, key=lambda job: job.steps)))
    np.testing.assert_array_equal(whole.learning_rates, fold.learning_rates)


def test_the_epoch_that_folds_chose_under_a_limit_is_the_final_models_too(begin, monkeypatch):
    run, pixels, data = begin(limit=3, epochs=40.0, select="inner")
    few = max(len(fold.train) for fold in data.folds[0])
    fold = SimpleNamespace(provenance={"steps": 5, "data": {"train_images": few}})
    monkeypatch.setattr("rcmnet_jax.target.bundles", SimpleNamespace(load=lambda _: fold))
    assert final_job(run, pixels, data, None, run.config.target).steps == 5


def test_a_limit_leaves_images_of_each_class_to_train_on_while_choosing(begin):
    alone = 0
    for seed in range(20):
        run, _, data = begin(f"run{seed}", limit=2)
        fold, label, group = data.folds[0][0], data.target.examples.label, data.target.examples.group
        alike = twins(data.target, run.config.audit)
        made = _limited(data.target, Fold(fold.train, fold.train[: seed % 7 * 4], fold.test), alike, 2, seed)
        rest = np.setdiff1d(made.train, made.inner)
        assert set(label[rest]) == set(label[made.train])
        assert np.isin(made.inner, made.train).all()
        whole = limited(label, group, fold.train, 2, seed)
        np.testing.assert_array_equal(made.train, whole)
        alone += len(np.intersect1d(whole, fold.train[: seed % 7 * 4])) > len(made.inner)
    assert alone  # somewhere an image had to come out


def test_what_no_split_may_cut_leaves_the_inner_split_together(begin):
    """A near copy of an image that comes out of it must not stay to be chosen by."""
    _, _, data = begin(limit=2)
    fold, label = data.folds[0][0], data.target.examples.label
    held = limited(label, data.target.examples.group, fold.train, 2, 0)
    alike = np.full(len(label), "", "<U4")
    alike[held] = "same"  # all of them, however they are grouped
    assert _limited(data.target, Fold(fold.train, held, fold.test), alike, 2, 0).inner.tolist() == []


def test_a_run_without_a_target_has_no_choice_to_tell_of(begin):
    run, _, _ = begin(recipes=("default", "probe"))
    assert summary(run, ()) == []


def test_a_limit_cuts_the_training_rows_and_leaves_the_test_rows_as_they_are(begin):
    (whole,), (few,) = begin("whole")[2].folds, begin("few", limit=3)[2].folds
    label = begin("whole")[2].target.examples.label
    for all_of, some in zip(whole, few, strict=True):
        np.testing.assert_array_equal(some.test, all_of.test)
        assert np.isin(some.train, all_of.train).all()
        assert np.bincount(label[some.train]).tolist() == [3, 3, 3, 3]
        assert np.isin(some.inner, some.train).all()


def test_direct_is_an_arm_where_weights_make_a_detour_and_nowhere_else():
    detour = change(ExperimentConfig(), source={"init_from": str(BUNDLE)})
    assert detour.arms == ("transfer", "direct", "scratch", "probe", "shortcut")
    assert "direct" not in ExperimentConfig().arms
    assert "direct" not in config().arms  # transfer itself starts from init_from there


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_chooses_ends_as_one_that_is_not(tmp_path):
    words = (
        f"--config.source.init_from={BUNDLE}",
        "--config.source.epochs=0.5",
        "--config.target.arms=transfer,direct",
        "--config.target.recipes=probe,long",
        "--config.target.pull=0.01",
        "--config.target.budget_minutes=100",
    )
    status, out, err = launch(tmp_path / "whole", *words)
    assert status == 0, err
    assert "Recipes that the folds of transfer chose" in out
    assert "Recipes that the folds of direct chose" in out
    workdir = tmp_path / "killed"
    process = start(ROOT / "launch.py", "--config=configs/cart.py:smoke", f"--workdir={workdir}", *words)
    deadline = time.time() + 300
    while not list(workdir.glob("candidates/transfer/seed_0/fold_1/long/checkpoints/step_*")):
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    plan = (workdir / "candidates/plan.json").read_bytes()
    assert json.loads(plan)["images_per_second"] > 0
    assert launch(workdir, *words)[0] == 0
    assert (workdir / "candidates/plan.json").read_bytes() == plan
    names = ["predictions.csv", "label_review.csv", "direct/metrics.json", "bundle/SHA256SUMS"]
    names += [str(path.relative_to(workdir)) for path in workdir.glob("**/choice.json")]
    names += [str(path.relative_to(workdir)) for path in workdir.glob("**/score.json")]
    assert len(names) == 4 + 5 + 8
    for name in names:
        assert (workdir / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert json.loads((workdir / "bundle/bundle.json").read_text())["provenance"]["recipe"] in ("probe", "long")
    assert not list(workdir.glob("candidates/**/checkpoints"))
    assert [pair["second"] for pair in json.loads((workdir / "comparison.json").read_text())["pairs"]] == ["direct"]


def test_statistics_are_frozen_where_they_were_transferred_and_not_from_scratch(begin):
    """Random weights under the initial statistics would be a network without normalisation."""
    run, pixels, data = begin(batch_norm="frozen")
    assert training_job.step_config(job_of(run, pixels, data)).frozen_statistics
    assert not training_job.step_config(job_of(run, pixels, data, arm="scratch")).frozen_statistics


def test_only_transferred_weights_move_more_slowly_the_deeper_they_lie(begin):
    """A network from scratch under layer_decay would be a handicapped baseline."""
    job = job_of(*begin(layer_decay=0.5))
    assert training_job.step_config(job).layer_decay == 0.5
    scratch = job_of(*begin("other", layer_decay=0.5), arm="scratch")
    assert training_job.step_config(scratch).layer_decay == 1.0
    prepared = training_job.prepared(scratch)
    state, _ = prepared[2](prepared[1], prepared[3].batch(0), Controls.on_host(1.0, True, np.ones(4), 0))
    plain = training_job.prepared(job_of(*begin("plain"), arm="scratch", name=scratch.name))
    other, _ = plain[2](plain[1], plain[3].batch(0), Controls.on_host(1.0, True, np.ones(4), 0))
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(a, b)
