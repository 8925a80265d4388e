"""The first step of pretraining, compiled from shapes alone before there are any images."""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import numpy as np

from rcmnet_jax import jobs, run_outputs
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.data.loader import Batch
from rcmnet_jax.models import Network
from rcmnet_jax.training import heads
from rcmnet_jax.training import state as states
from rcmnet_jax.training.multistep import make_multistep, resolve_steps_per_dispatch
from rcmnet_jax.training.step import Controls, make_optimizer, make_train_step
from rcmnet_jax.training_job import Run, step_config_of


def begin(run: Run, classes: int, images: int) -> None:
    """Starts to compile it in the background, unless it is past or its arguments are not known yet.

    Args:
      run: the run.
      classes: of the source.
      images: of the source, all parts together.
    """
    config, asked, folder = run.config, run.config.source, run.workdir / "pretrain"
    soft = asked.soft_labels or (folder / "soft_labels.json").exists()
    grown = asked.start_size and (folder / "checkpoints").exists()
    if jax.process_count() > 1 or asked.pull or soft or grown or run_outputs.is_done(folder):
        return
    network, count = jobs.network_of(config, classes, config.source_size), _together(config, images)
    if count is not None:
        run.ahead.begin(functools.partial(compile_step, run, network, count))


def _together(config: ExperimentConfig, images: int) -> int | None:
    """How many steps the first program takes, None where that is not sure: few in an epoch or between saves."""
    count, save = resolve_steps_per_dispatch(config.steps_per_dispatch), config.checkpoint.every_steps
    room = images // config.batch_size >= 2 * count and (not save or save >= count)
    return count if count == 1 or room else None


def compile_step(run: Run, network: Network, count: int) -> None:
    """Compiles the program for `count` steps that a stage on the source begins with; its call then finds it made.

    Nothing is pulled to a start and no label is soft.
    """
    config, placement, wide = run.config, run.placement, heads.wide(network)
    stage, rows = config.source, config.batch_size
    compiled, side = step_config_of(stage, bool(stage.init_from)), stage.start_size or config.source_size
    controls = Controls.on_host(0.0, True, np.ones(network.classes), 0)
    step, split = make_train_step(wide, compiled, placement), placement.split
    lead: tuple[int, ...] = ()
    if (several := make_multistep(wide, compiled, placement, count)) is not None:
        step, split, lead = several.run, placement.split_steps, (count,)
        controls = controls.at(np.zeros(lead), np.ones(lead, bool))

    def blank(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # type: ignore[no-untyped-call]

    params, batch_stats = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), wide.abstract())
    state = states.create(params, batch_stats, make_optimizer(wide, compiled))
    state = jax.tree.map(lambda leaf: blank(leaf.shape, leaf.dtype, placement.replicated), state)
    shapes = ((rows, side, side, 3), np.uint8), ((rows,), np.int32), ((rows, 2), np.uint32)
    batch = Batch(*(blank((*lead, *shape), dtype, split) for shape, dtype in shapes))
    cast("jax.stages.Wrapped", step).lower(state, batch, controls).compile()
