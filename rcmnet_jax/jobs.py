"""From settings to a network's job: which network, and from which weights it starts."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rcmnet_jax.bundle import Bundle
from rcmnet_jax.checkpoint import initial
from rcmnet_jax.checkpoint.transfer import Report, transfer
from rcmnet_jax.config import ExperimentConfig, TargetConfig
from rcmnet_jax.evaluation import probe
from rcmnet_jax.evaluation.predict import forward
from rcmnet_jax.files import write_json
from rcmnet_jax.models import Network
from rcmnet_jax.stages import Job, Pixels, Run, Weights
from rcmnet_jax.training import optimizer as optimizers
from rcmnet_jax.training.sharding import is_main_process


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


def initialised(here: Run, network: Network, fresh: Weights, folder: Path, what: str, *, aloud: bool = True) -> Start:
    """The weights of `source.init_from` in a fresh network; the account goes to the folder's transfer.json."""
    params, stats, report = initial.load(here.config.source.init_from, network, fresh)
    _note(here, folder, f"{what} from {here.config.source.init_from}", report, aloud=aloud)
    return Start((params, stats), _taken(report))


def start_of(here: Run, network: Network, name: str, arm: str, source: Bundle | None, *, aloud: bool = False) -> Start:
    """Where an arm starts: scratch at random, direct at `source.init_from`, the others at the pretrained body.

    Where nothing was pretrained here, `source.init_from` takes its place. The same at every call.
    """
    fresh, folder = network.init(here.seed(f"{name}/init")), here.workdir / name
    if arm == "scratch":
        return Start(fresh)
    if source is None or arm == "direct":
        return initialised(here, network, fresh, folder, arm, aloud=aloud)
    params, stats, report = transfer(
        source.params, source.batch_stats, *fresh, head=network.head, position=network.is_position_table
    )
    _note(here, folder, "transfer of the pretrained body", report, aloud=aloud)
    return Start((params, stats), _taken(report))


def make_job(
    here: Run,
    pixels: Pixels,
    name: str,
    arm: str,
    rows: np.ndarray,
    source: Bundle | None,
    settings: TargetConfig,
    *,
    images: int = 0,
    aloud: bool = False,
) -> Job:
    """The training of an arm's network on some rows of the target; `name` is its folder and seeds all it draws.

    `images` are those that an epoch counts, 0: the rows.
    """
    network = network_of(here.config, len(pixels.data.classes), here.config.target_size)
    start = start_of(here, network, name, arm, source, aloud=aloud)
    weights = start.weights
    if settings.head == "probe" and arm != "scratch":
        weights = with_probe(pixels, network, weights, rows)
    counted = images or len(rows)
    head = steps_of(settings.freeze_epochs, counted, here.config.batch_size) if arm != "scratch" else 0
    steps = steps_of(settings.epochs, counted, here.config.batch_size)
    return Job(name, pixels, rows, network, weights, settings, steps, head, start.transferred, epoch_images=images)


def steps_of(epochs: float, images: int, batch_size: int) -> int:
    """Updates in so many epochs; none in none."""
    return optimizers.total_steps(epochs, images, batch_size) if epochs else 0


def with_probe(pixels: Pixels, network: Network, weights: Weights, rows: np.ndarray) -> Weights:
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


def _note(here: Run, folder: Path, what: str, report: Any, *, aloud: bool) -> None:
    if is_main_process():
        write_json(folder / "transfer.json", report.to_dict())
    if aloud:
        here.around.console.say(f"{what}:")
        for line in report.lines():
            here.around.console.say(f"  {line}")
