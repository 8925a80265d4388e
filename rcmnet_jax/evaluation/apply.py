"""The command `predict`: from a bundle and images to a predictions table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

from rcmnet_jax import bundle as bundles
from rcmnet_jax import canary, intake, runtime
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.console import Console
from rcmnet_jax.data.prepare import PreparedSet, prepare
from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation.overlay import PAGE, check_folder, write_overlays
from rcmnet_jax.evaluation.predict import reestimate
from rcmnet_jax.evaluation.tables import Table, make_table, write_table
from rcmnet_jax.training.sharding import Placement


def predict(folder: Path, spec: str, output: Path, *, adapt: bool = False, explain: Path | None = None) -> Table:
    """Applies the bundle at `folder` to the images that `spec` names, and writes the table to `output`.

    Args:
      adapt: re-estimate BatchNorm's statistics on these images first, for another stain or camera; uses no labels.
      explain: a new folder for a picture of each image, with what the network looked at.

    Raises:
      UserError: a bundle or images that cannot be used, or a place that cannot be written to.
    """
    if output.is_dir():
        raise UserError(f"--output={output}: is a folder. Name a CSV file.")
    if explain is not None:
        check_folder(explain)
    runtime.enable_compilation_cache()
    bundle, console = bundles.load(folder), Console()
    data = prepare(spec, bundle.rule, labelled=False)
    intake.report_skipped("predict", data, console)
    placement = Placement.everywhere()
    canary.check()
    if adapt:
        bundle = _adapted(bundle, data, placement)
    table = table_of(bundle, data, placement)
    write_table(table, output)
    console.say(f"{len(table)} predictions: {output}")
    if explain is not None:
        write_overlays(explain, bundle, data, table, console)
        console.say(f"What the network looked at: {explain / PAGE}")
    console.say(bundles.DISCLAIMER)
    return table


def _adapted(bundle: Bundle, data: PreparedSet, placement: Placement) -> Bundle:
    if not bundle.batch_stats:
        raise UserError("--adapt: this bundle's model has no BatchNorm statistics. Leave the flag out.")
    stats = reestimate(bundle.network, bundle.params, bundle.batch_stats, data.images(), placement)
    # What is strange was learnt with the old statistics: the flag would now hide just what made adapting worth a try.
    known = {key: value for key, value in bundle.calibration.items() if key != "ood"}
    return dataclasses.replace(bundle, batch_stats=jax.device_get(stats), calibration=known)


def table_of(bundle: Bundle, data: PreparedSet, placement: Placement, chunk: int = 4096) -> Table:
    """Predictions of a bundle on all of a prepared set; labels that are no class of the bundle stay empty."""
    examples = data.examples
    parts = [
        bundle.answers(data.images(np.arange(start, min(start + chunk, len(examples.path)))), placement)
        for start in range(0, len(examples.path), chunk)
    ]
    names = [data.classes[k] if k >= 0 else "" for k in examples.label]
    return make_table(
        examples.path,
        np.concatenate([part.probabilities for part in parts]),
        bundle.classes,
        label=[name if name in bundle.classes else "" for name in names],
        group=examples.group,
        sha256=examples.sha256,
        abstain=np.concatenate([part.abstain for part in parts]),
        ood=np.concatenate([part.ood for part in parts]),
        split=[split if split in ("train", "val", "test") else "" for split in examples.split.tolist()],
    )
