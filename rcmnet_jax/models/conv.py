"""Convolution and pooling, each in the form that the backend at hand computes well."""

from __future__ import annotations

from functools import cache, partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from rcmnet_jax.models.reduce import on_cpu
from rcmnet_jax.models.winograd import winograd_conv

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_SMALL = 2**20  # multiply-adds that even XLA's naive loop does in a millisecond
_LARGE = 2**29  # multiply-adds from which Winograd's form is worth the time that it takes to compile


def conv(x: Array, kernel: Array, *, stride: int = 1, padding: int = 0) -> Array:
    """Cross-correlation of x (B, H, W, C_in) with kernel (h, w, C_in, C_out), zero padding on all sides.

    Returns (B, H', W', C_out) with H' = (H + 2 padding - h) // stride + 1, in x's type. The form is chosen from shape
    and backend when traced; all forms agree to rounding, in value and gradients.
    """
    if not on_cpu():
        return plain_conv(x, kernel, stride, padding)
    if kernel.shape[:2] == (1, 1) and padding == 0:
        return pointwise_conv(x, kernel, stride)
    if _is_slow(x.shape, kernel.shape, stride, padding):
        return patches_conv(x, kernel, stride, padding)
    if _saves_products(x, kernel, stride, padding):
        deep = _work(x, kernel) >= 2 * _LARGE and min(kernel.shape[2:]) >= 128
        return winograd_conv(x, kernel) if deep else winograd_forward(x, kernel)
    return plain_conv(x, kernel, stride, padding)


def plain_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """XLA's own convolution."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_LAYOUT)


@jax.custom_vjp
def winograd_forward(x: Array, kernel: Array) -> Array:
    """Winograd's form of a 3x3 convolution with padding 1 (B, H, W, C_in) -> (B, H, W, C_out), XLA's own gradients."""
    return winograd_conv(x, kernel)


def _forward_keeping(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return winograd_conv(x, kernel), (x, kernel)


def _plain_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    gradients: tuple[Array, Array] = jax.vjp(lambda x, kernel: plain_conv(x, kernel, 1, 1), *saved)[1](dy)
    return gradients


winograd_forward.defvjp(_forward_keeping, _plain_backward)


def pointwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    """A 1x1 convolution without padding as the product it is: XLA's own transposes x for the kernel's gradient.

    So does its product of four-dimensional images, where they are strided: rows of pixels take a quarter of the time.
    """
    x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[3]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)


def _is_slow(image: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: int) -> bool:
    """Whether XLA's CPU convolution falls to a naive loop, forward or backward, on work worth the trouble.

    It does where the kernel covers more than the image that it slides over: in the last stage at 64 pixels, forward
    for 3x3 on 2x2, and backward also for the strided 3x3 from 4x4 to 2x2, whose gradient slides over the output. It
    then does 1 GFLOP/s instead of 150-200, and takes longer than the rest of the network together.
    """
    output = _output(image, kernel, stride, padding)
    return prod(kernel[:2]) > prod(output) and prod(output) * prod(kernel) * image[0] > _SMALL


def _saves_products(x: Array, kernel: Array, stride: int, padding: int) -> bool:
    """Whether Winograd's form is faster: where products outweigh its passes over the images and the kernel.

    Its gradients have more such passes, and gain only with many channels.
    """
    if (stride, padding, kernel.shape[:2]) != (1, 1, (3, 3)) or x.dtype.itemsize < 4:
        return False
    channels, tiles = kernel.shape[2:], x.shape[0] * -(-x.shape[1] // 2) * -(-x.shape[2] // 2)
    return min(channels) >= 64 and tiles >= 2 * max(channels) and _work(x, kernel) >= _LARGE


def _work(x: Array, kernel: Array) -> int:
    """Multiply-adds of a convolution at stride 1."""
    return prod(x.shape[:3]) * prod(kernel.shape)


def _output(image: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: int) -> tuple[int, int]:
    return tuple((image[a + 1] + 2 * padding - kernel[a]) // stride + 1 for a in (0, 1))  # type: ignore[return-value]


@cache
def _cuts(size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Where patches come from and go to.

    Returns (cut, back): for each of the H' W' patches and h w taps the pixel, (H'W', hw), H W where it lies in the
    padding; and for each pixel all (patch, tap) it is in, numbered patch * hw + tap, (HW, n), H'W'hw to fill up.
    """
    (height, width), (rows, columns) = size, _output((0, *size), kernel, stride, padding)
    y = (np.arange(rows) * stride - padding)[:, None, None, None] + np.arange(kernel[0])[:, None]
    x = (np.arange(columns) * stride - padding)[:, None, None] + np.arange(kernel[1])
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    cut = np.where(inside, y * width + x, height * width).reshape(rows * columns, prod(kernel))
    owners = [np.flatnonzero(cut == pixel) for pixel in range(height * width)]
    back = np.full((height * width, max(map(len, owners))), cut.size)
    for pixel, places in enumerate(owners):
        back[pixel, : len(places)] = places
    return cut, back


def _take(x: Array, places: np.ndarray) -> Array:
    """Rows of x (B, N, C) at `places`, zeros for N; (B, places.size, C)."""
    return jnp.take(jnp.pad(x, ((0, 0), (0, 1), (0, 0))), places.reshape(-1), axis=1, mode="clip")


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def patches_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """The same as a product: every kernel-sized patch of x as a row, times the kernel as a matrix."""
    output = _output(x.shape, kernel.shape, stride, padding)
    y = _patches(x, kernel, stride, padding) @ kernel.reshape(-1, kernel.shape[3])
    return y.reshape(x.shape[0], *output, kernel.shape[3])


def _patches(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """(B H' W', h w C_in)."""
    batch, height, width, channels = x.shape
    cut, _ = _cuts((height, width), (kernel.shape[0], kernel.shape[1]), stride, padding)
    return _take(x.reshape(batch, -1, channels), cut).reshape(-1, cut.shape[1] * channels)


def _patches_forward(x: Array, kernel: Array, stride: int, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return patches_conv(x, kernel, stride, padding), (x, kernel)


def _patches_backward(stride: int, padding: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    batch, height, width, channels = x.shape
    dy = dy.reshape(-1, kernel.shape[3])
    dkernel = (_patches(x, kernel, stride, padding).T @ dy).reshape(kernel.shape)
    _, back = _cuts((height, width), (kernel.shape[0], kernel.shape[1]), stride, padding)
    dpatches = (dy @ kernel.reshape(-1, kernel.shape[3]).T).reshape(batch, -1, channels)
    dx = _take(dpatches, back).reshape(batch, *back.shape, channels).sum(2)
    return dx.reshape(x.shape), dkernel


patches_conv.defvjp(_patches_forward, _patches_backward)


def max_pool(x: Array) -> Array:
    """Maximum over 3x3 windows at stride 2 with padding 1, (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C).

    The gradient goes to a window's first maximum.
    """
    return sliced_max_pool(x) if on_cpu() else plain_max_pool(x)


def plain_max_pool(x: Array) -> Array:
    """XLA's own pooling."""
    y: Array = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return y


@jax.custom_vjp
def sliced_max_pool(x: Array) -> Array:
    """The same as the maximum of nine strided slices; XLA's own gradient takes 300 times as long on the CPU."""
    return _pool(x)[0]


def _pool(x: Array) -> tuple[Array, Array]:
    """The maxima, and which of the nine places of a window each is at, int8."""
    _, height, width, _ = x.shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    edges = ((0, 0), (1, 2 * rows - height), (1, 2 * columns - width), (0, 0))
    x = jnp.pad(x, edges, constant_values=-jnp.inf)
    views = [x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for i in range(3) for j in range(3)]
    y, place = views[0], jnp.zeros(views[0].shape, jnp.int8)
    for i, view in enumerate(views[1:], 1):
        place = jnp.where(view > y, jnp.int8(i), place)
        y = jnp.maximum(y, view)
    return y, place


def _pool_forward(x: Array) -> tuple[Array, tuple[Array, tuple[int, ...]]]:
    y, place = _pool(x)
    return y, (place, x.shape)


def _pool_backward(saved: tuple[Array, tuple[int, ...]], dy: Array) -> tuple[Array]:
    place, (batch, height, width, channels) = saved
    rows, columns = dy.shape[1:3]
    edges = ((0, 0), (0, 1), (0, 1), (0, 0))
    place, dy = jnp.pad(place, edges, constant_values=-1), jnp.pad(dy, edges)

    def reach(tap: int, down: int, right: int) -> Array:
        window = (slice(None), slice(down, down + rows), slice(right, right + columns))
        return jnp.where(place[window] == tap, dy[window], 0)

    # A pixel is in one window along an axis where its index is even, and in two where it is odd.
    even = [reach(4, 0, 0), reach(5, 0, 0) + reach(3, 0, 1)]
    odd = [reach(7, 0, 0) + reach(1, 1, 0), reach(8, 0, 0) + reach(6, 0, 1) + reach(2, 1, 0) + reach(0, 1, 1)]
    dx = jnp.stack([jnp.stack(even, axis=3), jnp.stack(odd, axis=3)], axis=2)
    return (dx.reshape(batch, 2 * rows, 2 * columns, channels)[:, :height, :width],)


sliced_max_pool.defvjp(_pool_forward, _pool_backward)


def halve(x: Array) -> Array:
    """Mean over 2x2 windows at stride 2; at an odd edge over the cells there are. (B, ceil(H/2), ceil(W/2), C)."""
    height, width = x.shape[1:3]
    odd = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))

    def total(y: Array) -> Array:
        y = jnp.pad(y, odd)
        return y.reshape(y.shape[0], y.shape[1] // 2, 2, y.shape[2] // 2, 2, y.shape[3]).sum((2, 4))

    return total(x) / total(jnp.ones((1, height, width, 1), x.dtype))
