"""Perceptual hashes under the eight dihedral views, and the near pairs among them, without comparing all.

The hash is pHash's idea (Zauner 2010): signs of low-frequency DCT coefficients of a small grey image. Signs of
coefficients, and not their comparison with a median, because then a mirror flips fixed bits and a quarter turn
permutes them: all eight views come from one transform.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

SIDE = 32  # pixels of the grey thumbnail
VIEWS = (
    "as it is",
    "mirrored left-right",
    "mirrored top-bottom",
    "turned by 180 degrees",
    "mirrored on the diagonal",
    "turned by 90 degrees",
    "turned by 270 degrees",
    "mirrored on the other diagonal",
)
_BLOCK = 1 << 22  # hash comparisons in memory at once


def _frequencies() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The 64 lowest (u, v) without the mean, a set that swapping u and v maps to itself."""
    u, v = np.mgrid[:11, :11].reshape(2, -1)
    keep = (u + v > 0) & (u + v <= 10) & ~((u == 5) & (v == 5))
    return u[keep], v[keep]


_U, _V = _frequencies()


def to_grey(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Luma (..., S, S) float32, 0..255, of RGB images (..., S, S, 3) uint8."""
    red, green, blue = (images[..., c].astype(np.float32) for c in range(3))
    return np.asarray(0.299 * red + 0.587 * green + 0.114 * blue, np.float32)


def thumbnails(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Area means (B, 32, 32) float32 of square grey images (B, S, S)."""
    return _area_means(_area_means(grey, 1), 2)


def _area_means(grey: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """Means over 32 equal stretches of an axis, border pixels in part.

    By running sums, since many small matrix products are slow where BLAS has to share the cores.
    """
    size = grey.shape[axis]
    edges = np.linspace(0, size, SIDE + 1)
    whole = np.minimum(edges.astype(int), size - 1)
    shape = [1, 1, 1]
    shape[axis] = SIDE + 1
    part = (edges - whole).astype(np.float32).reshape(shape)
    running = np.cumsum(grey, axis, dtype=np.float32)
    here = np.take(grey, whole, axis)
    sums = np.take(running, whole, axis) - here + part * here  # up to each edge
    return np.asarray(np.diff(sums, axis=axis) * np.float32(SIDE / size), np.float32)


def hashes(thumbs: npt.NDArray[np.float32]) -> Hashes:
    """Hashes (B, 8) uint64 of thumbnails (B, 32, 32), one a view in the order of VIEWS."""
    n = np.arange(SIDE)
    basis = np.cos(np.pi * (n + 0.5) * np.arange(11)[:, None] / SIDE).astype(np.float32)  # (11, 32), DCT-II
    spectrum = basis @ thumbs @ basis.T  # (B, 11, 11)
    plain, turned = spectrum[:, _U, _V], spectrum[:, _V, _U]
    flip_rows, flip_columns = (-1.0) ** _U, (-1.0) ** _V
    views = [plain, plain * flip_columns, plain * flip_rows, plain * flip_rows * flip_columns]
    views += [turned, turned * flip_rows, turned * flip_columns, turned * flip_rows * flip_columns]
    bits = np.packbits(np.stack(views, axis=1) > 0, axis=-1)  # (B, 8, 8)
    return np.ascontiguousarray(bits).view(np.uint64)[..., 0]


def undo(images: npt.NDArray[np.generic], view: int) -> npt.NDArray[np.generic]:
    """The images (..., S, S) as VIEWS[view] shows them: hashes(undo(x, g))[:, 0] is hashes(x)[:, g]."""
    turned = np.swapaxes(images, -1, -2) if view >= 4 else images
    if view in (2, 3, 5, 7):
        turned = np.flip(turned, -2)
    if view in (1, 3, 6, 7):
        turned = np.flip(turned, -1)
    return turned


def near_pairs(codes: Hashes, distance: int, most: int = 20_000_000) -> Iterator[tuple[npt.NDArray[np.int64], ...]]:
    """Blocks (first, second, view, distance) of pairs i < j whose hashes differ in `distance` bits or less in a view.

    Multi-index hashing (Norouzi et al. 2012): with distance + 1 bands of bits, near hashes agree in one band entirely.
    A pair may come more than once, once for each band and view that shows it. Memory stays bounded; identical rows of
    `codes` should be merged first, since each band lists them all against each other.

    Args:
      codes: (N, 8) from `hashes`.
      distance: Hamming distance, 0..15.
      most: stops after so many pairs.
    """
    if distance > 15:
        raise ValueError(f"distance {distance}: more than 15 bits would compare nearly all pairs")
    n = len(codes)
    if n < 2:
        return
    found = 0
    base = codes[:, 0]
    for mask, shift in _bands(distance + 1):
        mine, theirs = ((base >> shift) & mask).astype(np.uint32), ((codes >> shift) & mask).astype(np.uint32).ravel()
        order, other = np.argsort(mine, kind="stable"), np.argsort(theirs, kind="stable")
        keys, start = np.unique(mine[order], return_index=True)
        stop = np.append(start[1:], n)
        low, high = (np.searchsorted(theirs[other], keys, side) for side in ("left", "right"))
        sorted_base, sorted_other = base[order], codes.ravel()[other]
        for a, b, c, d in zip(start, stop, low, high, strict=True):
            step = max(1, _BLOCK // max(1, d - c))
            for at in range(a, b, step):
                end = min(at + step, b)
                gap = np.bitwise_count(sorted_base[at:end, None] ^ sorted_other[None, c:d])
                near = gap <= distance
                if not near.any():
                    continue
                i, j = np.nonzero(near)
                first, second = order[at + i], other[c + j]
                keep = first < second // 8
                if keep.any():
                    i, j = i[keep], j[keep]
                    yield first[keep], second[keep] // 8, second[keep] % 8, gap[i, j].astype(np.int64)
                    found += int(keep.sum())
                    if found >= most:
                        return


def _bands(count: int) -> list[tuple[np.uint64, np.uint64]]:
    """(mask, shift) of `count` bands that share 64 bits about equally."""
    edges = np.linspace(0, 64, count + 1).round().astype(int)
    return [(np.uint64((1 << int(b - a)) - 1), np.uint64(a)) for a, b in pairwise(edges)]
