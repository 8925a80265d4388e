"""Training one network and leaving its leaf of the workdir: checkpoints, bundle, predictions and metrics."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rcmnet_jax import __version__
from rcmnet_jax import bundle as bundles
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.checkpoint.store import Store
from rcmnet_jax.config import ExperimentConfig, SourceConfig, TargetConfig, config_hash
from rcmnet_jax.data.loader import Loader, ResidentLoader, StreamLoader
from rcmnet_jax.data.prepare import PreparedSet
from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation import novelty
from rcmnet_jax.evaluation.metrics import compute, to_json
from rcmnet_jax.evaluation.predict import forward, reestimate
from rcmnet_jax.evaluation.tables import Table, make_table, write_table
from rcmnet_jax.files import recover_folders, write_atomic
from rcmnet_jax.models import Network
from rcmnet_jax.training import optimizer as optimizers
from rcmnet_jax.training import state as states
from rcmnet_jax.training.loop import Stage, Surroundings, train
from rcmnet_jax.training.sharding import Placement, agreed, barrier, is_main_process
from rcmnet_jax.training.state import TrainState
from rcmnet_jax.training.step import Recipe, make_optimizer, make_train_step

Tree = dict[str, Any]
Weights = tuple[Tree, Tree]  # params and batch_stats


@dataclass(frozen=True)
class Run:
    """What every stage of a run shares."""

    config: ExperimentConfig
    workdir: Path
    placement: Placement
    around: Surroundings

    def seed(self, name: str) -> int:
        """A seed in [0, 2^31) of its own for each name."""
        digest = hashlib.sha256(f"{self.config.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1


@dataclass(frozen=True)
class Pixels:
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

    def loader(self, rows: np.ndarray, seed: int) -> Loader:
        """The stream of batches over some rows."""
        config, labels = self.run.config, np.maximum(self.data.examples.label, 0)
        if self.streamed:
            return StreamLoader(
                self.data.reader(), labels, rows, batch_size=config.batch_size, seed=seed,
                placing=self.run.placement, workers=config.loader.workers,
            )  # fmt: skip
        return ResidentLoader(
            self.resident, labels, rows, batch_size=config.batch_size, seed=seed, placing=self.run.placement
        )


@dataclass(frozen=True)
class Job:
    """One network to train: on which rows, from which weights, how long."""

    name: str  # its folder in the workdir
    pixels: Pixels
    rows: np.ndarray
    network: Network
    start: Weights
    stage: SourceConfig | TargetConfig
    recipe: Recipe
    steps: int
    head_steps: int = 0
    watch: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # rows whose accuracy is noted each epoch
    choose: bool = False  # take the epoch that is best on `watch`, not the last

    @property
    def folder_of(self) -> Path:
        """Its folder below the workdir."""
        return self.pixels.run.workdir / self.name


@dataclass(frozen=True)
class Trained:
    """Weights to use (averages over the steps), and the step they are from."""

    params: Tree
    batch_stats: Tree
    step: int


def recipe(stage: SourceConfig | TargetConfig) -> Recipe:
    """What of a stage's config is compiled into its step."""
    if isinstance(stage, TargetConfig):
        return Recipe(stage.optimizer, stage.augment, stage.batch_norm == "frozen", stage.layer_decay)
    return Recipe(stage.optimizer, stage.augment)


def fit(job: Job) -> Trained:
    """Trains a network, going on where an earlier process stopped."""
    run = job.pixels.run
    config, placement = run.config, run.placement
    tune = make_optimizer(job.network, job.recipe)
    state = placement.put_copies(states.create(*job.start, tune))
    labels = job.pixels.data.examples.label[job.rows]
    epochs = job.steps * config.batch_size / len(job.rows)
    stage = Stage(
        name=job.name,
        steps=job.steps,
        batch_size=config.batch_size,
        learning_rates=optimizers.learning_rates(
            job.stage.optimizer, epochs=epochs, steps=job.steps, batch_size=config.batch_size
        ),
        class_weights=optimizers.class_weights(job.stage.optimizer, labels, job.network.classes),
        seed=run.seed(job.name),
        head_steps=job.head_steps,
        steps_per_epoch=len(job.rows) / config.batch_size,
        save_every=config.checkpoint,
    )
    keeper = _BestEpoch(job) if len(job.watch) else None
    store = Store(job.folder_of / "checkpoints", keep=config.checkpoint.keep, warn=run.around.console.warn)
    try:
        state = train(
            stage,
            state,
            make_train_step(job.network, job.recipe, placement),
            job.pixels.loader(job.rows, stage.seed),
            store,
            run.around,
            keeper.look if keeper else None,
        )
    finally:
        store.close()
    trained = Trained(jax.device_get(state.ema_params), jax.device_get(state.ema_batch_stats), job.steps)
    if keeper and job.choose:
        trained = keeper.best(trained)
    if isinstance(job.stage, TargetConfig) and job.stage.batch_norm == "reestimate" and trained.batch_stats:
        images = job.pixels.data.images(job.rows)
        stats = reestimate(job.network, trained.params, trained.batch_stats, images, placement)
        trained = dataclasses.replace(trained, batch_stats=jax.device_get(stats))
    return trained


def keep(job: Job, trained: Trained) -> None:
    """Saves weights that no loop has trained, so that their leaf has a checkpoint like the others."""
    with Store(job.folder_of / "checkpoints", keep=1, warn=job.pixels.run.around.console.warn) as store:
        weights = job.pixels.run.placement.put_copies(_named(trained.params, trained.batch_stats))
        store.save(trained.step, weights, {"stage": job.name})
        store.wait()


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
            self._store = Store(job.folder_of / "best", keep=1, warn=job.pixels.run.around.console.warn)

    def look(self, step: int, state: TrainState) -> None:
        job, run = self._job, self._job.pixels.run
        if self._store is not None and self._best < 0:
            found = self._store.restore(_named(state.ema_params, state.ema_batch_stats))
            self._best = found[2]["score"] if found else -1.0
        logits = forward(job.network, state.ema_params, state.ema_batch_stats, self._images, run.placement)
        right = logits.argmax(-1) == self._labels
        recalls = [right[self._labels == k].mean() for k in np.unique(self._labels)]
        score = float(np.mean(recalls))
        run.around.records.write(
            job.name, "validation", step, balanced_accuracy=score, top1=float(right.mean()), images=len(right)
        )
        run.around.console.say(f"{job.name}: step {step}, {len(right)} images watched: top-1 {right.mean():.4f}")
        if self._store is not None and score > self._best:
            self._best = score
            self._store.save(step, _named(state.ema_params, state.ema_batch_stats), {"score": score})
            self._store.wait()

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
        return Trained(tree["params"], tree["batch_stats"], step)


def provenance(job: Job, trained: Trained) -> dict[str, Any]:
    """What a bundle says of its making; the same for every repetition of the same run."""
    data = job.pixels.data
    return {
        "package": f"rcmnet_jax {__version__}",
        "config_hash": config_hash(job.pixels.run.config),
        "stage": job.name,
        "steps": trained.step,
        "data": {
            "spec": data.spec,
            "fingerprint": data.fingerprint,
            "synthetic": data.synthetic,
            "train_images": len(job.rows),
            "train_groups": len(set(data.examples.group[job.rows].tolist()) - {""}),
        },
    }


def leave(job: Job, trained: Trained, ratios: np.ndarray | None = None) -> None:
    """Writes the network's bundle into its folder; `ratios` are as for `novelty.widened`."""
    data = job.pixels.data
    made = Bundle(job.network, data.classes, data.rule, trained.params, trained.batch_stats, provenance(job, trained))
    facts = novelty.fit_to(made, data, job.rows, job.pixels.run.placement)
    facts = facts if ratios is None else novelty.widened(facts, ratios)
    if is_main_process():
        bundles.write(job.folder_of / "bundle", dataclasses.replace(made, calibration={"ood": facts} if facts else {}))
    barrier(f"{job.name}/bundle")


def table_of(
    bundle: Bundle, data: PreparedSet, rows: np.ndarray, placement: Placement, *, split: str, seed: int, fold: int
) -> Table:
    """Predictions of a bundle on prepared rows: what `predict` gives on the same images."""
    found = bundle.answers(data.images(rows), placement)
    table = as_table(data, rows, found.probabilities, split=split, seed=seed, fold=fold)
    return dataclasses.replace(table, abstain=found.abstain, ood=found.ood)


def as_table(
    data: PreparedSet, rows: np.ndarray, probabilities: np.ndarray, *, split: str, seed: int, fold: int
) -> Table:
    """Probabilities (n, K) of prepared rows (n,) as a predictions table."""
    examples = data.examples
    return make_table(
        examples.path[rows],
        probabilities,
        data.classes,
        label=[data.classes[k] if k >= 0 else "" for k in examples.label[rows]],
        group=examples.group[rows],
        sha256=examples.sha256[rows],
        split=split,
        seed=seed,
        fold=fold,
    )


def report_leaf(run: Run, folder: Path, table: Table, facts: dict[str, Any]) -> None:
    """Writes predictions.csv, then metrics.json, whose presence marks the leaf as done."""
    if is_main_process():
        write_table(table, folder / "predictions.csv")
        metrics = compute(table, seed=run.config.seed, provenance=facts)
        write_atomic(folder / "metrics.json", to_json(metrics))
    barrier(f"{folder.name}/metrics")


def is_done(folder: Path, *, network: bool = True) -> bool:
    """Whether a leaf is complete and its bundle, if it has one, undamaged."""
    if is_main_process() and folder.is_dir():
        recover_folders(folder)
    done = (folder / "metrics.json").exists() and (folder / "predictions.csv").exists()
    return agreed(done and (not network or bundles.is_sound(folder / "bundle")))
