"""Names of models and what they are built of; RCMNet is ResNet-18 with CBAM and self-attention (arXiv 2205.04230)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rcmnet_jax.config import MODEL_NAMES, ModelConfig, model_parts
from rcmnet_jax.errors import UserError, suggestion
from rcmnet_jax.models.resnet import ResNet, ResNetSpec
from rcmnet_jax.models.vit import ViT


@dataclass(frozen=True)
class Entry:
    """One model of the registry: its body and which attention it has."""

    body: str
    cbam: bool
    mhsa: bool


def _entry(name: str) -> Entry:
    body, *parts = model_parts(name)
    return Entry(body, "cbam" in parts, "mhsa" in parts)


MODELS: dict[str, Entry] = {name: _entry(name) for name in MODEL_NAMES}


def build(config: ModelConfig, classes: int, size: tuple[int, int], imported: bool) -> ResNet | ViT:
    """The module that `config.name` names, its parameters without values.

    `imported` settles gate="auto": gates that start at 1 leave imported features as they are.

    Raises:
      UserError: no such model.
    """
    if config.name not in MODELS:
        raise UserError(f"config.model.name={config.name!r}: no such model{suggestion(config.name, MODELS)}")
    entry = MODELS[config.name]
    if entry.body == "vit":
        return ViT(config, classes, size)
    gate = config.gate if config.gate != "auto" else "identity" if imported else "paper"
    config = dataclasses.replace(config, gate=gate)
    return ResNet(ResNetSpec(entry.body, entry.cbam, entry.mhsa, gate == "identity", config), classes, size)
