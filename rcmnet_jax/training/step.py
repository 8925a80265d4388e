"""One update on a global batch: a pure function of state, batch and controls, compiled once per `StepConfig`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rcmnet_jax.config import AugmentConfig, OptimizerConfig
from rcmnet_jax.data.augment import augment, mixing
from rcmnet_jax.data.loader import Batch
from rcmnet_jax.models import Network
from rcmnet_jax.training import heads
from rcmnet_jax.training import optimizer as optimizers
from rcmnet_jax.training.freeze import learning_rate_factors
from rcmnet_jax.training.loss import Targets, mask_unused_classes, weighted_losses
from rcmnet_jax.training.sharding import Placement
from rcmnet_jax.training.sizes import at_size
from rcmnet_jax.training.state import TrainState

Tree = Any


class Controls(NamedTuple):
    """What changes from step to step or fold to fold; arguments, not constants, so that no fold compiles again."""

    learning_rate: jax.Array  # () float32; (count,) in a program for several steps
    body: jax.Array  # () float32, 0 while the head trains alone, else 1; (count,) there
    class_weights: jax.Array  # (K',) float32, zeros behind the classes
    classes: jax.Array  # () int32, of the head's columns those that are in use, as `heads` has it
    seed: jax.Array  # () uint32, of the augmentation
    anchor: optimizers.Anchor | None = None  # what weights are pulled to, not donated

    @classmethod
    def on_host(cls, learning_rate: float, body: bool, class_weights: np.ndarray, seed: int) -> Controls:
        """Controls as numpy values, which several processes may all hand to one program."""
        classes = len(class_weights)
        weights = heads.pad(np.asarray(class_weights, np.float32), heads.width(classes))
        values = (np.float32(learning_rate), np.float32(body), weights, np.int32(classes), np.uint32(seed))
        return cls(*cast("tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]", values))

    def at(self, learning_rate: float | np.ndarray, body: bool | np.ndarray) -> Controls:
        """The same at another rate, with the body held or not, on the host as well; arrays: of several steps."""
        rate, moves = cast("tuple[jax.Array, jax.Array]", (np.float32(learning_rate), np.float32(body)))
        return self._replace(learning_rate=rate, body=moves)


class Metrics(NamedTuple):
    """Sums over the global batch, so that they add over steps; divide by `examples`."""

    loss: jax.Array  # () float32, sum of the examples' losses
    correct: jax.Array  # () float32, right answers on the augmented views; mixed ones count by their heavier label
    examples: jax.Array  # () float32
    gradient_norm: jax.Array  # () float32, before clipping
    finite: jax.Array  # () bool: loss, gradient and new weights are all finite


@dataclass(frozen=True)
class StepConfig:
    """All that is compiled into a step; equal ones share one program."""

    optimizer: OptimizerConfig
    augment: AugmentConfig
    frozen_statistics: bool = False  # BatchNorm uses the running statistics, which then do not move
    layer_decay: float = 1.0


StepFn = Callable[[TrainState, Batch, Controls], tuple[TrainState, Metrics]]


@functools.lru_cache(maxsize=16)
def make_optimizer(network: Network, step_config: StepConfig) -> optax.GradientTransformationExtraArgs:
    """The update rule, for the leaves of a network."""
    return optimizers.make(step_config.optimizer, network.decays)


@functools.lru_cache(maxsize=16)
def make_train_step(network: Network, step_config: StepConfig, placement: Placement) -> StepFn:
    """The compiled step. Its state argument is donated: the caller must not read it afterwards."""
    step = functools.partial(train_step, network=network, step_config=step_config)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(placement.replicated, placement.split, placement.replicated),
        out_shardings=placement.replicated,
    )


def train_step(
    state: TrainState, batch: Batch, controls: Controls, *, network: Network, step_config: StepConfig
) -> tuple[TrainState, Metrics]:
    """One update; BatchNorm and the loss see the global batch whatever the number of devices."""
    config = step_config.optimizer
    wide = jax.tree.leaves(state.params)[0].dtype  # float32; float64 where a test compares devices
    images = augment(batch.images, batch.positions, controls.seed, step_config.augment, wide)
    targets = Targets(batch.labels, batch.soft)
    if mixing.mixes(step_config.augment):
        images, mix_weight = mixing.mix(images, state.step, controls.seed, step_config.augment)
        targets = targets._replace(mix_weight=mix_weight)
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else wide
    shown, fit = at_size(network, (images.shape[1], images.shape[2]))

    def loss_of(params: Tree) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
        train = not step_config.frozen_statistics
        logits, stats = shown(fit(params), state.batch_stats, images, train=train, dtype=dtype)
        logits = mask_unused_classes(logits, controls.classes)
        weights, smoothing = controls.class_weights, config.label_smoothing
        losses = weighted_losses(logits, targets, weights, smoothing, controls.classes)
        return losses.mean(), (logits, stats)

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    params, opt_state, norm = _updated(state, gradients, controls, network, step_config)
    decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
    rest = 1 - decay

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        return (decay * old + rest * new).astype(old.dtype)

    count = jnp.float32(len(batch.labels))
    metrics = Metrics(
        loss=(loss * count).astype(jnp.float32),
        correct=(logits.argmax(-1) == targets.heaviest()).sum().astype(jnp.float32),
        examples=count,
        gradient_norm=norm.astype(jnp.float32),
        finite=jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optimizers.total(params, jnp.positive)),
    )
    new = TrainState(
        state.step + 1,
        params,
        batch_stats,
        opt_state,
        jax.tree.map(average, state.ema_params, params),
        jax.tree.map(average, state.ema_batch_stats, batch_stats),
    )
    return new, metrics


def _updated(
    state: TrainState, gradients: Tree, controls: Controls, network: Network, step_config: StepConfig
) -> tuple[Tree, Tree, jax.Array]:
    """The parameters and the rule's state after a step down the gradients, and the gradients' norm before clipping."""
    # 1 for the leaves of the head, `body` for the rest: 0 holds the body where it is, momentum included.
    gates = {True: jnp.float32(1), False: controls.body}
    in_head = optimizers.map_with_names(lambda path: path[: len(network.head)] == network.head, state.params)
    gate = jax.tree.map(gates.__getitem__, in_head)
    norm = jnp.sqrt(optimizers.total(gradients, jnp.square, gate))  # a gate is 0 or 1
    # Numbers that leaves share are computed once, not once for each of 126 leaves.
    clip = optimizers.clipping(step_config.optimizer, norm)
    kept = {head: g * clip for head, g in gates.items()}
    gradients = jax.tree.map(lambda x, head: x * kept[head].astype(x.dtype), gradients, in_head)
    # Weight decay must not gather momentum while the body is held.
    held = jax.tree.map(jnp.multiply, state.params, gate)
    anchor = controls.anchor
    if anchor is not None:  # a held body is at its start, and its part of `held` is 0
        anchor = anchor._replace(start=jax.tree.map(jnp.multiply, anchor.start, gate))
    directions, opt_state = make_optimizer(network, step_config).update(gradients, state.opt_state, held, anchor=anchor)
    factors = learning_rate_factors(state.params, network.depth, step_config.layer_decay)
    rate = functools.cache(lambda head, factor: -factor * controls.learning_rate * gates[head])
    updates = jax.tree.map(lambda d, head, f: (rate(head, f) * d).astype(d.dtype), directions, in_head, factors)
    params = optax.apply_updates(state.params, updates)
    return params, opt_state, norm
