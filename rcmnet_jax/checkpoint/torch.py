"""Names and layouts of PyTorch's weights: torchvision's ResNets, CBAM as its authors name it, timm's ViT."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# Our path inside a module -> theirs; the rest of a path is the same on both sides.
_MODULES = (
    ("cbam.channel.squeeze.", "cbam.ChannelGate.mlp.1."),
    ("cbam.channel.expand.", "cbam.ChannelGate.mlp.3."),
    ("cbam.spatial.", "cbam.SpatialGate.spatial."),
    ("patch_embed.", "patch_embed.proj."),
)
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def to_torch(params: Mapping[str, Any], batch_stats: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A state dict for PyTorch from our trees: flat names, kernels OIHW, linear weights (out, in), same types."""
    state = {}
    for path, value in [*_flat(params), *_flat(batch_stats)]:
        name = ".".join([*path[:-1], _LEAVES.get(path[-1], path[-1])])
        for ours, theirs in _MODULES:
            name = name.replace(ours, theirs)
        array = np.asarray(value)
        if path[-1] == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        state[name] = np.ascontiguousarray(array)
    return state


def from_torch(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our (params, batch_stats) from a PyTorch state dict: nested, only what the dict has, float32 (float64 stays).

    Values may be tensors or arrays. Names that we have no module for keep theirs, so that the caller can name them.
    """
    params: dict[str, Any] = {}
    batch_stats: dict[str, Any] = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        path, array = _ours(name, _array(value))
        tree = batch_stats if path[-1] in ("mean", "var") else params
        for key in path[:-1]:
            tree = tree.setdefault(key, {})
        tree[path[-1]] = array
    return params, batch_stats


def _ours(name: str, array: np.ndarray) -> tuple[list[str], np.ndarray]:
    name = name.removeprefix("module.")  # of DataParallel
    for ours, theirs in _MODULES:
        name = name.replace(theirs, ours)
    *modules, leaf = name.split(".")
    if modules == ["head"]:
        modules = ["fc"]
    if leaf == "pos_embed":  # timm: (1, N, C), one class token first where N is no square
        side = math.isqrt(array.shape[1])
        return ["position"], array[0, array.shape[1] - side * side :].reshape(side, side, -1)
    if leaf == "weight" and array.ndim == 1:
        return [*modules, "scale"], array
    if leaf == "weight":
        return [*modules, "kernel"], array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return [*modules, leaf.removeprefix("running_") if leaf in ("running_mean", "running_var") else leaf], array


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double() if value.element_size() == 8 else value.float()
    array = np.asarray(value)
    return array if array.dtype == np.float64 else array.astype(np.float32)


def _flat(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*path, key))
        else:
            yield (*path, key), value
