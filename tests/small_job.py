"""A network of toy size, ready to be trained on the smallest embedded set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.base import SMOKE, change
from rcmnet_jax import training_job
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.console import Console
from rcmnet_jax.intake import gather
from rcmnet_jax.models import Network
from rcmnet_jax.training.loop import RunServices
from rcmnet_jax.training.records import Records
from rcmnet_jax.training.sharding import Placement
from rcmnet_jax.training.stop import StopRequest


@contextlib.contextmanager
def small_job(workdir: Path, *, size: int = 32, epochs: int = 1, **source: Any) -> Iterator[training_job.Job]:
    """A pretraining at `size` pixels without running statistics that watches `val`; writes log.jsonl."""
    source = {**SMOKE["source"], **source}
    changes = {**SMOKE, "image_size": size, "model": {"width": 8, "norm": "group"}, "source": source}
    config = change(ExperimentConfig(), **changes, target={"data": "none"})
    with contextlib.closing(Records(workdir)) as records:
        services = RunServices(records, Console(active=False), StopRequest())
        run = training_job.Run(config, workdir, Placement.everywhere(), services)
        data = gather(config, workdir, services.console, services.stop)
        network = Network(config.model, classes=len(data.source.classes), image_size=size)
        rows, watch = data.holdout["train"], data.holdout["val"]
        steps, pixels = epochs * (len(rows) // config.batch_size), training_job.TrainingImages(data.source, run)
        yield training_job.Job("pretrain", pixels, rows, network, network.init(0), config.source, steps, watch=watch)
