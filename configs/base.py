"""From the dataclasses of rcmnet_jax.config to the ConfigDict that `--config` files return."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from rcmnet_jax.config import ExperimentConfig, change, suggestion, to_dict
from rcmnet_jax.errors import UserError

__all__ = ["SMOKE", "change", "choose", "config_dict"]

# What every `smoke` preset has: all stages at toy size, for tests.
SMOKE: dict[str, Any] = {
    "image_size": 32,
    "batch_size": 16,
    "model": {"width": 8},
    "source": {"data": "synthetic:pbc-tiny", "epochs": 2.0},
}


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
