"""Writes what the PyTorch twin answers to tests/reference/answers.npz, for places without PyTorch.

    python -m tests.reference.save

Weights and images come from `compare.problem`; of gradients and statistics each leaf's norm and its product with a
fixed random vector are kept, which no wrong leaf has both right.
"""

from pathlib import Path

import jax
import numpy as np

from rcmnet_jax.config import ModelConfig
from tests.reference.compare import problem, torch_step

ANSWERS = Path(__file__).parent / "answers.npz"
CASES = {
    "rcmnet": (ModelConfig(width=8), (64, 64)),
    "resnet50_cbam_mhsa": (ModelConfig(name="resnet50_cbam_mhsa", width=8), (40, 72)),
}


def digest(loss, logits, infer, gradients, statistics):
    """Small arrays that stand for one step's results."""
    random = np.random.default_rng(0)
    sums = [
        (np.linalg.norm(leaf), np.vdot(leaf, random.standard_normal(leaf.shape)))
        for leaf in jax.tree.leaves((gradients, statistics))
    ]
    return {"loss": np.asarray(loss), "logits": logits, "infer": infer, "sums": np.asarray(sums)}


def main():
    """Computes all cases in float64 and writes them."""
    answers = {}
    for name, (config, size) in CASES.items():
        for key, value in digest(*torch_step(*problem(config, size), np.float64)).items():
            answers[f"{name}.{key}"] = value
    np.savez_compressed(ANSWERS, **answers)


if __name__ == "__main__":
    main()
