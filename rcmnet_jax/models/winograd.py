"""3x3 convolution by minimal filtering: 36 multiplications where the definition has 144, or 16 where it has 36.

F(4x4, 3x3) and F(2x2, 3x3) of Winograd, as in Lavin & Gray 2015 (arXiv 1509.09308): an output of 4x4 pixels comes from
6x6 of the input, Y = A^T [(G g G^T) * (B^T d B)] A. In each of the 36 places of a tile the product over channels is a
matrix product over all tiles. A, G and B come from points and infinity by Toom and Cook's construction: 0, +-1 for
tiles of 2x2. For 4x4, with 0, +-sqrt(1/2), +-sqrt(2), the rounding is three to five times that of XLA's own
convolution, where the usual 0, +-1, +-2 have ten (why points matter: Barabasz et al. 2020, arXiv 1803.10986). The
gradient for the images is the same map with the kernel turned round, and that for the kernel the transposed one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.polynomial import polynomial

from rcmnet_jax.models.backend import traced_once
from rcmnet_jax.models.xla_ops import materialised

_TAPS = 3
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))}  # and infinity

Tiles = list[Array]  # of (N, C): place (i, j) of all N tiles, row by row


@functools.cache
def _maps(tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A (P, tile), G (P, 3) and B^T (P, P) of the P = tile + 2 points, float64."""
    points, places = _POINTS[tile], tile + _TAPS - 1
    a, g, b = np.zeros((places, tile)), np.zeros((places, _TAPS)), np.zeros((places, places))
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        a[i] = point ** np.arange(tile)
        g[i] = point ** np.arange(_TAPS) / np.prod([point - other for other in others])
        b[i, :-1] = polynomial.polyfromroots(others)
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = polynomial.polyfromroots(points)
    b[np.abs(b) < 1e-12] = 0
    return a, g, b


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def winograd_conv(x: Array, kernel: Array, tile: int) -> Array:
    """x (B, H, W, C_in) with kernel (3, 3, C_in, C_out), stride 1 and zero padding 1, -> (B, H, W, C_out).

    tile is 4 or 2: pixels along a side of what is computed at once. Where it does not divide H
    and W, the last are computed in vain and cut off.
    """
    return _convolved(x, kernel, tile)


@traced_once("tile")
def _convolved(x: Array, kernel: Array, tile: int) -> Array:
    products = [v @ u for v, u in zip(_input_tiles(x, tile), _filters(kernel, tile), strict=True)]
    return _output(products, (*x.shape[:3], kernel.shape[3]), tile)


def _forward(x: Array, kernel: Array, tile: int) -> tuple[Array, tuple[Array, Array]]:
    return winograd_conv(x, kernel, tile), (x, kernel)


def _backward(tile: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    return _gradients(*saved, dy, tile)


@traced_once("tile")
def _gradients(x: Array, kernel: Array, dy: Array, tile: int) -> tuple[Array, Array]:
    dx = winograd_conv(dy, kernel[::-1, ::-1].swapaxes(2, 3), tile)
    pairs = zip(_input_tiles(x, tile), _output_transposed(dy, tile), strict=True)
    products = jnp.stack([v.T @ m for v, m in pairs])
    return dx, _filters_transposed(products, tile)


winograd_conv.defvjp(_forward, _backward)


def _grid(shape: tuple[int, ...], tile: int) -> tuple[int, int]:
    """Tiles along height and width."""
    return -(-shape[1] // tile), -(-shape[2] // tile)


def _filters(kernel: Array, tile: int) -> Array:
    """G g G^T, (P P, C_in, C_out): one product, which transposes nothing."""
    both = jnp.asarray(np.kron(_maps(tile)[1], _maps(tile)[1]), kernel.dtype)
    return (both @ kernel.reshape(_TAPS * _TAPS, -1)).reshape(-1, *kernel.shape[2:])


def _filters_transposed(filters: Array, tile: int) -> Array:
    """G^T u G, (3, 3, C_in, C_out)."""
    both = jnp.asarray(np.kron(_maps(tile)[1], _maps(tile)[1]).T, filters.dtype)
    return (both @ filters.reshape(len(filters), -1)).reshape(_TAPS, _TAPS, *filters.shape[1:])


def _input_tiles(x: Array, tile: int) -> Tiles:
    """B^T d B. Tiles overlap by two pixels: row k of a tile is row k - 1 of its output, before the first and after."""
    batch, height, width, channels = x.shape
    rows, columns = _grid(x.shape, tile)
    x = materialised(x)
    x = jnp.pad(x, ((0, 0), (0, tile * rows - height), (0, 0), (0, 0))).reshape(batch, rows, tile, width, channels)
    before = jnp.pad(x[:, :-1, -1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    after = jnp.pad(x[:, 1:, 0], ((0, 0), (0, 1), (0, 0), (0, 0)))
    lines = [before, *(x[:, :, k] for k in range(tile)), after]
    edges = ((0, 0), (0, 0), (1, tile * (columns + 1) - 1 - width), (0, 0))

    def columns_of(line: Array) -> list[Array]:
        line = materialised(jnp.pad(line, edges)).reshape(batch, rows, columns + 1, tile, channels)
        return [line[:, :, k // tile : k // tile + columns, k % tile] for k in range(tile + 2)]

    return _places(_maps(tile)[2], [columns_of(_weighted(down, lines)) for down in _maps(tile)[2]])


def _output(tiles: Tiles, shape: tuple[int, ...], tile: int) -> Array:
    """A^T m A, put together: (B, H, W, C)."""
    rows, columns = _grid(shape, tile)
    a, places = _maps(tile)[0].T, tile + 2
    lines = [[_weighted(right, tiles[start : start + places]) for right in a] for start in range(0, len(tiles), places)]

    def row(down: np.ndarray) -> Array:
        across = [_weighted(down, [line[i] for line in lines]) for i in range(tile)]
        return jnp.stack([y.reshape(shape[0], rows, columns, -1) for y in across], 3)

    y = jnp.stack([row(down) for down in a], 2).reshape(shape[0], tile * rows, tile * columns, -1)
    return y[:, : shape[1], : shape[2]]


def _output_transposed(dy: Array, tile: int) -> Tiles:
    """A dy A^T."""
    batch, height, width, channels = dy.shape
    rows, columns = _grid(dy.shape, tile)
    edges = ((0, 0), (0, tile * rows - height), (0, tile * columns - width), (0, 0))
    dy = jnp.pad(materialised(dy), edges).reshape(batch, rows, tile, columns, tile, channels)
    lines = [materialised(_weighted(down, [dy[:, :, k] for k in range(tile)])) for down in _maps(tile)[0]]
    return _places(_maps(tile)[0], [[line[:, :, :, k] for k in range(tile)] for line in lines])


def _places(weights: np.ndarray, lines: Sequence[Sequence[Array]]) -> Tiles:
    """W r of all tiles along the columns of each line, which are W r along the rows already."""
    return [_weighted(right, columns).reshape(-1, columns[0].shape[-1]) for columns in lines for right in weights]


def _weighted(weights: np.ndarray, terms: Sequence[Array]) -> Array:
    """The sum of weights times terms, without those whose weight is zero."""
    kept = [(float(weight), term) for weight, term in zip(weights, terms, strict=True) if weight]
    total = kept[0][1] if kept[0][0] == 1 else kept[0][0] * kept[0][1]
    for weight, term in kept[1:]:
        total = total + (term if weight == 1 else weight * term)
    return total
