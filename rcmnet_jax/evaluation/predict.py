"""Probabilities from a network: the one path that training's leaves, bundles and `predict` share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rcmnet_jax.models import Network
from rcmnet_jax.training.sharding import Placement

Tree = Any
BATCH = 64  # images a forward pass: larger gains nothing on CPU, and every bundle then has one compiled shape


class Responses(NamedTuple):
    """What a network makes of N images: logits (N, K), and the pooled features that its head sees (N, C); float32."""

    logits: Any
    embedding: Any


@functools.lru_cache(maxsize=16)
def _forward(network: Network, placement: Placement) -> Callable[[Tree, Tree, jax.Array], Responses]:
    def run(params: Tree, batch_stats: Tree, images: jax.Array) -> Responses:
        return Responses(*network.respond(params, batch_stats, images.astype(jnp.float32) / 255))

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
    """One of the responses: "logits" (N, K) or "embedding" (N, C)."""
    made: np.ndarray = getattr(respond(network, params, batch_stats, images, placement), output)
    return made


def respond(network: Network, params: Tree, batch_stats: Tree, images: np.ndarray, placement: Placement) -> Responses:
    """Logits and embeddings, as numpy arrays, of uint8 images (N, S, S, 3).

    Batches are padded to one shape; padded rows are cut off and, with running statistics, touch nothing.
    """
    size = -(-BATCH // placement.devices) * placement.devices
    run = _forward(network, placement)
    parts: list[Responses] = []
    for start in range(0, max(len(images), 1), size):
        chunk = images[start : start + size]
        if len(chunk) < size:
            chunk = np.concatenate([chunk, np.zeros((size - len(chunk), *chunk.shape[1:]), np.uint8)])
        parts.append(run(params, batch_stats, placement.put_batch(np.ascontiguousarray(chunk[placement.share(size)]))))
    joined: Responses = jax.tree.map(lambda *each: np.concatenate([np.asarray(p) for p in each])[: len(images)], *parts)
    return joined


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
