"""A network at another image size than its own, from the same parameters: for steps at a smaller size to begin with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcmnet_jax.checkpoint.transfer import resize_absolute, resize_relative
from rcmnet_jax.models import Network

Tree = Any
Fit = Callable[[Tree], Tree]


def at_size(network: Network, size: tuple[int, int]) -> tuple[Network, Fit]:
    """The network for images of `size`, and what makes its parameters of the given network's.

    Position tables are interpolated as `checkpoint.transfer` does, by constant matrices, so that gradients reach the
    tables of the network's own size; all other leaves are shared.
    """
    if size == network.image_size:
        return network, lambda params: params
    return _at_size(network, size)


@functools.lru_cache(maxsize=16)
def _at_size(network: Network, size: tuple[int, int]) -> tuple[Network, Fit]:
    other = network.like(image_size=size)
    wanted = other.abstract()[0]

    def fit(params: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf, like: _fitted(path, leaf, like.shape), params, wanted
        )

    return other, fit


def _fitted(path: Any, leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A position table at another shape; any other leaf has the shape already."""
    for axis, (old, new) in enumerate(zip(leaf.shape, shape, strict=True)):
        if old != new:
            one = np.eye(old)
            relative = str(path[-1].key).startswith("rel_")
            matrix = resize_relative(one, new) if relative else resize_absolute(one, (new, old))
            leaf = jnp.moveaxis(jnp.tensordot(jnp.asarray(matrix, leaf.dtype), leaf, (1, axis)), 0, axis)
    return leaf
