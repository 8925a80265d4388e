"""A bundle as a PyTorch module whose code travels with it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rcmnet_jax.bundle import Bundle
from rcmnet_jax.checkpoint.torch import to_torch
from rcmnet_jax.errors import UserError
from rcmnet_jax.export.folder import STANDALONE, architecture, temperature_of
from rcmnet_jax.export.weights import write_weights
from rcmnet_jax.files import write_atomic
from rcmnet_jax.models import Network

if TYPE_CHECKING:
    from rcmnet_jax.export.standalone.model import Classifier


def need(*packages: str, what: str) -> None:
    """Raises UserError where a package that `what` takes is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{what} needs {', '.join(missing)}, not installed here: pip install -r requirements-extra.txt."
        )


def module(
    network: Network, state: Mapping[str, np.ndarray], temperature: float = 1.0, views: str = "one"
) -> Classifier:
    """The network in plain PyTorch on the CPU, in evaluation mode, with the weights of a state dict."""
    import torch

    from rcmnet_jax.export.standalone import model

    made = model.build(architecture(network, temperature, views))
    model.fill(made, {name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return made


def module_of(bundle: Bundle) -> Classifier:
    """The bundle's network in plain PyTorch."""
    return module(bundle.network, to_torch(bundle.params, bundle.batch_stats), temperature_of(bundle), bundle.views)


def answers(made: Classifier, images: np.ndarray) -> np.ndarray:
    """Its probabilities, float32 (N, K), of uint8 images (N, S, S, 3)."""
    import torch

    with torch.inference_mode():
        parts = [made(torch.from_numpy(images[i : i + 64])).numpy() for i in range(0, len(images), 64)]
    return np.concatenate(parts)


def write(bundle: Bundle, folder: Path, images: np.ndarray) -> np.ndarray | None:
    """Writes model.py, model.safetensors and architecture.json; answers the images where PyTorch is installed."""
    write_weights(bundle, folder)
    write_atomic(folder / "model.py", (STANDALONE / "model.py").read_bytes())
    if importlib.util.find_spec("torch") is None:
        return None
    return answers(_load(folder), images)


def _load(folder: Path) -> Any:
    """As a user loads it, from the folder's own files."""
    spec = importlib.util.spec_from_file_location("exported_model", folder / "model.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder / 'model.py'} cannot be imported")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code.load(folder)
