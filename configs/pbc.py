"""Pretraining alone, on the PBC set: the model that transfers start from, and the public benchmark.

    python launch.py --config=configs/pbc.py --config.source.data=PBC_dataset_normal_DIB.zip

Without a split of its own the set is divided 85 : 15, stratified; --config.source.splits=FILE.csv sets another.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import SMOKE, change, choose
from rcmnet_jax.config import ExperimentConfig


def get_config(preset: str = "") -> ConfigDict:
    """The config of a preset: '' (64 px, from scratch) or 'smoke'."""
    default = change(ExperimentConfig(), source={"epochs": 12.0}, target={"data": "none"})
    smoke = change(default, **SMOKE)
    return choose(preset, {"": default, "smoke": smoke}, "configs/pbc.py")
