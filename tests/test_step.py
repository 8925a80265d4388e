"""The training step and its loop, on a linear model that compiles in no time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rcmnet_jax.checkpoint.store import Store
from rcmnet_jax.config import CheckpointConfig, OptimizerConfig
from rcmnet_jax.data.augment import mixing
from rcmnet_jax.errors import GuardError, Interrupted
from rcmnet_jax.training import loop
from rcmnet_jax.training import optimizer as optimizers
from rcmnet_jax.training.loss import smoothed_cross_entropy
from rcmnet_jax.training.records import Records, read_rows
from rcmnet_jax.training.step import Controls, StepConfig, make_train_step
from rcmnet_jax.training.stop import StopRequest
from tests.linear import BATCH, CLASSES, MODEL, PLACEMENT, PLAIN, batches, fresh, plan, run_services


def advance(step_config, steps=3, body=True, weights=(1, 1, 1)):
    state, step, loader = fresh(step_config), make_train_step(MODEL, step_config, PLACEMENT), batches()
    seen = [jax.device_get(state)]
    for k in range(steps):
        state, metrics = step(state, loader.batch(k), Controls.on_host(0.1, body, np.asarray(weights), 1))
        seen.append(jax.device_get(state))
    return seen, jax.device_get(metrics)


def test_the_loss_equals_pytorchs_with_label_smoothing():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(16, 5)).astype(np.float32), rng.integers(0, 5, 16)
    ours = smoothed_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), 0.1)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), label_smoothing=0.1, reduction="none"
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


def test_while_the_head_trains_alone_no_bit_of_the_body_moves():
    step_config = StepConfig(OptimizerConfig(), PLAIN)
    seen, _ = advance(step_config, body=False)
    np.testing.assert_array_equal(seen[-1].params["body"]["kernel"], seen[0].params["body"]["kernel"])
    assert np.abs(seen[-1].params["fc"]["kernel"] - seen[0].params["fc"]["kernel"]).max() > 1e-4
    assert np.abs(advance(step_config)[0][-1].params["body"]["kernel"] - 1).max() > 1e-4


def test_the_state_that_a_step_is_given_is_donated_and_its_batch_and_anchor_are_not():
    start, batch = MODEL.init()[0], batches().batch(0)
    anchor = PLACEMENT.put_copies(optimizers.Anchor(start, jax.tree.map(lambda _: np.float32(0.5), start)))
    step_config = StepConfig(OptimizerConfig(), PLAIN)
    state = fresh(step_config)
    controls = Controls.on_host(0.1, True, np.ones(CLASSES), 1)._replace(anchor=anchor)
    made, _ = make_train_step(MODEL, step_config, PLACEMENT)(state, batch, controls)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((made, batch, anchor)) if isinstance(leaf, jax.Array))


def test_weight_decay_gathers_no_momentum_in_a_body_that_is_held():
    seen, _ = advance(StepConfig(OptimizerConfig(weight_decay=0.1), PLAIN), steps=5, body=False)
    flat, _ = jax.tree_util.tree_flatten_with_path(seen[-1].opt_state)
    moving = [leaf for path, leaf in flat if "body" in jax.tree_util.keystr(path)]
    assert moving
    assert not any(leaf.any() for leaf in moving)


@pytest.mark.parametrize("body", [True, False])
def test_a_clipped_step_is_as_long_as_the_limit(body):
    config = OptimizerConfig(momentum=0.0, weight_decay=0.0, clip_norm=1e-3)
    seen, metrics = advance(StepConfig(config, PLAIN), steps=1, body=body)
    moved = jax.tree.map(lambda a, b: np.float64(a) - b, seen[1].params, seen[0].params)
    assert float(metrics.gradient_norm) > 1e-2
    assert float(optax.global_norm(moved)) == pytest.approx(0.1 * 1e-3, rel=1e-2)


def test_layer_decay_slows_the_body_by_its_depth():
    config = OptimizerConfig(momentum=0.0, weight_decay=0.0, clip_norm=0.0)
    moved = []
    for decay in (1.0, 0.5):
        seen, _ = advance(StepConfig(config, PLAIN, layer_decay=decay), steps=1)
        moved.append(seen[1].params["body"]["kernel"] - seen[0].params["body"]["kernel"])
    np.testing.assert_allclose(moved[1], 0.25 * moved[0], atol=1e-7)


def anchored(strength, weight_decay):
    """Three steps of plain descent without a gradient that matters: a decay of `strength` to 2 on the body alone."""
    step_config = StepConfig(OptimizerConfig(momentum=0.0, weight_decay=weight_decay, clip_norm=0.0), PLAIN)
    start = {"body": {"kernel": np.full(3, 2, np.float32)}, "fc": {"kernel": np.zeros((48, 3)), "bias": np.zeros(3)}}
    held = {"body": {"kernel": np.float32(strength)}, "fc": {"kernel": np.float32(0), "bias": np.float32(0)}}
    anchor = PLACEMENT.put_copies(optimizers.Anchor(start, held))
    state, step = fresh(step_config), make_train_step(MODEL, step_config, PLACEMENT)
    for k in range(3):
        controls = Controls.on_host(0.1, True, np.zeros(CLASSES), 1)._replace(anchor=anchor)
        state, _ = step(state, batches().batch(k), controls)
    return jax.device_get(state.params)


def test_a_pull_decays_the_body_to_its_start_and_the_head_to_zero():
    params, (first, _) = anchored(strength=0.5, weight_decay=0.2), MODEL.init()
    np.testing.assert_allclose(params["body"]["kernel"], 2 - (1 - 0.1 * 0.5) ** 3 * (2 - 1), rtol=1e-6)
    np.testing.assert_allclose(params["fc"]["kernel"], (1 - 0.1 * 0.2) ** 3 * first["fc"]["kernel"], rtol=1e-5)


def test_a_leaf_that_was_not_transferred_decays_to_zero_under_an_anchor_too():
    params = anchored(strength=0.0, weight_decay=0.2)
    np.testing.assert_allclose(params["body"]["kernel"], (1 - 0.1 * 0.2) ** 3, rtol=1e-6)


def test_a_pull_holds_no_body_back_that_is_held_anyway():
    step_config = StepConfig(OptimizerConfig(weight_decay=0.1), PLAIN)
    state, step, loader = fresh(step_config), make_train_step(MODEL, step_config, PLACEMENT), batches()
    start = MODEL.init()[0]
    anchor = PLACEMENT.put_copies(optimizers.Anchor(start, jax.tree.map(lambda _: np.float32(0.5), start)))
    for k in range(3):
        controls = Controls.on_host(0.1, False, np.ones(CLASSES), 1)._replace(anchor=anchor)
        state, _ = step(state, loader.batch(k), controls)
    np.testing.assert_array_equal(state.params["body"]["kernel"], start["body"]["kernel"])


def test_frozen_statistics_stay():
    seen, _ = advance(StepConfig(OptimizerConfig(), PLAIN, frozen_statistics=True))
    assert seen[-1].batch_stats == seen[0].batch_stats
    assert advance(StepConfig(OptimizerConfig(), PLAIN))[0][-1].batch_stats != seen[0].batch_stats


def test_averages_follow_weights_and_statistics_with_a_ramp():
    seen, _ = advance(StepConfig(OptimizerConfig(ema_decay=0.3), PLAIN), steps=4)
    average = seen[0].params["fc"]["kernel"].astype(np.float64)
    mean = float(seen[0].batch_stats["mean"])
    for t, state in enumerate(seen[1:]):
        decay = min(0.3, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * state.params["fc"]["kernel"]
        mean = decay * mean + (1 - decay) * float(state.batch_stats["mean"])
    np.testing.assert_allclose(seen[-1].ema_params["fc"]["kernel"], average, atol=1e-6)
    assert float(seen[-1].ema_batch_stats["mean"]) == pytest.approx(mean, abs=1e-6)


def test_class_weights_scale_each_examples_loss():
    step_config = StepConfig(OptimizerConfig(), PLAIN)
    _, even = advance(step_config, steps=1)
    _, double = advance(step_config, steps=1, weights=(2, 2, 2))
    assert float(double.loss) == pytest.approx(2 * float(even.loss), rel=1e-5)
    assert float(even.examples) == BATCH


@pytest.fixture
def services(tmp_path):
    with run_services(tmp_path) as made:
        yield made


CONFIG = StepConfig(OptimizerConfig(), PLAIN)


@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_an_interrupted_stage_ends_with_the_same_bits(tmp_path, services, pull):
    step = make_train_step(MODEL, CONFIG, PLACEMENT)

    def pulled():
        start = MODEL.init()[0]
        held = optimizers.Anchor(start, jax.tree.map(lambda _: np.float32(pull), start))
        return plan(anchor=PLACEMENT.put_copies(held) if pull else None)

    with Store(tmp_path / "whole") as store:
        whole = loop.train(pulled(), fresh(CONFIG), step, batches(), store, services)
    for at in (1, 3, 5):  # in an epoch, at its end, and before the last step
        stop = StopRequest()

        def stopping(state, batch, controls, stop=stop, at=at):
            if int(state.step) + 1 == at:
                stop.signal = 15
            return step(state, batch, controls)

        with Store(tmp_path / f"cut{at}") as store, pytest.raises(Interrupted, match=f"step {at}"):
            loop.train(pulled(), fresh(CONFIG), stopping, batches(), store, dataclasses.replace(services, stop=stop))
        with Store(tmp_path / f"cut{at}") as store:
            again = loop.train(pulled(), fresh(CONFIG), step, batches(), store, services)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), jax.device_get(again))


def test_an_epoch_is_looked_at_before_a_save_or_a_stop_at_its_end(tmp_path, services):
    step = make_train_step(MODEL, CONFIG, PLACEMENT)
    looked = []

    def stopping(state, batch, controls):
        if int(state.step) + 1 == 3:
            services.stop.signal = 15
        return step(state, batch, controls)

    with Store(tmp_path / "store") as store:
        with pytest.raises(Interrupted):
            loop.train(plan(), fresh(CONFIG), stopping, batches(), store, services, lambda at, _: looked.append(at))
        assert looked == [3]
        assert store.steps() == [3]


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_last_good_checkpoint(tmp_path, services):
    step = make_train_step(MODEL, CONFIG, PLACEMENT)

    def failing(state, batch, controls):
        number = int(state.step) + 1
        state, metrics = step(state, batch, controls)
        return state, metrics._replace(finite=jnp.asarray(number != 4))

    every = CheckpointConfig(every_steps=1)
    with Store(tmp_path / "store") as store:
        with pytest.raises(GuardError, match="step 4 is not finite"):
            loop.train(plan(save_every=every), fresh(CONFIG), failing, batches(), store, services)
        store.wait()
        assert max(store.steps()) == 3


def test_an_infinite_gradient_is_seen_in_the_step_that_makes_it():
    step_config = StepConfig(OptimizerConfig(clip_norm=0.0), PLAIN)
    state = fresh(step_config)
    bad = dataclasses.replace(state, params=jax.tree.map(lambda leaf: leaf * jnp.inf, state.params))
    _, metrics = make_train_step(MODEL, step_config, PLACEMENT)(
        bad, batches().batch(0), Controls.on_host(0.1, True, np.ones(CLASSES), 1)
    )
    assert not bool(metrics.finite)


@pytest.mark.parametrize("body", [True, False])
def test_an_infinite_update_is_seen_where_loss_and_gradient_are_finite(body):
    step = make_train_step(MODEL, CONFIG, PLACEMENT)
    _, metrics = step(fresh(CONFIG), batches().batch(0), Controls.on_host(np.inf, body, np.ones(CLASSES), 1))
    assert np.isfinite(float(metrics.loss))
    assert np.isfinite(float(metrics.gradient_norm))
    assert not bool(metrics.finite)


def test_the_loop_reads_a_steps_metrics_only_after_the_next_is_dispatched(tmp_path, services):
    dispatched = []

    class Lazy:
        """Metrics that complain when they are read too early."""

        def __init__(self, number, values):
            self.number, self.values = number, values

        def __array__(self, dtype=None, copy=None):
            assert self.number == 6 or len(dispatched) > self.number, "read before the next step was dispatched"
            return np.asarray(self.values, dtype)

    step = make_train_step(MODEL, CONFIG, PLACEMENT)

    def lazy(state, batch, controls):
        number = len(dispatched) + 1
        state, metrics = step(state, batch, controls)
        dispatched.append(number)
        return state, type(metrics)(*(Lazy(number, leaf) for leaf in metrics))

    with Store(tmp_path / "store") as store:
        loop.train(plan(), fresh(CONFIG), lazy, batches(), store, services)
    rows = [row for row in read_rows(tmp_path / "log.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_torn_last_line_of_the_log_is_dropped(tmp_path):
    records = Records(tmp_path)
    records.write("a", "train", 1, loss=1.0)
    records.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"stage": "a", "ki')
    records = Records(tmp_path)
    records.write("a", "train", 1, loss=0.5)
    records.close()
    assert [row["loss"] for row in read_rows(tmp_path / "log.jsonl")] == [0.5]


def test_mixed_labels_share_the_loss_each_with_its_classes_weight():
    step_config = StepConfig(OptimizerConfig(label_smoothing=0.1), dataclasses.replace(PLAIN, mixup=0.8))
    weights, batch = np.array([1.0, 2.0, 4.0]), batches().batch(0)
    _, metrics = make_train_step(MODEL, step_config, PLACEMENT)(
        fresh(step_config), batch, Controls.on_host(0.1, True, weights, 1)
    )
    images, own = mixing.mix(np.asarray(batch.images) / np.float32(255), np.int32(0), np.uint32(1), step_config.augment)
    params, _ = MODEL.init()
    logits = np.asarray(images, np.float64).reshape(BATCH, -1) @ params["fc"]["kernel"]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    own, wanted, right = float(own), 0.0, 0
    for i in range(BATCH):
        pair = [int(batch.labels[i]), int(batch.labels[i - 1])]
        for share, label in zip((own, 1 - own), pair, strict=True):
            wanted -= share * weights[label] * (0.9 * log_p[i, label] + 0.1 * log_p[i].mean())
        right += logits[i].argmax() == pair[own < 0.5]
    assert float(metrics.loss) == pytest.approx(wanted, rel=1e-5)
    assert float(metrics.correct) == right


def test_soft_labels_take_their_share_of_the_target_and_rows_without_keep_the_label():
    step_config, batch = StepConfig(OptimizerConfig(label_smoothing=0.1), PLAIN), batches().batch(0)
    weights = np.array([1.0, 2.0, 4.0])
    p = np.random.default_rng(2).dirichlet(np.ones(CLASSES), BATCH)
    p[3:] = 0  # no entry
    soft = PLACEMENT.put_batch(np.float32(0.6 * p))
    _, metrics = make_train_step(MODEL, step_config, PLACEMENT)(
        fresh(step_config), batch._replace(soft=soft), Controls.on_host(0.1, True, weights, 1)
    )
    params, _ = MODEL.init()
    logits = (np.asarray(batch.images) / 255.0).reshape(BATCH, -1) @ params["fc"]["kernel"].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = 0.9 * np.eye(CLASSES)[np.asarray(batch.labels)] + 0.1 / CLASSES
    target[:3] = 0.4 * target[:3] + 0.6 * p[:3]
    wanted = -(target * log_p).sum(1) * weights[np.asarray(batch.labels)]
    assert float(metrics.loss) == pytest.approx(wanted.sum(), rel=1e-5)
