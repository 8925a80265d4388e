"""The main job: pretrain on the public PBC set, transfer to a small clinical set, evaluate, report.

    python launch.py --config=configs/cart.py            embedded synthetic cells, 2 CPU cores, under 10 minutes
    python launch.py --config=configs/cart.py:smoke      every stage at toy size, under a minute: for tests
    python launch.py --config=configs/cart.py:paper      224 px, for accelerators
    python launch.py --config=configs/cart.py:auto       each fold takes the recipe that its inner split likes best

With real cells: --config.source.data=PBC_dataset_normal_DIB.zip --config.target.data=FOLDER_OR_CSV
The scores to expect stand in docs/results.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import SMOKE, change, choose
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.recipes import RECIPES


def get_config(preset: str = "") -> ConfigDict:
    """The config of a preset: '' (default), 'smoke', 'paper' or 'auto'."""
    default = ExperimentConfig()
    smoke = change(
        default,
        **SMOKE,
        target={"data": "synthetic:cart-tiny", "folds": "2", "epochs": 2.0},
        checkpoint={"every_steps": 5},
    )
    paper = change(
        default,
        image_size=224,
        batch_size=256,
        source={"epochs": 60.0, "optimizer": {"precision": "bfloat16", "warmup_epochs": 5.0}},
        target={"epochs": 40.0, "seeds": 5, "optimizer": {"precision": "bfloat16", "warmup_epochs": 2.0}},
    )
    auto = change(default, target={"recipes": tuple(RECIPES), "budget_minutes": 60.0})
    return choose(preset, {"": default, "smoke": smoke, "paper": paper, "auto": auto}, "configs/cart.py")
