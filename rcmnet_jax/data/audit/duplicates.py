"""Pairs of images that show the same picture: pixel for pixel, or re-encoded, scaled, turned, mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rcmnet_jax.data.audit.findings import Place
from rcmnet_jax.data.audit.hashing import near_pairs, thumbnails, to_grey, undo
from rcmnet_jax.data.audit.inspection import codes_of, crop_of, inspect, pictures

if TYPE_CHECKING:
    from rcmnet_jax.data.prepare import PreparedSet

# Correlation of the fine detail of 32-pixel thumbnails. On 13,724 blood cells at most 0.57 between different cells with
# near hashes; at least 0.86 between an image and its copy, scaled by 1/4 or blurred by 2% of its side.
SAME_PICTURE = 0.75
_ALL_PAIRS = (
    32  # images with one hash: up to so many are all compared with each other, more with the first and the next
)
_CHUNK = 2048  # pairs verified at once
_READ = 256  # images of them in memory at once


@dataclass(frozen=True)
class Pair:
    """Two images of one picture; exact pairs have distance 0 and correlation 1."""

    first: Place
    second: Place
    exact: bool
    distance: int  # bits
    view: int  # how the second is to be shown, as in hashing.VIEWS, to look like the first
    correlation: float


def exact_groups(sets: Sequence[PreparedSet]) -> list[list[Place]]:
    """Images, over all sets, whose decoded pixels are identical; groups of two and more, in the order of rows."""
    pixels = np.concatenate([s.examples.pixel_sha256 for s in sets])
    places = _places(sets)
    _, number, size = np.unique(pixels, return_inverse=True, return_counts=True)
    twins = np.flatnonzero((size[number] > 1) & (pixels != ""))
    groups: dict[int, list[Place]] = {}
    for i in twins:
        groups.setdefault(int(number[i]), []).append(places[i])
    return sorted(groups.values())


def near_duplicates(sets: Sequence[PreparedSet], distance: int) -> list[Pair]:
    """Pairs, over all sets, of one picture with other pixels, each verified by the correlation of its fine detail.

    Of images with identical pixels in one part of one set only the first is compared. Sets of which more or less of
    the frame is kept are compared by what all of them show.
    """
    pixels = np.concatenate([s.examples.pixel_sha256 for s in sets])
    shown = min(crop_of(s) for s in sets)
    codes = np.concatenate([(inspect(s).codes if crop_of(s) == shown else codes_of(s, shown)) for s in sets])
    held = [f"{k}/{split}/{p}" for k, s in enumerate(sets)
            for split, p in zip(s.examples.split.tolist(), s.examples.pixel_sha256.tolist(), strict=True)]  # fmt: skip
    first = np.unique(held, return_index=True)[1]
    alone = np.sort(np.concatenate([first[pixels[first] != ""], np.flatnonzero(pixels == "")]))
    candidates = _candidates(codes[alone], distance)
    ends = pixels[alone[candidates[:, :2]]]
    candidates = candidates[(ends[:, 0] != ends[:, 1]) | (ends[:, 0] == "")]  # exact copies are no near ones
    places = _places(sets)
    found: dict[tuple[int, int], Pair] = {}
    for start in range(0, len(candidates), _CHUNK):
        part = candidates[start : start + _CHUNK]
        one, other = alone[part[:, 0]], alone[part[:, 1]]
        alike = _correlations(sets, [places[i] for i in one], [places[j] for j in other], part[:, 2], shown)
        for i, j, view, gap, value in zip(one, other, part[:, 2], part[:, 3], alike, strict=True):
            key = (int(i), int(j))
            if value >= SAME_PICTURE and (key not in found or found[key].correlation < value):
                found[key] = Pair(places[i], places[j], False, int(gap), int(view), round(float(value), 3))
    return [found[key] for key in sorted(found)]


def exact_pairs(groups: Sequence[Sequence[Place]]) -> list[Pair]:
    """Each group as pairs: all of a small one, so that no pair across two parts hides behind a third image."""
    return [Pair(group[i], group[j], True, 0, 0, 1.0) for group in groups for i, j in _within(np.arange(len(group)))]


def _places(sets: Sequence[PreparedSet]) -> list[Place]:
    return [(k, row) for k, s in enumerate(sets) for row in range(len(s.examples.label))]


def _candidates(codes: npt.NDArray[np.uint64], distance: int) -> npt.NDArray[np.int64]:
    """(M, 4) int64: first < second, view, distance; each (first, second, view) once."""
    _, lead, number = np.unique(codes[:, 0], return_index=True, return_inverse=True)
    lead = np.sort(lead)  # one image for each hash
    blocks = [np.stack(block, axis=1) for block in near_pairs(codes[lead], distance)]
    pairs = np.concatenate(blocks) if blocks else np.empty((0, 4), np.int64)
    pairs[:, :2] = lead[pairs[:, :2]]
    order = np.argsort(number, kind="stable")
    cuts = np.flatnonzero(np.diff(number[order])) + 1
    crowds = {int(c.min()): np.sort(c) for c in np.split(order, cuts) if len(c) > 1}
    rows = [(*sorted((int(i), int(j))), 0, 0) for crowd in crowds.values() for i, j in _within(crowd)]
    # Others with the hash of either end stand in the same relation.
    for i, j, view, gap in pairs if crowds else ():
        for a in crowds.get(int(i), np.array([i]))[:_ALL_PAIRS]:
            for b in crowds.get(int(j), np.array([j]))[:_ALL_PAIRS]:
                # With the ends in the other order the view is undone: only quarter turns differ from their inverse.
                back = {5: 6, 6: 5}.get(int(view), int(view))
                rows.append((int(a), int(b), int(view), int(gap)) if a < b else (int(b), int(a), back, int(gap)))
    return np.unique(np.concatenate([pairs, np.array(rows, np.int64).reshape(-1, 4)]), axis=0)


def _within(crowd: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    if len(crowd) <= _ALL_PAIRS:
        return list(combinations(crowd.tolist(), 2))
    return [(int(crowd[0]), int(x)) for x in crowd[1:]] + list(
        zip(crowd[1:-1].tolist(), crowd[2:].tolist(), strict=True)
    )


def _correlations(
    sets: Sequence[PreparedSet], one: list[Place], other: list[Place], views: npt.NDArray[np.int64], shown: float
) -> npt.NDArray[np.float32]:
    """(M,) correlation of the detail of each pair's middle share `shown`, the second image shown in its view."""
    wanted = sorted(set(one) | set(other))
    at = {place: i for i, place in enumerate(wanted)}
    thumbs = []
    for k, s in enumerate(sets):
        rows = np.array([row for number, row in wanted if number == k], np.int64)
        thumbs += [thumbnails(to_grey(pictures(s, rows[i : i + _READ], shown))) for i in range(0, len(rows), _READ)]
    detail = _detail(np.concatenate(thumbs))
    mine, theirs = detail[[at[p] for p in one]], detail[[at[p] for p in other]]
    for view in np.unique(views):
        theirs[views == view] = undo(theirs[views == view], int(view))
    return np.asarray((mine * theirs).sum((1, 2)), np.float32)


def _detail(thumbs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Thumbnails (B, 32, 32) less their 5x5 means, with mean 0 and norm 1; flat ones stay near 0 and are like nothing.

    Without this a white background makes any two cells alike.
    """
    padded = np.pad(thumbs, ((0, 0), (2, 2), (2, 2)), mode="edge")
    side = thumbs.shape[1]
    rows = np.mean([padded[:, i : i + side] for i in range(5)], axis=0)
    detail = thumbs - np.mean([rows[:, :, i : i + side] for i in range(5)], axis=0)
    detail -= detail.mean((1, 2), keepdims=True)
    norm = np.sqrt((detail**2).sum((1, 2), keepdims=True))
    return np.asarray(detail / np.maximum(norm, side * 0.25), np.float32)  # a detail below 1/4 grey level is rounding
