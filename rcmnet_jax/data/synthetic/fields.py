"""Drawing primitives of the synthetic smears: soft shapes, smooth noise, blur. Lengths are micrometres unless named px.

Everything is float64, so that the final rounding to uint8 hides the last-bit differences between machines and numpy
builds.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@lru_cache(maxsize=512)
def _spline(size: int, knots: int) -> tuple[NDArray[np.intp], Array]:
    """First knot (size,) and the 4 cubic B-spline weights (4, size), scaled so that white noise gives variance 1."""
    at = np.linspace(0.0, knots, size, endpoint=False)
    start = np.floor(at).astype(np.intp)
    t = at - start
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3])
    return start, weights / np.sqrt((weights**2).sum(0).mean())


def noise(rng: np.random.Generator, size: int, knots: float) -> Array:
    """(size, size) smooth noise with mean 0 and variance about 1, and some `knots` bumps along a side."""
    count = max(1, round(knots))
    start, weights = _spline(size, count)
    values = rng.standard_normal((count + 3, count + 3))
    rows = sum(weights[k][:, None] * values[start + k] for k in range(4))
    return np.asarray(sum(weights[k] * rows[:, start + k] for k in range(4)))


@lru_cache(maxsize=128)
def _gaussian(sigma: float) -> tuple[float, ...]:
    """Weights of a normalised Gaussian at offsets 0, 1, 2, ... pixels."""
    half = np.exp(-0.5 * (np.arange(int(np.ceil(3 * sigma)) + 1) / sigma) ** 2)
    return tuple((half / (2 * half.sum() - half[0])).tolist())


def blur(image: Array, sigma_px: float) -> Array:
    """Gaussian blur of (H, W) or (H, W, 3); the borders are continued, so that no light is lost there.

    Shifted sums and not matrix products: small BLAS calls start threads, which fight over the cores with other workers.
    """
    sigma = round(sigma_px, 1)
    if sigma < 0.2:
        return image
    weights = _gaussian(sigma)
    reach = len(weights) - 1
    for axis in (0, 1):
        widths = [(0, 0)] * image.ndim
        widths[axis] = (reach, reach)
        padded, length = np.pad(image, widths, mode="edge"), image.shape[axis]
        views = [padded[k : k + length] if axis == 0 else padded[:, k : k + length] for k in range(2 * reach + 1)]
        image = weights[0] * views[reach]
        for k in range(1, reach + 1):
            image += weights[k] * (views[reach - k] + views[reach + k])
    return image


def soft(depth: Array, edge: float) -> Array:
    """Coverage in [0, 1] from the depth below a surface; the transition is `edge` wide."""
    t = np.clip(depth / edge + 0.5, 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t))


def outline(x: Array, y: Array, radius: float | Array, amplitudes: Array, phases: Array) -> Array:
    """Depth below the star-shaped outline r(angle) = radius (1 + sum_k a_k cos((k + 2) angle + p_k)), k from 0.

    `radius`, the amplitudes and the phases broadcast against x and y, so that many shapes are drawn at once.
    """
    far = np.sqrt(x * x + y * y) + 1e-12
    turn = (x + 1j * y) / far
    power = turn
    reach = np.ones_like(far)
    for k in range(len(amplitudes)):  # powers of exp(i angle) cost less than a cosine each
        power = power * turn
        reach += amplitudes[k] * (power.real * np.cos(phases[k]) - power.imag * np.sin(phases[k]))
    return np.asarray(radius * reach - far)


def blobs(x: Array, y: Array, discs: Array, fusion: float) -> Array:
    """Depth below the smooth union of `discs` (n, 3: x, y, radius); `fusion` is the reach of the blending."""
    depth = discs[:, 2, None, None] - np.sqrt((x - discs[:, 0, None, None]) ** 2 + (y - discs[:, 1, None, None]) ** 2)
    return np.asarray(fusion * np.log(np.exp(np.clip(depth / fusion, -60.0, 60.0)).sum(0)))


def specks(rng: np.random.Generator, size: int, where: Array, count: int, sigma_px: float) -> Array:
    """(size, size) grains of peak height about 1 at `count` places drawn with probability `where` (size, size)."""
    total = where.sum()
    if count <= 0 or total <= 0:
        return np.zeros((size, size))
    cells = np.searchsorted(np.cumsum(where.ravel()), rng.random(count) * total)
    heights = rng.uniform(0.5, 1.2, count)
    canvas = np.bincount(np.minimum(cells, size * size - 1), heights, size * size).astype(np.float64)
    return np.asarray(blur(canvas.reshape(size, size), sigma_px) * 2 * np.pi * max(sigma_px, 0.4) ** 2)
