"""Training at a smaller size first: the same parameters, and the same bits after an interruption."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from rcmnet_jax import training_job
from rcmnet_jax.checkpoint.store import Store
from rcmnet_jax.checkpoint.transfer import transfer
from rcmnet_jax.config import AugmentConfig, ModelConfig, OptimizerConfig
from rcmnet_jax.console import Console
from rcmnet_jax.data.loader import GrowingLoader, ResidentLoader
from rcmnet_jax.errors import Interrupted
from rcmnet_jax.evaluation.predict import forward
from rcmnet_jax.models import Network
from rcmnet_jax.training import loop
from rcmnet_jax.training import state as states
from rcmnet_jax.training.records import Records
from rcmnet_jax.training.sharding import Placement
from rcmnet_jax.training.sizes import at_size
from rcmnet_jax.training.step import StepConfig, make_optimizer, make_train_step
from rcmnet_jax.training.stop import StopRequest
from tests.small_job import small_job

pytestmark = pytest.mark.usefixtures("quickly_compiled")
STEPS, UNTIL, BATCH, N = 4, 2, 8, 16


@pytest.mark.parametrize("options", [{}, {"position": "absolute"}, {"name": "vit_s16"}], ids=str)
def test_a_smaller_size_gets_the_tables_that_a_transfer_makes(options):
    network = Network(ModelConfig(width=8, **options), classes=3, image_size=96)
    params, stats = network.init(1)
    small, fit = at_size(network, (64, 64))
    wanted, _, report = transfer(params, stats, *small.init(2), head=(), position=network.is_position_table)
    assert report.of("resized")
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), fit(params), wanted)


def test_at_its_own_size_a_network_and_its_parameters_are_what_they_were():
    network = Network(ModelConfig(width=8), classes=3, image_size=64)
    params, _ = network.init(1)
    same, fit = at_size(network, (64, 64))
    assert same is network
    assert fit(params) is params


@pytest.mark.slow
def test_a_growing_stage_interrupted_on_either_side_of_the_switch_ends_with_the_same_bits(tmp_path):
    one = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])  # compiles sooner
    placement, network = Placement(one), Network(ModelConfig("resnet18_mhsa", width=8), classes=3, image_size=64)
    step_config, start = StepConfig(OptimizerConfig(), AugmentConfig()), network.init(1)
    rng = np.random.default_rng(0)
    images = placement.put_copies(rng.integers(0, 256, (N, 64, 64, 3), dtype=np.uint8))
    whole = ResidentLoader(images, rng.integers(0, 3, N), np.arange(N), batch_size=BATCH, seed=3, placing=placement)
    loader = GrowingLoader(whole, 32, UNTIL)
    plan = loop.TrainingPlan("growing", STEPS, BATCH, np.full(STEPS, 0.05, np.float32), np.ones(3, np.float32), seed=1)
    records = Records(tmp_path)
    services = loop.RunServices(records, Console(active=False), StopRequest())
    step = make_train_step(network, step_config, placement)

    def run(name, stop_at=0):
        stop = StopRequest()
        sizes = []

        def watched(state, batch, controls):
            sizes.append(batch.images.shape[1])
            stop.signal = 15 if int(state.step) + 1 == stop_at else None
            return step(state, batch, controls)

        fresh = placement.put_copies(states.create(*start, make_optimizer(network, step_config)))
        with Store(tmp_path / name) as store:
            made = loop.train(plan, fresh, watched, loader, store, dataclasses.replace(services, stop=stop))
        return jax.device_get(made), sizes

    wanted, sizes = run("whole")
    assert sizes == [32, 32, 64, 64]
    for at in (UNTIL - 1, UNTIL, UNTIL + 1):
        with pytest.raises(Interrupted):
            run(f"cut{at}", at)
        jax.tree.map(np.testing.assert_array_equal, run(f"cut{at}")[0], wanted)
    records.close()


@pytest.mark.slow
def test_a_look_shows_images_at_the_size_that_the_weights_have_seen(tmp_path):
    growing = {"start_size": 32, "grow": 0.5, "optimizer": {"learning_rate": 0.0}}
    with small_job(tmp_path, size=48, epochs=2, **growing) as job:
        training_job.fit(job).settle()  # at a rate of 0 and without running statistics: the weights stay as they are
    network, start, watch, data = job.network, job.start, job.watch, job.pixels.data
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    looks = {line["step"]: line["top1"] for line in lines if line.get("kind") == "validation"}

    images, labels = data.images(watch), data.examples.label[watch]
    share = images.repeat(32, 1).repeat(32, 2).astype(np.float64).reshape(-1, 32, 48, 32, 48, 3).mean((2, 4))
    small, fit = at_size(network, (32, 32))

    def right(network, params, images):
        logits = forward(network, params, start[1], images, Placement.everywhere())
        return float((logits.argmax(-1) == labels).mean())

    before = right(small, fit(start[0]), np.round(share).astype(np.uint8))
    after = right(network, start[0], images)
    assert before != after
    wanted = {step: before if step <= round(0.5 * job.steps) else after for step in looks}
    assert looks == wanted
    assert set(wanted.values()) == {before, after}
