"""Sums and maxima over images, in the form that the backend at hand computes well.

XLA's CPU compiler reduces over two or three axes at once, or over the minor one, element by element: 5-10 times slower
than memory allows. Here a few slices are added up first, which it does in one pass that is vectorised and runs in all
threads, and a product with a vector of ones sums the rest; a maximum is that of slices. All forms agree to rounding.
None but `gated`, `biased` and the two summaries is meant to be differentiated.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from rcmnet_jax.models.backend import on_cpu as on_cpu
from rcmnet_jax.models.backend import traced_once

# Of the sizes tried, 8 slices were best: of one array of 33 MB, and of one that stays in the cache. 7 are for 7x7 and
# 14x14 pixels.
_SLICES = (8, 7, 4, 2, 1)


def _same(x: Array) -> Array:
    return x


def sum_rows(*arrays: Array, of: Callable[..., Array] = _same) -> Array:
    """Sum of `of(*arrays)` over all axes but the last, (..., C) -> (C,).

    `of` works element by element, and may hold values of shape (C,). What it makes is never written to memory. The
    slices are of what lies between the first axis and the last: a batch may be split over devices along its first, and
    a slice of that would travel from one to another.
    """
    if not on_cpu():
        y = of(*arrays)
        return y.sum(range(y.ndim - 1))
    channels = arrays[0].shape[-1]
    first = arrays[0].shape[0] if arrays[0].ndim > 1 else 1
    rows = _in_slices(of, [x.reshape(first, -1, channels) for x in arrays], 1).reshape(-1, channels)
    return (jnp.ones((1, rows.shape[0]), rows.dtype) @ rows)[0]


def sum_space(*arrays: Array, of: Callable[..., Array] = _same) -> Array:
    """Sum of `of(*arrays)` over height and width, (B, H, W, C) -> (B, C); `of` works element by element."""
    if not on_cpu():
        return of(*arrays).sum((1, 2))
    places = _in_slices(of, [x.reshape(x.shape[0], -1, x.shape[-1]) for x in arrays], 1)
    return (jnp.ones((places.shape[0], 1, places.shape[1]), places.dtype) @ places)[:, 0]


def sum_channels(*arrays: Array, of: Callable[..., Array] = _same) -> Array:
    """Sum of `of(*arrays)` over the last axis, (..., C) -> (...); `of` works element by element."""
    if not on_cpu():
        return of(*arrays).sum(-1)
    channels = _in_slices(of, list(arrays), arrays[0].ndim - 1)
    flat = channels.reshape(-1, channels.shape[-1]) @ jnp.ones((channels.shape[-1], 1), channels.dtype)
    return flat.reshape(arrays[0].shape[:-1])


def _in_slices(of: Callable[..., Array], arrays: list[Array], axis: int) -> Array:
    """The sum of `of` over equal slices along an axis, which is that much shorter in the result."""
    length = arrays[0].shape[axis]
    parts = next(n for n in _SLICES if length % n == 0)
    size = length // parts
    cut = [[lax.slice_in_dim(x, i * size, (i + 1) * size, axis=axis) for x in arrays] for i in range(parts)]
    return reduce(operator.add, (of(*part) for part in cut))


def max_space(x: Array) -> Array:
    """Maximum over height and width, (B, H, W, C) -> (B, C)."""
    return _fold(x.reshape(x.shape[0], -1, x.shape[-1]), 1) if on_cpu() else x.max((1, 2))


def max_channels(x: Array) -> Array:
    """Maximum over the last axis, (..., C) -> (...)."""
    return _fold(x, x.ndim - 1) if on_cpu() else x.max(-1)


def _fold(x: Array, axis: int) -> Array:
    """Maximum over one axis: of up to 16 slices first, then of what is left."""
    length = x.shape[axis]
    parts = next((n for n in (8, *range(16, 1, -1)) if length % n == 0), 1)
    size = length // parts
    slices = [lax.slice_in_dim(x, i * size, (i + 1) * size, axis=axis) for i in range(parts)]
    return reduce(jnp.maximum, slices).max(axis)


def _at_peak(x: Array, peak: Array) -> Array:
    """1 where x is its maximum, else 0.

    XLA may compute x once for its maximum and again, rounded otherwise, for this comparison, hence the tolerance; of
    16 bits a few units would take in values that are no maximum at all.
    """
    if x.dtype.itemsize < 4:
        return (x >= peak).astype(x.dtype)
    tolerance = 8 * float(np.finfo(x.dtype).eps) * jnp.maximum(jnp.abs(peak), 1)
    return (x >= peak - tolerance).astype(x.dtype)


@jax.custom_vjp
def summarise_space(x: Array) -> tuple[Array, Array]:
    """Mean and maximum over height and width, (B, H, W, C) -> two of (B, C); equal maxima share the gradient."""
    return sum_space(x) / math.prod(x.shape[1:3]), max_space(x)


@traced_once()
def _space_forward(x: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    mean, peak = summarise_space(x)
    return (mean, peak), (x, peak)


@traced_once()
def _space_backward(saved: tuple[Array, Array], gradients: tuple[Array, Array]) -> tuple[Array]:
    x, peak = saved
    mask = _at_peak(x, peak[:, None, None])
    share = gradients[1] / jnp.maximum(sum_space(mask), 1)
    return (mask * share[:, None, None] + (gradients[0] / math.prod(x.shape[1:3]))[:, None, None],)


summarise_space.defvjp(_space_forward, _space_backward)


@jax.custom_vjp
def summarise_channels(x: Array) -> Array:
    """Maximum and mean over channels, (B, H, W, C) -> (B, H, W, 2); equal maxima share the gradient."""
    return jnp.stack([max_channels(x), sum_channels(x) / x.shape[-1]], axis=-1)


@traced_once()
def _channels_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    peak = max_channels(x)
    return jnp.stack([peak, sum_channels(x) / x.shape[-1]], axis=-1), (x, peak)


@traced_once()
def _channels_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    x, peak = saved
    mask = _at_peak(x, peak[..., None])
    share = gradient[..., 0] / jnp.maximum(sum_channels(mask), 1)
    return (mask * share[..., None] + gradient[..., 1:] / x.shape[-1],)


summarise_channels.defvjp(_channels_forward, _channels_backward)


@jax.custom_vjp
def gated(x: Array, gate: Array) -> Array:
    """x * gate for x (B, H, W, C) and a gate (B, 1, 1, C) or (B, H, W, 1)."""
    return x * gate


def _gated_forward(x: Array, gate: Array) -> tuple[Array, tuple[Array, Array]]:
    return x * gate, (x, gate)


@traced_once()
def _gated_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, gate = saved
    if gate.shape[-1] == 1:
        return dy * gate, sum_channels(dy, x, of=operator.mul)[..., None]
    return dy * gate, sum_space(dy, x, of=operator.mul)[:, None, None]


gated.defvjp(_gated_forward, _gated_backward)


@jax.custom_vjp
def biased(x: Array, bias: Array) -> Array:
    """x + bias for x (..., C) and a bias (C,), both of one type."""
    return x + bias


def _biased_forward(x: Array, bias: Array) -> tuple[Array, None]:
    return x + bias, None


def _biased_backward(_: None, dy: Array) -> tuple[Array, Array]:
    exact = jnp.promote_types(dy.dtype, jnp.float32)
    return dy, sum_rows(dy, of=lambda part: part.astype(exact)).astype(dy.dtype)


biased.defvjp(_biased_forward, _biased_backward)
