"""Which part of each image a network is shown, so that the cells are as large, and as central, as it knows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from rcmnet_jax.data.appearance import SURE, Appearance, away, deviation, frame, summarise
from rcmnet_jax.data.cellfinder import Cell, without_surround
from rcmnet_jax.data.images import RESAMPLE, ImageRule, Pixels, standardise

Floats = npt.NDArray[np.float64]

TOLERANCE = 0.1  # of the scale's logarithm: another mix of classes moves the median nucleus as far
LARGEST = 8000  # pixels a side that are laid out at once: 64 million in all, as for padding
STRAY = 0.15  # share of cells outside the source's middle from which on images are centred; the source has 0.05


@dataclass(frozen=True)
class Framing:
    """Squares to cut from the images of a set."""

    ratio: float  # how many times as large as the source's the cells are in their frames; 1: left as they are
    ruler: str  # frame: one zoom for all | pixels: one side for all, where crops of different sizes have one scale
    centred: bool  # whether squares are moved to the cells that lie outside the source's middle
    sides: Floats  # (N,) pixels of the image
    reach: float  # in sides: cells within it of the middle stay where they are
    left: float = 0.0  # of the scale's logarithm, what the ratio leaves on purpose
    found: bool = True  # whether cells enough were found to judge by

    @property
    def moves(self) -> bool:
        """Whether any image is shown otherwise than by the image rule."""
        return self.centred or self.ratio != 1 or self.ruler == "pixels"


def plan(
    source: Appearance, cells: Sequence[Cell], sizes: npt.NDArray[np.integer], rule: ImageRule, finer: float = 1.0
) -> Framing:
    """One zoom for the set, from its median nucleus, so that cells keep their sizes among one another.

    Sizes within the chance of the median, or within what another mix of classes makes, are left as they are.

    Args:
      source: the appearance to meet.
      cells, sizes: what was found in each image, and its height and width, (N, 2).
      finer: factor on the ratio, from a second look at the cut squares.
    """
    frames = np.array([frame(height, width, rule) for height, width in sizes.tolist()])
    sure = np.array([cell.confidence >= SURE for cell in cells])
    nuclei = np.log([cell.diameter for cell, good in zip(cells, sure, strict=True) if good])
    ruler, units = "frame", frames
    if len(nuclei) > 1 and deviation(nuclei) < 0.8 * deviation(nuclei - np.log(frames[sure])):
        ruler, units = "pixels", np.full(len(frames), float(np.median(frames)))
    found = summarise(cells, sizes, units)
    if found is None:
        return Framing(1.0, "frame", False, frames, source.offset, found=False)
    shift = math.log(found.diameter / source.diameter)
    kept = _surely(shift, source, found)
    ratio = math.exp(kept)
    sides = units * ratio * (finer if ratio != 1 else 1.0)
    out = [away(cells[i], sizes[i]) > source.offset * sides[i] for i in np.flatnonzero(sure).tolist()]
    return Framing(float(sides[0] / units[0]), ruler, float(np.mean(out)) > STRAY, sides, source.offset, shift - kept)


def _surely(shift: float, source: Appearance, found: Appearance) -> float:
    """What of a shift of the scale's logarithm is beyond chance, 0 within the tolerance."""
    chance = 2.5 * max(source.spread, found.spread) / math.sqrt(found.cells)  # twice the median's standard error
    return math.copysign(abs(shift) - chance, shift) if abs(shift) > max(chance, TOLERANCE) else 0.0


def shown(image: Pixels, cell: Cell, side: float, framing: Framing, rule: ImageRule) -> Pixels:
    """What a framing shows of an image (H, W, 3) with its cell: (S, S, 3) uint8, nothing black around the field."""
    if cell.dark:
        image = without_surround(image, cell.background)
    if not framing.moves:
        return standardise(image, rule)
    size = image.shape[:2]
    stray = framing.centred and cell.confidence >= SURE and away(cell, size) > framing.reach * side
    middle = (cell.row, cell.column) if stray else ((size[0] - 1) / 2, (size[1] - 1) / 2)
    return cut(image, middle, side, rule, cell.background)


def cut(image: Pixels, middle: tuple[float, float], side: float, rule: ImageRule, ground: npt.ArrayLike) -> Pixels:
    """The square of `side` pixels around a middle (row, column) as (S, S, 3); the ground's colour beyond the image."""
    if side > LARGEST:  # a canvas of that size would take gigabytes, and shows no more
        factor = math.ceil(side / LARGEST)
        image = np.asarray(Image.fromarray(image).reduce(factor))
        middle, side = ((middle[0] + 0.5) / factor - 0.5, (middle[1] + 0.5) / factor - 0.5), side / factor
    height, width = image.shape[:2]
    top, left = middle[0] + 0.5 - side / 2, middle[1] + 0.5 - side / 2
    first = max(0, math.floor(top)), max(0, math.floor(left))
    piece = image[first[0] : math.ceil(top + side), first[1] : math.ceil(left + side)]
    above, before = max(0, math.ceil(-top)), max(0, math.ceil(-left))
    below, after = max(0, math.ceil(top + side - height)), max(0, math.ceil(left + side - width))
    whole = np.empty((piece.shape[0] + above + below, piece.shape[1] + before + after, 3), np.uint8)
    whole[:] = np.rint(np.asarray(ground))
    whole[above : above + piece.shape[0], before : before + piece.shape[1]] = piece
    y, x = top - first[0] + above, left - first[1] + before
    box = (x, y, min(x + side, whole.shape[1]), min(y + side, whole.shape[0]))
    return np.asarray(Image.fromarray(whole).resize((rule.size, rule.size), RESAMPLE[rule.resample], box))
