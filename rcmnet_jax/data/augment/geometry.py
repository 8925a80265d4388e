"""Where each pixel comes from: flips, zoom, shift and blur as two matrix products, turns as a gather of neighbours, and
rectangles that hide a part.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcmnet_jax.config import AugmentConfig

_SHARPEST = 0.1  # pixels: a Gaussian so narrow leaves every pixel as it is, and is no division by zero
_ERASED = (0.02, 0.2)  # of the area
_ASPECT = 0.3  # height to width from this to its inverse


def resample(x: jax.Array, draws: jax.Array, config: AugmentConfig, blur: jax.Array | None = None) -> jax.Array:
    """Flip, zoom, shift and turn, by bilinear interpolation; without turns as two products with matrices: no gathers.

    `draws` are (B, 6); `blur`, where given, is each image's Gaussian sigma (B,) in shares of the side, which goes into
    the same matrices where there are any.
    """
    zoom = jnp.exp((2 * draws[:, 0] - 1) * config.scale)
    shift = (2 * draws[:, 1:3] - 1) * config.shift
    flip = jnp.where(draws[:, 3:5] < 0.5, -1.0, 1.0) if config.dihedral else jnp.ones_like(draws[:, 3:5])
    down, right = (
        (flip[:, a] * (1 / zoom))[:, None] * (_centres(x.shape[a + 1], zoom) - shift[:, a, None]) for a in (0, 1)
    )
    if config.rotate:
        x = _turned(x, down, right, (2 * draws[:, 5] - 1) * jnp.deg2rad(config.rotate), config.padding)
        return x if blur is None else _product(_gaussian(x.shape[1], blur), _gaussian(x.shape[2], blur), x)
    rows, columns = (_interpolation(*each, config.padding) for each in ((x.shape[1], down), (x.shape[2], right)))
    if blur is not None:
        rows, columns = _gaussian(x.shape[1], blur) @ rows, _gaussian(x.shape[2], blur) @ columns
    return _product(rows, columns, x)


def _product(rows: jax.Array, columns: jax.Array, x: jax.Array) -> jax.Array:
    x = jnp.einsum("bij,bjkc->bikc", rows, x)
    return jnp.einsum("bkl,bilc->bikc", columns, x)


def _turned(x: jax.Array, down: jax.Array, right: jax.Array, angle: jax.Array, padding: str) -> jax.Array:
    """The images seen at (down, right), (B, H) and (B, W) from the middle in shares of the side, turned by (B,)
    radians.
    """
    height, width = x.shape[1:3]
    cos, sin = jnp.cos(angle)[:, None, None], jnp.sin(angle)[:, None, None]
    down, right = down[:, :, None], right[:, None, :]
    y = _pixels(height, cos * down + sin * right, padding)  # (B, H, W)
    z = _pixels(width, cos * right - sin * down, padding)
    top, left = (jnp.clip(jnp.floor(at), 0, side - 2) for at, side in ((y, height), (z, width)))
    below, beside = (y - top)[..., None], (z - left)[..., None]
    first = (top * width + left).astype(jnp.int32)

    @jax.vmap  # a gather of its own for each image, so that a batch split over devices stays split
    def look_up(image: jax.Array, places: jax.Array) -> jax.Array:
        return image.at[places].get(mode="promise_in_bounds")

    def seen(step: int) -> jax.Array:
        return look_up(x.reshape(len(x), height * width, -1), first + step)

    upper = seen(0) * (1 - beside) + seen(1) * beside
    lower = seen(width) * (1 - beside) + seen(width + 1) * beside
    return upper * (1 - below) + lower * below


def _centres(size: int, like: jax.Array) -> jax.Array:
    """Pixel centres in shares of the side, the middle of the image at 0; (S,)."""
    return (jnp.arange(size, dtype=like.dtype) + 0.5) / size - 0.5


def _pixels(size: int, wanted: jax.Array, padding: str) -> jax.Array:
    """From shares of the side, the middle at 0, to pixels within the image."""
    if padding == "reflect":
        around = (wanted + 0.5) % 2  # the image and its mirror image repeat
        wanted = jnp.minimum(around, 2 - around) - 0.5
    return jnp.clip((wanted + 0.5) * size - 0.5, 0, size - 1)


def _interpolation(size: int, wanted: jax.Array, padding: str) -> jax.Array:
    """Matrices (B, S, S) that take each image's pixels to those wanted, (B, S)."""
    weights: jax.Array = jnp.maximum(0, 1 - jnp.abs(_pixels(size, wanted, padding)[:, :, None] - jnp.arange(size)))
    return weights


def _gaussian(size: int, blur: jax.Array) -> jax.Array:
    """(B, S, S) matrices whose rows are Gaussians about each pixel, cut at the edges and of sum 1."""
    sigma = jnp.maximum(blur * size, _SHARPEST)[:, None, None]
    apart = jnp.arange(size, dtype=blur.dtype)[:, None] - jnp.arange(size, dtype=blur.dtype)
    weights = jnp.exp(-((apart / sigma) ** 2) / 2)
    made: jax.Array = weights / weights.sum(-1, keepdims=True)
    return made


def erase(x: jax.Array, draws: jax.Array, probability: float) -> jax.Array:
    """Hides a rectangle behind the image's mean colour (Zhong et al. 2017); draws (B, 5).

    It covers 2-20% of the area up to rounding to pixels, its sides' ratio is within 0.3 and its inverse, and it lies
    within the image.
    """
    low, high = _ERASED
    area = jnp.where(draws[:, 0] < probability, low + (high - low) * draws[:, 1], 0)
    ratio = _ASPECT ** (2 * draws[:, 2] - 1)
    rows = _span(x.shape[1], jnp.sqrt(area * ratio), draws[:, 3])
    columns = _span(x.shape[2], jnp.sqrt(area / ratio), draws[:, 4])
    hidden = (rows[:, :, None] & columns[:, None, :])[..., None]
    return jnp.where(hidden, x.mean((1, 2), keepdims=True), x)


def _span(size: int, length: jax.Array, place: jax.Array) -> jax.Array:
    """Which pixels' centres lie in [start, start + length), in shares of the side: (B, S) bool."""
    centre = (jnp.arange(size, dtype=length.dtype) + 0.5) / size
    start = place * (1 - length)
    return (centre >= start[:, None]) & (centre < (start + length)[:, None])
