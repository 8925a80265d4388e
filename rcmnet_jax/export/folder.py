"""What every exported folder holds, and how it appears: whole or not at all, and never over something else."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rcmnet_jax import files
from rcmnet_jax.bundle import DISCLAIMER, Bundle
from rcmnet_jax.config import ModelConfig
from rcmnet_jax.errors import UserError
from rcmnet_jax.files import refuse_within_bundle, write_atomic, write_json
from rcmnet_jax.models import MODELS, Network
from rcmnet_jax.settings import to_dict

STANDALONE = Path(__file__).parent / "standalone"


def refuse_occupied(output: Path) -> None:
    """Raises UserError where `output` is a file or a folder with something in it, or within a bundle."""
    refuse_within_bundle(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is there already, and nothing is written over. Name a new folder.")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """As `files.whole_folder`, but never over something else.

    Raises:
      UserError: `output` is there already and is not an empty folder.
    """
    refuse_occupied(output)
    with files.whole_folder(output) as aside:
        yield aside


def write_common(folder: Path, bundle: Bundle, form: str, images: np.ndarray, probabilities: np.ndarray) -> None:
    """Writes preprocessing.json, preprocessing.py, example.py and check.npz: images with the bundle's answers."""
    write_json(folder / "preprocessing.json", preprocessing(bundle))
    write_atomic(folder / "preprocessing.py", (STANDALONE / "preprocessing.py").read_bytes())
    write_atomic(folder / "example.py", (STANDALONE / f"example_{form}.py").read_bytes())
    packed = io.BytesIO()
    np.savez_compressed(packed, images=images, probabilities=probabilities)
    write_atomic(folder / "check.npz", packed.getvalue())


def preprocessing(bundle: Bundle) -> dict[str, Any]:
    """How to make the graph's input of an image and what its output means."""
    size, facts = bundle.rule.size, bundle.calibration
    described = {
        "input": {"name": "images", "dtype": "uint8", "shape": ["N", size, size, 3], "layout": "NHWC, RGB"},
        "output": {"name": "probabilities", "dtype": "float32", "shape": ["N", len(bundle.classes)]},
        "inside": "division by 255, normalisation, network, mean over the views' logits, temperature, softmax",
        "image": dataclasses.asdict(bundle.rule),
        "classes": list(bundle.classes),
        "temperature": temperature_of(bundle),
        "views": bundle.views,
        "notice": DISCLAIMER,
    }
    if "conformal" in facts:
        described["abstain"] = {
            "rule": "class k is possible where 1 - p_k <= threshold; abstain unless only the predicted one is",
            "thresholds": facts["conformal"]["thresholds"],
        }
    return described


def temperature_of(bundle: Bundle) -> float:
    """The temperature that the bundle's logits are divided by; 1.0 where it is not calibrated."""
    return float(bundle.calibration.get("temperature", 1.0))


def architecture(network: Network, temperature: float, views: str = "one") -> dict[str, Any]:
    """All that names the network to code without this package, and, under `model`, to this package."""
    entry, config = MODELS[network.config.name], network.config
    identity = config.gate == "identity" or (config.gate == "auto" and network.imported)
    return {
        "body": entry.body,
        "cbam": entry.cbam,
        "mhsa": entry.mhsa,
        **{k: getattr(config, k) for k in ("width", "norm", "heads", "position")},
        **{k: getattr(config, k) for k in ("cbam_reduction", "cbam_kernel", "cbam_placement")},
        "gate_factor": 2.0 if identity else 1.0,
        "classes": network.classes,
        "image_size": list(network.image_size),
        "temperature": temperature,
        "views": views,
        "model": to_dict(config),
        "imported": network.imported,
    }


def network_of(facts: Mapping[str, Any]) -> tuple[Network, float]:
    """The network and the temperature that `architecture` described."""
    height, width = facts["image_size"]
    config = ModelConfig(**facts["model"])
    network = Network(config, classes=facts["classes"], image_size=(height, width), imported=facts["imported"])
    return network, float(facts["temperature"])


def check_images(size: int, count: int = 4) -> np.ndarray:
    """Images to compare two programs on, (count, size, size, 3) uint8: noise of falling contrast on sloping colours."""
    random = np.random.default_rng(0)
    slope = np.linspace(60, 200, size)[:, None, None] + np.linspace(-50, 50, size)[None, :, None]
    colours = random.uniform(-40, 40, (count, 1, 1, 3))
    coarse = random.normal(size=(count, 8, 8, 3)).repeat(-(-size // 8), 1).repeat(-(-size // 8), 2)[:, :size, :size]
    contrast = np.linspace(60, 5, count)[:, None, None, None]
    return np.clip(slope + colours + contrast * coarse, 0, 255).astype(np.uint8)
