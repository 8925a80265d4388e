"""3x3 convolution by Winograd's minimal filtering: 16 multiplications where the definition has 36.

F(2x2, 3x3) of Lavin and Gray 2015 (arXiv 1509.09308), section 4.1: an output of 2x2 pixels comes from 4x4 of the input,
Y = A^T [(G g G^T) * (B^T d B)] A. In each of the 16 places of a tile the product over channels is a matrix product
over all tiles. The gradients are the transposed maps, so that they need no more. Rounding is that of a sum of 16 terms.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
# Rows of B^T and columns of A, as (place, sign). Along an axis a tile is two pairs of pixels: place is (pair, which).
_B = (((0, 0), 1), ((1, 0), -1)), (((0, 1), 1), ((1, 0), 1)), (((1, 0), 1), ((0, 1), -1)), (((0, 1), 1), ((1, 1), -1))
_A = ((0, 1),), ((0, 1), (1, 1)), ((0, 1), (1, -1)), ((1, -1),)

Tiles = list[Array]  # 16 of (N, C), place (i, j) of all N tiles at 4 i + j


@jax.custom_vjp
def winograd_conv(x: Array, kernel: Array) -> Array:
    """x (B, H, W, C_in) with kernel (3, 3, C_in, C_out), stride 1 and zero padding 1, -> (B, H, W, C_out)."""
    tiles, filters = _input_tiles(x), _filters(kernel)
    return _output([v @ u for v, u in zip(tiles, filters, strict=True)], (*x.shape[:3], kernel.shape[3]))


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return winograd_conv(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    outer = _output_transposed(dy)
    dtiles = [m @ u.T for m, u in zip(outer, _filters(kernel), strict=True)]
    dfilters = jnp.stack([v.T @ m for v, m in zip(_input_tiles(x), outer, strict=True)])
    g = jnp.asarray(_G, kernel.dtype)
    dkernel = jnp.einsum("ia,ijco,jb->abco", g, dfilters.reshape(4, 4, *kernel.shape[2:]), g)
    return _input_transposed(dtiles, x.shape), dkernel


winograd_conv.defvjp(_forward, _backward)


def _grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Tiles along height and width."""
    return -(-shape[1] // 2), -(-shape[2] // 2)


def _filters(kernel: Array) -> Array:
    """G g G^T, (16, C_in, C_out)."""
    g = jnp.asarray(_G, kernel.dtype)
    return jnp.einsum("ia,abco,jb->ijco", g, kernel, g).reshape(16, *kernel.shape[2:])


def _input_tiles(x: Array) -> Tiles:
    """B^T d B."""
    batch, height, width, channels = x.shape
    rows, columns = _grid(x.shape)
    edges = ((0, 0), (1, 2 * rows + 1 - height), (1, 2 * columns + 1 - width), (0, 0))
    pairs = jnp.pad(x, edges).reshape(batch, rows + 1, 2, columns + 1, 2, channels)

    def at(down: tuple[int, int], right: tuple[int, int]) -> Array:
        return pairs[:, down[0] : down[0] + rows, down[1], right[0] : right[0] + columns, right[1]]

    return [
        _total([(a * b, at(down, right)) for down, a in row for right, b in column]).reshape(-1, channels)
        for row in _B
        for column in _B
    ]


def _output(tiles: Tiles, shape: tuple[int, ...]) -> Array:
    """A^T m A, put together: (B, H, W, C)."""
    rows, columns = _grid(shape)

    def at(down: int, right: int) -> Array:
        terms = [
            (a * b, tiles[4 * i + j])
            for i, row in enumerate(_A)
            for j, column in enumerate(_A)
            for y, a in row
            for x, b in column
            if (y, x) == (down, right)
        ]
        return _total(terms).reshape(shape[0], rows, columns, -1)

    return _woven(at, shape)


def _output_transposed(dy: Array) -> Tiles:
    """A dy A^T."""
    batch, height, width, channels = dy.shape
    rows, columns = _grid(dy.shape)
    edges = ((0, 0), (0, 2 * rows - height), (0, 2 * columns - width), (0, 0))
    pairs = jnp.pad(dy, edges).reshape(batch, rows, 2, columns, 2, channels)
    flat = [[pairs[:, :, y, :, x].reshape(-1, channels) for x in (0, 1)] for y in (0, 1)]
    return [_total([(a * b, flat[y][x]) for y, a in row for x, b in column]) for row in _A for column in _A]


def _input_transposed(tiles: Tiles, shape: tuple[int, ...]) -> Array:
    """B v B^T, where tiles overlap added up: (B, H, W, C)."""
    rows, columns = _grid(shape)
    ring = ((0, 0), (1, 1), (1, 1), (0, 0))
    held = [jnp.pad(v.reshape(shape[0], rows, columns, -1), ring) for v in tiles]

    def at(down: int, right: int) -> Array:
        """Pixels 2 t + down, 2 s + right: of the padded image pair t + down, which 1 - down, and so along the width."""
        terms = []
        for i, row in enumerate(_B):
            for j, column in enumerate(_B):
                for (pair, which), a in row:
                    for (other, side), b in column:
                        if (which, side) == (1 - down, 1 - right):
                            top, left = 1 + down - pair, 1 + right - other
                            terms.append((a * b, held[4 * i + j][:, top : top + rows, left : left + columns]))
        return _total(terms)

    return _woven(at, shape)


def _woven(at: Callable[[int, int], Array], shape: tuple[int, ...]) -> Array:
    """The image (B, H, W, C) whose every second row and column, from `down` and `right`, is `at(down, right)`."""
    y = jnp.stack([jnp.stack([at(down, right) for right in (0, 1)], 3) for down in (0, 1)], 2)
    batch, rows, _, columns, _, channels = y.shape
    return y.reshape(batch, 2 * rows, 2 * columns, channels)[:, : shape[1], : shape[2]]


def _total(terms: list[tuple[int, Array]]) -> Array:
    """The signed sum, without a multiplication."""
    sign, y = terms[0]
    total = y if sign > 0 else lax.neg(y)
    for sign, y in terms[1:]:
        total = total + y if sign > 0 else total - y
    return total
