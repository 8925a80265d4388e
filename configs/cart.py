"""The main job: pretrain on the public PBC set, transfer to a small clinical set, evaluate, report.

    python launch.py --config=configs/cart.py            embedded synthetic cells, 5 to 10 minutes on 2 CPU cores
    python launch.py --config=configs/cart.py:smoke      every stage at toy size, under a minute: for tests
    python launch.py --config=configs/cart.py:paper      224 px, for accelerators; not measured
    python launch.py --config=configs/cart.py:real       for real cells: the recipe of configs/pbc.py, longer transfers
    python launch.py --config=configs/cart.py:shapes     the same where classes are shapes, as of red cells
    python launch.py --config=configs/cart.py:auto       each fold takes the recipe that its inner split likes best

With real cells: :real --config.source.data=PBC_dataset_normal_DIB.zip --config.target.data=FOLDER_OR_CSV
The scores to expect stand in docs/results.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import PBC, REAL, SHAPES, SHARP, SMOKE, change, choose
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.recipes import RECIPES


def get_config(preset: str = "") -> ConfigDict:
    """The config of a preset: '' (default), 'smoke', 'real', 'shapes', 'paper' or 'auto'."""
    base = ExperimentConfig()
    # Synthetic cells are easy, and whoever tries this out waits for it.
    default = change(base, source={"epochs": 7.0}, target={"epochs": 5.0})
    smoke = change(
        base,
        **SMOKE,
        target={"data": "synthetic:cart-tiny", "folds": "2", "epochs": 2.0},
        checkpoint={"every_steps": 5},
    )
    real = change(
        base,
        source=PBC,
        target=REAL,
        evaluation={"views": "dihedral"},
    )
    shapes = change(real, target=SHAPES)
    bfloat16 = {"precision": "bfloat16"}
    # Batches of 256: 320 epochs are the 500 to 800 updates a fold that `real` takes.
    paper = change(
        real,
        image_size=224,
        batch_size=256,
        source={
            "epochs": 60.0,
            "augment": {**SHARP, "blur_power": 1.0},
            "optimizer": {**bfloat16, "warmup_epochs": 5.0},
        },
        target={
            "seeds": 5,
            "epochs": 320.0,
            "optimizer": {**bfloat16, "learning_rate": 0.05, "warmup_epochs": 16.0},
        },
    )
    auto = change(real, target={"recipes": tuple(RECIPES), "budget_minutes": 60.0})
    presets = {"": default, "smoke": smoke, "real": real, "shapes": shapes, "paper": paper, "auto": auto}
    return choose(preset, presets, "configs/cart.py")
