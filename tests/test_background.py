"""What is compiled beside the main thread is what the first step then calls, and keeps nobody who leaves."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AxisType
from PIL import Image

from configs.base import change
from rcmnet_jax import bundle, precompile, training_job
from rcmnet_jax.background import BackgroundTask
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.data.images import ImageRule
from rcmnet_jax.data.prepare import prepare
from rcmnet_jax.errors import Interrupted
from rcmnet_jax.training import loop
from rcmnet_jax.training.sharding import Placement
from tests.commands import ROOT
from tests.small_job import small_job

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture
def said_of_all_threads(caplog):
    """JAX logs what it compiles; `jax.log_compiles` says so of one thread."""
    jax.config.update("jax_log_compiles", True)
    with caplog.at_level(logging.WARNING):
        yield
    jax.config.update("jax_log_compiles", False)


@pytest.mark.usefixtures("said_of_all_threads")
@pytest.mark.parametrize(
    ("devices", "steps", "source"),
    [(8, 1, {}), pytest.param(1, 2, {"start_size": 32}, marks=pytest.mark.slow)],
    ids=["one by one", "two at once, small images first"],
)
def test_the_first_step_finds_its_program_made(devices, steps, source, tmp_path, caplog):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    with small_job(tmp_path, size=48 if source else 32, **source) as job:
        run = dataclasses.replace(job.pixels.run, placement=Placement(mesh))
        run = dataclasses.replace(run, config=change(run.config, steps_per_dispatch=steps))
        job = dataclasses.replace(job, pixels=training_job.TrainingImages(job.pixels.data, run))
        precompile.begin(run, 8, images=len(job.pixels.data.examples.label))
        run.ahead.wait()
        made = programs(caplog)
        stage, state, step, loader = training_job.prepared(job)
        loop._dispatch(stage, state, step, loader, loop._Controls(stage), range(steps))
        assert len(made) == 1
        assert programs(caplog) == made


def programs(caplog):
    words = ("Finished XLA compilation", "train_step")
    return [line for line in caplog.messages if all(word in line for word in words)]


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"pull": 0.1}, ()),
        ({"soft_labels": ("table.csv",)}, ()),
        ({"soft_folds": 2}, ("soft_labels.json",)),
        ({"start_size": 32}, ("checkpoints",)),
        ({}, ("metrics.json", "predictions.csv", "bundle")),
    ],
)
def test_nothing_is_compiled_where_the_first_step_may_be_another(settings, left, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(bundle, "is_sound", lambda folder: folder.exists())
    config = change(ExperimentConfig(), image_size=48, source=settings, model={"width": 8})
    run = training_job.Run(config, tmp_path, Placement.everywhere(), None, SimpleNamespace(begin=begun.append))
    if left:
        precompile.begin(run, 8, images=900)
        assert len(begun) == 1
        for name in left:
            (tmp_path / "pretrain" / name).mkdir(parents=True)
    precompile.begin(run, 8, images=900)
    assert len(begun) == bool(left)


@pytest.mark.parametrize(
    ("images", "every_steps", "count"), [(900, 0, 4), (900, 4, 4), (900, 3, None), (160, 0, None), (256, 0, 4)]
)
def test_several_steps_are_compiled_only_where_an_epoch_and_a_save_leave_room(images, every_steps, count):
    changes = {"steps_per_dispatch": 4, "batch_size": 32, "checkpoint": {"every_steps": every_steps}}
    assert precompile._together(change(ExperimentConfig(), **changes), images) == count


def test_the_numbers_of_classes_and_images_are_known_before_any_image_is_read(tmp_path):
    for number, name in enumerate(["a/1.png", "a/2.png", "b/1.png", "c/1.png"]):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        if name[0] != "c":
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "set" / name)
        else:
            (tmp_path / "set" / name).write_bytes(b"no image")
    told = []
    prepare(str(tmp_path / "set"), ImageRule(32), cache=tmp_path, at_open=lambda *numbers: told.append(numbers))
    assert told == [(3, 4)]


def test_work_that_fails_is_said_and_left_to_whoever_needs_it(caplog):
    ahead = BackgroundTask()
    ahead.begin(lambda: 1 / 0)
    ahead.wait()
    assert "nothing was compiled ahead: division by zero" in caplog.text


def test_one_piece_of_work_follows_another():
    ahead, order, free = BackgroundTask(), [], threading.Event()
    ahead.begin(lambda: (free.wait(10), order.append("first")))
    threading.Timer(0.05, free.set).start()
    ahead.begin(lambda: order.append("second"))
    ahead.wait()
    ahead.wait()
    assert order == ["first", "second"]


def test_waiting_ends_where_the_check_says_so():
    ahead, free = BackgroundTask(), threading.Event()
    ahead.begin(lambda: free.wait(30))
    with pytest.raises(Interrupted):
        ahead.wait(stopped)
    free.set()
    ahead.wait()


def stopped():
    raise Interrupted("stopped")


@pytest.mark.parametrize(
    ("busy", "body", "status", "said"),
    [
        (True, "return 0", 0, ""),
        (True, "return 75", 75, ""),
        (True, "1 / 0", 1, "ZeroDivisionError"),
        (False, "return 75", 75, ""),
        (False, "1 / 0", 1, "ZeroDivisionError"),
        (False, "raise SystemExit(2)", 2, ""),
    ],
)
def test_a_process_ends_with_its_status_and_waits_for_no_compilation(busy, body, status, said):
    program = f"""
import threading
from rcmnet_jax.background import BackgroundTask, end_with
def main():
    if {busy}:
        BackgroundTask().begin(threading.Event().wait)
    print("done")
    {body}
end_with(main)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (status, "done\n")
    assert said in done.stderr
    assert bool(said) == bool(done.stderr)
