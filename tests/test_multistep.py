"""Several steps in one program: the same as one after the other, and resumed at any of its ends."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from rcmnet_jax import training_job
from rcmnet_jax.checkpoint.store import Store
from rcmnet_jax.config import AugmentConfig, CheckpointConfig, OptimizerConfig
from rcmnet_jax.data.loader import GrowingLoader
from rcmnet_jax.errors import GuardError, Interrupted
from rcmnet_jax.settings import change
from rcmnet_jax.training import loop, multistep
from rcmnet_jax.training.multistep import dispatch_ranges, make_multistep
from rcmnet_jax.training.records import read_rows
from rcmnet_jax.training.step import Controls, StepConfig, make_train_step
from rcmnet_jax.training.stop import StopRequest
from tests.linear import CLASSES, MODEL, PLACEMENT, PLAIN, batches, fresh, plan, run_services
from tests.small_job import small_job

CONFIG = StepConfig(OptimizerConfig(), PLAIN)
STEPS = 9  # three epochs
pytestmark = pytest.mark.usefixtures("quickly_compiled")


@given(some.data())
def test_hops_cover_every_step_once_cross_no_end_and_are_the_same_from_any_of_them_on(data):
    ends = sorted(data.draw(some.sets(some.integers(1, 60), min_size=1)))
    count = data.draw(some.integers(1, 9))
    whole = list(dispatch_ranges(0, ends, count))
    assert [step for steps in whole for step in steps] == list(range(ends[-1]))
    assert {len(steps) for steps in whole} <= {1, count}
    assert not any(steps.start < end < steps.stop for steps in whole for end in ends)
    for cut in range(len(whole) + 1):
        start = whole[cut].start if cut < len(whole) else ends[-1]
        assert list(dispatch_ranges(start, ends, count)) == whole[cut:]
    start = data.draw(some.integers(0, ends[-1]))  # saved by a run of another count
    assert [step for steps in dispatch_ranges(start, ends, count) for step in steps] == list(range(start, ends[-1]))


def test_where_one_step_a_dispatch_is_best_there_is_no_program_for_more(monkeypatch):
    assert make_multistep(MODEL, CONFIG, PLACEMENT, 1) is None
    assert make_multistep(MODEL, CONFIG, PLACEMENT, 0) is None
    assert make_multistep(MODEL, CONFIG, PLACEMENT, 4).count == 4
    monkeypatch.setattr(multistep, "on_cpu", lambda: False)
    assert make_multistep(MODEL, CONFIG, PLACEMENT, 0).count == 8


@pytest.mark.parametrize("unrolled", [True, False])  # as on the CPU, and as on accelerators
def test_several_steps_equal_one_after_the_other(monkeypatch, unrolled):
    monkeypatch.setattr(multistep, "on_cpu", lambda: unrolled)
    step_config = StepConfig(OptimizerConfig(), AugmentConfig(mixup=0.4))  # what is drawn for an image and for a step
    step, loader = make_train_step(MODEL, step_config, PLACEMENT), batches()
    rates, bodies = np.float32([0.1, 0.2, 0.05]), np.array([False, False, True])  # the head alone, then all
    lasting = Controls.on_host(0.0, True, np.ones(CLASSES), 1)
    state, each = fresh(step_config), []
    for k in range(3):
        state, metrics = step(state, loader.batch(k), lasting.at(rates[k], bodies[k]))
        each.append(jax.device_get(metrics))
    given = fresh(step_config)
    program = make_multistep(MODEL, step_config, PLACEMENT, 3)
    made, metrics = program.run(given, loader.batches(range(3)), lasting.at(rates, bodies))
    assert int(made.step) == 3
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *jax.device_get((made, state)))
    for name in metrics._fields:
        np.testing.assert_allclose(getattr(metrics, name), [getattr(one, name) for one in each], rtol=1e-5)


VARIED = {"learning_rates": np.linspace(0.1, 0.02, STEPS, dtype=np.float32), "head_steps": 4}  # within a dispatch


def dispatching(count=2, **changes):
    made = {"multistep": make_multistep(MODEL, CONFIG, PLACEMENT, count)}
    return plan(STEPS, **made | VARIED | changes)


def run(folder, made=None, step=None, loader=None, stop=None, at_epoch=None):
    """The state after a stage, on the host, and what was written of its steps."""
    step, made, loader = (
        step or make_train_step(MODEL, CONFIG, PLACEMENT),
        made or dispatching(),
        loader or batches(),
    )
    with run_services(folder) as services, Store(folder / "store", keep=9) as store:
        services = dataclasses.replace(services, stop=stop or StopRequest())
        state = loop.train(made, fresh(CONFIG), step, loader, store, services, at_epoch)
        store.wait()
    return jax.device_get(state), [row for row in read_rows(folder / "log.jsonl") if row["kind"] == "train"]


def saved(folder):
    with Store(folder / "store", keep=9) as store:
        return store.steps()


def test_a_stage_of_dispatches_notes_every_step_and_ends_where_single_steps_end(tmp_path):
    looked = []
    made, rows = run(tmp_path / "several", dispatching(3), at_epoch=lambda at, _: looked.append(at))
    alone, wanted = run(tmp_path / "alone", plan(STEPS, **VARIED))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), made, alone)
    assert looked == [3, 6, 9]
    assert [row["step"] for row in rows] == [*range(1, STEPS + 1)]
    for one, other in zip(rows, wanted, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["learning_rate"] == other["learning_rate"]


def test_a_stage_of_hops_that_is_interrupted_ends_with_the_same_bits(tmp_path):
    made = dispatching(save_every=CheckpointConfig(every_steps=3))
    whole, _ = run(tmp_path / "whole", made)
    for cut in (2, 3, 5):  # after a dispatch, at a save by step, between two saves
        stop = StopRequest()

        class Stopping:
            """The loader, which asks for a stop once the dispatch that ends there has begun."""

            def asked(self, end, stop=stop, cut=cut):
                stop.signal = 15 if end == cut else stop.signal
                return batches()

            def batches(self, steps):
                return self.asked(steps.stop).batches(steps)

            def batch(self, step):
                return self.asked(step + 1).batch(step)

        with pytest.raises(Interrupted, match=f"step {cut},"):
            run(tmp_path / f"cut{cut}", made, loader=Stopping(), stop=stop)
        again, _ = run(tmp_path / f"cut{cut}", made)
        jax.tree.map(np.testing.assert_array_equal, whole, again)


def test_a_save_by_step_ends_a_hop(tmp_path):
    run(tmp_path, dispatching(save_every=CheckpointConfig(every_steps=3)))
    assert saved(tmp_path) == [3, 6, 9]


def test_an_epoch_that_nobody_looks_at_ends_no_hop(tmp_path):
    sizes = []
    program = make_multistep(MODEL, CONFIG, PLACEMENT, 4)

    def noting(state, given, controls):
        sizes.append(given.labels.shape[0])
        return program.run(state, given, controls)

    run(tmp_path, dispatching(multistep=dataclasses.replace(program, run=noting)))
    assert sizes == [4, 4]


def test_no_hop_mixes_images_of_two_sizes(tmp_path):
    seen = []
    program, whole = make_multistep(MODEL, CONFIG, PLACEMENT, 2), batches()

    def noting(state, given, controls):
        seen.append(given.images.shape)
        return program.run(state, whole.batches(range(2)), controls)

    made = dispatching(multistep=dataclasses.replace(program, run=noting), larger_from=5)
    step = make_train_step(MODEL, CONFIG, PLACEMENT)
    run(tmp_path, made, lambda s, _, c: step(s, whole.batch(0), c), GrowingLoader(whole, 2, 5))
    assert [shape[:3] for shape in seen] == [(2, 8, 2), (2, 8, 2), (2, 8, 4), (2, 8, 4)]


def test_the_steps_of_a_dispatch_share_its_speed(tmp_path, monkeypatch):
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    _, rows = run(tmp_path, dispatching(3, save_every=CheckpointConfig(every_seconds=1e9)))
    rates = [row["images_per_second"] for row in rows]
    assert max(rates) <= 3 * 8  # three batches of eight in a tick at the most
    assert rates[:3] == [rates[0]] * 3


def test_a_step_within_a_hop_that_is_not_finite_is_named_and_nothing_after_the_hop_before_is_saved(tmp_path):
    program = make_multistep(MODEL, CONFIG, PLACEMENT, 3)

    def failing(state, given, controls):
        first = int(state.step) + 1
        state, metrics = program.run(state, given, controls)
        return state, metrics._replace(finite=np.array([number != 5 for number in range(first, first + 3)]))

    made = plan(STEPS, multistep=dataclasses.replace(program, run=failing), save_every=CheckpointConfig(every_steps=3))
    with pytest.raises(GuardError, match="step 5 is not finite"):
        run(tmp_path, made)
    assert saved(tmp_path) == [3]


def test_processes_ask_one_another_once_in_sixteen_steps_whatever_the_dispatches(monkeypatch):
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    gather = lambda facts: asked.append(facts) or np.array([facts, [1, 0]])  # noqa: E731  the other process would stop
    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gather)
    stop = StopRequest()
    for count in (1, 3, 8):
        asked.clear()
        answers = [stop.agree(steps, overdue=True) for steps in dispatch_ranges(0, [50, 100], count)]
        assert len(asked) == 6
        assert answers.count((True, True)) == 6
        assert answers.count((False, False)) == len(answers) - 6


def test_a_stage_has_as_many_steps_a_dispatch_as_its_config_says(tmp_path):
    with small_job(tmp_path, start_size=16, grow=0.5) as job:
        run = dataclasses.replace(job.pixels.run, config=change(job.pixels.run.config, steps_per_dispatch=3))
        set_otherwise = dataclasses.replace(job, pixels=dataclasses.replace(job.pixels, run=run))
        assert training_job.prepared(job)[0].multistep is None
        made = training_job.prepared(set_otherwise)[0]
        assert made.multistep is not None
        assert made.multistep.count == 3
        assert made.larger_from == round(made.steps / 2)
