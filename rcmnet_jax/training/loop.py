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
from rcmnet_jax.training.multistep import Multistep, dispatch_ranges
from rcmnet_jax.training.optimizer import Anchor
from rcmnet_jax.training.records import Records
from rcmnet_jax.training.state import TrainState, from_tree, to_tree
from rcmnet_jax.training.step import Controls, Metrics, StepFn
from rcmnet_jax.training.stop import StopRequest


@dataclass(frozen=True)
class TrainingPlan:
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
class RunServices:
    """What a loop reports to and listens to."""

    records: Records
    console: Console
    stop: StopRequest


def train(
    plan: TrainingPlan,
    state: TrainState,
    step_fn: StepFn,
    loader: Loader,
    store: Store,
    services: RunServices,
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
        services.console.say(f"{plan.name}: going on from step {step} of {plan.steps}.")
    start = int(state.step)
    meter = _Meter(plan, services, start)
    controls = _Controls(plan)
    pending: tuple[range, Metrics] | None = None
    saved, saved_at = start, time.monotonic()
    with services.console.progress(plan.name, plan.steps, start) as bar:
        ends = _ends(plan, looked_at=at_epoch is not None)
        for steps in dispatch_ranges(start, ends, plan.multistep.count if plan.multistep else 1):
            done = steps.stop
            state, metrics = _dispatch(plan, state, step_fn, loader, controls, steps)
            if pending is not None:
                meter.read(*pending)  # a step late: reading the newest would make the device wait
                bar.update(pending[0].stop, meter.summary())
            pending = (steps, metrics)
            overdue = time.monotonic() - saved_at >= plan.save_every.every_seconds
            stopping, overdue = services.stop.agree(steps, overdue)
            if at_epoch is not None and _ends_epoch(done, plan):
                at_epoch(done, state)  # before any save or stop there: a resumed run will not come by again
            if stopping or (done < plan.steps and (overdue or _is_due(plan.save_every, done))):
                meter.read(*pending)  # no state is saved before its step is known to be sound
                pending = None
                saved, saved_at = done, _save(store, plan, done, state, services)
            if stopping:
                store.wait()
                raise Interrupted(f"{plan.name}: stopped after step {done}, which is saved; run again to go on.")
        if pending is not None:
            meter.read(*pending)
            bar.update(plan.steps, meter.summary())
    if saved < plan.steps:
        _save(store, plan, plan.steps, state, services)
    return state


def _dispatch(
    plan: TrainingPlan, state: TrainState, step_fn: StepFn, loader: Loader, controls: _Controls, steps: range
) -> tuple[TrainState, Metrics]:
    """The steps of a dispatch, in one program where there are several."""
    if len(steps) > 1 and plan.multistep is not None:
        return plan.multistep.run(state, loader.batches(steps), controls.over(steps))
    return step_fn(state, loader.batch(steps.start), controls(steps.start))


def _save(store: Store, plan: TrainingPlan, step: int, state: TrainState, services: RunServices) -> float:
    """Begins a save, notes for how long that held the loop up, and returns when it was."""
    start = time.monotonic()
    store.save(step, to_tree(state), {"stage": plan.name})
    now = time.monotonic()
    services.records.write(plan.name, "checkpoint", step, held_up=now - start)
    return now


def _ends(plan: TrainingPlan, looked_at: bool) -> list[int]:
    """The steps after which a dispatch must end: looked-at epochs, saves by step, a change of image size, the last."""

    def ends(step: int) -> bool:
        looks = looked_at and _ends_epoch(step, plan)
        return looks or _is_due(plan.save_every, step) or step in (plan.larger_from, plan.steps)

    return [step for step in range(1, plan.steps + 1) if ends(step)]


def _is_due(config: CheckpointConfig, step: int) -> bool:
    return bool(config.every_steps) and step % config.every_steps == 0


def _ends_epoch(step: int, plan: TrainingPlan) -> bool:
    return step == plan.steps or math.floor(step / plan.steps_per_epoch) > math.floor((step - 1) / plan.steps_per_epoch)


class _Controls:
    """The controls of each step."""

    def __init__(self, plan: TrainingPlan):
        self._plan = plan
        made = Controls.on_host(0.0, True, plan.class_weights, plan.seed % 2**32)
        self._lasting = made._replace(anchor=plan.anchor)

    def __call__(self, step: int) -> Controls:
        return self._lasting.at(float(self._plan.learning_rates[step]), step >= self._plan.head_steps)

    def over(self, steps: range) -> Controls:
        """Those of the steps of a dispatch, as `Multistep.run` takes them."""
        rates = self._plan.learning_rates[steps.start : steps.stop]
        return self._lasting.at(rates, np.asarray(steps) >= self._plan.head_steps)


class _Meter:
    """Adds metrics up and writes their means about 200 times a stage."""

    def __init__(self, plan: TrainingPlan, services: RunServices, start: int):
        self._plan, self._services = plan, services
        self._every = max(1, plan.steps // 200)
        self._sums = np.zeros(3)
        self._norm = 0.0
        self._last = {"loss": math.nan, "accuracy": math.nan}
        self._clock, self._clock_step = time.monotonic(), start

    def read(self, steps: range, metrics: Metrics) -> None:
        rows = zip(*(np.atleast_1d(values) for values in jax.device_get(metrics)), strict=True)
        now = time.monotonic()  # the steps of a dispatch end together, as far as anyone sees
        rate = (steps.stop - self._clock_step) * self._plan.batch_size / max(now - self._clock, 1e-9)
        for step, row in enumerate(rows, steps.start + 1):
            self._add(step, Metrics(*row))
            if step % self._every == 0 or step == self._plan.steps:
                self._write(step, rate)
                self._clock, self._clock_step = now, steps.stop

    def _add(self, step: int, values: Metrics) -> None:
        if not bool(values.finite):
            raise GuardError(
                f"{self._plan.name}: the loss, gradient or update of step {step} is not finite (loss "
                f"{float(values.loss) / float(values.examples):g}). The last good checkpoint is untouched; try a lower "
                "learning rate, a longer warm-up or float32."
            )
        self._sums += [float(values.loss), float(values.correct), float(values.examples)]
        self._norm = float(values.gradient_norm)

    def _write(self, step: int, rate: float) -> None:
        loss, correct, count = self._sums
        self._sums = np.zeros(3)
        self._last = {"loss": loss / count, "accuracy": correct / count}
        self._services.records.write(
            self._plan.name,
            "train",
            step,
            epoch=step / self._plan.steps_per_epoch,
            **self._last,
            learning_rate=float(self._plan.learning_rates[step - 1]),
            gradient_norm=self._norm,
            images_per_second=rate,
        )

    def summary(self) -> str:
        """What the progress bar shows."""
        return "" if math.isnan(self._last["loss"]) else f"loss {self._last['loss']:.3f}"
