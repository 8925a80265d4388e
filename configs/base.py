"""From the dataclasses of rcmnet_jax.config to the ConfigDict that `--config` files return."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.errors import UserError, suggestion
from rcmnet_jax.settings import change, to_dict

__all__ = [
    "GROWN",
    "PBC",
    "RARELY_BLURRED",
    "REAL",
    "SHAPES",
    "SHARP",
    "SMOKE",
    "SPEEDRUN",
    "change",
    "choose",
    "config_dict",
]

# What every `smoke` preset has: all stages at toy size, for tests.
SMOKE: dict[str, Any] = {
    "image_size": 32,
    "batch_size": 16,
    "model": {"width": 8},
    "source": {"data": "synthetic:pbc-tiny", "epochs": 2.0},
}

# Colours, sharpness and scale as laboratories differ after `predict --adapt` has done what it can.
SHARP: dict[str, Any] = {
    "scale": 0.25, "padding": "reflect", "gamma": 0.15, "white": 0.08, "hue": 0.05, "reinhard": 0.15, "stain": 0.1,
    "blur": 0.01, "noise": 0.01,
}  # fmt: skip
# A few images as blurred as a small cell in a large field would be, half no blurrier than 0.005. This is for 64 px:
# larger images, where detail counts, take SHARP alone.
RARELY_BLURRED: dict[str, Any] = {"blur": 0.04, "blur_power": 3.0}
# Pretraining on PBC as published: frames of 36 micrometres of which a cell fills a third, from one laboratory.
PBC: dict[str, Any] = {
    "epochs": 12.0,
    "crop": 0.65,
    "layer_decay": 0.5,  # of ImageNet's weights; random ones have one rate
    "augment": SHARP | RARELY_BLURRED,
}
# For 128 px: most steps on images of half the side, at a quarter of the cost each.
GROWN: dict[str, Any] = {"start_size": 64, "grow": 0.6, "augment": SHARP}
# Meant for 98.5% on PBC in little time, and no other laboratory: fewer steps, most of them on smaller images.
SPEEDRUN: dict[str, Any] = {"epochs": 10.0, "start_size": 64, "grow": 0.7, "augment": SHARP}
# A few hundred real cells: 40 epochs are some 800 updates a fold.
REAL: dict[str, Any] = {"epochs": 40.0, "optimizer": {"learning_rate": 0.2}}
# Where classes are shapes, as of red cells: larger, twice the rate, every angle; each chosen on Chula's inner splits.
SHAPES: dict[str, Any] = {
    "image_size": 96, "epochs": 30.0, "optimizer": {"learning_rate": 0.4}, "augment": {"rotate": 45.0},
}  # fmt: skip


def config_dict(config: ExperimentConfig) -> ConfigDict:
    """All settings, each of which `--config.KEY=VALUE` may replace. Lists are written with commas: `a,b`."""

    def flat(values: dict[str, Any]) -> dict[str, Any]:
        return {
            k: flat(v) if isinstance(v, dict) else ",".join(v) if isinstance(v, tuple) else v for k, v in values.items()
        }

    return ConfigDict(flat(to_dict(config)))


def choose(preset: str, presets: dict[str, ExperimentConfig], file: str) -> ConfigDict:
    """The preset's ConfigDict.

    Raises:
      UserError: no such preset, with those there are.
    """
    if preset not in presets:
        raise UserError(f"{file}:{preset}: no such preset{suggestion(preset, [name for name in presets if name])}")
    return config_dict(presets[preset])
