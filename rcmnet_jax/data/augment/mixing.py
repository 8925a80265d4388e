"""Mixup and CutMix: images of a batch blended with their neighbours, drawn once a batch from the step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcmnet_jax.config import AugmentConfig

_BATCHES = 0xFFFFFFFF  # no example's key begins so: a position's high word stays below 2^31


def mixes(config: AugmentConfig) -> bool:
    """Whether batches are mixed at all."""
    return config.mixup > 0 or config.cutmix > 0


def mix(images: jax.Array, step: jax.Array, seed: jax.Array, config: AugmentConfig) -> tuple[jax.Array, jax.Array]:
    """Mixes each image with the one before it in the global batch, the first with the last.

    Mixup (Zhang et al. 2018) blends all pixels by one draw of Beta(a, a); CutMix (Yun et al. 2019) takes a box from the
    neighbour, which covers 1 - draw of the area before it is cut at the edges. Where both are set, a coin decides.

    Args:
      images: (B, S, S, 3), augmented already.
      step: int32 (), which fixes the draws together with `seed`, uint32 ().
      config: of which `mixup` and `cutmix` are each Beta's a, 0 for off.

    Returns:
      Images, and the share () that an image has of its own label: the rest is the neighbour's.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _BATCHES), step)
    of_blend, of_box, of_place, of_coin = jax.random.split(key, 4)
    blend = cut = (jnp.ones((), images.dtype), jnp.ones((1, 1), images.dtype))
    if config.mixup:
        own = jax.random.beta(of_blend, config.mixup, config.mixup, dtype=jnp.float32).astype(images.dtype)
        blend = own, own[None, None]
    if config.cutmix:
        own = jax.random.beta(of_box, config.cutmix, config.cutmix, dtype=jnp.float32).astype(images.dtype)
        centre = jax.random.uniform(of_place, (2,), jnp.float32).astype(images.dtype)
        rows, columns = (_near(images.shape[axis], centre[axis - 1], jnp.sqrt(1 - own)) for axis in (1, 2))
        kept = 1 - rows[:, None] * columns
        cut = kept.mean(), kept
    if config.mixup and config.cutmix:
        coin = jax.random.uniform(of_coin, (), jnp.float32) < 0.5
        share, weight = (jnp.where(coin, one, other) for one, other in zip(blend, cut, strict=True))
    else:
        share, weight = blend if config.mixup else cut
    weight = weight[..., None]
    return weight * images + (1 - weight) * jnp.roll(images, 1, axis=0), share


def _near(size: int, centre: jax.Array, length: jax.Array) -> jax.Array:
    """1 for pixels whose centre lies within half a length of `centre`, both in shares of the side, else 0: (S,)."""
    places = (jnp.arange(size, dtype=length.dtype) + 0.5) / size
    return (jnp.abs(places - centre) <= length / 2).astype(length.dtype)
