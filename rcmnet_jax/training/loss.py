"""What a batch's logits are compared with, and the losses of its examples."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Targets(NamedTuple):
    """The labels of a global batch, and what else the loss takes as the truth."""

    labels: jax.Array  # (B,) int32
    soft: jax.Array | None = None  # (B, K) float32, as in `Batch`
    own: jax.Array | None = None  # (), an image's share of its own target where mixed: the rest is the one's before it

    def before(self) -> Targets:
        """The target of the example before each, the last one's for the first."""
        soft = None if self.soft is None else jnp.roll(self.soft, 1, axis=0)
        return Targets(jnp.roll(self.labels, 1), soft)

    def heaviest(self) -> jax.Array:
        """The label with the most of each image, (B,)."""
        return self.labels if self.own is None else jnp.where(self.own < 0.5, self.before().labels, self.labels)


def smoothed_cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Cross-entropy (B,) of logits (B, K) against labels (B,) mixed with the uniform (Szegedy et al. 2016)."""
    log_p = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    return -(1 - smoothing) * chosen - smoothing * log_p.mean(-1)


def weighted_losses(logits: jax.Array, targets: Targets, weights: jax.Array, smoothing: float) -> jax.Array:
    """Losses (B,) of logits (B, K), each label's part times its class's weight, of (K,)."""
    losses = smoothed_cross_entropy(logits, targets.labels, smoothing)
    if targets.soft is not None:
        losses = (1 - targets.soft.sum(-1)) * losses - (targets.soft * jax.nn.log_softmax(logits)).sum(-1)
    losses = losses * weights[targets.labels]
    if targets.own is not None:
        losses = targets.own * losses + (1 - targets.own) * weighted_losses(
            logits, targets.before(), weights, smoothing
        )
    return losses
