"""Weights that others wrote: state dicts as .safetensors, or as PyTorch files, of which nothing is ever executed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rcmnet_jax.checkpoint import zipped
from rcmnet_jax.checkpoint.torch import from_torch
from rcmnet_jax.errors import UserError

PYTORCH = (".pth", ".pt", ".bin", ".ckpt", ".tar")
SUFFIXES = (".safetensors", *PYTORCH)
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts keep the weights
State = dict[str, np.ndarray]
Tree = dict[str, Any]


def read_state(path: Path) -> State:
    """The arrays of a state dict by name, float32 (float64 stays), without DataParallel's prefix.

    Raises:
      UserError: no such file, not a state dict, or one that would run code.
    """
    if not path.is_file() or path.suffix not in SUFFIXES:
        raise UserError(f"{path}: no file of weights ({', '.join(SUFFIXES)}). Check the path.")
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pytorch(path)
    state = {
        str(name).removeprefix("module."): array
        for name, value in found.items()
        if (array := _array(value)) is not None
    }
    if not state:
        raise UserError(f"{path}: holds no tensors by name. Save the model's state_dict().")
    return state


def as_trees(path: Path, state: State) -> tuple[Tree, Tree]:
    """Our (params, batch_stats) of a state dict.

    Raises:
      UserError: names or shapes that no network's state dict has.
    """
    try:
        return from_torch(state)
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: not a network's state dict ({error}). Take a sound copy.") from error


def described(path: Path) -> Mapping[str, Any]:
    """What an export of ours says, beside the file of its weights, of the model that they are of; else empty.

    Raises:
      UserError: a description that cannot be read.
    """
    beside = path.with_name("architecture.json")
    if not beside.is_file():
        return {}
    try:
        facts = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{beside}: cannot be read ({error}). Take a sound copy, or put the weights elsewhere."
        ) from error
    ours = isinstance(facts, dict) and isinstance(facts.get("model"), dict) and "imported" in facts
    told = ("model", "image_size")
    return {"imported": bool(facts["imported"]), **{key: facts[key] for key in told if key in facts}} if ours else {}


def is_imported(path: Path, state: State) -> bool:
    """Whether these weights come from a model without gates; gates of an export of ours are as its description says."""
    if not any("cbam" in name for name in state):
        return True
    return bool(described(path).get("imported", False))


def _array(value: Any) -> np.ndarray | None:
    """Numbers as float32 or float64; None for what is no tensor, or complex."""
    if hasattr(value, "detach"):
        if value.is_complex() or value.is_sparse or value.is_quantized:
            return None
        value = (
            value.detach().cpu().double().numpy() if value.element_size() == 8 else value.detach().cpu().float().numpy()
        )
    if not isinstance(value, np.ndarray) or value.dtype.kind == "c":
        return None
    return value if value.dtype == np.float64 else value.astype(np.float32)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        state: Mapping[str, Any] = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a safetensors file ({error}). Take a sound copy.") from error
    return state


def _read_pytorch(path: Path) -> Mapping[str, Any]:
    try:
        found = _load(path)
    except Exception as error:  # what a damaged or hostile pickle raises is its own choice
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: not a plain state dict, or one that would run code, so it was not read ({reason}). "
            "Save only model.state_dict(), or take a .safetensors file."
        ) from error
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: holds a {type(found).__name__}, no state dict. Save model.state_dict().")
    return found


def _load(path: Path) -> Any:
    """By PyTorch where it is installed, which knows older forms and more types; else by our own reader."""
    if importlib.util.find_spec("torch") is None:
        return zipped.load(path)
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)
