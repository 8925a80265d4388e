"""A linear model that compiles in no time, with all that a training loop needs around it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from rcmnet_jax.config import AugmentConfig
from rcmnet_jax.console import Console
from rcmnet_jax.data.loader import ResidentLoader
from rcmnet_jax.training import loop
from rcmnet_jax.training import state as states
from rcmnet_jax.training.records import Records
from rcmnet_jax.training.sharding import Placement
from rcmnet_jax.training.step import make_optimizer
from rcmnet_jax.training.stop import StopRequest

SIZE, CLASSES, BATCH, N = 4, 3, 8, 24


class Linear:
    """A model with the interface that the step uses: a body that scales, a head that classifies."""

    head = ("fc",)
    image_size = (SIZE, SIZE)

    def __call__(self, params, batch_stats, images, *, train=False, dtype=jnp.float32):
        x = (images * params["body"]["kernel"]).reshape(len(images), -1).astype(dtype)
        stats = {"mean": 0.9 * batch_stats["mean"] + 0.1 * x.mean()} if train else batch_stats
        return x @ params["fc"]["kernel"] + params["fc"]["bias"], stats

    def init(self):
        rng = np.random.default_rng(0)
        kernel = rng.normal(size=(SIZE * SIZE * 3, CLASSES), scale=0.1).astype(np.float32)
        body = {"kernel": np.ones(3, np.float32)}
        return {"body": body, "fc": {"kernel": kernel, "bias": np.zeros(CLASSES, np.float32)}}, {"mean": np.float32(0)}

    def decays(self, path):
        return path[-1] == "kernel"

    def depth(self, path):
        return 0 if path[0] == "fc" else 2


PLAIN = AugmentConfig(dihedral=False, scale=0, shift=0, brightness=0, contrast=0, saturation=0, stain=0)
MODEL = Linear()
PLACEMENT = Placement.everywhere()


def fresh(step_config):
    return PLACEMENT.put_copies(states.create(*MODEL.init(), make_optimizer(MODEL, step_config)))


def batches(seed=3):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, N)
    return ResidentLoader(
        PLACEMENT.put_copies(images), labels, np.arange(N), batch_size=BATCH, seed=seed, placing=PLACEMENT
    )


def plan(steps=6, **changes):
    """Of epochs of three steps, where nothing else is said."""
    made = loop.TrainingPlan(
        "linear", steps, BATCH, np.full(steps, 0.1, np.float32), np.ones(CLASSES, np.float32), seed=1
    )
    return dataclasses.replace(made, **{"steps_per_epoch": N / BATCH} | changes)


@contextlib.contextmanager
def run_services(folder: Path) -> Iterator[loop.RunServices]:
    """What a loop reports to, with its log in the folder."""
    with contextlib.closing(Records(folder)) as records:
        yield loop.RunServices(records, Console(active=False), StopRequest())
