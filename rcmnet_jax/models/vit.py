"""A plain vision transformer, ViT-S/16, for comparison with the convolutional networks."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from rcmnet_jax.config import ModelConfig
from rcmnet_jax.models.conv import by_rows
from rcmnet_jax.models.layers import Linear, parameter
from rcmnet_jax.models.mhsa import attend, attention_weights
from rcmnet_jax.models.norm import LayerNorm
from rcmnet_jax.models.reduce import biased

PATCH = 16  # pixels, at every image size: a smaller image has fewer tokens and the same weights
DEPTH = 12
HEADS = 6


class Attention(nnx.Module):
    """Multi-head self-attention over tokens (B, N, C) -> (B, N, C), with one projection in and one out."""

    def __init__(self, channels: int):
        self.qkv, self.proj = Linear(channels, 3 * channels), Linear(channels, channels)

    def __call__(self, x: Array) -> Array:
        query, key, value = self._parts(x)
        y = attend(query * (query.shape[-1] ** -0.5), key, value)
        return self.proj(y.swapaxes(1, 2).reshape(x.shape))

    def weights(self, x: Array) -> Array:
        """The attention weights, (B, heads, N, N)."""
        query, key, _ = self._parts(x)
        return attention_weights(query * (query.shape[-1] ** -0.5), key)

    def _parts(self, x: Array) -> Array:
        """Queries, keys and values, (3, B, heads, N, d)."""
        return self.qkv(x).reshape(*x.shape[:2], 3, HEADS, -1).transpose(2, 0, 3, 1, 4)


class Mlp(nnx.Module):
    """Two layers with an exact GELU between, four times as wide inside."""

    def __init__(self, channels: int):
        self.fc1, self.fc2 = Linear(channels, 4 * channels), Linear(4 * channels, channels)

    def __call__(self, x: Array) -> Array:
        return self.fc2(nnx.gelu(self.fc1(x), approximate=False))


class Layer(nnx.Module):
    """Pre-norm transformer layer (Dosovitskiy et al. 2021, eq. 2 and 3)."""

    def __init__(self, channels: int):
        self.norm1, self.attn = LayerNorm(channels), Attention(channels)
        self.norm2, self.mlp = LayerNorm(channels), Mlp(channels)

    def __call__(self, x: Array) -> Array:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Patches(nnx.Module):
    """Linear map of each 16x16 patch, (B, H, W, 3) -> (B, ceil(H/16), ceil(W/16), C); an edge is filled with zeros."""

    def __init__(self, channels: int):
        self.kernel = parameter((PATCH, PATCH, 3, channels), "normal", (PATCH * PATCH * 3) ** -0.5)
        self.bias = parameter((channels,), "constant", 0.0)

    def __call__(self, x: Array) -> Array:
        batch, height, width, colours = x.shape
        x = jnp.pad(x, ((0, 0), (0, -height % PATCH), (0, -width % PATCH), (0, 0)))
        rows, columns = x.shape[1] // PATCH, x.shape[2] // PATCH
        x = x.reshape(batch, rows, PATCH, columns, PATCH, colours).swapaxes(2, 3).reshape(batch, rows, columns, -1)
        kernel = self.kernel[...].reshape(PATCH * PATCH * colours, -1)
        return biased(by_rows(x, kernel.astype(x.dtype)), self.bias[...].astype(x.dtype))


class Layers(nnx.Module):
    """Transformer layers "0" to "11"."""

    def __init__(self, channels: int):
        for i in range(DEPTH):
            setattr(self, str(i), Layer(channels))

    def __call__(self, x: Array) -> Array:
        for i in range(DEPTH):
            x = getattr(self, str(i))(x)
        return x

    def attention(self, x: Array) -> Array:
        """The attention weights of the last layer, (B, heads, N, N)."""
        for i in range(DEPTH - 1):
            x = getattr(self, str(i))(x)
        last: Layer = getattr(self, str(DEPTH - 1))
        return last.attn.weights(last.norm1(x))


class ViT(nnx.Module):
    """ViT-S/16: 12 layers of 6 heads, 6 * width channels (384 at the default width of 64).

    Follows the plain baseline of Beyer et al. 2022 in taking the tokens' mean instead of a class token, so that it
    has a feature map like the others. `position` is a learned table (H/16, W/16, C).
    """

    def __init__(self, config: ModelConfig, classes: int, size: tuple[int, int]):
        channels = HEADS * config.width
        self.patch_embed = Patches(channels)
        self.position = parameter((-(-size[0] // PATCH), -(-size[1] // PATCH), channels), "normal", 0.02)
        self.blocks = Layers(channels)
        self.norm = LayerNorm(channels)
        self.fc = Linear(channels, classes, wide=True)
        self.layers, self.attends = ("norm",), True

    def features(self, x: Array, train: bool) -> Array:  # noqa: ARG002
        """The normalised tokens on their grid, (B, ceil(H/16), ceil(W/16), C)."""
        x = self._tokens(x)
        batch, rows, columns, channels = x.shape
        return self.norm(self.blocks(x.reshape(batch, rows * columns, channels))).reshape(x.shape)

    def up_to(self, x: Array, layer: str, train: bool) -> Array:
        """As `features`: the grid is the same throughout, and the head sees the last."""
        assert layer in self.layers
        return self.features(x, train)

    def features_from(self, x: Array, layer: str) -> Array:
        """The last feature map from that of `layer`: the same."""
        assert layer in self.layers
        return x

    def attention(self, x: Array) -> Array:
        """The attention weights of the last layer, (B, heads, N, N)."""
        x = self._tokens(x)
        return self.blocks.attention(x.reshape(x.shape[0], -1, x.shape[-1]))

    def _tokens(self, x: Array) -> Array:
        """Patches with their positions, on their grid."""
        x = self.patch_embed(x)
        if x.shape[1:] != self.position.shape:
            raise ValueError(f"positions were built for {self.position.shape[:2]} patches, not {x.shape[1:3]}")
        return x + self.position[...].astype(x.dtype)
