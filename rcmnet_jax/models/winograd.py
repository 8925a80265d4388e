"""3x3 convolution by minimal filtering: 36 multiplications where the definition has 144, or 16 where it has 36.

F(4x4, 3x3) and F(2x2, 3x3) of Winograd, as in Lavin & Gray 2015 (arXiv 1509.09308): an output of 4x4 pixels comes from
6x6 of the input, Y = A^T [(G g G^T) * (B^T d B)] A. In each of the 36 places of a tile the product over channels is a
matrix product over all tiles. A, G and B come from points and infinity by Toom and Cook's construction: 0, +-1 for
tiles of 2x2. For 4x4, with 0, +-sqrt(1/2), +-sqrt(2), the rounding is three to five times that of XLA's own
convolution, where the usual 0, +-1, +-2 have ten (why points matter: Barabasz et al. 2020, arXiv 1803.10986). The
gradient for the images is the same map with the kernel turned round, and that for a wide kernel the transposed one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.polynomial import polynomial

from rcmnet_jax.models.turned import kernel_gradient

_TAPS = 3
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))}  # and infinity
CACHED = 2**21  # bytes of images whose tiles are made at once: each place reads them anew, from a cache and not memory
WIDE = 128  # channels from which the kernel's gradient gains too: products of fewer are too small

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

    tile is 4 or 2: pixels along a side of what is computed at once. Best divides H and W, or the last are computed in
    vain and cut off, which takes longer still.
    """
    (tiles,) = _in_parts(lambda x: (_input_tiles(x, tile),), x)
    products = [v @ u for v, u in zip(tiles, _filters(kernel, tile), strict=True)]
    return _output(products, (*x.shape[:3], kernel.shape[3]), tile)


def _forward(x: Array, kernel: Array, tile: int) -> tuple[Array, tuple[Array, Array]]:
    return winograd_conv(x, kernel, tile), (x, kernel)


def _backward(tile: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = winograd_conv(dy, kernel[::-1, ::-1].swapaxes(2, 3), tile)
    if min(kernel.shape[2:]) < WIDE:
        return dx, kernel_gradient(x, dy, kernel, 1, 1)
    tiles, outer = _in_parts(lambda x, dy: (_input_tiles(x, tile), _output_transposed(dy, tile)), x, dy)
    products = jnp.stack([v.T @ m for v, m in zip(tiles, outer, strict=True)])
    return dx, _filters_transposed(products, tile)


winograd_conv.defvjp(_forward, _backward)


def _in_parts(make: Callable[..., tuple[Tiles, ...]], *images: Array) -> tuple[Tiles, ...]:
    """What `make` gives for images (B, H, W, C), as many at a time as divide the batch and fit into `CACHED`."""
    batch, size = len(images[0]), sum(x[0].size * x.dtype.itemsize for x in images)
    few = max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * size <= CACHED))
    if few == batch or jax.device_count() > 1:  # a loop over a batch that devices share would gather it
        return make(*images)
    parts = lax.map(lambda each: make(*each), tuple(x.reshape(-1, few, *x.shape[1:]) for x in images))
    return tuple([v.reshape(-1, v.shape[-1]) for v in tiles] for tiles in parts)


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
    """B^T d B. Tiles overlap by two pixels."""
    batch, height, width, channels = x.shape
    rows, columns = _grid(x.shape, tile)
    edges = ((0, 0), (1, tile * (rows + 1) - 1 - height), (1, tile * (columns + 1) - 1 - width), (0, 0))
    x = jnp.pad(x, edges).reshape(batch, rows + 1, tile, columns + 1, tile, channels)
    rows_of = [x[:, k // tile : k // tile + rows, k % tile] for k in range(tile + 2)]
    return _places(_maps(tile)[2], rows_of, lambda y, k: y[:, :, k // tile : k // tile + columns, k % tile])


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
    dy = jnp.pad(dy, edges).reshape(batch, rows, tile, columns, tile, channels)
    return _places(_maps(tile)[0], [dy[:, :, k] for k in range(tile)], lambda y, k: y[:, :, :, k])


def _places(weights: np.ndarray, rows: Sequence[Array], column: Callable[[Array, int], Array]) -> Tiles:
    """W r W^T of all tiles, whose pixels in row k are in rows[k] and there in column l at `column(_, l)`."""
    tiles = []
    for down in weights:
        row = _weighted(down, rows)
        columns = [column(row, k) for k in range(len(rows))]
        tiles += [_weighted(right, columns).reshape(-1, row.shape[-1]) for right in weights]
    return tiles


def _weighted(weights: np.ndarray, terms: Sequence[Array]) -> Array:
    """The sum of weights times terms, without those whose weight is zero."""
    kept = [(float(weight), term) for weight, term in zip(weights, terms, strict=True) if weight]
    total = kept[0][1] if kept[0][0] == 1 else kept[0][0] * kept[0][1]
    for weight, term in kept[1:]:
        total = total + (term if weight == 1 else weight * term)
    return total
