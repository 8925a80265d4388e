"""How laboratories differ: staining, lamp and camera, far more than the smears of one laboratory do.

All but noise and greyscale is one affine map of each image's optical densities -log x: a camera's gamma scales them,
its white balance shifts them, another stain mixes their channels, and Reinhard's transfer is affine in log colours.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rcmnet_jax.config import AugmentConfig
from rcmnet_jax.data.augment.colour import density, luminance

DRAWS = 21  # that `change` takes: gamma 1, white 3, hue 9, reinhard 2 + 6
# Log colours' brightness, yellow against blue, red against green: orthonormal directions, as Ruderman et al. (1998)
# found for natural images and Reinhard et al. (2001) used.
_OPPONENT = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
# References of Reinhard's transfer on these axes, from 2,500 of PBC's training images. Means: uniform over three times
# the range that holds 99% of them (brightness no further than -0.1, near white). Deviations: log-uniform from half of
# their 0.5% quantile to twice the 99.5% one.
_MEANS = np.array([[-1.08, -0.32, -0.03], [-0.10, 0.35, 0.28]])
_DEVIATIONS = np.log([[0.085, 0.023, 0.015], [1.13, 0.49, 0.29]])
_STRETCH = 3.0  # most that a deviation changes: a flat image, or a grey one, has only noise to stretch


def change(x: jax.Array, draws: jax.Array, config: AugmentConfig) -> jax.Array:
    """Another laboratory's picture of x (B, S, S, 3) in [0, 1]; draws (B, 21). Greys stay grey under `hue` alone."""
    amount = density(x)
    matrix = jnp.eye(3, dtype=x.dtype)[None]  # densities as rows times this, plus `offset`
    offset = jnp.zeros((1, 1, 3), x.dtype)
    if config.reinhard:
        matrix, offset = _reinhard(amount, draws[:, 13:], config.reinhard)
    if config.hue:
        mixing = config.hue * (2 * draws[:, 4:13].reshape(-1, 3, 3) - 1)
        mixing = jnp.eye(3, dtype=x.dtype) + mixing - mixing.mean(1, keepdims=True)
        matrix, offset = _times(matrix, mixing), _times(offset, mixing)
    if config.white:
        offset = offset - config.white * (2 * draws[:, None, 1:4] - 1)
    if config.gamma:
        exponent = jnp.exp(config.gamma * (2 * draws[:, 0] - 1))[:, None, None]
        matrix, offset = matrix * exponent, offset * exponent
    mixed = sum(amount[..., k, None] * matrix[:, None, None, k] for k in range(3))
    return jnp.exp(-(mixed + offset[:, None]))


def _times(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """(B or 1, n, 3) times (B, 3, 3); as sums: XLA:CPU has got batched products with a broadcast operand wrong."""
    made: jax.Array = (rows[..., None] * matrix[:, None]).sum(2)
    return made


def _reinhard(amount: jax.Array, draws: jax.Array, probability: float) -> tuple[jax.Array, jax.Array]:
    """Matrix (B, 3, 3) and offset (B, 1, 3) that bring log colours' means and deviations towards drawn ones.

    How far, from not at all to wholly, is drawn as well; draws (B, 8).
    """
    axes = jnp.asarray(_OPPONENT.T, amount.dtype)
    seen = -amount @ axes
    mean, deviation = seen.mean((1, 2)), jnp.sqrt(seen.var((1, 2)) + 1e-8)
    (low, high), (flat, strong) = jnp.asarray(_MEANS, mean.dtype), jnp.asarray(_DEVIATIONS, mean.dtype)
    far = jnp.where(draws[:, :1] < probability, draws[:, 1:2], 0)
    stretch = far * (flat + (strong - flat) * draws[:, 5:8] - jnp.log(deviation))
    factor = jnp.exp(jnp.clip(stretch, -np.log(_STRETCH), np.log(_STRETCH)))
    wanted = mean + far * (low + (high - low) * draws[:, 2:5] - mean)
    matrix = (axes * factor[:, None]) @ axes.T
    return matrix, -((wanted - mean * factor)[:, None] @ axes.T)


def grey(x: jax.Array, draw: jax.Array, probability: float) -> jax.Array:
    """Some of the images without colour; draw (B,)."""
    return jnp.where((draw < probability)[:, None, None, None], luminance(x), x)


def noise(keys: jax.Array, shape: tuple[int, ...], deviation: jax.Array) -> jax.Array:
    """Independent noise (B, *shape) of each image's standard deviation (B,), nearly normal.

    Sums of the four bytes of one random word: as exact on every device, and several times cheaper than a Gaussian.
    """
    words = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)
    total = ((words[..., None] >> jnp.arange(0, 32, 8, dtype=jnp.uint32)) & 0xFF).sum(-1)
    spread = np.sqrt(4 * (256**2 - 1) / 12)
    made = (total.astype(deviation.dtype) - 4 * 127.5) / spread
    scaled: jax.Array = made * deviation.reshape(-1, *[1] * len(shape))
    return scaled
