"""All that a training run carries from one step to the next; plain trees, so that checkpoints need no code to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np
import optax

Tree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state after `step` updates. No random state: all draws follow from the seed and the step."""

    step: jax.Array  # () int32
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    ema_params: Tree  # exponential moving averages; what evaluation and bundles use
    ema_batch_stats: Tree


def create(params: Tree, batch_stats: Tree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update, on the host; the averages start at the weights themselves.

    On a device each leaf would be made by a program of its own, which together took a tenth of the time to the first
    step.

    Args:
      params: nested dict of float arrays.
      batch_stats: nested dict of running statistics.
      optimizer: the update rule, whose state begins as zeros.
    """
    params, batch_stats = jax.tree.map(np.asarray, (params, batch_stats))
    blank = jax.eval_shape(optimizer.init, params)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), blank)
    return TrainState(
        cast("jax.Array", np.int32(0)), params, batch_stats, zeros, *jax.tree.map(np.copy, (params, batch_stats))
    )


def to_tree(state: TrainState) -> dict[str, Any]:
    """A dict with string keys throughout, for a checkpoint; optimiser state as a list of its leaves in tree order."""
    leaves = jax.tree.leaves(state.opt_state)
    return {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": {f"{i:05d}": leaf for i, leaf in enumerate(leaves)},
        "ema_params": state.ema_params,
        "ema_batch_stats": state.ema_batch_stats,
    }


def from_tree(tree: dict[str, Any], like: TrainState) -> TrainState:
    """The inverse of `to_tree`; `like` gives the optimiser state's structure."""
    structure = jax.tree.structure(like.opt_state)
    saved = tree["opt_state"]
    return TrainState(
        tree["step"],
        tree["params"],
        tree["batch_stats"],
        jax.tree.unflatten(structure, [saved[key] for key in sorted(saved)]),
        tree["ema_params"],
        tree["ema_batch_stats"],
    )
