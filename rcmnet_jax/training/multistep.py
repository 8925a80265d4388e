"""Several steps in one program: where a step is over before the next is dispatched, the device would wait."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import jax
from jax import lax

from rcmnet_jax.data.loader import Batch
from rcmnet_jax.models import Network
from rcmnet_jax.models.backend import on_cpu
from rcmnet_jax.training.sharding import Placement
from rcmnet_jax.training.state import TrainState
from rcmnet_jax.training.step import Controls, Metrics, StepConfig, StepFn, train_step


@dataclass(frozen=True)
class Multistep:
    """A program that takes as many steps as `count` in one call.

    Its batch has all steps' rows, each leaf (count, B, ...); of its controls `learning_rate` and `body` are (count,).
    It returns the state after the last step and metrics (count,) each. The state is donated.
    """

    count: int
    run: StepFn


def resolve_steps_per_dispatch(asked: int) -> int:
    """How many steps a program takes where `asked` are wanted; 0: as many as the backend gains by."""
    return asked or (1 if on_cpu() else 8)


def make_multistep(network: Network, step_config: StepConfig, placement: Placement, count: int) -> Multistep | None:
    """The program for `resolve_steps_per_dispatch(count)` steps; None where that is one."""
    count = resolve_steps_per_dispatch(count)
    # A loop that is not unrolled is 25 to 57 times slower on the CPU.
    return Multistep(count, _compiled(network, step_config, placement, on_cpu())) if count > 1 else None


@functools.lru_cache(maxsize=16)
def _compiled(network: Network, step_config: StepConfig, placement: Placement, unroll: bool) -> StepFn:
    return jax.jit(
        functools.partial(train_steps, network=network, step_config=step_config, unroll=unroll),
        donate_argnums=0,
        in_shardings=(placement.replicated, placement.split_steps, placement.replicated),
        out_shardings=placement.replicated,
    )


def train_steps(
    state: TrainState, batches: Batch, controls: Controls, *, network: Network, step_config: StepConfig, unroll: bool
) -> tuple[TrainState, Metrics]:
    """`train_step` on one batch after the other; shapes as `Multistep` says."""

    def one(state: TrainState, given: tuple[Batch, jax.Array, jax.Array]) -> tuple[TrainState, Metrics]:
        batch, rate, body = given
        now = controls._replace(learning_rate=rate, body=body)
        return train_step(state, batch, now, network=network, step_config=step_config)

    return lax.scan(one, state, (batches, controls.learning_rate, controls.body), unroll=unroll)


def dispatch_ranges(start: int, ends: list[int], count: int) -> Iterator[range]:
    """The steps from `start` to the last of `ends`, by dispatch: `count` steps in one call, or a single one.

    `ends` ascend, each the number of steps done where something happens between steps, so that no dispatch may reach
    past it: what is left before an end is taken one by one. Where dispatches begin does not depend on `start`, so that
    a resumed run goes through the same programs; if `start` lies within one, its rest is taken one by one.
    """
    for low, high in pairwise([0, *ends]):
        whole = high - (high - low) % count
        for first in (*range(low, whole, count), *range(whole, high)):
            last = first + count if first < whole else first + 1
            if first >= start:
                yield range(first, last)
            elif last > start:
                yield from (range(step, step + 1) for step in range(start, last))
