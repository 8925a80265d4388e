"""Normalisation layers, computed in float32 at least."""

from __future__ import annotations

import math
import operator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from rcmnet_jax.models.backend import traced_once
from rcmnet_jax.models.layers import parameter, statistic
from rcmnet_jax.models.reduce import sum_channels, sum_rows

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
        if not train:
            factor = self.scale[...] * lax.rsqrt(self.var[...] + EPSILON)
            return (x * factor + (self.bias[...] - self.mean[...] * factor)).astype(x.dtype)
        y, mean, var = batch_norm(x, self.scale[...], self.bias[...])
        count = math.prod(x.shape[:-1])
        for running, new in ((self.mean, mean), (self.var, var * (count / max(count - 1, 1)))):
            old = running[...]
            # By item it takes ten times as long to trace: flax asks for a sharding, and JAX for why there is none.
            running.set_value(old + self.momentum * (new.astype(old.dtype) - old))
        return y


@jax.custom_vjp
def batch_norm(x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    """Normalises x (..., C) by its own mean and biased variance; returns (y, mean, variance).

    y has x's type, the moments are float32 at least and carry no gradient.
    """
    y, mean, var, _ = _normalise(x, scale, bias)
    return y, mean, var


@traced_once()
def _normalise(x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array, Array]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = math.prod(x.shape[:-1])
    mean = sum_rows(wide) / count
    var = sum_rows(wide, of=lambda part: jnp.square(part - mean)) / count
    spread = lax.rsqrt(var + EPSILON)
    return ((wide - mean) * (spread * scale) + bias).astype(x.dtype), mean, var, spread


def _forward(x: Array, scale: Array, bias: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    y, mean, var, spread = _normalise(x, scale, bias)
    return (y, mean, var), (x, mean, spread, scale)


@traced_once()
def _backward(saved: tuple[Array, ...], gradients: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Ioffe and Szegedy 2015, section 3, with the sums taken once."""
    x, mean, spread, scale = saved
    dy, wide = gradients[0].astype(mean.dtype), x.astype(mean.dtype)
    count = math.prod(x.shape[:-1])
    dbias = sum_rows(dy)
    dscale = sum_rows(dy, wide, of=lambda d, part: d * (part - mean)) * spread
    dx = (dy - (dbias / count) - (wide - mean) * (spread * dscale / count)) * (scale * spread)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


batch_norm.defvjp(_forward, _backward)


class GroupNorm(nnx.Module):
    """Group normalisation (Wu and He 2018) in `channels // 16` groups, at least one; no running statistics.

    Raises:
      ValueError: the channels cannot be parted into so many groups of one size.
    """

    def __init__(self, channels: int, *, scale: float = 1.0):
        self.scale = parameter((channels,), "constant", scale)
        self.bias = parameter((channels,), "constant", 0.0)
        self.groups = max(channels // 16, 1)
        if channels % self.groups:
            raise ValueError(f"{channels} channels cannot be parted into {self.groups} groups of one size.")

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
        return layer_norm(x, self.scale[...], self.bias[...])


@jax.custom_vjp
def layer_norm(x: Array, scale: Array, bias: Array) -> Array:
    """Normalises each row of x (..., C) by its own mean and variance, in float32 at least; in x's type."""
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = (sum_channels(wide) / x.shape[-1])[..., None]
    var = (sum_channels(wide, of=lambda part: jnp.square(part - mean)) / x.shape[-1])[..., None]
    spread = lax.rsqrt(var + 1e-6)
    y = (wide - mean) * spread * scale + bias
    return y.astype(x.dtype), (x, mean, spread, scale)


def _layer_norm_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    x, mean, spread, scale = saved
    dy, unit = gradient.astype(mean.dtype), (x.astype(mean.dtype) - mean) * spread
    dunit = dy * scale
    along = (sum_channels(dunit, unit, of=operator.mul) / x.shape[-1])[..., None]
    level = (sum_channels(dunit) / x.shape[-1])[..., None]
    dx = (dunit - level - unit * along) * spread
    return dx.astype(x.dtype), sum_rows(dy, unit, of=operator.mul).astype(scale.dtype), sum_rows(dy).astype(scale.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def norm(kind: str, channels: int, *, momentum: float = 0.1, scale: float = 1.0) -> BatchNorm | GroupNorm:
    """The layer that `ModelConfig.norm` names."""
    if kind == "group":
        return GroupNorm(channels, scale=scale)
    return BatchNorm(channels, momentum=momentum, scale=scale)
