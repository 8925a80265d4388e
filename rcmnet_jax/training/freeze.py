"""What moves, and how fast: per-stage learning rates below a new head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rcmnet_jax.training.optimizer import map_with_names

Tree = Any


def learning_rate_factors(params: Tree, depth: Callable[[tuple[str, ...]], int], decay: float) -> Tree:
    """A tree of floats like `params`: decay ** depth, so 1 at the head (Howard & Ruder 2018).

    Args:
      depth: stages below the head of the leaf at a path, 0 for the head itself.
      decay: factor a stage, in (0, 1]; 1 gives every leaf the same rate.
    """
    return map_with_names(lambda path: float(decay ** depth(path)), params)
