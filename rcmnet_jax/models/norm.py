"""Normalisation layers, computed in float32 at least."""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from rcmnet_jax.models.layers import parameter, statistic

EPSILON = 1e-5


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) over all axes but the last, as PyTorch has it.

    Normalises by the batch's biased variance; the running variance takes the unbiased one. `momentum` is the weight of
    the new value. Under a sharded batch the mean is over the whole of it.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1, scale: float = 1.0):
        self.scale = parameter((channels,), "constant", scale)
        self.bias = parameter((channels,), "constant", 0.0)
        self.mean = statistic((channels,), 0.0)
        self.var = statistic((channels,), 1.0)
        self.momentum = momentum

    def __call__(self, x: Array, train: bool) -> Array:
        if train:
            y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            axes = tuple(range(x.ndim - 1))
            mean = y.mean(axes)
            var = jnp.square(y - mean).mean(axes)
            count = math.prod(x.shape[:-1])
            for running, new in ((self.mean, mean), (self.var, var * (count / max(count - 1, 1)))):
                old = running[...]
                running[...] = old + self.momentum * (lax.stop_gradient(new).astype(old.dtype) - old)
        else:
            mean, var = self.mean[...], self.var[...]
        factor = self.scale[...] * lax.rsqrt(var + EPSILON)
        return (x * factor + (self.bias[...] - mean * factor)).astype(x.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation (Wu and He 2018), groups of up to 16 channels; the same in training and inference."""

    def __init__(self, channels: int, *, scale: float = 1.0):
        self.scale = parameter((channels,), "constant", scale)
        self.bias = parameter((channels,), "constant", 0.0)
        self.groups = max(channels // 16, 1)

    def __call__(self, x: Array, train: bool) -> Array:  # noqa: ARG002
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = y.reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        mean = y.mean((1, 3), keepdims=True)
        var = jnp.square(y - mean).mean((1, 3), keepdims=True)
        y = ((y - mean) * lax.rsqrt(var + EPSILON)).reshape(x.shape)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al. 2016) over the last axis, eps 1e-6 as in vision transformers."""

    def __init__(self, channels: int):
        self.scale = parameter((channels,), "constant", 1.0)
        self.bias = parameter((channels,), "constant", 0.0)

    def __call__(self, x: Array) -> Array:
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = y.mean(-1, keepdims=True)
        var = jnp.square(y - mean).mean(-1, keepdims=True)
        y = (y - mean) * lax.rsqrt(var + 1e-6)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def norm(kind: str, channels: int, *, momentum: float = 0.1, scale: float = 1.0) -> BatchNorm | GroupNorm:
    """The layer that `ModelConfig.norm` names."""
    if kind == "group":
        return GroupNorm(channels, scale=scale)
    return BatchNorm(channels, momentum=momentum, scale=scale)
