"""Pretraining alone, on the PBC set: the model that transfers start from, and the public benchmark.

    python launch.py --config=configs/pbc.py --config.source.data=PBC_dataset_normal_DIB.zip
    python launch.py --config=configs/pbc.py:128 ...      128 px, begun at 64; :224 for accelerators
    python launch.py --config=configs/pbc.py:speedrun ... 96 px, begun at 64, 10 epochs: for speed
    python launch.py --config=configs/pbc.py:speedrun-gpu 128 px, begun at 64, large batches in bfloat16: not measured
    python launch.py --config=configs/pbc.py:plain ...    no crop, mild augmentation: what the others are compared with

With `--config.source.init_from=imagenet` (or a file of a ResNet-18's weights) it starts from ImageNet. Without a split
of its own the set is divided 85 : 15, stratified; --config.source.splits=FILE.csv sets another. The scores to expect
stand in docs/results.md.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.base import GROWN, PBC, SHARP, SMOKE, SPEEDRUN, change, choose
from rcmnet_jax.config import ExperimentConfig


def get_config(preset: str = "") -> ConfigDict:
    """The config of a preset: '' (64 px), '128', '224', 'speedrun', 'speedrun-gpu', 'plain' or 'smoke'."""

    def at(size: int, **source: Any) -> ExperimentConfig:
        return change(
            ExperimentConfig(), image_size=size, source=PBC | source, target={"data": "none"},
            evaluation={"views": "dihedral"},
        )  # fmt: skip

    plain = change(ExperimentConfig(), source={"epochs": 12.0}, target={"data": "none"})
    large = change(
        at(224, epochs=40.0, augment=SHARP, optimizer={"precision": "bfloat16", "warmup_epochs": 3.0}), batch_size=256
    )
    few = {"precision": "bfloat16", "warmup_epochs": 2.0, "ema_decay": 0.98}  # 47 steps an epoch: averages of one
    gpu = change(at(128, **GROWN, optimizer=few), batch_size=256)
    presets = {
        "": at(64),
        "128": at(128, **GROWN),
        "224": large,
        "speedrun": at(96, **SPEEDRUN),
        "speedrun-gpu": gpu,
        "plain": plain,
        "smoke": change(plain, **SMOKE),
    }
    return choose(preset, presets, "configs/pbc.py")
