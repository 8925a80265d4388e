"""Parameters that know how they start, and the two linear layers made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from rcmnet_jax.models.conv import by_rows, conv
from rcmnet_jax.models.reduce import biased


@dataclass(frozen=True)
class Initial:
    """How a parameter starts: normal(0, scale), uniform(-scale, scale), or the constant scale."""

    kind: str
    scale: float

    def draw(self, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
        """Float32 array of `shape`."""
        if self.kind == "normal":
            return random.standard_normal(shape, np.float32) * np.float32(self.scale)
        if self.kind == "uniform":
            return random.random(shape, np.float32) * np.float32(2 * self.scale) - np.float32(self.scale)
        return np.full(shape, self.scale, np.float32)


def placeholder(shape: tuple[int, ...]) -> Any:
    """Stands for a float32 array of `shape` while a program is traced or a tree laid out."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)  # type: ignore[no-untyped-call]


def parameter(shape: tuple[int, ...], kind: str, scale: float) -> nnx.Param[Array]:
    """A float32 parameter without values yet: `Network.init` draws them all at once, without compiling anything."""
    return nnx.Param(placeholder(shape), initial=Initial(kind, scale))


def statistic(shape: tuple[int, ...], value: float) -> nnx.BatchStat[Array]:
    """A float32 running statistic that starts at `value`."""
    return nnx.BatchStat(placeholder(shape), initial=Initial("constant", value))


class Conv(nnx.Module):
    """Convolution without bias, (B, H, W, C_in) -> (B, H', W', C_out), zero padding of half the kernel on both sides.

    Starts from Kaiming's normal distribution by fan-out, as torchvision's ResNets do.
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, std: float | None = None):
        std = (2 / (outputs * size * size)) ** 0.5 if std is None else std
        self.kernel = parameter((size, size, inputs, outputs), "normal", std)
        self.stride = stride
        self.padding = size // 2

    def __call__(self, x: Array) -> Array:
        return conv(x, self.kernel[...].astype(x.dtype), stride=self.stride, padding=self.padding)


class Linear(nnx.Module):
    """x @ kernel + bias, (..., inputs) -> (..., outputs); starts as PyTorch's, uniform within inputs**-0.5.

    Computes in the wider of the input's and the parameters' type where `wide`, else in the input's.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: str = "uniform", zero: bool = False, wide: bool = False):
        bound = 0.0 if zero else inputs**-0.5
        self.kernel = parameter((inputs, outputs), "uniform", bound)
        self.bias = parameter((outputs,), "uniform", bound if bias == "uniform" else 0.0)
        self.wide = wide

    def __call__(self, x: Array) -> Array:
        kernel, bias = self.kernel[...], self.bias[...]
        dtype = jnp.promote_types(x.dtype, kernel.dtype) if self.wide else x.dtype
        return biased(by_rows(x.astype(dtype), kernel.astype(dtype)), bias.astype(dtype))
