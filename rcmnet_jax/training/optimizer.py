"""Optax update rules without a learning rate, which enters each step as a number: stages then share one program."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rcmnet_jax.config import OptimizerConfig
from rcmnet_jax.models.backend import traced_once
from rcmnet_jax.models.reduce import sum_rows

Tree = Any
Path = tuple[str, ...]

_SMALL = 2**14  # elements of a leaf up to which it is summed together with others


def map_with_names(fn: Callable[[Path], Any], tree: Tree) -> Tree:
    """A tree like `tree` whose leaves are `fn` of their path of string keys."""
    return jax.tree_util.tree_map_with_path(lambda path, _: fn(_names(path)), tree)


def _names(path: Any) -> Path:
    return tuple(str(entry.key) for entry in path)


class Anchor(NamedTuple):
    """Where weights are pulled to in place of zero: L2-SP (Li et al. 2018, eq. 3)."""

    start: Tree  # like the parameters
    strength: Tree  # float32 () for each leaf: the decay's rate; 0 where a leaf decays to zero as without an anchor


def make(config: OptimizerConfig, decays: Callable[[Path], bool]) -> optax.GradientTransformationExtraArgs:
    """The update direction of one step, to be scaled by minus the learning rate.

    SGD is Nesterov's with the decay added to the gradient, as PyTorch has it; AdamW's decay is decoupled
    (Loshchilov & Hutter 2019). `update` takes an Anchor as `anchor`, or None.

    Args:
      config: which rule, with its momentum and decay.
      decays: whether the leaf at a path is a kernel, and so decays.
    """
    decay = _decay(config.weight_decay, decays)
    if config.name == "sgd":
        return optax.chain(decay, optax.trace(config.momentum, nesterov=True))
    return optax.chain(optax.scale_by_adam(), decay)


def clipping(config: OptimizerConfig, norm: jax.Array) -> jax.Array:
    """What a gradient of this norm is multiplied by, so that its norm is at most `clip_norm` (Pascanu et al. 2013)."""
    return jnp.minimum(1, config.clip_norm / norm) if config.clip_norm > 0 else jnp.ones_like(norm)


def total(tree: Tree, of: Callable[[jax.Array], jax.Array], weights: Tree = None) -> jax.Array:
    """Sum over all elements of `of(element)`, each leaf's times its weight () where there are some.

    Small leaves of one weight are put together and summed at once: biases and the scales of norms are two thirds of a
    network's leaves, and a sum each of its own was a sixth of a training step's kernels.
    """
    leaves = jax.tree.leaves(tree)
    weighing: list[jax.Array | None] = [None] * len(leaves) if weights is None else jax.tree.leaves(weights)
    parts: list[tuple[jax.Array, jax.Array | None]] = []
    small: dict[tuple[int, Any], list[int]] = {}
    for k, (leaf, weight) in enumerate(zip(leaves, weighing, strict=True)):
        if leaf.size <= _SMALL:
            small.setdefault((id(weight), leaf.dtype), []).append(k)
        else:
            parts.append((leaf, weight))
    for together in small.values():
        parts.append((jnp.concatenate([leaves[k].ravel() for k in together]), weighing[together[0]]))
    sums = [_sum(leaf, of) * (1 if weight is None else weight) for leaf, weight in parts]
    return functools.reduce(jnp.add, sums)


@traced_once("of")
def _sum(x: jax.Array, of: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return sum_rows(x.reshape(1, -1, x.shape[-1]), of=of).sum()


def _decay(rate: float, decays: Callable[[Path], bool]) -> optax.GradientTransformationExtraArgs:
    """Adds rate w for kernels; strength (w - start) instead for the leaves that an anchor holds."""

    def added(path: Any, update: jax.Array, weight: jax.Array, *held: jax.Array) -> jax.Array:
        decay = rate * weight if decays(_names(path)) else None
        if held:
            start, strength = held
            zero = jnp.zeros_like(weight) if decay is None else decay
            decay = jnp.where(strength > 0, strength * (weight - start), zero)
        return update if decay is None else update + decay.astype(update.dtype)

    def update(
        updates: Tree, state: Any, params: Tree = None, *, anchor: Anchor | None = None, **_: Any
    ) -> tuple[Tree, Any]:
        return jax.tree_util.tree_map_with_path(added, updates, params, *(anchor or ())), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def total_steps(epochs: float, examples: int, batch_size: int) -> int:
    """Updates in a stage: at least one."""
    return max(1, math.ceil(epochs * examples / batch_size))


def learning_rates(config: OptimizerConfig, *, epochs: float, steps: int, batch_size: int) -> np.ndarray:
    """The learning rate of every step of a stage, float32 (steps,): linear warm-up, then a cosine to 0.

    The peak is `config.learning_rate` at a batch of 256, scaled linearly with the batch for SGD (Goyal et al. 2017)
    and by its square root for AdamW.
    """
    ratio = batch_size / 256
    peak = config.learning_rate * (ratio if config.name == "sgd" else math.sqrt(ratio))
    warmup = max(1, min(round(steps * config.warmup_epochs / epochs), steps // 5))
    return _scheduled(peak, warmup, steps).copy()


@functools.lru_cache(maxsize=16)
def _scheduled(peak: float, warmup: int, steps: int) -> np.ndarray:
    """All steps in one program: asking the schedule inside the loop would dispatch a dozen tiny ones a step."""
    schedule = optax.warmup_cosine_decay_schedule(peak / warmup, peak, warmup, max(steps, warmup + 1))
    return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(steps)), np.float32)


def class_weights(config: OptimizerConfig, labels: np.ndarray, classes: int) -> np.ndarray:
    """Loss weight of each class, float32 (K,): ones, or n / (K n_k) over the labels (N,) of the training part."""
    if config.class_weights == "none":
        return np.ones(classes, np.float32)
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * np.maximum(counts, 1))).astype(np.float32)
