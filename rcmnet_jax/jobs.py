"""From settings to a network's job: which network, and from which weights it starts."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rcmnet_jax.bundle import Bundle
from rcmnet_jax.checkpoint import initial
from rcmnet_jax.checkpoint.transfer import Report, transfer
from rcmnet_jax.config import ExperimentConfig, TargetConfig
from rcmnet_jax.evaluation import probe
from rcmnet_jax.evaluation.predict import forward
from rcmnet_jax.files import write_json
from rcmnet_jax.models import Network
from rcmnet_jax.training import optimizer as optimizers
from rcmnet_jax.training.sharding import is_main_process
from rcmnet_jax.training_job import Job, Run, TrainingImages, Weights


@dataclass(frozen=True)
class Start:
    """Weights to start from, and which leaves of the parameters came from elsewhere."""

    weights: Weights
    transferred: frozenset[tuple[str, ...]] = frozenset()


@functools.cache
def network_of(config: ExperimentConfig, classes: int, size: int) -> Network:
    """The config's network for a number of classes at an image size; one object, so that stages share programs."""
    return Network(
        config.model, classes=classes, image_size=size, imported=initial.is_imported(config.source.init_from)
    )


def initialised(run: Run, network: Network, fresh: Weights, folder: Path, what: str, *, verbose: bool = True) -> Start:
    """The weights of `source.init_from` in a fresh network; the account goes to the folder's transfer.json."""
    params, stats, report = initial.load(run.config.source.init_from, network, fresh)
    _note(run, folder, f"{what} from {run.config.source.init_from}", report, verbose=verbose)
    return Start((params, stats), _taken(report))


def start_of(run: Run, network: Network, name: str, arm: str, source: Bundle | None, *, verbose: bool = False) -> Start:
    """Where an arm starts: scratch at random, direct at `source.init_from`, the others at the pretrained body.

    Where nothing was pretrained here, `source.init_from` takes its place. The same at every call.
    """
    fresh, folder = network.init(run.seed(f"{name}/init")), run.workdir / name
    if arm == "scratch":
        return Start(fresh)
    if source is None or arm == "direct":
        return initialised(run, network, fresh, folder, arm, verbose=verbose)
    params, stats, report = transfer(
        source.params, source.batch_stats, *fresh, head=network.head, position=network.is_position_table
    )
    _note(run, folder, "transfer of the pretrained body", report, verbose=verbose)
    return Start((params, stats), _taken(report))


def make_job(
    run: Run,
    pixels: TrainingImages,
    name: str,
    arm: str,
    rows: np.ndarray,
    source: Bundle | None,
    settings: TargetConfig,
    *,
    images: int = 0,
    verbose: bool = False,
) -> Job:
    """The training of an arm's network on some rows of the target; `name` is its folder and seeds all it draws.

    `images` are those that an epoch counts, 0: the rows.
    """
    network = network_of(run.config, len(pixels.data.classes), run.config.target_size)
    start = start_of(run, network, name, arm, source, verbose=verbose)
    weights = start.weights
    if settings.head == "probe" and arm != "scratch":
        weights = with_probe(pixels, network, weights, rows)
    counted = images or len(rows)
    head = steps_of(settings.freeze_epochs, counted, run.config.batch_size) if arm != "scratch" else 0
    steps = steps_of(settings.epochs, counted, run.config.batch_size)
    return Job(name, pixels, rows, network, weights, settings, steps, head, start.transferred, epoch_images=images)


def steps_of(epochs: float, images: int, batch_size: int) -> int:
    """Updates in so many epochs; none in none."""
    return optimizers.total_steps(epochs, images, batch_size) if epochs else 0


def with_probe(pixels: TrainingImages, network: Network, weights: Weights, rows: np.ndarray) -> Weights:
    """The weights with the linear probe of the rows as their head."""
    placement = pixels.run.placement
    params, batch_stats = placement.put_copies(weights)  # once, and not with each batch
    images, labels = pixels.data.images(rows), pixels.data.examples.label[rows]
    views = pixels.run.config.evaluation.views  # as the bundle will be asked
    embeddings = forward(network, params, batch_stats, images, placement, output="embedding", views=views)
    kernel, bias = probe.fit(embeddings, labels, network.classes)
    return {**weights[0], network.head[0]: {"kernel": kernel, "bias": bias}}, weights[1]


def _taken(report: Report) -> frozenset[tuple[str, ...]]:
    leaves = (tuple(leaf.name.split("/")) for kind in ("loaded", "resized") for leaf in report.of(kind))
    return frozenset(path[1:] for path in leaves if path[0] == "params")


def _note(run: Run, folder: Path, what: str, report: Report, *, verbose: bool) -> None:
    if is_main_process():
        write_json(folder / "transfer.json", report.to_dict())
    if verbose:
        run.services.console.say(f"{what}:")
        for line in report.lines():
            run.services.console.say(f"  {line}")
