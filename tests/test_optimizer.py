"""Update rules against PyTorch, and schedules against their formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rcmnet_jax.config import OptimizerConfig
from rcmnet_jax.training import optimizer as optimizers
from rcmnet_jax.training import state as states


def descend(config, steps=20, rate=0.05):
    rng = np.random.default_rng(0)
    params = {"fc": {"kernel": jnp.asarray(rng.normal(size=(3, 2))), "bias": jnp.zeros(2)}}
    rule = optimizers.make(config, lambda path: path[-1] == "kernel")
    state = rule.init(params)
    gradients = [rng.normal(size=(3, 2)) for _ in range(steps)]
    first = np.asarray(params["fc"]["kernel"])
    for gradient in gradients:
        tree = {"fc": {"kernel": jnp.asarray(gradient, jnp.float32), "bias": jnp.ones(2)}}
        directions, state = rule.update(tree, state, params)
        params = optax.apply_updates(params, {"fc": {k: -rate * v for k, v in directions["fc"].items()}})
    return first, gradients, params


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_updates_equal_pytorch(name):
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(name=name, weight_decay=0.1, clip_norm=0)
    first, gradients, params = descend(config)
    weight = torch.nn.Parameter(torch.tensor(first, dtype=torch.float32))
    bias = torch.nn.Parameter(torch.zeros(2))
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    rule = (
        torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
        if name == "sgd"
        else torch.optim.AdamW(groups, lr=0.05)
    )
    for gradient in gradients:
        weight.grad, bias.grad = torch.tensor(gradient, dtype=torch.float32), torch.ones(2)
        rule.step()
    np.testing.assert_allclose(params["fc"]["kernel"], weight.detach().numpy(), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(params["fc"]["bias"], bias.detach().numpy(), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_first_state_is_the_rules_own_made_on_the_host(name):
    rule = optimizers.make(OptimizerConfig(name=name), lambda path: path[-1] == "kernel")
    params = {"fc": {"kernel": jnp.ones((3, 2)), "bias": np.zeros(2, np.float32)}}
    state = states.create(params, {"mean": np.zeros(2, np.float32)}, rule)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(state))
    made, wanted = jax.tree.flatten(state.opt_state), jax.tree.flatten(rule.init(params))
    assert made[1] == wanted[1]
    for leaf, own in zip(made[0], wanted[0], strict=True):
        assert leaf.dtype == own.dtype
        np.testing.assert_array_equal(leaf, own)
    assert not np.shares_memory(state.ema_params["fc"]["bias"], params["fc"]["bias"])


def test_clipping_bounds_the_norm_and_leaves_smaller_ones():
    for limit, norm, factor in ((1.0, 50.0, 0.02), (5.0, 4.0, 1.0), (0.0, 50.0, 1.0), (5.0, 0.0, 1.0)):
        found = optimizers.clipping(OptimizerConfig(clip_norm=limit), jnp.float32(norm))
        assert float(found) == pytest.approx(factor, rel=1e-6)


def test_a_total_is_the_sum_over_all_leaves():
    random = np.random.default_rng(0)
    tree = {"a": random.normal(size=(3, 3, 8, 16)), "b": random.normal(size=7), "c": np.float64(2.5)}
    tree = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in tree.items()}
    squares = {name: float(np.square(np.asarray(leaf, np.float64)).sum()) for name, leaf in tree.items()}
    found = optimizers.total(tree, jnp.square)
    assert float(found) == pytest.approx(sum(squares.values()), rel=1e-6)
    weighted = optimizers.total(tree, jnp.square, {"a": 0.0, "b": 1.0, "c": 2.0})
    assert float(weighted) == pytest.approx(squares["b"] + 2 * squares["c"], rel=1e-6)


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine():
    config = OptimizerConfig(learning_rate=0.4, warmup_epochs=2.0)
    rates = optimizers.learning_rates(config, epochs=20, steps=200, batch_size=64)
    peak = 0.4 * 64 / 256
    assert rates.shape == (200,)
    assert rates[0] == pytest.approx(peak / 20)
    assert rates[20] == pytest.approx(peak)
    assert rates[110] == pytest.approx(peak * (1 + np.cos(np.pi * 90 / 180)) / 2, rel=1e-4)
    assert 0 < rates[-1] < 0.001 * peak


def test_the_shortest_stage_still_learns():
    rates = optimizers.learning_rates(OptimizerConfig(), epochs=0.1, steps=1, batch_size=8)
    assert rates.shape == (1,)
    assert rates[0] > 0


def test_balanced_weights_make_classes_count_alike():
    labels = np.array([0] * 6 + [1] * 2)
    weights = optimizers.class_weights(OptimizerConfig(class_weights="balanced"), labels, 2)
    np.testing.assert_allclose(weights, [8 / 12, 8 / 4])
    np.testing.assert_array_equal(optimizers.class_weights(OptimizerConfig(), labels, 2), [1, 1])
