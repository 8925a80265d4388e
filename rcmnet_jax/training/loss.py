"""What a batch's logits are compared with, and the losses of its examples."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Classes = jax.Array | int  # () int32
_NEVER = -1e9  # finite: times a target of 0 it is 0


class Targets(NamedTuple):
    """The labels of a global batch, and what else the loss takes as the truth."""

    labels: jax.Array  # (B,) int32
    soft: jax.Array | None = None  # (B, K) float32, as in `Batch`
    mix_weight: jax.Array | None = None  # (), of an image's own target where mixed; the rest is the target before it

    def before(self) -> Targets:
        """The target of the example before each, the last one's for the first."""
        soft = None if self.soft is None else jnp.roll(self.soft, 1, axis=0)
        return Targets(jnp.roll(self.labels, 1), soft)

    def heaviest(self) -> jax.Array:
        """The label with the most of each image, (B,)."""
        if self.mix_weight is None:
            return self.labels
        return jnp.where(self.mix_weight < 0.5, self.before().labels, self.labels)


def mask_unused_classes(logits: jax.Array, classes: Classes) -> jax.Array:
    """Logits (B, K) with columns `classes` and above at -1e9, so that their softmax is 0."""
    return jnp.where(jnp.arange(logits.shape[-1]) < classes, logits, _NEVER)


def smoothed_cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float, classes: Classes | None = None
) -> jax.Array:
    """Cross-entropy (B,) of logits (B, K) against labels (B,) mixed with the uniform (Szegedy et al. 2016).

    The uniform is over the first `classes` of the K, if given; the rest are as `mask_unused_classes` leaves them.
    """
    log_p = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    classes = logits.shape[-1] if classes is None else classes
    mean = jnp.where(jnp.arange(logits.shape[-1]) < classes, log_p, 0).sum(-1) / classes
    return -(1 - smoothing) * chosen - smoothing * mean


def weighted_losses(
    logits: jax.Array, targets: Targets, weights: jax.Array, smoothing: float, classes: Classes
) -> jax.Array:
    """Losses (B,) of logits (B, K), each label's part times its class's weight, of (K,); `classes` as above."""
    losses = smoothed_cross_entropy(logits, targets.labels, smoothing, classes)
    if targets.soft is not None:
        losses = (1 - targets.soft.sum(-1)) * losses - (targets.soft * jax.nn.log_softmax(logits)).sum(-1)
    losses = losses * weights[targets.labels]
    if targets.mix_weight is not None:
        losses = targets.mix_weight * losses + (1 - targets.mix_weight) * weighted_losses(
            logits, targets.before(), weights, smoothing, classes
        )
    return losses
