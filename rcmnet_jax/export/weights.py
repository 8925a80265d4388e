"""A bundle's weights with PyTorch's names and layouts, and the architecture that they belong to as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rcmnet_jax.bundle import Bundle
from rcmnet_jax.checkpoint.torch import to_torch
from rcmnet_jax.export.folder import architecture, temperature_of
from rcmnet_jax.files import write_json, write_safetensors


def write_weights(bundle: Bundle, folder: Path) -> None:
    """Writes model.safetensors, named as torchvision's and timm's state dicts, and architecture.json."""
    write_safetensors(folder / "model.safetensors", to_torch(bundle.params, bundle.batch_stats))
    write_json(folder / "architecture.json", architecture(bundle.network, temperature_of(bundle), bundle.views))


def write(bundle: Bundle, folder: Path, images: np.ndarray) -> np.ndarray:
    """Writes both files, and answers the images by a network made anew from them."""
    write_weights(bundle, folder)
    return answers(folder, images)


def answers(folder: Path, images: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) of uint8 images (N, S, S, 3), by what `write_weights` left in a folder."""
    from safetensors.numpy import load_file
    from scipy.special import softmax

    from rcmnet_jax.checkpoint.torch import from_torch
    from rcmnet_jax.evaluation.predict import forward
    from rcmnet_jax.export.folder import network_of
    from rcmnet_jax.training.sharding import Placement

    facts = json.loads((folder / "architecture.json").read_text(encoding="utf-8"))
    network, temperature = network_of(facts)
    state = from_torch(load_file(folder / "model.safetensors"))
    logits = forward(network, *state, images, Placement.everywhere(), views=facts["views"])
    return np.asarray(softmax(logits / temperature, axis=1))
