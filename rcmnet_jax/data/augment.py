"""Random views of a uint8 batch, made on the device. Each depends on the seed and its position in the stream alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rcmnet_jax.config import AugmentConfig

# Optical densities (R, G, B) of hematoxylin, eosin and a residual: Ruifrok & Johnston 2001. Romanowsky stains differ
# in detail, but the two directions (blue-purple, pink) are the ones along which smears vary between laboratories.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_STAINS = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(_STAINS)
_DRAWS = 16


def split_position(position: np.ndarray) -> np.ndarray:
    """High and low 32-bit words of stream positions: int64 (B,) -> uint32 (B, 2)."""
    position = np.asarray(position, np.uint64)
    return np.stack([position >> np.uint64(32), position & np.uint64(0xFFFFFFFF)], -1).astype(np.uint32)


def augment(
    images: jax.Array,
    positions: jax.Array,
    seed: jax.Array,
    config: AugmentConfig,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Draws one view of each image.

    Args:
      images: uint8 (B, S, S, 3).
      positions: uint32 (B, 2), the words of each example's position in the stream (`split_position`).
      seed: uint32 (), the stage's.
      config: which changes, and how strong.
      dtype: of the computation and the result.

    Returns:
      (B, S, S, 3) of `dtype`, in [0, 1].
    """
    draws = _uniform(positions, seed).astype(dtype)  # (B, 16) in [0, 1), the same in any precision
    x = images.astype(dtype) / 255
    if config.dihedral:
        turn = draws[:, 0] < 0.5
        x = jnp.where(turn[:, None, None, None], x.swapaxes(1, 2), x)
    if config.dihedral or config.scale or config.shift:
        x = _resample(x, draws[:, 1:7], config)
    if config.brightness or config.contrast or config.saturation:
        x = _colour(x, draws[:, 7:10], config)
    if config.stain:
        x = _stain(x, draws[:, 10:16], config.stain)
    return jnp.clip(x, 0, 1)


def _uniform(positions: jax.Array, seed: jax.Array) -> jax.Array:
    base = jax.random.key(seed)

    def draw(words: jax.Array) -> jax.Array:
        return jax.random.uniform(
            jax.random.fold_in(jax.random.fold_in(base, words[0]), words[1]), (_DRAWS,), jnp.float32
        )

    return jax.vmap(draw)(positions)


def _resample(x: jax.Array, draws: jax.Array, config: AugmentConfig) -> jax.Array:
    """Flip, zoom and shift as two products with bilinear interpolation matrices: no gathers, edges repeated."""
    zoom = jnp.exp((2 * draws[:, 0] - 1) * config.scale)
    shift = (2 * draws[:, 1:3] - 1) * config.shift
    flip = jnp.where(draws[:, 3:5] < 0.5, -1.0, 1.0) if config.dihedral else jnp.ones_like(draws[:, 3:5])
    rows = _interpolation(x.shape[1], zoom, shift[:, 0], flip[:, 0])
    columns = _interpolation(x.shape[2], zoom, shift[:, 1], flip[:, 1])
    x = jnp.einsum("bij,bjkc->bikc", rows, x)
    return jnp.einsum("bkl,bilc->bikc", columns, x)


def _interpolation(size: int, zoom: jax.Array, shift: jax.Array, flip: jax.Array) -> jax.Array:
    centre = (jnp.arange(size, dtype=zoom.dtype) + 0.5) / size - 0.5  # pixel centres, the middle of the image at 0
    wanted = (flip * (1 / zoom))[:, None] * (centre[None, :] - shift[:, None])  # (B, S)
    wanted = jnp.clip((wanted + 0.5) * size - 0.5, 0, size - 1)  # in pixels
    weights: jax.Array = jnp.maximum(0, 1 - jnp.abs(wanted[:, :, None] - jnp.arange(size)))  # (B, S, S)
    return weights


def _colour(x: jax.Array, draws: jax.Array, config: AugmentConfig) -> jax.Array:
    strength = jnp.array([config.brightness, config.contrast, config.saturation], x.dtype)
    brightness, contrast, saturation = jnp.moveaxis(1 + (2 * draws - 1) * strength, 1, 0)[:, :, None, None, None]
    x = x * brightness
    mean = x.mean((1, 2, 3), keepdims=True)
    x = (x - mean) * contrast + mean
    grey = (x * jnp.array([0.299, 0.587, 0.114], x.dtype)).sum(-1, keepdims=True)
    mixed: jax.Array = (x - grey) * saturation + grey
    return mixed


def _stain(x: jax.Array, draws: jax.Array, strength: float) -> jax.Array:
    """Scales and offsets each stain's density (Tellez et al. 2018)."""
    density = -jnp.log(jnp.clip(x, 1 / 255, 1))
    amount = density @ jnp.asarray(_UNMIX, x.dtype)
    factor = 1 + (2 * draws[:, :3] - 1) * strength
    offset = (2 * draws[:, 3:] - 1) * strength / 2
    amount = amount * factor[:, None, None, :] + offset[:, None, None, :]
    return jnp.exp(-(amount @ jnp.asarray(_STAINS, x.dtype)))
