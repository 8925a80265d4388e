"""Convolution and pooling, each in the form that the backend at hand computes well."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(x: Array, kernel: Array, *, stride: int = 1, padding: int = 0) -> Array:
    """Cross-correlation of x (B, H, W, C_in) with kernel (h, w, C_in, C_out), zero padding on all sides.

    Returns (B, H', W', C_out) with H' = (H + 2 padding - h) // stride + 1, in x's type. The form is chosen from shape
    and backend when traced; all forms agree to rounding, in value and gradients.
    """
    height, width = kernel.shape[:2]
    if jax.default_backend() == "cpu" and (height > x.shape[1] or width > x.shape[2]):
        return patches_conv(x, kernel, stride, padding)
    return plain_conv(x, kernel, stride, padding)


def plain_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """XLA's own convolution."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_LAYOUT)


def patches_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Every kernel-sized patch of the input as a row, times the kernel as a matrix.

    XLA's CPU convolution falls to a naive loop where the kernel is larger than its input (3x3 on 2x2, as the last
    stage has it at 64 pixels): 1-3 GFLOP/s against 80-180 for the product.
    """
    height, width, inputs, outputs = kernel.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = (x.shape[1] - height) // stride + 1
    columns = (x.shape[2] - width) // stride + 1
    views = [
        x[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        for i in range(height)
        for j in range(width)
    ]
    patches = jnp.concatenate(views, axis=-1)  # (B, H', W', h w C_in)
    return patches @ kernel.reshape(height * width * inputs, outputs)


def max_pool(x: Array) -> Array:
    """Maximum over 3x3 windows at stride 2 with padding 1, (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C)."""
    y: Array = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return y


def halve(x: Array) -> Array:
    """Mean over 2x2 windows at stride 2; at an odd edge over the cells there are. (B, ceil(H/2), ceil(W/2), C)."""
    height, width = x.shape[1:3]
    odd = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))

    def total(y: Array) -> Array:
        y = jnp.pad(y, odd)
        return y.reshape(y.shape[0], y.shape[1] // 2, 2, y.shape[2] // 2, 2, y.shape[3]).sum((2, 4))

    return total(x) / total(jnp.ones((1, height, width, 1), x.dtype))
