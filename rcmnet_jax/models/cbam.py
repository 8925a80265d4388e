"""Convolutional block attention (CBAM): a gate over channels, then one over space."""

from __future__ import annotations

from flax import nnx
from jax import Array

from rcmnet_jax.models.layers import Conv, Linear
from rcmnet_jax.models.norm import norm
from rcmnet_jax.models.reduce import gated, summarise_channels, summarise_space


def open_gate(logits: Array, identity: bool) -> Array:
    """Gate values: sigmoid in (0, 1) as in the paper, or twice that, in (0, 2), so that logits of 0 change nothing."""
    gate = nnx.sigmoid(logits)
    return 2 * gate if identity else gate


class ChannelGate(nnx.Module):
    """Channel attention of CBAM (Woo et al. 2018, eq. 2).

    Maps features (B, H, W, C) to gates (B, 1, 1, C): one shared two-layer MLP over the spatial mean and maximum,
    summed, then a sigmoid. With `identity` the last layer starts at zero and gates at 1.
    """

    def __init__(self, channels: int, *, reduction: int, identity: bool):
        hidden = max(channels // reduction, 1)
        self.squeeze = Linear(channels, hidden, bias="zero")
        self.expand = Linear(hidden, channels, bias="zero", zero=identity)
        self.identity = identity

    def __call__(self, x: Array) -> Array:
        mean, peak = summarise_space(x)  # (B, C)
        logits = self.expand(nnx.relu(self.squeeze(mean))) + self.expand(nnx.relu(self.squeeze(peak)))
        return open_gate(logits, self.identity)[:, None, None, :]


class SpatialGate(nnx.Module):
    """Spatial attention of CBAM (Woo et al. 2018, eq. 3).

    Maps features (B, H, W, C) to gates (B, H, W, 1): a convolution over the channels' maximum and mean, normalised.
    The norm starts with scale 0 and, as in the authors' code, takes 1% of each batch into its running statistics.
    """

    def __init__(self, *, kernel: int, kind: str, identity: bool):
        self.conv = Conv(2, 1, kernel)
        self.bn = norm(kind, 1, momentum=0.01, scale=0.0)
        self.identity = identity

    def __call__(self, x: Array, train: bool) -> Array:
        return open_gate(self.bn(self.conv(summarise_channels(x)), train), self.identity)


class CBAM(nnx.Module):
    """Both gates in the paper's order; (B, H, W, C) -> the same."""

    def __init__(self, channels: int, *, reduction: int, kernel: int, kind: str, identity: bool):
        self.channel = ChannelGate(channels, reduction=reduction, identity=identity)
        self.spatial = SpatialGate(kernel=kernel, kind=kind, identity=identity)

    def __call__(self, x: Array, train: bool) -> Array:
        x = gated(x, self.channel(x))
        return gated(x, self.spatial(x, train))
