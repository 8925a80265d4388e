"""XLA's own convolution, whose gradient for the kernel reads the images in the order that it needs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from rcmnet_jax.models.xla_ops import plain_conv

LARGEST = 2**26  # bytes of images up to which it is faster to turn them first
_PARTS = 8  # in which images are turned, at most


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def turned_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """The same as `plain_conv`, with `kernel_gradient` for a gradient."""
    return plain_conv(x, kernel, stride, padding)


def _forward(x: Array, kernel: Array, stride: int, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return plain_conv(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: plain_conv(x, kernel, stride, padding), x)(dy)
    return dx, kernel_gradient(x, dy, kernel, stride, padding)


turned_conv.defvjp(_forward, _backward)


def kernel_gradient(x: Array, dy: Array, kernel: Array, stride: int, padding: int) -> Array:
    """What dy (B, H', W', C_out) gives the kernel (h, w, C_in, C_out) of `plain_conv(x, kernel, stride, padding)`.

    For it XLA copies x (B, H, W, C_in) with channels first. Into that copy it fuses what x is computed from: norm and
    gates once more, in an order that crosses memory in strides. A loop that turns x some rows at a time keeps them out.
    """
    images, layout = x, "NHWC"
    parts = max(n for n in range(1, _PARTS + 1) if x.shape[1] % n == 0)
    # A loop of one turn is no loop to XLA, and one over images that devices share would gather them.
    if parts > 1 and x.size * x.dtype.itemsize <= LARGEST and jax.device_count() == 1:
        rows = x.shape[1] // parts

        def turn(part: Array) -> Array:
            return lax.dynamic_slice_in_dim(x, part * rows, rows, axis=1).transpose(1, 2, 3, 0)

        images, layout = lax.map(turn, jnp.arange(parts)).reshape(*x.shape[1:], len(x)), "HWCN"
    gradient: Array
    (gradient,) = jax.linear_transpose(lambda kernel: plain_conv(images, kernel, stride, padding, layout), kernel)(dy)
    return gradient
