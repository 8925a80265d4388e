"""What is compiled beside the main thread is what the first step then calls, and keeps nobody who leaves."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
import threading

import jax
import pytest
from jax.sharding import AxisType

from configs.base import change
from rcmnet_jax import stages
from rcmnet_jax.ahead import Ahead
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
    [(8, 1, {}), (1, 2, {"start_size": 32})],
    ids=["one by one", "two at once, small images first"],
)
def test_the_first_step_finds_its_program_made(devices, steps, source, tmp_path, caplog):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    with small_job(tmp_path, size=48 if source else 32, **source) as job:
        run = dataclasses.replace(job.pixels.run, placement=Placement(mesh))
        run = dataclasses.replace(run, config=change(run.config, steps_per_dispatch=steps))
        job = dataclasses.replace(job, pixels=stages.Pixels(job.pixels.data, run))
        run.ahead.begin(lambda: stages.compile_step(run, job.network))
        run.ahead.wait()
        made = programs(caplog)
        stage, state, step, loader = stages.prepared(job)
        loop._dispatch(stage, state, step, loader, loop._Controls(stage), range(steps))
        assert len(made) == 1
        assert programs(caplog) == made


def programs(caplog):
    words = ("Finished XLA compilation", "train_step")
    return [line for line in caplog.messages if all(word in line for word in words)]


def test_work_that_fails_is_said_and_left_to_whoever_needs_it(caplog):
    ahead = Ahead()
    ahead.begin(lambda: 1 / 0)
    ahead.wait()
    assert "nothing was compiled ahead: division by zero" in caplog.text


def test_one_piece_of_work_follows_another():
    ahead, order, free = Ahead(), [], threading.Event()
    ahead.begin(lambda: (free.wait(10), order.append("first")))
    threading.Timer(0.05, free.set).start()
    ahead.begin(lambda: order.append("second"))
    ahead.wait()
    ahead.wait()
    assert order == ["first", "second"]


@pytest.mark.parametrize("status", [0, 2, 75])
def test_a_process_that_leaves_waits_for_no_compilation(status):
    program = f"""
import threading
from rcmnet_jax.ahead import Ahead, leave
Ahead().begin(threading.Event().wait)
print("said")
leave({status})
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "said\n", "")
