"""Trains a tiny model for some steps in a process of its own, and saves what came of it: for comparisons of devices.

Usage: python -m tests.replica OUT.npz DEVICES STEPS PRECISION [PORT PROCESSES PROCESS]
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

out, devices, steps, precision = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
port, processes, process = (int(word) for word in sys.argv[5:8]) if len(sys.argv) > 5 else (0, 1, 0)
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
os.environ["JAX_ENABLE_X64"] = "1" if precision == "float64" else "0"

import rcmnet_jax  # noqa: E402, F401, I001

import jax  # noqa: E402
import numpy as np  # noqa: E402

from rcmnet_jax.config import AugmentConfig, ModelConfig, OptimizerConfig  # noqa: E402
from rcmnet_jax.data.loader import ResidentLoader  # noqa: E402
from rcmnet_jax.models import Network  # noqa: E402
from rcmnet_jax.training import state as states  # noqa: E402
from rcmnet_jax.training.sharding import Cluster, Placement, join_cluster  # noqa: E402
from rcmnet_jax.training.step import Controls, StepConfig, make_optimizer, make_train_step  # noqa: E402

SIZE, CLASSES, BATCH = 32, 3, 16


def main() -> None:
    if processes > 1:
        join_cluster(Cluster(f"127.0.0.1:{port}", processes, process))
    placement = Placement.everywhere()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, 40)
    network = Network(ModelConfig(width=8), classes=CLASSES, image_size=SIZE)
    step_config = StepConfig(OptimizerConfig(), AugmentConfig())
    wide = np.float64 if precision == "float64" else np.float32
    start = jax.tree.map(lambda leaf: np.asarray(leaf, wide), network.init(1))
    state = placement.put_copies(states.create(*start, make_optimizer(network, step_config)))
    step = make_train_step(network, step_config, placement)
    loader = ResidentLoader(
        placement.put_copies(images), labels, np.arange(40), batch_size=BATCH, seed=7, placing=placement
    )
    losses, digests = [], []
    for k in range(steps):
        batch = loader.batch(k)
        digests.append(_digest(batch, placement))
        state, metrics = step(state, batch, Controls.on_host(0.02, True, np.ones(CLASSES), 3))
        losses.append(float(metrics.loss) / BATCH)
    if process == 0:
        flat, _ = jax.tree_util.tree_flatten_with_path((state.params, state.batch_stats, state.ema_params))
        leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}
        np.savez(out, losses=losses, digests=digests, **leaves)


def _digest(batch: object, placement: Placement) -> str:
    whole = jax.jit(lambda x: x, out_shardings=placement.replicated)(batch)
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(whole))).hexdigest()


main()
