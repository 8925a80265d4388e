"""Heads trained at a common width: what they learn, and that stages share one program."""

from __future__ import annotations

import dataclasses
import logging

import jax
import numpy as np
import pytest

from rcmnet_jax.config import AugmentConfig, ModelConfig, OptimizerConfig
from rcmnet_jax.data.loader import ResidentLoader
from rcmnet_jax.models import Network
from rcmnet_jax.training import heads
from rcmnet_jax.training import state as states
from rcmnet_jax.training.sharding import Placement
from rcmnet_jax.training.step import Controls, StepConfig, make_optimizer, make_train_step

SIZE, BATCH, N = 32, 8, 24
PLACEMENT = Placement.everywhere()
pytestmark = pytest.mark.usefixtures("quickly_compiled")


def network(classes):
    return Network(ModelConfig(name="resnet18", width=8), classes=classes, image_size=SIZE)


def batches(classes, soft=None):
    random = np.random.default_rng(0)
    images = PLACEMENT.put_copies(random.integers(0, 256, (N, SIZE, SIZE, 3), np.uint8))
    labels = random.integers(0, classes, N)
    return ResidentLoader(images, labels, np.arange(N), batch_size=BATCH, seed=1, placing=PLACEMENT, soft=soft)


def trained(model, params, batch_stats, step_config, classes, soft=None, steps=3):
    state = PLACEMENT.put_copies(states.create(params, batch_stats, make_optimizer(model, step_config)))
    step, loader = make_train_step(model, step_config, PLACEMENT), batches(classes, soft)
    weights = np.linspace(1, 2, classes)
    for k in range(steps):
        rate = 0.05 if step_config.optimizer.name == "sgd" else 1e-4  # Adam moves by it whatever the gradient
        state, metrics = step(state, loader.batch(k), Controls.on_host(rate, True, weights, 1))
    return jax.device_get(state), jax.device_get(metrics)


@pytest.mark.parametrize("classes", [1, 3, 8, 11])
def test_a_widened_head_is_the_head_and_zeros_and_comes_back_the_same(classes):
    narrow, wide = network(classes), heads.wide(network(classes))
    assert wide.classes == heads.width(classes) >= classes
    params = narrow.init(0)[0]
    widened = heads.widen(params, narrow)
    assert jax.tree.map(np.shape, widened) == jax.tree.map(lambda leaf: leaf.shape, wide.abstract()[0])
    assert not widened["fc"]["kernel"][:, classes:].any()
    jax.tree.map(np.testing.assert_array_equal, heads.narrow(widened, narrow), params)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "softly"), [("sgd", True), ("adamw", False)])
def test_a_head_with_columns_to_spare_learns_what_one_without_does_and_they_stay_zeros(rule, softly):
    classes, narrow = 3, network(3)
    wide, augment = heads.wide(narrow), dataclasses.replace(AugmentConfig(), mixup=1)
    step_config = StepConfig(OptimizerConfig(name=rule), augment)
    params, stats = narrow.init(0)
    soft = np.float32(0.5 * np.random.default_rng(1).dirichlet(np.ones(classes), N)) if softly else None
    padded = None if soft is None else heads.pad(soft, wide.classes)
    want, expected = trained(narrow, params, stats, step_config, classes, soft)
    got, metrics = trained(wide, heads.widen(params, narrow), stats, step_config, classes, padded)
    close = {"rtol": 1e-3, "atol": 1e-4}  # steps let rounding grow: the third's gradient differs by 2e-4 on some CPUs
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), tuple(metrics), tuple(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), heads.narrow(got.params, narrow), want.params)
    spare = [
        leaf[..., classes:]
        for path, leaf in jax.tree_util.tree_flatten_with_path(got)[0]
        if "'fc'" in jax.tree_util.keystr(path)
    ]
    assert len(spare) == 2 * (3 if rule == "sgd" else 4)  # weights, their averages, and the rule's own
    assert not any(leaf.any() for leaf in spare)


@pytest.mark.slow
def test_networks_of_three_and_eight_classes_share_one_compiled_step(caplog):
    step_config = StepConfig(OptimizerConfig(ema_decay=0.75), AugmentConfig())  # that no other test compiles
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for classes in (8, 3):
            narrow = network(classes)
            params, stats = narrow.init(0)
            trained(heads.wide(narrow), heads.widen(params, narrow), stats, step_config, classes)
    compiled = [line for line in caplog.messages if "train_step" in line and "Finished XLA compilation" in line]
    assert len(compiled) == 1
