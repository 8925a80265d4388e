"""Probabilities from a network: the one path that training's leaves, bundles and `predict` share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rcmnet_jax.models import Network
from rcmnet_jax.training.sharding import Placement

Tree = Any
BATCH = 64  # images a forward pass, at most: larger gains nothing on CPU, and a set of more has one compiled shape
_HANDFUL = 8  # so many, or one, are not padded to a full batch, which would take 20 times as long
_PIXELS = 2**20  # of a forward pass on CPU: 64 images of 128 px, 16 of 224
_AHEAD = 8  # batches that may wait for a device, so that their images do not fill the memory


class Responses(NamedTuple):
    """What a network makes of N images: logits (N, K), and the pooled features that its head sees (N, C); float32."""

    logits: Any
    embedding: Any


@functools.lru_cache(maxsize=16)
def _embed(body: Network, placement: Placement) -> Callable[[Tree, Tree, jax.Array | np.ndarray], jax.Array]:
    def run(params: Tree, batch_stats: Tree, images: jax.Array) -> jax.Array:
        return body.embed(body.with_blank_head(params), batch_stats, images.astype(jnp.float32) / 255)

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
    made: np.ndarray = getattr(begin(network, params, batch_stats, images, placement, views)(), output)
    return made


def dihedral(images: Any) -> tuple[Any, ...]:
    """The eight flips and quarter turns of images (N, S, S, 3), numpy's or JAX's."""
    flipped = (images, images[:, ::-1], images[:, :, ::-1], images[:, ::-1, ::-1])
    return (*flipped, *(view.swapaxes(1, 2) for view in flipped))


def begin(
    network: Network,
    params: Tree,
    batch_stats: Tree,
    images: np.ndarray,
    placement: Placement,
    views: str = "one",
) -> Callable[[], Responses]:
    """Puts uint8 images (N, S, S, 3) to the devices, which compute while the caller goes on.

    With "dihedral" views each response is the mean over an image's eight. Of logits that is, up to a constant, the mean
    of log-probabilities: it goes with a temperature, whatever that is, and with the mean embedding, as the head is
    linear.

    Batches are padded to one shape; padded rows are cut off and, with running statistics, touch nothing.

    Returns:
      What waits for the responses and gives them as numpy arrays.
    """
    if views == "dihedral":
        seen = dihedral(images)
        # Of a few images the views are one batch, rather than eight of few images each.
        together = (np.concatenate(seen),) if len(seen) * len(images) <= BATCH else seen
        every = [begin(network, params, batch_stats, batch, placement) for batch in together]
        return lambda: _mean([wait() for wait in every], len(seen), len(images))
    size = _batch(len(images), images.shape[1], placement)
    # The head is a program of its own, so that networks that differ in their classes share the long one.
    embed, answer, (body, head) = (
        _embed(network.body, placement),
        _logits(network, placement),
        network.split_head(params),
    )
    parts: list[Responses] = []
    for start in range(0, max(len(images), 1), size):
        chunk = images[start : start + size]
        if len(chunk) < size:
            chunk = np.concatenate([chunk, np.zeros((size - len(chunk), *chunk.shape[1:]), np.uint8)])
        share = np.ascontiguousarray(chunk[placement.process_rows(size)])
        pooled = embed(body, batch_stats, placement.for_jit(share))
        parts.append(Responses(answer(head, pooled), pooled))
        if len(parts) > _AHEAD:
            parts[-_AHEAD].embedding.block_until_ready()
    return lambda: _joined(parts, len(images))


def _batch(images: int, side: int, placement: Placement) -> int:
    """How many images of (side, side) pixels go through the network at once, of so many."""
    most = BATCH
    while jax.default_backend() == "cpu" and most > _HANDFUL and most * side**2 > _PIXELS:
        most //= 2
    fitting = next((size for size in (1, _HANDFUL, most) if images <= size), most)
    return -(-fitting // placement.devices) * placement.devices


def _joined(parts: Sequence[Responses], images: int) -> Responses:
    joined: Responses = jax.tree.map(lambda *each: np.concatenate([np.asarray(p) for p in each])[:images], *parts)
    return joined


def _mean(every: Sequence[Responses], views: int, images: int) -> Responses:
    """The mean over the views of images, of which all are in `every`, view by view."""
    mean: Responses = jax.tree.map(
        lambda *each: np.concatenate(each).reshape(views, images, each[0].shape[-1]).mean(0), *every
    )
    return mean


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
        moments = run(params, batch_stats, placement.put_batch(images[batch[placement.process_rows(size)]]))
        total = moments if total is None else jax.tree.map(jnp.add, total, moments)
        count += 1
    averaged: dict[str, Any] = jax.tree.map(lambda leaf: leaf / count, total)
    return averaged
