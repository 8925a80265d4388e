"""Small changes of colour: brightness, contrast, saturation, and the amount of each stain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rcmnet_jax.config import AugmentConfig

# Optical densities (R, G, B) of hematoxylin, eosin and a residual: Ruifrok & Johnston 2001. Romanowsky stains differ
# in detail, but the two directions (blue-purple, pink) are the ones along which smears vary between laboratories.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_STAINS = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(_STAINS)


def luminance(x: jax.Array) -> jax.Array:
    """(..., 3) RGB -> (..., 1), weighted as in ITU-R BT.601."""
    return (x * jnp.array([0.299, 0.587, 0.114], x.dtype)).sum(-1, keepdims=True)


def jitter(x: jax.Array, draws: jax.Array, config: AugmentConfig) -> jax.Array:
    """Brightness, contrast about the image's mean, and saturation, each by a factor of its own; draws (B, 3)."""
    strength = jnp.array([config.brightness, config.contrast, config.saturation], x.dtype)
    brightness, contrast, saturation = jnp.moveaxis(1 + (2 * draws - 1) * strength, 1, 0)[:, :, None, None, None]
    x = x * brightness
    mean = x.mean((1, 2, 3), keepdims=True)
    x = (x - mean) * contrast + mean
    grey = luminance(x)
    mixed: jax.Array = (x - grey) * saturation + grey
    return mixed


def density(x: jax.Array) -> jax.Array:
    """Optical density -log x of light x in [0, 1], held finite at black."""
    return -jnp.log(jnp.clip(x, 1 / 255, 1))


def stain(x: jax.Array, draws: jax.Array, strength: float) -> jax.Array:
    """Scales and offsets each stain's density (Tellez et al. 2018); draws (B, 6)."""
    amount = density(x) @ jnp.asarray(_UNMIX, x.dtype)
    factor = 1 + (2 * draws[:, :3] - 1) * strength
    offset = (2 * draws[:, 3:] - 1) * strength / 2
    amount = amount * factor[:, None, None, :] + offset[:, None, None, :]
    return jnp.exp(-(amount @ jnp.asarray(_STAINS, x.dtype)))
