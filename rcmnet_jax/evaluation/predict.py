"""Probabilities from a network: the one path that training's leaves, bundles and `predict` share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcmnet_jax.models import Network
from rcmnet_jax.training.sharding import Placement

Tree = Any
BATCH = 64  # images a forward pass: larger gains nothing on CPU, and every bundle then has one compiled shape


@functools.lru_cache(maxsize=16)
def _forward(network: Network, placement: Placement, output: str) -> Callable[[Tree, Tree, jax.Array], jax.Array]:
    def run(params: Tree, batch_stats: Tree, images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32) / 255
        if output == "embedding":
            return network.embed(params, batch_stats, x)
        return network(params, batch_stats, x, train=False)[0]

    where = (placement.replicated, placement.replicated, placement.split)
    return jax.jit(run, in_shardings=where, out_shardings=placement.replicated)


def forward(
    network: Network,
    params: Tree,
    batch_stats: Tree,
    images: np.ndarray,
    placement: Placement,
    *,
    output: str = "logits",
) -> np.ndarray:
    """Logits (N, K) or pooled embeddings (N, C), float32, of uint8 images (N, S, S, 3).

    Batches are padded to one shape; padded rows are cut off and, with running statistics, touch nothing.
    """
    size = -(-BATCH // placement.devices) * placement.devices
    run = _forward(network, placement, output)
    parts: list[jax.Array] = []
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        if len(chunk) < size:
            chunk = np.concatenate([chunk, np.zeros((size - len(chunk), *chunk.shape[1:]), np.uint8)])
        parts.append(run(params, batch_stats, placement.put_batch(np.ascontiguousarray(chunk[placement.share(size)]))))
    if not parts:
        return np.zeros((0, network.classes if output == "logits" else 0), np.float32)
    return np.concatenate([np.asarray(part) for part in parts])[: len(images)]


@functools.lru_cache(maxsize=16)
def _statistics(network: Network, placement: Placement) -> Callable[[Tree, Tree, jax.Array], Tree]:
    def run(params: Tree, batch_stats: Tree, images: jax.Array) -> Tree:
        return network.moments(params, batch_stats, images.astype(jnp.float32) / 255)

    where = (placement.replicated, placement.replicated, placement.split)
    return jax.jit(run, in_shardings=where, out_shardings=placement.replicated)


def reestimate(
    network: Network, params: Tree, batch_stats: Tree, images: np.ndarray, placement: Placement
) -> dict[str, Any]:
    """BatchNorm statistics as averages over uint8 images (N, S, S, 3), weights untouched, labels not needed.

    Each full batch is normalised by its own moments (Li et al. 2017, AdaBN); the moments are averaged over equal
    batches, the last one filled up from the first rows.
    """
    size = min(BATCH, len(images)) // placement.devices * placement.devices or placement.devices
    run = _statistics(network, placement)
    rows = np.resize(np.arange(len(images)), -(-len(images) // size) * size)
    total: Tree = None
    batches: Iterable[np.ndarray] = rows.reshape(-1, size)
    count = 0
    for batch in batches:
        moments = run(params, batch_stats, placement.put_batch(images[batch[placement.share(size)]]))
        total = moments if total is None else jax.tree.map(jnp.add, total, moments)
        count += 1
    averaged: dict[str, Any] = jax.tree.map(lambda leaf: leaf / count, total)
    return averaged
