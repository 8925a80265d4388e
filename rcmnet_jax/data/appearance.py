"""What a set of images looks like as a whole: how large its cells are, and the colours of field, nuclei and red cells.

Each is a middle over many images, so that it says something of the laboratory and not of one cell. Nothing here uses
labels. Densities are natural logarithms of background / pixel, so a camera's gamma is a factor and a stain a direction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rcmnet_jax.data.cellfinder import Cell, densities, find
from rcmnet_jax.data.image_cache import PerImageCache
from rcmnet_jax.data.images import ImageRule, Pixels
from rcmnet_jax.runtime import cores

Floats = npt.NDArray[np.float64]

SURE = 0.3  # confidence from which on a found cell counts
FEW = 0.1  # share of the images in which a sure cell must be found, or those few say nothing of the set
MAX_APPEARANCE_IMAGES = 512  # training images that looked at: the median's standard error is then 2%
_COLOURS = ("background", "nucleus", "red")
_STRONGEST = 3.0  # factor on a density: beyond it, what was found is no nucleus
_RIDGE = 0.01


@dataclass(frozen=True)
class Appearance:
    """The middle of a set; of the training images it is "appearance" in calibration.json."""

    cells: int  # found with confidence
    diameter: float  # median of the nuclei's, as a fraction of the frame's side
    spread: float  # of its logarithm among cells: 1.4826 times the median deviation
    offset: float  # 95% of the cells lie no farther from the middle of their frame, in sides
    background: tuple[float, ...]  # (3,) RGB, 0 to 255
    nucleus: tuple[float, ...]  # (3,) optical densities
    red: tuple[float, ...]  # (3,) of red cells; NaN where there are none

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not known is null."""
        facts: dict[str, Any] = {}
        for key, value in dataclasses.asdict(self).items():
            facts[key] = [_plain(x) for x in value] if key in _COLOURS else _plain(value)
        return facts

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Appearance:
        """What `to_dict` gave.

        Raises:
          KeyError, TypeError, ValueError: facts that are none.
        """
        lengths = [float(facts[name]) for name in ("diameter", "spread", "offset")]
        colours = [tuple(math.nan if x is None else float(x) for x in facts[name]) for name in _COLOURS]
        if not all(0 < x < math.inf for x in lengths) or any(len(c) != 3 for c in colours):
            raise ValueError("appearance needs positive lengths, and colours of three numbers")
        diameter, spread, offset = lengths
        background, nucleus, red = colours
        return cls(int(facts["cells"]), diameter, spread, offset, background, nucleus, red)


def _plain(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    return None if math.isnan(value) else float(f"{value:.5g}")


def frame(height: float, width: float, rule: ImageRule) -> float:
    """Side in pixels of what the rule shows of an image; under stretch, of the square with its area."""
    if rule.square == "pad":
        return (rule.frame or max(height, width)) * rule.crop
    return (min(height, width) if rule.square == "crop" else math.sqrt(height * width)) * rule.crop


def away(cell: Cell, size: Sequence[float]) -> float:
    """Pixels between a cell and the middle of its image of `size` height, width."""
    return math.hypot(cell.row - (size[0] - 1) / 2, cell.column - (size[1] - 1) / 2)


def summarise(cells: Sequence[Cell], sizes: npt.NDArray[Any], frames: Floats) -> Appearance | None:
    """The middle of cells found in images of sizes (N, 2) and frames (N,), pixels; None where hardly one is sure."""
    sure = [i for i, cell in enumerate(cells) if cell.confidence >= SURE]
    if len(sure) < max(1, FEW * len(cells)):
        return None
    logs = np.log([cells[i].diameter / frames[i] for i in sure])
    offsets = np.array([away(cells[i], sizes[i]) / frames[i] for i in sure])
    colours = {name: _middle(np.array([getattr(cells[i], name) for i in sure], np.float64)) for name in _COLOURS}
    return Appearance(
        cells=len(sure),
        diameter=math.exp(float(np.median(logs))),
        spread=max(deviation(logs), 0.01),
        offset=max(float(np.quantile(offsets, 0.95)), 0.05),  # a network does not mind less
        **colours,
    )


def deviation(values: Floats) -> float:
    """A robust standard deviation: 1.4826 times the median distance from the median."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _middle(values: Floats) -> tuple[float, ...]:
    """Median of those rows (N, 3) that are known, NaN for too few: an odd image is not to speak for the set."""
    known = values[np.isfinite(values).all(1)]
    enough = min(len(values) / 2, max(5, 0.03 * len(values)))
    return tuple(np.median(known, axis=0).tolist()) if len(known) >= enough else (math.nan,) * 3


def _find_all(images: Pixels) -> list[Cell]:
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(find, images))


_cells = PerImageCache(_find_all)


def describe(images: Pixels) -> Appearance | None:
    """The appearance of prepared images (N, S, S, 3); None where hardly a cell is found."""
    n, size = images.shape[:2]
    return summarise(_cells(images), np.full((n, 2), size), np.full(n, float(size)))


@dataclass(frozen=True)
class ColourMap:
    """Takes the colours of one set to another's: densities against `old` times `matrix`, on the background `new`."""

    old: Floats  # (3,) RGB, 0 to 255
    new: Floats
    matrix: Floats  # (3, 3), for densities as rows

    def __call__(self, images: Pixels) -> Pixels:
        """Maps uint8 images (N, H, W, 3)."""
        made, matrix = np.empty_like(images), self.matrix.astype(np.float32)
        for i, image in enumerate(images):
            density = densities(image, self.old.astype(np.float32)) @ matrix
            made[i] = np.clip(np.rint(self.new.astype(np.float32) * np.exp(-density)), 0, 255)
        return made


def density_factors(source: Appearance, found: Appearance) -> Floats:
    """(3,) what the optical density of each channel is multiplied by, so that nuclei become the source's."""
    wanted, known = np.array(source.nucleus, np.float64), np.array(found.nucleus, np.float64)
    factors: Floats = np.clip(wanted / np.maximum(known, 1e-3), 1 / _STRONGEST, _STRONGEST)
    return factors


def colours(source: Appearance, found: Appearance) -> ColourMap:
    """The map that makes the found set's background, nuclei and red cells those of the source, in their medians.

    Each channel's density takes the factor that makes the nuclei alike; where both sets have red cells, the matrix is
    then the nearest that takes these along, by a ridge regression, since both stains lie within 20 degrees.
    """
    wanted, known = (np.array([a.nucleus, a.red], np.float64) for a in (source, found))
    matrix: Floats = np.diag(density_factors(source, found))
    if np.isfinite([wanted, known]).all():
        length = np.linalg.norm(known, axis=1, keepdims=True)  # a red cell's density is a fifth of a nucleus'
        rows = known / length
        matrix = np.linalg.solve(rows.T @ rows + _RIDGE * np.eye(3), rows.T @ (wanted / length) + _RIDGE * matrix)
    return ColourMap(np.array(found.background), np.array(source.background), matrix)
