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
BATCH = 64  # images a forward pass: larger gains nothing on CPU, and a set of more has one compiled shape
_BATCHES = (1, 8, BATCH)  # one image or a handful are not padded to a full batch, which would take 20 times as long


class Responses(NamedTuple):
    """What a network makes of N images: logits (N, K), and the pooled features that its head sees (N, C); float32."""

    logits: Any
    embedding: Any


@functools.lru_cache(maxsize=16)
def _embed(body: Network, placement: Placement) -> Callable[[Tree, Tree, jax.Array], jax.Array]:
    def run(params: Tree, batch_stats: Tree, images: jax.Array) -> jax.Array:
        return body.embed(params, batch_stats, images.astype(jnp.float32) / 255)

    where = (placement.replicated, placement.replicated, placement.split)
    return jax.jit(run, in_shardings=where, out_shardings=placement.replicated)


@functools.lru_cache(maxsize=16)
def _logits(network: Network, placement: Placement) -> Callable[[Tree, jax.Array], jax.Array]:
    return jax.jit(network.logits_of_pooled, out_shardings=placement.replicated)


def forward(
    network: Network,
    params: Tree,
    batch_stats: Tree,
    images: np.ndarray,
    placement: Placement,
    *,
    output: str = "logits",
    views: str = "one",
) -> np.ndarray:
    """One of the responses: "logits" (N, K) or "embedding" (N, C)."""
    made: np.ndarray = getattr(respond(network, params, batch_stats, images, placement, views), output)
    return made


def dihedral(images: Any) -> tuple[Any, ...]:
    """The eight flips and quarter turns of images (N, S, S, 3), numpy's or JAX's."""
    flipped = (images, images[:, ::-1], images[:, :, ::-1], images[:, ::-1, ::-1])
    return (*flipped, *(view.swapaxes(1, 2) for view in flipped))


def respond(
    network: Network,
    params: Tree,
    batch_stats: Tree,
    images: np.ndarray,
    placement: Placement,
    views: str = "one",
) -> Responses:
    """Logits and embeddings, as numpy arrays, of uint8 images (N, S, S, 3).

    With "dihedral" views each is the mean over an image's eight. Of logits that is, up to a constant, the mean of
    log-probabilities: it goes with a temperature, whatever that is, and with the mean embedding, as the head is linear.

    Batches are padded to one shape; padded rows are cut off and, with running statistics, touch nothing.
    """
    if views == "dihedral":
        seen = dihedral(images)
        # Of a few images the views are one batch, rather than eight of few images each.
        together = (np.concatenate(seen),) if len(seen) * len(images) <= BATCH else seen
        every = [respond(network, params, batch_stats, batch, placement) for batch in together]
        mean: Responses = jax.tree.map(
            lambda *each: np.concatenate(each).reshape(len(seen), len(images), each[0].shape[-1]).mean(0), *every
        )
        return mean
    fitting = next((size for size in _BATCHES if len(images) <= size), BATCH)
    size = -(-fitting // placement.devices) * placement.devices
    # The head is a program of its own, so that networks that differ in their classes share the long one.
    embed, answer, headless = _embed(network.body, placement), _logits(network, placement), network.headless(params)
    parts: list[Responses] = []
    for start in range(0, max(len(images), 1), size):
        chunk = images[start : start + size]
        if len(chunk) < size:
            chunk = np.concatenate([chunk, np.zeros((size - len(chunk), *chunk.shape[1:]), np.uint8)])
        share = np.ascontiguousarray(chunk[placement.share(size)])
        pooled = embed(headless, batch_stats, placement.put_batch(share))
        parts.append(Responses(answer(params, pooled), pooled))
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
