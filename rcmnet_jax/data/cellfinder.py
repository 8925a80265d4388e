"""Finds the stained cell of an image by its colour alone: nothing is trained, so any laboratory's images will do.

The nucleus absorbs red and green light and lets blue pass; red cells and eosin absorb green and blue and let red pass.
So the optical density against the image's own background, red + green - blue, is high in nuclei and near zero in
all else. Dividing by the background and taking logarithms also takes away white balance, and turns gamma into a factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

WORKING = 160  # pixels of the longer side at which cells are looked for
_LEAST_SIDE = 0.02  # of the longer side: smaller spots are dust and precipitate
_BLACK = 30, 0.25  # of 255, and of the empty field: few stains are that dark in every channel, since blue passes
_ENDS = slice(None, 3), slice(-3, None)  # pixels of a side's ends, by which a corner is black
_NEUTRAL = 0.8  # ratio of blue to red and green up to which what is dark counts as black; in nuclei it is about half
_FAINT = 0.25  # purple density below which nothing counts as stained


@dataclass(frozen=True)
class Cell:
    """What was found in one image; lengths in pixels of the image, densities are natural logarithms."""

    row: float  # centre of the nucleus
    column: float
    diameter: float  # of a disc of the nucleus' area; all lobes count
    confidence: float  # 0: nothing found, to 1: one strongly stained object, no other like it
    background: Floats  # (3,) RGB, 0 to 255
    nucleus: Floats  # (3,) median optical density of the nucleus; NaN where nothing was found
    red: Floats  # (3,) median optical density of what else is stained, away from the cell: red cells; NaN without
    dark: bool  # whether the field of view ends within the image


def find(image: Pixels) -> Cell:
    """The white cell, platelet or other nucleated cell of an image (H, W, 3) uint8 that stands out most.

    Of several, the one with the most stain, the nearer to the middle the likelier.
    """
    small, factor = _reduced(image)
    ground = background(small)
    density = densities(small, ground)
    purple = ndimage.gaussian_filter(
        density[..., 0] + density[..., 1] - density[..., 2], 0.005 * max(small.shape[:2]) + 0.3
    )
    outside = _surround(small, ground)
    purple[outside] = 0
    dark = bool(outside.any())
    found = _nucleus(purple)
    if found is None:
        height, width = image.shape[:2]
        nothing = np.full(3, np.nan, np.float32)
        red, middle = _red(density, purple, outside, None), ((height - 1) / 2, (width - 1) / 2)
        return Cell(*middle, 0.0, 0.0, ground, nothing, red, dark)
    mask, confidence = found
    row, column = (float(c) for c in ndimage.center_of_mass(mask))
    diameter = 2 * math.sqrt(float(mask.sum()) / math.pi)
    red = _red(density, purple, outside, (row, column, diameter))
    core = np.median(density[mask], axis=0).astype(np.float32)
    middle = (row + 0.5) * factor - 0.5, (column + 0.5) * factor - 0.5
    return Cell(*middle, diameter * factor, confidence, ground, core, red, dark)


def background(image: Pixels) -> Floats:
    """Colour of the empty field, (3,) float32 in 0 to 255: the median of the lightest pixels.

    Green, which every stain absorbs, says which are light: those within a tenth of its 98% point.
    """
    green = image[..., 1]
    level = np.percentile(green, 98)
    light = green >= level - 0.06 * max(level, 1)
    found: Floats = np.maximum(np.median(image[light], axis=0), 1).astype(np.float32)
    return found


def densities(image: Pixels, ground: Floats) -> Floats:
    """Optical densities (H, W, 3) of uint8 pixels against a background (3,): log(background / pixel)."""
    table = -np.log(np.maximum(np.arange(256, dtype=np.float32), 1) / 255)
    found: Floats = table[image] + np.log(ground / 255)
    return found


def _reduced(image: Pixels) -> tuple[Pixels, float]:
    """The image with a longer side of at most WORKING, and how many of its pixels make one of those."""
    height, width = image.shape[:2]
    factor = max(height, width) / WORKING
    if factor <= 1:
        return image, 1.0
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)), factor


def without_surround(image: Pixels, ground: Floats) -> Pixels:
    """The image (H, W, 3) with the black around its field of view in the ground's colour."""
    return np.where(_surround(image, ground)[..., None], np.rint(ground).astype(np.uint8), image)


def _surround(image: Pixels, ground: Floats) -> npt.NDArray[np.bool_]:
    """Mask of the black around a field of view, or of a pointer into it: what is black, or nearly, at the image's edge.

    A dark cell may be cut by the edge too. But a field without dents leaves black at one end of a side at least, so
    that it has a corner, and a pointer absorbs blue as much as the rest, which a stain does not.
    """
    least, share = _BLACK
    black: npt.NDArray[np.bool_] = image.max(2) < max(least, share * float(ground.max()))
    if not black.any():
        return black
    parts, _ = ndimage.label(black)
    corners = np.unique([parts[rows, columns] for rows in _ENDS for columns in _ENDS])
    edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    kept = np.setdiff1d(corners, 0).tolist()
    boxes = ndimage.find_objects(parts)
    for k in np.setdiff1d(edge, [0, *kept]).tolist():
        box = boxes[k - 1]
        if _is_ink(image[box][parts[box] == k], ground):
            kept.append(k)
    outside = np.isin(parts, kept)
    blurred = max(2, round(2 * max(image.shape[:2]) / WORKING))  # the edge of the field, pixels
    return np.asarray(ndimage.binary_dilation(outside, iterations=blurred)) if outside.any() else outside


def _is_ink(pixels: Pixels, ground: Floats) -> bool:
    """Whether pixels (N, 3) are black rather than blue, or absorb blue about as much as red and green."""
    red, green, blue = np.median(pixels, axis=0)
    dense_red, dense_green, dense_blue = np.median(densities(pixels, ground), axis=0)
    return bool(blue <= (red + green) / 2 / _NEUTRAL or dense_blue >= _NEUTRAL * (dense_red + dense_green) / 2)


def _nucleus(purple: Floats) -> tuple[npt.NDArray[np.bool_], float] | None:
    """Mask of the best object's nucleus with all its lobes, and the confidence."""
    height, width = purple.shape
    side = max(height, width)
    level = _otsu(purple[purple > _FAINT])
    if level is None:
        return None
    seeds, n = ndimage.label(purple > max(level * 0.75, _FAINT))
    areas = ndimage.sum_labels(np.ones_like(purple), seeds, np.arange(1, n + 1))
    kept = np.flatnonzero(areas >= (_LEAST_SIDE * side) ** 2) + 1
    if not len(kept):
        return None
    mass = ndimage.sum_labels(purple, seeds, kept)
    centres = np.array(ndimage.center_of_mass(purple, seeds, kept))
    away = np.hypot(centres[:, 0] - (height - 1) / 2, centres[:, 1] - (width - 1) / 2) / side
    score = mass * (0.1 + np.exp(-((away / 0.25) ** 2)))
    best = int(score.argmax())
    # Lobes of one nucleus: what lies within reach of the best piece and is stained as strongly.
    reach = 2.4 * math.sqrt(areas[kept[best] - 1] / math.pi)
    near = np.hypot(*(centres - centres[best]).T) < reach
    strength = mass / areas[kept - 1]
    lobes = near & (strength > 0.7 * strength[best])
    together = np.isin(seeds, kept[lobes])
    # The edge at half of the object's own density: blur and exposure move it least.
    half = 0.5 * float(np.percentile(purple[together], 75))
    around = ndimage.binary_dilation(together, iterations=2)
    mask = around & (purple > half)
    rest = score[~lobes].max(initial=0.0)
    confidence = float(score[lobes].sum() / (score[lobes].sum() + rest)) * min(1.0, half / 0.5)
    return (mask, confidence) if mask.any() else None


def _otsu(values: Floats) -> float | None:
    """The threshold that parts values into the two most distinct groups (Otsu 1979); None for too few."""
    if len(values) < 4:
        return None
    counts, edges = np.histogram(values, 64)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    total, first = below[-1], np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (first[-1] * below / total - first) ** 2 / (below * (total - below))
    return float(edges[1 + int(np.nan_to_num(between[:-1]).argmax())])


def _red(
    density: Floats, purple: Floats, outside: npt.NDArray[np.bool_], cell: tuple[float, float, float] | None
) -> Floats:
    """Median density of the stained pixels that are no nucleus, in the field of view and away from the cell."""
    stained = (density[..., 1] > 0.12) & (purple < 0.5 * max(float(np.percentile(purple, 99.5)), _FAINT)) & ~outside
    if cell is not None:
        row, column, diameter = cell
        rows, columns = np.ogrid[: density.shape[0], : density.shape[1]]
        stained &= np.hypot(rows - row, columns - column) > 1.2 * diameter
    if stained.sum() < 0.02 * stained.size:
        return np.full(3, np.nan, np.float32)
    found: Floats = np.median(density[stained], axis=0).astype(np.float32)
    return found
