"""Random views of a uint8 batch, made on the device. Each depends on the seed and its position in the stream alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rcmnet_jax.config import AugmentConfig
from rcmnet_jax.data.augment import colour, geometry, laboratory

_DRAWS = 16
# Of a key of their own, since more draws of one key would change the first. In order: blur, noise, what
# `laboratory.change` takes, `grey`, what `erase` takes.
_MORE = 2 + laboratory.DRAWS + 1 + 5
_AS_LABORATORIES = ("blur", "noise", "gamma", "white", "hue", "reinhard", "grey", "erase")


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
      config: which changes, and how strong. What is off is not computed.
      dtype: of the computation and the result.

    Returns:
      (B, S, S, 3) of `dtype`, in [0, 1].
    """
    draws = _uniform(positions, seed).astype(dtype)  # (B, 16) in [0, 1), the same in any precision
    strange = any(getattr(config, name) for name in _AS_LABORATORIES)
    more = _further(positions, seed).astype(dtype) if strange else draws
    x = images.astype(dtype) / 255
    if config.dihedral:
        turn = draws[:, 0] < 0.5
        x = jnp.where(turn[:, None, None, None], x.swapaxes(1, 2), x)
    if config.dihedral or config.scale or config.shift or config.rotate or config.blur:
        sigma = config.blur * more[:, 0] ** config.blur_power if config.blur else None
        x = geometry.resample(x, draws[:, 1:7], config, sigma)
    if config.brightness or config.contrast or config.saturation:
        x = colour.jitter(x, draws[:, 7:10], config)
    if config.stain:
        x = colour.stain(x, draws[:, 10:16], config.stain)
    if config.gamma or config.white or config.hue or config.reinhard:
        x = laboratory.change(x, more[:, 2 : 2 + laboratory.DRAWS], config)
    if config.grey:
        x = laboratory.grey(x, more[:, -6], config.grey)
    if config.noise:
        x = x + laboratory.noise(_keys(positions, seed, 2), x.shape[1:], more[:, 1] * config.noise)
    if config.erase:
        x = geometry.erase(x, more[:, -5:], config.erase)
    return jnp.clip(x, 0, 1)


def _uniform(positions: jax.Array, seed: jax.Array) -> jax.Array:
    base = jax.random.key(seed)

    def draw(words: jax.Array) -> jax.Array:
        return jax.random.uniform(
            jax.random.fold_in(jax.random.fold_in(base, words[0]), words[1]), (_DRAWS,), jnp.float32
        )

    return jax.vmap(draw)(positions)


def _keys(positions: jax.Array, seed: jax.Array, which: int) -> jax.Array:
    """Each example's further key number `which`, (B,)."""
    base = jax.random.key(seed)

    def key(words: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(base, words[0]), words[1]), which)

    return jax.vmap(key)(positions)


def _further(positions: jax.Array, seed: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.uniform(key, (_MORE,), jnp.float32))(_keys(positions, seed, 1))
