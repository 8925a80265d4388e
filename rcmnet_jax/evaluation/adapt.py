"""Brings a set of another laboratory to what a network knows, without labels: scale and place, colours, BatchNorm.

Last, predictions are smoothed over images with similar features (`neighbours`).

Everything is decided for the set as a whole, from what its images have in common. docs/shift.md has what it does to
accuracy, and where it ends.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from numpy.typing import NDArray

from rcmnet_jax.bundle import Bundle
from rcmnet_jax.data import appearance, framing
from rcmnet_jax.data.appearance import Appearance
from rcmnet_jax.data.cellfinder import Cell, find
from rcmnet_jax.data.framing import Framing
from rcmnet_jax.data.images import ImageRule, Pixels, standardise
from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation import neighbours
from rcmnet_jax.evaluation.calibration import Calibrated
from rcmnet_jax.evaluation.predict import reestimate
from rcmnet_jax.runtime import cores
from rcmnet_jax.training.sharding import Placement

T = TypeVar("T")
Read = Callable[[int], Pixels]  # the original image of a row, (H, W, 3) uint8

ADAPT_STEPS = ("scale", "colour", "norm", "neighbours")
PRIOR = 16  # images that the source's BatchNorm statistics count for (Schneider et al. 2020)
MAX_NEW_SHARE = 0.8  # share of the new statistics that is never exceeded: they also hold another mix of classes


@dataclass(frozen=True)
class Adapted:
    """Images as the network is to see them, (N, S, S, 3) uint8, the bundle for them, and what was found."""

    images: Pixels
    bundle: Bundle
    facts: Mapping[str, Any]  # plain values, ready for JSON
    sentences: Sequence[str]
    together: bool = False  # whether predictions are smoothed over similar images

    def answers(self, alone: Calibrated, features: NDArray[np.floating]) -> Calibrated:
        """The answers to the images, from those that the bundle gives each by itself, and its features (N, C)."""
        return neighbours.smooth(alone, features) if self.together else alone


def parse_adapt_parts(text: str) -> tuple[str, ...]:
    """The parts that a list like "scale,norm" names, in the order of PARTS.

    Raises:
      UserError: no part, or one that does not exist.
    """
    words = {word.strip() for word in text.split(",") if word.strip()}
    if not words or words - set(ADAPT_STEPS):
        raise UserError(f"--adapt-parts={text}: give one or more of {','.join(ADAPT_STEPS)}, with commas between.")
    return tuple(part for part in ADAPT_STEPS if part in words)


def adapt(bundle: Bundle, read: Read, count: int, placement: Placement, parts: Sequence[str] = ADAPT_STEPS) -> Adapted:
    """Adapts a bundle and `count` images to one another; the same images in the same order give the same result.

    Raises:
      UserError: a bundle that has nothing to adapt by.
    """
    source = _source(bundle)
    together = "neighbours" in parts and neighbours.neighbour_count(count) > 0
    if source is None and not together and not ("norm" in parts and bundle.batch_stats):
        raise UserError(
            "--adapt: this bundle neither says how its training images look nor has BatchNorm statistics of which "
            "these parts could make use. Leave the flag out, or name other parts."
        )
    facts: dict[str, Any] = {"images": count, "parts": list(parts)}
    sentences: list[str] = []
    if source is None:
        sentences.append("The bundle does not say how its training images look: scale and colours stay as they are.")
    if source is not None and "scale" in parts:
        images, taken, dark = _framed(bundle.rule, source, read, count)
        facts["scale"], sentence = _told(taken, source, dark)
        sentences.append(sentence)
    else:
        images = np.stack(_each(lambda i: standardise(read(i), bundle.rule), count))
    if source is not None and "colour" in parts:
        found = appearance.describe(images)
        if found is None:
            sentences.append("Hardly a cell was found: the colours stay as they are.")
        else:
            change = appearance.colours(source, found)
            images = change(images)
            facts["colour"] = {"found": found.to_dict(), "source": source.to_dict(), "matrix": change.matrix.tolist()}
            sentences.append(_colour_sentence(source, found))
    if "norm" in parts and bundle.batch_stats:
        bundle, share = _renormed(bundle, images, placement)
        facts["norm"] = {"share": share}
        sentences.append(f"BatchNorm's statistics are these images' by {share:.0%}, the training images' for the rest.")
    if "neighbours" in parts:
        facts["neighbours"] = {"near": neighbours.neighbour_count(count)}
        if not together:
            sentences.append(f"Fewer than {neighbours.IMAGES_PER_NEIGHBOUR} images: each is called by itself.")
    known = {key: value for key, value in bundle.calibration.items() if key != "ood"}
    return Adapted(images, dataclasses.replace(bundle, calibration=known), facts, sentences, together)


def _source(bundle: Bundle) -> Appearance | None:
    facts = bundle.calibration.get("appearance")
    try:
        return None if facts is None else Appearance.from_dict(facts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"calibration.json: appearance cannot be used ({error}). Take a sound copy.") from error


def _each(work: Callable[[int], T], count: int) -> list[T]:
    """The work's results in order, from one thread a core: decoding and resizing let go of Python's lock."""
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(work, range(count)))


def _framed(rule: ImageRule, source: Appearance, read: Read, count: int) -> tuple[Pixels, Framing, int]:
    """The images as a framing shows them, and in how many the dark around the field of view was painted over."""

    def look(i: int) -> tuple[Cell, tuple[int, int]]:
        image = read(i)
        return find(image), (image.shape[0], image.shape[1])

    looked = _each(look, count)
    cells, sizes = [cell for cell, _ in looked], np.array([size for _, size in looked])

    def show(taken: Framing) -> Pixels:
        return np.stack(_each(lambda i: framing.shown(read(i), cells[i], float(taken.sides[i]), taken, rule), count))

    taken = framing.plan(source, cells, sizes, rule)
    images = show(taken)
    again = appearance.describe(images) if taken.ratio != 1 else None
    if again is not None:
        # Measured once more as the source's cells were: in squares of the same size and sharpness.
        rest = math.log(again.diameter / source.diameter) - taken.left
        if framing.TOLERANCE / 2 < abs(rest) < math.log(2):
            taken = framing.plan(source, cells, sizes, rule, finer=math.exp(rest))
            images = show(taken)
    return images, taken, sum(cell.dark for cell in cells)


def _told(taken: Framing, source: Appearance, dark: int) -> tuple[dict[str, Any], str]:
    facts = {"ratio": taken.ratio, "ruler": taken.ruler, "centred": taken.centred, "source_nucleus": source.diameter}
    facts["dark_surround"] = dark
    painted = f" In {dark} the dark around the field of view has the field's colour." if dark else ""
    if not taken.found:
        return facts, f"Hardly a cell was found: scale and place stay as they are.{painted}"
    if not taken.moves:
        return facts, f"Cells are about as large and as central in their images as in training.{painted}"
    size = f"Cells are {taken.ratio:.2f} times as large in their images as in training"
    place = "shown at the size known, each in the middle" if taken.centred else "shown at the size known"
    return facts, f"{size}: {place}.{painted}"


def _colour_sentence(source: Appearance, found: Appearance) -> str:
    def rgb(colour: Sequence[float]) -> str:
        return " ".join(f"{x:.0f}" for x in colour)

    factors = appearance.density_factors(source, found)
    return (
        f"The empty field is RGB {rgb(found.background)}, in training {rgb(source.background)}; nuclei take "
        f"{' '.join(f'{x:.2f}' for x in factors)} times their optical density in red, green and blue."
    )


def _renormed(bundle: Bundle, images: Pixels, placement: Placement) -> tuple[Bundle, float]:
    """The bundle with BatchNorm's statistics of these images mixed with its own, and the share of the new.

    A batch holds images that the network so far calls alike, in no order of the files: its moments then say how the
    class looks here, not how many of each class there are.
    """
    drawn = images[np.random.default_rng(0).permutation(len(images))]
    called = bundle.allowed(dataclasses.replace(bundle, views="one").logits(drawn, placement)).argmax(-1)
    alike = called.argsort(kind="stable")
    fresh = jax.device_get(reestimate(bundle.network, bundle.params, bundle.batch_stats, drawn[alike], placement))
    share = MAX_NEW_SHARE * len(images) / (len(images) + PRIOR)
    mixed = jax.tree.map(
        lambda new, old: np.float32(share) * new + np.float32(1 - share) * old, fresh, bundle.batch_stats
    )
    return dataclasses.replace(bundle, batch_stats=mixed), share
