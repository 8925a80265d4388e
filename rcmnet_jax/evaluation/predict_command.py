"""The command `predict`: from a bundle and images to a predictions table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rcmnet_jax import bundle as bundles
from rcmnet_jax import canary, intake, runtime
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.console import Console
from rcmnet_jax.data.formats.base import UnreadableError, clash
from rcmnet_jax.data.images import ImageError, Pixels, decode
from rcmnet_jax.data.prepare import HeldSet, PreparedSet, prepare
from rcmnet_jax.data.sources import open_source
from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation import adapt as adapting
from rcmnet_jax.evaluation.calibration import Calibrated
from rcmnet_jax.evaluation.overlay import PAGE, check_folder, write_overlays
from rcmnet_jax.evaluation.tables import Table, make_table, write_table
from rcmnet_jax.files import refuse_within_bundle, write_atomic
from rcmnet_jax.training.sharding import Placement

_STRANGE = 0.05  # share of flagged images above which it is said; 0.01 of images like the training ones are flagged
_MANY = 3  # of a few images one flag says nothing


def predict(
    folder: Path,
    spec: str,
    output: Path,
    *,
    adapt: Sequence[str] = (),
    explain: Path | None = None,
    classes: Sequence[str] = (),
) -> Table:
    """Applies the bundle at `folder` to the images that `spec` names, and writes the table to `output`.

    Args:
      adapt: parts of `adapt.ADAPT_STEPS` by which these images and the bundle are first brought together, for another
        laboratory's stain, camera and scale; uses no labels. What was found goes to FILE.adapt.json.
      explain: a new folder for a picture of each image, with what the network looked at.
      classes: all classes that the images can be of, where that is known; the others get probability 0.

    Raises:
      UserError: a bundle or images that cannot be used, or a place that cannot be written to.
    """
    _check_output(output, spec)
    if explain is not None:
        check_folder(explain)
    programs = runtime.enable_compilation_cache()
    bundle, console = bundles.load(folder), Console()
    if classes:
        bundle = bundle.restricted_to(classes)
        console.say(f"Taken as known: the images are of {', '.join(classes)} alone.")
    data = prepare(spec, bundle.rule, labelled=False, keep=False)
    intake.report_skipped("predict", data, console)
    _say_unknown(bundle, data, console)
    placement = Placement.everywhere()
    canary.check(programs)
    if adapt:
        beside = output.with_suffix(".adapt.json")
        bundle, data, answers = _adapted(bundle, data, placement, adapt, beside, console)
    else:
        answers, _ = answered(bundle, data, placement)
        _say_strange(answers, console)
    table = table_of(bundle, data, answers)
    write_table(table, output)
    console.say(f"{len(table)} predictions: {output}")
    if explain is not None:
        write_overlays(explain, bundle, data, table, console)
        console.say(f"What the network looked at: {explain / PAGE}")
    console.say(bundles.DISCLAIMER)
    return table


def _check_output(output: Path, spec: str) -> None:
    """Refuses, before any work, a place for the table where it would destroy something; makes its folder."""
    if output.is_dir():
        raise UserError(f"--output={output}: is a folder. Name a CSV file.")
    if output.exists() and Path(spec).exists() and output.samefile(spec):
        raise UserError(f"--output={output}: is what is to be read. Name another file.")
    refuse_within_bundle(output, "--output")
    output.parent.mkdir(parents=True, exist_ok=True)


def _adapted(
    bundle: Bundle, data: PreparedSet, placement: Placement, parts: Sequence[str], beside: Path, console: Console
) -> tuple[Bundle, PreparedSet, Calibrated]:
    """The bundle and the images, adapted to one another, and its answers; says what was found, and writes `beside`."""
    source = open_source(data.spec, labelled=False)
    items = {item.path: item for item in source.items}
    paths = data.examples.path.tolist()

    def read(row: int) -> Pixels:
        try:
            return decode(source.read(items[paths[row]]))
        except (KeyError, UnreadableError, ImageError) as error:
            raise UserError(f"{data.spec}: {paths[row]} has changed while it was read. Run again.") from error

    made = adapting.adapt(bundle, read, len(paths), placement, parts)
    facts, sentences = dict(made.facts), list(made.sentences)
    whole = {f.name: getattr(data, f.name) for f in dataclasses.fields(PreparedSet)}
    shown = HeldSet(**whole, held=made.images)
    alone, features = answered(made.bundle, shown, placement)
    answers = made.answers(alone, features)
    if made.together:
        changed = int((answers.probabilities.argmax(1) != alone.probabilities.argmax(1)).sum())
        facts["neighbours"] = {**facts["neighbours"], "changed": changed}
        sentences.append(
            f"Answers lean on those of images that look alike to the network: {changed} of {len(paths)} are called "
            "otherwise than by themselves."
        )
    flags = answered(bundle, data, placement)[0].ood
    if (flags >= 0).all():
        facts["strange_before"] = float(flags.mean())
        sentences.append(
            f"Before adapting, {flags.mean():.0%} of the images are unlike the training images (column ood)."
        )
    for sentence in sentences:
        console.say(f"  {sentence}")
    write_atomic(beside, json.dumps(facts, indent=2) + "\n")
    return made.bundle, shown, answers


def _say_unknown(bundle: Bundle, data: PreparedSet, console: Console, most: int = 5) -> None:
    """Warnings of labels that the bundle does not know: one for each that it spells otherwise, one for all others."""
    known = {clash(name): name for name in bundle.classes}
    counts = {name: int((data.examples.label == k).sum()) for k, name in enumerate(data.classes)}
    unknown = [name for name, count in counts.items() if count and name not in bundle.classes]
    told = [([name], f"; it has '{known[clash(name)]}'") for name in unknown if clash(name) in known]
    told.append(([name for name in unknown if clash(name) not in known], ""))
    for names, meant in told:
        if names:
            more = f" and {len(names) - most} more" if len(names) > most else ""
            shown = ", ".join(f"'{name}'" for name in names[:most]) + more
            count = sum(counts[name] for name in names)
            console.warn(f"{count} images of {shown} have no label in the table: the bundle has no such class{meant}.")


def _say_strange(answers: Calibrated, console: Console) -> None:
    """A hint where many more images are flagged than the one in a hundred that is by chance."""
    strange, count = int((answers.ood == 1).sum()), len(answers.ood)
    if strange >= _MANY and strange > _STRANGE * count:
        console.say(
            f"{strange} of {count} images are unlike the training images (column ood), where one in a hundred would "
            "be. If they come from another laboratory, --adapt may help."
        )


def answered(
    bundle: Bundle, data: PreparedSet, placement: Placement, chunk: int = 512
) -> tuple[Calibrated, NDArray[np.floating]]:
    """A bundle's answers to all of a prepared set, each image by itself, and their features (N, C)."""
    # A last part of a few images joins the one before, so that each goes through the network as it would with all.
    count = len(data.examples.path)
    cuts = np.arange(chunk, count - chunk + 1, chunk)
    parts = [bundle.answers_and_features(data.images(rows), placement) for rows in np.split(np.arange(count), cuts)]
    joined = {
        field.name: np.concatenate([getattr(part, field.name) for part, _ in parts])
        for field in dataclasses.fields(Calibrated)
    }
    return Calibrated(**joined), np.concatenate([features for _, features in parts])


def table_of(bundle: Bundle, data: PreparedSet, answers: Calibrated) -> Table:
    """The table of a bundle's answers to a prepared set; labels that are no class of the bundle stay empty."""
    examples = data.examples
    names = [data.classes[k] if k >= 0 else "" for k in examples.label]
    return make_table(
        examples.path,
        answers.probabilities,
        bundle.classes,
        label=[name if name in bundle.classes else "" for name in names],
        group=examples.group,
        sha256=examples.sha256,
        abstain=answers.abstain,
        ood=answers.ood,
        split=[split if split in ("train", "val", "test") else "" for split in examples.split.tolist()],
    )
