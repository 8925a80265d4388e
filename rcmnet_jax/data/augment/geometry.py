"""Where each pixel comes from: flips, zoom, shift and blur as two matrix products, and rectangles that hide a part."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcmnet_jax.config import AugmentConfig

_SHARPEST = 0.1  # pixels: a Gaussian so narrow leaves every pixel as it is, and is no division by zero
_ERASED = (0.02, 0.2)  # of the area
_ASPECT = 0.3  # height to width from this to its inverse


def resample(x: jax.Array, draws: jax.Array, config: AugmentConfig, blur: jax.Array | None = None) -> jax.Array:
    """Flip, zoom and shift as two products with bilinear interpolation matrices: no gathers.

    `draws` are (B, 6) of which five are used; `blur`, where given, is each image's Gaussian sigma (B,) in shares of
    the side, and goes into the same matrices.
    """
    zoom = jnp.exp((2 * draws[:, 0] - 1) * config.scale)
    shift = (2 * draws[:, 1:3] - 1) * config.shift
    flip = jnp.where(draws[:, 3:5] < 0.5, -1.0, 1.0) if config.dihedral else jnp.ones_like(draws[:, 3:5])
    rows = _interpolation(x.shape[1], zoom, shift[:, 0], flip[:, 0], config.padding)
    columns = _interpolation(x.shape[2], zoom, shift[:, 1], flip[:, 1], config.padding)
    if blur is not None:
        rows, columns = _gaussian(x.shape[1], blur) @ rows, _gaussian(x.shape[2], blur) @ columns
    x = jnp.einsum("bij,bjkc->bikc", rows, x)
    return jnp.einsum("bkl,bilc->bikc", columns, x)


def _interpolation(size: int, zoom: jax.Array, shift: jax.Array, flip: jax.Array, padding: str) -> jax.Array:
    centre = (jnp.arange(size, dtype=zoom.dtype) + 0.5) / size - 0.5  # pixel centres, the middle of the image at 0
    wanted = (flip * (1 / zoom))[:, None] * (centre[None, :] - shift[:, None])  # (B, S)
    if padding == "reflect":
        around = (wanted + 0.5) % 2  # the image and its mirror image repeat
        wanted = jnp.minimum(around, 2 - around) - 0.5
    wanted = jnp.clip((wanted + 0.5) * size - 0.5, 0, size - 1)  # in pixels
    weights: jax.Array = jnp.maximum(0, 1 - jnp.abs(wanted[:, :, None] - jnp.arange(size)))  # (B, S, S)
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
