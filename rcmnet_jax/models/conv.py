"""Convolution and pooling, each in the form that the backend at hand computes well."""

from __future__ import annotations

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rcmnet_jax.models.backend import traced_once
from rcmnet_jax.models.kernel_gradient import turned_conv
from rcmnet_jax.models.reduce import on_cpu
from rcmnet_jax.models.winograd import winograd_conv
from rcmnet_jax.models.xla_ops import materialised, plain_conv, plain_max_pool

_SMALL = 2**20  # multiply-adds that even XLA's naive loop does in a millisecond
_SMALL_OUTPUT, _WIDE = 7 * 7, 16  # pixels up to which, and channels from which, taps are faster
# Pixels of all outputs together up to which one product of patches is faster still, since it reads the kernel once, and
# of which there must be more for a product a tap.
_FEW, _TAPS = 16, 64
_NARROW, _SOME = 4, 2**17  # pairs of channels up to which, and multiply-adds from which, a band is faster
_ODD = 7  # pixels a side from which tiles of 2x2 pay even if the last ones are half empty
_LARGE = 2**26  # multiply-adds from which Winograd's form is worth the time to compile it


def conv(x: Array, kernel: Array, *, stride: int = 1, padding: int = 0) -> Array:
    """Cross-correlation of x (B, H, W, C_in) with kernel (h, w, C_in, C_out), zero padding on all sides.

    Returns (B, H', W', C_out) with H' = (H + 2 padding - h) // stride + 1, in x's type. The form is chosen from shape
    and backend when traced; all forms agree to rounding, in value and gradients.
    """
    if not on_cpu():
        return plain_conv(x, kernel, stride, padding)
    if kernel.shape[:2] == (1, 1) and padding == 0:
        return pointwise_conv(x, kernel, stride)
    if stride == 1 and prod(kernel.shape[2:]) <= _NARROW and prod(x.shape[:3]) * prod(kernel.shape) > _SOME:
        return banded_conv(x, kernel, padding)
    if tile := winograd_tile(x, kernel, stride, padding):
        return winograd_conv(x, kernel, tile)
    if _is_small(x.shape, kernel.shape, stride, padding):
        few = x.shape[0] * prod(_output(x.shape, kernel.shape, stride, padding)) <= _FEW
        return (patches_conv if few else taps_conv)(x, kernel, stride, padding)
    # Without the barrier XLA computes the norm and the gates that x comes from once more for what reads it in another
    # order. It does not keep fusion from doing so for the kernel's gradient: turned_conv does.
    return turned_conv(materialised(x), kernel, stride, padding)


def pointwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    """A 1x1 convolution without padding as the product it is: XLA's own transposes x for the kernel's gradient.

    So does its product of four-dimensional images, where they are strided: rows of pixels take a quarter of the time.
    """
    return by_rows(x[:, ::stride, ::stride], kernel[0, 0])


def by_rows(x: Array, kernel: Array) -> Array:
    """x @ kernel for x (..., inputs) and kernel (inputs, outputs), as a product of two matrices.

    Of more axes XLA makes the kernel's gradient transposed, and what reads it on the CPU crosses memory in strides.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@traced_once("padding")
def banded_conv(x: Array, kernel: Array, padding: int) -> Array:
    """At stride 1 the same as one product of the rows of x with a band matrix that holds the kernel, then a sum.

    For a channel or two (the spatial gate's 7x7), with which XLA's convolution takes ten times as long, though the band
    is mostly zeros: each row of pixels meets each row of the kernel at once, and the results are added up.
    """
    batch, height, width, channels = x.shape
    tall, wide, _, made = kernel.shape
    rows, columns = _output(x.shape, kernel.shape, 1, padding)
    column, pixel, tap = np.ogrid[:columns, :width, :wide]
    met = jnp.asarray(pixel - column + padding == tap, x.dtype)  # (W', W, w)
    band = jnp.einsum("ijco,qpj->pciqo", kernel, met, precision="highest")
    exact = jnp.promote_types(x.dtype, jnp.float32)
    flat = x.reshape(batch * height, width * channels), band.reshape(width * channels, -1)
    each = jnp.matmul(*flat, preferred_element_type=exact).reshape(batch, height, tall, columns * made)
    each = jnp.pad(each, ((0, 0), (padding, padding), (0, 0), (0, 0)))
    total = sum((each[:, i : i + rows, i] for i in range(1, tall)), start=each[:, :rows, 0])
    return total.astype(x.dtype).reshape(batch, rows, columns, made)


def _is_small(image: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: int) -> bool:
    """Whether taps are faster than XLA's convolution on the CPU: on small images with more than a few channels.

    There XLA multiplies by padding. Where the kernel covers more than the image that it slides over (forward for 3x3 on
    2x2, backward for the strided 3x3 from 4x4 to 2x2) it even falls to a naive loop that does 1 GFLOP/s instead of
    150-200, and takes longer than the rest of the network together.
    """
    output = prod(_output(image, kernel, stride, padding))
    wide = output <= _SMALL_OUTPUT and min(kernel[2:]) >= _WIDE and not _FEW < image[0] * output <= _TAPS
    return (wide or prod(kernel[:2]) > output) and output * prod(kernel) * image[0] > _SMALL


def winograd_tile(x: Array, kernel: Array, stride: int, padding: int) -> int:
    """The side of Winograd's tiles where his form is faster, else 0.

    The products that it saves must outweigh its passes over images and kernel: there have to be channels enough, and
    tiles enough for the channels. The 36 places of 4x4 take three times as long to compile as the 16 of 2x2.
    """
    if (stride, padding, kernel.shape[:2]) != (1, 1, (3, 3)) or x.dtype.itemsize < 4:
        return 0
    few, many = min(kernel.shape[2:]), max(kernel.shape[2:])
    pixels = prod(x.shape[:3])
    if pixels * prod(kernel.shape) < _LARGE:
        return 0

    def fits(side: int) -> bool:
        return x.shape[1] % side == x.shape[2] % side == 0

    if fits(4) and few >= 64 and pixels >= 8 * many:
        return 4
    return 2 if (fits(2) or min(x.shape[1:3]) >= _ODD) and few >= 128 and pixels >= many else 0


def _output(image: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: int) -> tuple[int, int]:
    return tuple((image[a + 1] + 2 * padding - kernel[a]) // stride + 1 for a in (0, 1))  # type: ignore[return-value]


@traced_once("stride", "padding")
def taps_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """The same as one product a tap of the kernel, of the pixels that it meets, added up where they belong.

    What a tap would read from the padding is left out: of a 3x3 convolution on 2x2 pixels that is 20 of 36 products.
    """
    batch, height, width, channels = x.shape
    rows, columns = _output(x.shape, kernel.shape, stride, padding)
    down = _met(height, rows, kernel.shape[0], stride, padding)
    right = _met(width, columns, kernel.shape[1], stride, padding)
    exact = jnp.promote_types(x.dtype, jnp.float32)  # sums of bfloat16 are not rounded after each tap
    total = jnp.zeros((batch, rows, columns, kernel.shape[3]), exact)
    for i, (top, bottom, y) in enumerate(down):
        for j, (left, end, z) in enumerate(right):
            tall, wide = bottom - top, end - left
            if tall > 0 and wide > 0:
                seen = x[:, y : y + (tall - 1) * stride + 1 : stride, z : z + (wide - 1) * stride + 1 : stride]
                product = jnp.matmul(seen.reshape(-1, channels), kernel[i, j], preferred_element_type=exact)
                product = product.reshape(batch, tall, wide, -1)
                total += jnp.pad(product, ((0, 0), (top, rows - bottom), (left, columns - end), (0, 0)))
    return total.astype(x.dtype)


@traced_once("stride", "padding")
def patches_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """The same as one product of the patches of x, padding included, with the whole kernel."""
    rows, columns = _output(x.shape, kernel.shape, stride, padding)
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    down, right = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    taps = [x[:, i : i + down : stride, j : j + right : stride] for i, j in np.ndindex(kernel.shape[:2])]
    patches, exact = jnp.concatenate(taps, axis=3), jnp.promote_types(x.dtype, jnp.float32)  # (B, H', W', h w C_in)
    product = jnp.matmul(patches, kernel.reshape(-1, kernel.shape[3]), preferred_element_type=exact)
    return product.astype(x.dtype)


def _met(size: int, length: int, taps: int, stride: int, padding: int) -> list[tuple[int, int, int]]:
    """Along one axis, for each tap: the outputs, from and to, of `length` that it serves with pixels of the image and
    not with padding, and the first such pixel.
    """
    found = []
    for tap in range(taps):
        first = max(-(-(padding - tap) // stride), 0)
        last = min((size - 1 + padding - tap) // stride + 1, length)
        found.append((first, last, stride * first + tap - padding))
    return found


def max_pool(x: Array) -> Array:
    """Maximum over 3x3 windows at stride 2 with padding 1, (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C).

    The gradient goes to a window's first maximum.
    """
    return sliced_max_pool(x) if on_cpu() else plain_max_pool(x)


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
