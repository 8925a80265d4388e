"""Heads of one width in training, so that networks with few classes share one compiled step.

Columns beyond a network's classes are zeros, take no part in the loss, and stay zeros: see `loss.mask_unused_classes`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rcmnet_jax.models import Network

Tree = Any
_MULTIPLE = 8  # PBC's classes; a target has rarely more


def width(classes: int) -> int:
    """Columns of the head that `classes` are trained with."""
    return -(-classes // _MULTIPLE) * _MULTIPLE


@functools.cache
def wide(network: Network) -> Network:
    """The network as it is trained: with a head of `width`."""
    classes = width(network.classes)
    return network if classes == network.classes else network.like(classes=classes)


def pad(values: Any, size: int) -> np.ndarray:
    """Values (..., K) with zeros behind, (..., size)."""
    values = np.asarray(values)
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, size - values.shape[-1])])


def widen(params: Tree, network: Network) -> Tree:
    """The network's parameters as those of `wide(network)`, the head's as numpy arrays."""
    size = width(network.classes)
    return _changed(params, network, lambda leaf: pad(leaf, size))


def narrow(params: Tree, network: Network) -> Tree:
    """The inverse of `widen`."""
    return _changed(params, network, lambda leaf: leaf[..., : network.classes])


def _changed(params: Tree, network: Network, change: Callable[[Any], Any]) -> Tree:
    name = network.head[0]
    if width(network.classes) == network.classes:
        return params
    return {**params, name: jax.tree.map(change, params[name])}
