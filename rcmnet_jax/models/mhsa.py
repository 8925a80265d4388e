"""Self-attention over a feature map's positions, as in BoTNet."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from rcmnet_jax.errors import UserError
from rcmnet_jax.models.layers import Conv, parameter


def attend(query: Array, key: Array, value: Array, bias: Array | None = None) -> Array:
    """softmax(query . key + bias) value; the softmax in float32 at least.

    query, key, value are (B, heads, N, d), the query scaled already; bias (B, heads, N, N). Returns (B, heads, N, d).
    """
    weights = attention_weights(query, key, bias)
    return jnp.einsum("bhnm,bhmd->bhnd", weights.astype(value.dtype), value)


def attention_weights(query: Array, key: Array, bias: Array | None = None) -> Array:
    """softmax(query . key + bias), (B, heads, N, N): how much each query (rows) takes of each position (columns)."""
    logits = jnp.einsum("bhnd,bhmd->bhnm", query, key)
    if bias is not None:
        logits = logits + bias
    return nnx.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)


class MHSA(nnx.Module):
    """Multi-head self-attention of BoTNet (Srinivas et al. 2021, fig. 4), (B, H, W, C_in) -> (B, H, W, C_out).

    Logits are (q.k + q.(r_h + r_w)) / sqrt(d), with tables shared by the heads: `relative` has one vector for each
    offset along an axis, rel_height (2H-1, d) and rel_width (2W-1, d); `absolute` one for each row and column,
    abs_height (H, d) and abs_width (W, d); `none` leaves the term out. No output projection.
    """

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int], *, heads: int, position: str):
        if outputs % heads:
            raise UserError(
                f"config.model.heads={heads}: must divide the {outputs} channels of the last stage "
                "(model.width times 8)."
            )
        self.heads, self.size, self.position = heads, size, position
        self.query, self.key, self.value = (Conv(inputs, outputs, 1, std=inputs**-0.5) for _ in range(3))
        depth = outputs // heads
        height, width = size
        if position == "relative":
            self.rel_height = parameter((2 * height - 1, depth), "normal", depth**-0.5)
            self.rel_width = parameter((2 * width - 1, depth), "normal", depth**-0.5)
        elif position == "absolute":
            self.abs_height = parameter((height, depth), "normal", depth**-0.5)
            self.abs_width = parameter((width, depth), "normal", depth**-0.5)

    def __call__(self, x: Array) -> Array:
        batch, height, width, _ = x.shape
        query, key, bias = self._compared(x)
        y = attend(query, key, self._heads(self.value(x)), bias)
        return y.swapaxes(1, 2).reshape(batch, height, width, -1)

    def weights(self, x: Array) -> Array:
        """The attention weights that x (B, H, W, C_in) gives rise to, (B, heads, N, N) with N = H W."""
        return attention_weights(*self._compared(x))

    def _heads(self, x: Array) -> Array:
        """(B, H, W, C) as (B, heads, N, d)."""
        return x.reshape(x.shape[0], -1, self.heads, x.shape[-1] // self.heads).swapaxes(1, 2)

    def _compared(self, x: Array) -> tuple[Array, Array, Array | None]:
        """Scaled queries and keys (B, heads, N, d), and the position term (B, heads, N, N) where it is one."""
        _, height, width, _ = x.shape
        if (height, width) != self.size:
            raise ValueError(f"attention was built for a feature map of {self.size}, not {(height, width)}")
        query, key = self._heads(self.query(x)), self._heads(self.key(x))
        query = query * (query.shape[-1] ** -0.5)
        if self.position == "absolute":
            table = self.abs_height[...][:, None] + self.abs_width[...][None]  # (H, W, d)
            key = key + table.reshape(height * width, -1).astype(x.dtype)
        return query, key, self._relative(query) if self.position == "relative" else None

    def _relative(self, query: Array) -> Array:
        """q.(r_h + r_w) for all pairs of positions, (B, heads, N, N)."""
        height, width = self.size
        grid = query.reshape(*query.shape[:2], height, width, -1)  # (B, heads, H, W, d)
        rows = self.rel_height[...][_offsets(height)].astype(query.dtype)  # (H, H, d)
        columns = self.rel_width[...][_offsets(width)].astype(query.dtype)  # (W, W, d)
        by_row = jnp.einsum("bhyxd,yvd->bhyxv", grid, rows)[..., :, None]
        by_column = jnp.einsum("bhyxd,xud->bhyxu", grid, columns)[..., None, :]
        return (by_row + by_column).reshape(*query.shape[:3], height * width)


def _offsets(length: int) -> np.ndarray:
    """Row of a relative table for each (query, key) pair along an axis, (length, length)."""
    places = np.arange(length)
    return places[None, :] - places[:, None] + length - 1
