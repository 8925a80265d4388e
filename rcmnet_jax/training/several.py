"""Several steps in one program: where a step is over before the next is dispatched, the device would wait."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import lax

from rcmnet_jax.data.loader import Batch
from rcmnet_jax.models import Network
from rcmnet_jax.models.backend import on_cpu
from rcmnet_jax.training.sharding import Placement
from rcmnet_jax.training.state import TrainState
from rcmnet_jax.training.step import Controls, Metrics, Recipe, train_step

SeveralFn = Callable[[TrainState, tuple[Batch, ...], Controls], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class Several:
    """A program that takes `count` batches: the state after as many steps, and metrics (count,) each.

    Of its controls `learning_rate` and `body` are (count,), one for each step. The state is donated.
    """

    count: int
    run: SeveralFn


def several(network: Network, recipe: Recipe, placement: Placement, count: int) -> Several | None:
    """The program for `count` steps at once, 0: as many as the backend gains by; None where it is one."""
    count = count or (1 if on_cpu() else 8)
    return Several(count, _compiled(network, recipe, placement)) if count > 1 else None


@functools.lru_cache(maxsize=16)
def _compiled(network: Network, recipe: Recipe, placement: Placement) -> SeveralFn:
    return jax.jit(
        functools.partial(several_steps, network=network, recipe=recipe),
        donate_argnums=0,
        in_shardings=(placement.replicated, placement.split, placement.replicated),
        out_shardings=placement.replicated,
    )


def several_steps(
    state: TrainState, batches: tuple[Batch, ...], controls: Controls, *, network: Network, recipe: Recipe
) -> tuple[TrainState, Metrics]:
    """`train_step` on one batch after the other, what `Several.run` is compiled from."""

    def one(state: TrainState, given: tuple[Batch, jax.Array, jax.Array]) -> tuple[TrainState, Metrics]:
        batch, rate, body = given
        now = controls._replace(learning_rate=rate, body=body)
        return train_step(state, batch, now, network=network, recipe=recipe)

    stacked: Batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    # A loop that is not unrolled is 25 to 57 times slower on the CPU.
    return lax.scan(one, state, (stacked, controls.learning_rate, controls.body), unroll=on_cpu())


def hops(start: int, ends: list[int], count: int) -> Iterator[range]:
    """The steps from `start` to the last of `ends`, `count` of them at once; those left before an end one by one.

    `ends` ascend, each the number of steps done where something happens between steps. Where hops begin does not
    depend on `start`, so that a resumed run goes through the same programs; if `start` lies within one, its rest is
    gone one by one.
    """
    for low, high in pairwise([0, *ends]):
        whole = high - (high - low) % count
        for first in (*range(low, whole, count), *range(whole, high)):
            last = first + count if first < whole else first + 1
            if first >= start:
                yield range(first, last)
            elif last > start:
                yield from (range(step, step + 1) for step in range(start, last))
