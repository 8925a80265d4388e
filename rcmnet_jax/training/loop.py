"""The loop: take a batch, step, note what the last step gave, save when due."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np

from rcmnet_jax.checkpoint.store import Store
from rcmnet_jax.config import CheckpointConfig
from rcmnet_jax.console import Console
from rcmnet_jax.data.loader import Loader
from rcmnet_jax.errors import GuardError, Interrupted
from rcmnet_jax.training.multistep import Multistep, hops
from rcmnet_jax.training.optimizer import Anchor
from rcmnet_jax.training.records import Records
from rcmnet_jax.training.state import TrainState, from_tree, to_tree
from rcmnet_jax.training.step import Controls, Metrics, StepFn
from rcmnet_jax.training.stop import StopRequest


@dataclass(frozen=True)
class Stage:
    """One network's training, from its first step to its last."""

    name: str  # for instance transfer/seed_0/fold_2
    steps: int
    batch_size: int  # global
    learning_rates: np.ndarray  # (steps,) float32
    class_weights: np.ndarray  # (K,) float32
    seed: int  # of the order and the augmentation
    head_steps: int = 0  # the head trains alone before this step
    steps_per_epoch: float = 1.0
    anchor: Anchor | None = None  # on the devices, from the same source whenever the stage goes on
    save_every: CheckpointConfig = field(default_factory=CheckpointConfig)
    multistep: Multistep | None = None  # a program for several steps; None: each has its own call
    larger_from: int = 0  # the step from which images are larger than before; 0: never


@dataclass
class Surroundings:
    """What a loop reports to and listens to."""

    records: Records
    console: Console
    stop: StopRequest


def train(
    stage: Stage,
    state: TrainState,
    step_fn: StepFn,
    loader: Loader,
    store: Store,
    around: Surroundings,
    at_epoch: Callable[[int, TrainState], None] | None = None,
) -> TrainState:
    """Trains from the newest sound checkpoint, or from `state`, to the stage's last step, and begins to save there.

    `at_epoch(step, state)` is called when an epoch has ended; it must not keep the state, which is donated.

    Raises:
      GuardError: a loss, gradient or update was not finite; the last good checkpoint is left as it was.
      Interrupted: a stop was asked for; the current step has been saved.
    """
    resumed = store.restore(to_tree(state))
    if resumed is not None:
        step, tree, _ = resumed
        state = from_tree(tree, state)
        around.console.say(f"{stage.name}: going on from step {step} of {stage.steps}.")
    start = int(state.step)
    meter = _Meter(stage, around, start)
    controls = _Controls(stage)
    pending: tuple[range, Metrics] | None = None
    saved, saved_at = start, time.monotonic()
    with around.console.progress(stage.name, stage.steps, start) as bar:
        ends = _ends(stage, looked_at=at_epoch is not None)
        for hop in hops(start, ends, stage.multistep.count if stage.multistep else 1):
            done = hop.stop
            state, metrics = _dispatch(stage, state, step_fn, loader, controls, hop)
            if pending is not None:
                meter.read(*pending)  # a step late: reading the newest would make the device wait
                bar.update(pending[0].stop, meter.summary())
            pending = (hop, metrics)
            overdue = time.monotonic() - saved_at >= stage.save_every.every_seconds
            stopping, overdue = around.stop.agree(hop, overdue)
            if at_epoch is not None and _ends_epoch(done, stage):
                at_epoch(done, state)  # before any save or stop there: a resumed run will not come by again
            if stopping or (done < stage.steps and (overdue or _is_due(stage.save_every, done))):
                meter.read(*pending)  # no state is saved before its step is known to be sound
                pending = None
                saved, saved_at = done, _save(store, stage, done, state, around)
            if stopping:
                store.wait()
                raise Interrupted(f"{stage.name}: stopped after step {done}, which is saved; run again to go on.")
        if pending is not None:
            meter.read(*pending)
            bar.update(stage.steps, meter.summary())
    if saved < stage.steps:
        _save(store, stage, stage.steps, state, around)
    return state


def _dispatch(
    stage: Stage, state: TrainState, step_fn: StepFn, loader: Loader, controls: _Controls, hop: range
) -> tuple[TrainState, Metrics]:
    """The steps of a hop, in one program where there are several."""
    if len(hop) > 1 and stage.multistep is not None:
        return stage.multistep.run(state, loader.batches(hop), controls.over(hop))
    return step_fn(state, loader.batch(hop.start), controls(hop.start))


def _save(store: Store, stage: Stage, step: int, state: TrainState, around: Surroundings) -> float:
    """Begins a save, notes for how long that held the loop up, and returns when it was."""
    start = time.monotonic()
    store.save(step, to_tree(state), {"stage": stage.name})
    now = time.monotonic()
    around.records.write(stage.name, "checkpoint", step, held_up=now - start)
    return now


def _ends(stage: Stage, looked_at: bool) -> list[int]:
    """After how many steps a hop must be over: epochs that are looked at, saves by step, before larger images, all."""

    def ends(step: int) -> bool:
        looks = looked_at and _ends_epoch(step, stage)
        return looks or _is_due(stage.save_every, step) or step in (stage.larger_from, stage.steps)

    return [step for step in range(1, stage.steps + 1) if ends(step)]


def _is_due(config: CheckpointConfig, step: int) -> bool:
    return bool(config.every_steps) and step % config.every_steps == 0


def _ends_epoch(step: int, stage: Stage) -> bool:
    return step == stage.steps or math.floor(step / stage.steps_per_epoch) > math.floor(
        (step - 1) / stage.steps_per_epoch
    )


class _Controls:
    """The controls of each step."""

    def __init__(self, stage: Stage):
        self._stage = stage
        made = Controls.on_host(0.0, True, stage.class_weights, stage.seed % 2**32)
        self._lasting = made._replace(anchor=stage.anchor)

    def __call__(self, step: int) -> Controls:
        return self._lasting.at(float(self._stage.learning_rates[step]), step >= self._stage.head_steps)

    def over(self, hop: range) -> Controls:
        """Those of the steps of a hop, as `Multistep.run` takes them."""
        rates = self._stage.learning_rates[hop.start : hop.stop]
        return self._lasting.at(rates, np.asarray(hop) >= self._stage.head_steps)


class _Meter:
    """Adds metrics up and writes their means about 200 times a stage."""

    def __init__(self, stage: Stage, around: Surroundings, start: int):
        self._stage, self._around = stage, around
        self._every = max(1, stage.steps // 200)
        self._sums = np.zeros(3)
        self._norm = 0.0
        self._last = {"loss": math.nan, "accuracy": math.nan}
        self._clock, self._clock_step = time.monotonic(), start

    def read(self, hop: range, metrics: Metrics) -> None:
        rows = zip(*(np.atleast_1d(values) for values in jax.device_get(metrics)), strict=True)
        now = time.monotonic()  # the steps of a hop end together, as far as anyone sees
        rate = (hop.stop - self._clock_step) * self._stage.batch_size / max(now - self._clock, 1e-9)
        for step, row in enumerate(rows, hop.start + 1):
            self._add(step, Metrics(*row))
            if step % self._every == 0 or step == self._stage.steps:
                self._write(step, rate)
                self._clock, self._clock_step = now, hop.stop

    def _add(self, step: int, values: Metrics) -> None:
        if not bool(values.finite):
            raise GuardError(
                f"{self._stage.name}: the loss, gradient or update of step {step} is not finite (loss "
                f"{float(values.loss) / float(values.examples):g}). The last good checkpoint is untouched; try a lower "
                "learning rate, a longer warm-up or float32."
            )
        self._sums += [float(values.loss), float(values.correct), float(values.examples)]
        self._norm = float(values.gradient_norm)

    def _write(self, step: int, rate: float) -> None:
        loss, correct, count = self._sums
        self._sums = np.zeros(3)
        self._last = {"loss": loss / count, "accuracy": correct / count}
        self._around.records.write(
            self._stage.name,
            "train",
            step,
            epoch=step / self._stage.steps_per_epoch,
            **self._last,
            learning_rate=float(self._stage.learning_rates[step - 1]),
            gradient_norm=self._norm,
            images_per_second=rate,
        )

    def summary(self) -> str:
        """What the progress bar shows."""
        return "" if math.isnan(self._last["loss"]) else f"loss {self._last['loss']:.3f}"
