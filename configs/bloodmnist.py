"""BloodMNIST by MedMNIST's protocol: its own split, trained on `train` alone, reported once on `test`.

    python -m rcmnet_jax.data.builders bloodmnist/64     (downloads and prepares it once; sizes 28, 64, 128, 224)
    python launch.py --config=configs/bloodmnist.py      64 px; presets :28, :128 and :224

A downloaded file works as well: --config.source.data=bloodmnist_64.npz. Published at 64 px, ImageNet-pretrained
ResNet-18, 3 seeds: 97.06 +- .11 (Doerrich et al., arXiv 2404.15786). Ours: not measured yet. Augmentation, views
and gentle rates are those of configs/pbc.py, without its crop, which these images have had; epochs and batches are this
protocol's own, and no size is grown into. --config.source.init_from=imagenet starts as theirs did.

MedMNIST's ACC and AUC are top1 and auroc here. Of its baselines' training (Adam, 1e-3, batches of 128, 100 epochs, the
epoch with the best AUC on `val`) nothing is taken over: the recipe is this project's, and the last weights count.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import PBC, SHARP, change, choose
from rcmnet_jax.config import ExperimentConfig


def get_config(preset: str = "") -> ConfigDict:
    """The config of a preset: '' (64 px), '28' (enlarged to 32 px, the network's least), '128' or '224'."""

    def at(size: int) -> ExperimentConfig:
        source = {"data": f"tfds:bloodmnist/{size}", "epochs": 30.0, "crop": 0.0}
        return change(
            ExperimentConfig(),
            image_size=max(size, 32),
            batch_size=64,
            source={**PBC, **source, "augment": PBC["augment"] if size <= 64 else SHARP},
            target={"data": "none"},
            evaluation={"views": "dihedral"},
        )

    return choose(preset, {"": at(64), "28": at(28), "128": at(128), "224": at(224)}, "configs/bloodmnist.py")
