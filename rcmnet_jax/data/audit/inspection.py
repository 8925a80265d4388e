"""One pass over a set's prepared pixels: hashes, brightness, contrast and sharpness of every image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from rcmnet_jax.data.audit.hashing import Hashes, hashes, thumbnails, to_grey
from rcmnet_jax.data.images import Pixels

if TYPE_CHECKING:
    from rcmnet_jax.data.prepare import PreparedSet

Floats = npt.NDArray[np.float32]

_PIXELS = 1 << 20  # of a chunk: some 50 MiB of working memory
_CENTRE = 128  # pixels of the middle that sharpness is measured on: the cell is there
_FLOOR = 0.05  # grey levels squared, below which variance is rounding
_REMEMBERED = 4

_memory: dict[tuple[str, str], Inspection] = {}


@dataclass(frozen=True)
class Inspection:
    """Facts of N prepared images, in the order of rows."""

    codes: Hashes  # (N, 8) perceptual hashes, one a dihedral view
    brightness: Floats  # (N,) mean grey, 0..255
    contrast: Floats  # (N,) standard deviation of grey, grey levels
    edges: Floats  # (N,) log variance of the Laplacian: falls with blur, and with contrast
    fineness: Floats  # (N,) log ratio of the finest detail to the next coarser: falls with blur alone


def inspect(prepared: PreparedSet) -> Inspection:
    """Reads every image once, in chunks; the answer is remembered for the last few sets of this process."""
    key = (prepared.fingerprint, repr(prepared.rule))
    if key not in _memory:
        while len(_memory) >= _REMEMBERED:
            del _memory[next(iter(_memory))]
        _memory[key] = _inspect(prepared)
    return _memory[key]


def _inspect(prepared: PreparedSet) -> Inspection:
    n = len(prepared.examples.label)
    codes, facts = np.zeros((n, 8), np.uint64), np.zeros((n, 4), np.float32)
    for rows in _chunks(prepared):
        grey = to_grey(pictures(prepared, rows))
        codes[rows] = hashes(thumbnails(grey))
        facts[rows] = _measure(grey)
    return Inspection(codes, *facts.T)


def crop_of(prepared: PreparedSet) -> float:
    """The central share of an image's side that `pictures` shows."""
    return 1.0 if prepared.rule.frame else prepared.rule.crop


def codes_of(prepared: PreparedSet, crop: float) -> Hashes:
    """(N, 8) perceptual hashes as in `Inspection`, of the central share `crop` of each image's side."""
    shown = (to_grey(pictures(prepared, rows, crop)) for rows in _chunks(prepared))
    return np.concatenate([hashes(thumbnails(grey)) for grey in shown])


def _chunks(prepared: PreparedSet) -> list[npt.NDArray[np.int64]]:
    """All rows, so many at a time as memory is kept for."""
    n, step = len(prepared.examples.label), max(1, _PIXELS // prepared.rule.size**2)
    return [np.arange(start, min(start + step, n)) for start in range(0, n, step)]


def pictures(prepared: PreparedSet, rows: npt.NDArray[np.int64], crop: float = 0.0) -> Pixels:
    """The prepared images (B, S, S, 3) of some rows, each enlarged until it is seen whole where the rule has a frame.

    The ground that a frame lays around small images is alike in all, and would make one of any two of them a copy of
    the other.

    Args:
      crop: central share of an image's side to be shown, at most what the set keeps; 0: all that it keeps.
    """
    images, own = _whole(prepared, rows), crop_of(prepared)
    if not crop or crop >= own:
        return images
    side, cut = images.shape[1], images.shape[1] * (1 - crop / own) / 2
    box = (cut, cut, side - cut, side - cut)
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box)) for image in images]
    )


def _whole(prepared: PreparedSet, rows: npt.NDArray[np.int64]) -> Pixels:
    images, rule = prepared.images(rows), prepared.rule
    if not rule.frame:
        return images
    side = max(1, round(rule.frame * rule.crop))  # of the original's pixels, of which the rule shows so many
    made = np.empty_like(images)
    for i, (height, width) in enumerate(np.minimum(prepared.examples.sizes[rows], side).tolist()):
        # The rule rounds the place of an image down: half a pixel counts where there are ten.
        middle = [(side - length) // 2 + length / 2 for length in (width, height)]
        reach = min(max(height, width) / 2, *middle, *(side - place for place in middle))
        box = [place + sign * reach for sign in (-1, 1) for place in middle]
        scaled = tuple(edge * rule.size / side for edge in box)
        whole = Image.fromarray(images[i]).resize((rule.size, rule.size), Image.Resampling.BILINEAR, scaled)
        made[i] = np.asarray(whole)
    return made


def _measure(grey: Floats) -> Floats:
    """(B, 4): brightness, contrast, edges, fineness of (B, S, S)."""
    border = max(0, (grey.shape[1] - _CENTRE) // 2)
    centre = grey[:, border : grey.shape[1] - border, border : grey.shape[1] - border]
    inner = centre[:, 1:-1, 1:-1]
    laplacian = 4 * inner - centre[:, :-2, 1:-1] - centre[:, 2:, 1:-1] - centre[:, 1:-1, :-2] - centre[:, 1:-1, 2:]
    smooth = _smoothed(centre)
    finest, coarser = centre - smooth, smooth - _smoothed(_smoothed(smooth))
    logs = [np.log(x.var((1, 2)) + _FLOOR) for x in (laplacian, finest, coarser)]
    facts = [grey.mean((1, 2)), grey.std((1, 2)), logs[0], logs[1] - logs[2]]
    return np.stack(facts, axis=1).astype(np.float32)


def _smoothed(grey: Floats) -> Floats:
    """3x3 means, edges repeated."""
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return np.asarray((rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9, np.float32)
