"""Training one network: what it needs, its checkpoints, and the weights that come of it."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np

from rcmnet_jax.background import BackgroundTask
from rcmnet_jax.checkpoint.store import Store
from rcmnet_jax.config import ExperimentConfig, OptimizerConfig, SourceConfig, TargetConfig
from rcmnet_jax.data.loader import GrowingLoader, Loader, ResidentLoader, StreamLoader, shrink
from rcmnet_jax.data.prepare import PreparedSet
from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation.metrics import balanced_accuracy
from rcmnet_jax.evaluation.predict import forward, reestimate
from rcmnet_jax.models import Network
from rcmnet_jax.training import heads
from rcmnet_jax.training import optimizer as optimizers
from rcmnet_jax.training import state as states
from rcmnet_jax.training.loop import RunServices, TrainingPlan, train
from rcmnet_jax.training.multistep import make_multistep
from rcmnet_jax.training.sharding import Placement
from rcmnet_jax.training.sizes import at_size
from rcmnet_jax.training.state import TrainState
from rcmnet_jax.training.step import StepConfig, StepFn, make_optimizer, make_train_step

Tree = dict[str, Any]
Weights = tuple[Tree, Tree]  # params and batch_stats
Path = tuple[str, ...]  # of a leaf


@dataclass(frozen=True)
class Run:
    """What every stage of a run shares."""

    config: ExperimentConfig
    workdir: pathlib.Path
    placement: Placement
    services: RunServices
    ahead: BackgroundTask = field(default_factory=BackgroundTask)

    def seed(self, name: str) -> int:
        """A seed in [0, 2^31) of its own for each name."""
        digest = hashlib.sha256(f"{self.config.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1


@dataclass(frozen=True)
class TrainingImages:
    """A prepared set where a stage wants it: on the device for all stages that use it, or streamed."""

    data: PreparedSet
    run: Run

    @cached_property
    def streamed(self) -> bool:
        """Whether it is read through Grain."""
        kind, n = self.run.config.loader.kind, len(self.data.examples.label)
        size = n * self.data.rule.size**2 * 3 / 2**30
        return kind == "stream" or (kind == "auto" and size > self.run.config.loader.resident_gib)

    @cached_property
    def resident(self) -> jax.Array:
        """uint8 (N, S, S, 3), a copy on each device."""
        images: jax.Array = self.run.placement.put_copies(self.data.images())
        return images

    def loader(self, rows: np.ndarray, seed: int, sampling: str = "uniform", soft: np.ndarray | None = None) -> Loader:
        """The stream of batches over some rows, sampled as `data.loader.make_order` says; `soft` as loaders take it."""
        config, labels = self.run.config, np.maximum(self.data.examples.label, 0)
        if self.streamed:
            return StreamLoader(
                self.data.reader(), labels, rows, batch_size=config.batch_size, seed=seed,
                placing=self.run.placement, workers=config.loader.workers, sampling=sampling, soft=soft,
            )  # fmt: skip
        return ResidentLoader(
            self.resident, labels, rows, batch_size=config.batch_size, seed=seed, placing=self.run.placement,
            sampling=sampling, soft=soft,
        )  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One network to train: on which rows, from which weights, how long."""

    name: str  # its folder in the workdir
    pixels: TrainingImages
    rows: np.ndarray
    network: Network
    start: Weights
    settings: SourceConfig | TargetConfig
    steps: int  # 0: the start is the result
    head_steps: int = 0
    transferred: frozenset[Path] = frozenset()  # leaves of the start that come from elsewhere, for `pull`
    soft: np.ndarray | None = None  # float32 (N, K) over all rows of `pixels`: what of a target is not its label's
    chosen: str = ""  # name of the recipe, where recipes are tried
    watch: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # rows whose accuracy is noted each epoch
    epoch_images: int = 0  # those that an epoch counts, 0: the rows
    choose: bool = False  # take the epoch that is best on `watch`, not the last

    @property
    def growing(self) -> tuple[int, int]:
        """The smaller side that images have at first, and how many steps that lasts; 0, 0 without."""
        if isinstance(self.settings, SourceConfig) and self.settings.start_size:
            return self.settings.start_size, round(self.settings.grow * self.steps)
        return 0, 0

    @property
    def images(self) -> int:
        """How many an epoch counts."""
        return self.epoch_images or len(self.rows)

    @property
    def folder_of(self) -> pathlib.Path:
        """Its folder below the workdir."""
        return self.pixels.run.workdir / self.name


@dataclass(frozen=True)
class Trained:
    """Weights to use (averages over the steps), and the step they are from."""

    params: Tree
    batch_stats: Tree
    step: int
    store: Store | None = None  # where the last checkpoint may still be on its way to disk

    def settle(self) -> None:
        """Returns when the last checkpoint is on disk, and raises what kept it from there."""
        if self.store is not None:
            self.store.wait()


def step_config(job: Job) -> StepConfig:
    """What of a job's settings is compiled into its step."""
    return step_config_of(job.settings, bool(job.transferred))


def step_config_of(settings: SourceConfig | TargetConfig, transferred: bool) -> StepConfig:
    """As `step_config`, of a stage's settings; frozen statistics and layer decay are for transferred weights alone."""
    plain = OptimizerConfig()
    # These enter as numbers: stages that differ in nothing else share a program.
    optimizer = dataclasses.replace(
        settings.optimizer,
        learning_rate=plain.learning_rate,
        warmup_epochs=plain.warmup_epochs,
        class_weights=plain.class_weights,
    )
    frozen = transferred and isinstance(settings, TargetConfig) and settings.batch_norm == "frozen"
    return StepConfig(optimizer, settings.augment, frozen, settings.layer_decay if transferred else 1.0)


def fit(job: Job) -> Trained:
    """Trains a network, going on where an earlier process stopped. Its last save goes on: see `Trained.settle`."""
    if not job.steps:
        return Trained(*job.start, 0, _kept(job))
    run = job.pixels.run
    keeper = _BestEpoch(job) if len(job.watch) else None
    store = Store(job.folder_of / "checkpoints", keep=run.config.checkpoint.keep, warn=run.services.console.warn)
    try:
        ready = prepared(job)
        run.ahead.wait(run.services.stop.check_alone)
        state = train(*ready, store, run.services, keeper.look if keeper else None)
        params = heads.narrow(jax.device_get(state.ema_params), job.network)
        trained = Trained(params, jax.device_get(state.ema_batch_stats), job.steps, store)
        if keeper and job.choose:
            trained = keeper.best(trained)
        if isinstance(job.settings, TargetConfig) and job.settings.batch_norm == "reestimate" and trained.batch_stats:
            # Rows lie class by class, and a batch of one class has other moments than those of training.
            mixed = np.random.default_rng(run.seed(f"{job.name}/moments")).permutation(job.rows)
            images = job.pixels.data.images(mixed)
            stats = reestimate(job.network, trained.params, trained.batch_stats, images, run.placement)
            trained = dataclasses.replace(trained, batch_stats=jax.device_get(stats))
    except BaseException:
        store.close()
        raise
    return trained


def prepared(job: Job) -> tuple[TrainingPlan, TrainState, StepFn, Loader]:
    """The plan, the first state, the step function and the loader that `train` takes."""
    run, compiled = job.pixels.run, step_config(job)
    config, placement = run.config, run.placement
    labels = job.pixels.data.examples.label[job.rows]
    network, (params, batch_stats) = heads.wide(job.network), job.start
    size, until = job.growing
    plan = TrainingPlan(
        name=job.name,
        steps=job.steps,
        batch_size=config.batch_size,
        learning_rates=optimizers.learning_rates(
            job.settings.optimizer,
            epochs=job.steps * config.batch_size / job.images,
            steps=job.steps,
            batch_size=config.batch_size,
        ),
        class_weights=optimizers.class_weights(job.settings.optimizer, labels, job.network.classes),
        seed=run.seed(job.name),
        head_steps=job.head_steps,
        steps_per_epoch=job.images / config.batch_size,
        anchor=_anchor(job),
        save_every=config.checkpoint,
        multistep=make_multistep(network, compiled, placement, config.steps_per_dispatch),
        larger_from=until,
    )
    optimizer = make_optimizer(network, compiled)
    state = placement.put_copies(states.create(heads.widen(params, job.network), batch_stats, optimizer))
    sampling = job.settings.sampling if isinstance(job.settings, TargetConfig) else "uniform"
    step = make_train_step(network, compiled, placement)
    soft = None if job.soft is None else heads.pad(job.soft, network.classes)
    loader = job.pixels.loader(job.rows, plan.seed, sampling, soft)
    if until:
        loader = GrowingLoader(loader, size, until)
    return plan, state, step, loader


def _anchor(job: Job) -> optimizers.Anchor | None:
    """The job's start, copied to the devices, with the pull on what was transferred; None where nothing pulls."""
    pull = job.settings.pull
    if not (pull and job.transferred):
        return None
    start = heads.widen(job.start[0], job.network)
    strength = optimizers.map_with_names(lambda path: np.float32(pull * (path in job.transferred)), start)
    anchor: optimizers.Anchor = job.pixels.run.placement.put_copies(optimizers.Anchor(start, strength))
    return anchor


def _kept(job: Job) -> Store:
    """Saves weights that no loop trains, so that their leaf has a checkpoint like the others. The save goes on."""
    store = Store(job.folder_of / "checkpoints", keep=1, warn=job.pixels.run.services.console.warn)
    store.save(0, job.pixels.run.placement.put_copies(_named(*job.start)), {"stage": job.name})
    return store


def _named(params: Tree, batch_stats: Tree) -> Tree:
    return {"params": params, "batch_stats": batch_stats}


class _BestEpoch:
    """Notes balanced accuracy on the watched rows after each epoch; keeps the best weights where that decides."""

    def __init__(self, job: Job):
        self._job, self._best = job, -1.0
        self._images = job.pixels.data.images(job.watch)
        self._labels = job.pixels.data.examples.label[job.watch]
        self._store: Store | None = None
        if job.choose:
            self._store = Store(job.folder_of / "best", keep=1, warn=job.pixels.run.services.console.warn)

    def look(self, step: int, state: TrainState) -> None:
        job, run = self._job, self._job.pixels.run
        params, batch_stats = heads.narrow(state.ema_params, job.network), state.ema_batch_stats
        if self._store is not None and self._best < 0:
            found = self._store.restore(_named(params, batch_stats))
            self._best = found[2]["score"] if found else -1.0
        small, until = job.growing
        grown = step > until  # weights that have seen small images alone are right one time in six on large ones
        network, fit = at_size(job.network, job.network.image_size if grown else (small, small))
        images = self._images if grown else self._shrunk
        logits = forward(network, fit(params), batch_stats, images, run.placement)
        right = logits.argmax(-1) == self._labels
        score = balanced_accuracy(right, self._labels)
        run.services.records.write(
            job.name, "validation", step, balanced_accuracy=score, top1=float(right.mean()), images=len(right)
        )
        run.services.console.say(f"{job.name}: step {step}, {len(right)} images watched: top-1 {right.mean():.4f}")
        if self._store is not None and score > self._best:
            self._best = score
            self._store.save(step, _named(params, batch_stats), {"score": score})
            self._store.wait()

    @cached_property
    def _shrunk(self) -> np.ndarray:
        small, few = self._job.growing[0], 256
        return np.concatenate([shrink(self._images[i : i + few], small) for i in range(0, len(self._images), few)])

    def best(self, last: Trained) -> Trained:
        if self._store is None:
            return last
        found = self._store.restore(_named(last.params, last.batch_stats))
        self._store.close()
        if found is None:
            folder = self._job.folder_of
            raise UserError(f"{folder / 'best'}: the best epoch's weights are lost. Remove {folder} and run again.")
        step, tree, _ = found
        tree = jax.device_get(tree)
        return dataclasses.replace(last, params=tree["params"], batch_stats=tree["batch_stats"], step=step)
