"""Convolution and pooling as XLA has them, on every backend: what the faster forms are compared with."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def plain_conv(x: Array, kernel: Array, stride: int, padding: int, layout: str = "NHWC") -> Array:
    """Cross-correlation of x (B, H, W, C_in) with kernel (h, w, C_in, C_out), zero padding on all sides.

    `layout` is the order of x's axes, where it is another; the result (B, H', W', C_out) has the usual one.
    """
    axes = (layout, "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=axes)


def plain_max_pool(x: Array) -> Array:
    """Maximum over 3x3 windows at stride 2 with padding 1, (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C)."""
    y: Array = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return y


def materialised(x: Array) -> Array:
    """x, computed once and written to memory: what reads it several times would compute it anew in each."""
    return lax.optimization_barrier(x)  # type: ignore[no-untyped-call, no-any-return]
