"""Images unlike those trained on: how far an image lies from the training images in how it looks and in what it means.

Two spaces, each with its Mahalanobis distance: the image's own colour, contrast and sharpness, which stain, camera and
focus change and no training can unlearn; and the pooled features that the head sees. The energy of the logits (Liu et
al. 2020) is read in old bundles, and no longer fitted: on real cells it told nothing (docs/evaluation.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rcmnet_jax.data.image_cache import PerImageCache
from rcmnet_jax.evaluation.table import Floats, Ints

if TYPE_CHECKING:
    from rcmnet_jax.bundle import Bundle
    from rcmnet_jax.data.prepare import PreparedSet
    from rcmnet_jax.training.sharding import Placement

KEPT = 0.99  # share of in-distribution images that must not be flagged
AXES = {"appearance": 29, "head": 16}  # directions that have a variance of their own; all others share one
ROOM = 12_288  # numbers of a space's axes: a wide network takes fewer axes, so that calibration.json stays small
MAX_FIT_IMAGES = 4096  # images that statistics are fitted on: more change no digit that matters
LEAST = 8  # fewer tell nothing
OOD_FOLDS = 5  # of the cross-fit
QUANTILES = (0.02, 0.25, 0.5, 0.75, 0.98)
_CHUNK = 64  # images at once: in float64, those of 224 px take 77 MB
_DIGITS = 7  # of a number that is stored

Spaces = Mapping[str, Floats]


def appearance(images: NDArray[np.uint8]) -> Floats:
    """How images (N, S, S, 3) look, (N, 29): quantiles and means of colours, contrast, saturation, edges at 3 scales.

    Computed from the network's input alone, so the same on every device.
    """
    return np.stack(_looks(images)) if len(images) else _appearance(images)


def _in_chunks(images: NDArray[np.uint8]) -> Floats:
    return np.concatenate([_appearance(images[start : start + _CHUNK]) for start in range(0, len(images), _CHUNK)])


_looks = PerImageCache(_in_chunks)
forget = _looks.forget  # what images looked like, as in a new process


def _appearance(images: NDArray[np.uint8]) -> Floats:
    n, size = len(images), images.shape[1]
    # A plane a colour: what is computed over pixels then reads them in a row, in a seventh of the time.
    planes = np.ascontiguousarray(images.reshape(n, size * size, 3).swapaxes(1, 2))
    x = planes.astype(np.float64) / 255
    levels = np.sort(planes, axis=2, kind="stable")  # of uint8 by counting
    colours = [levels[:, :, int(q * (levels.shape[2] - 1))] / 255 for q in QUANTILES]
    saturation = x.max(1) - x.min(1)
    edges, grey = [], x.mean(1).reshape(n, size, size)
    for _ in range(3):
        for axis in (1, 2):
            edges.append(np.log(1e-3 + np.abs(np.diff(grey, axis=axis)).mean((1, 2))))
        even = grey[:, : size // 2 * 2, : size // 2 * 2]
        size //= 2
        grey = even.reshape(n, size, 2, size, 2).mean((2, 4))
    spread = np.log(1e-2 + x.std(2))
    more = [saturation.mean(1), saturation.std(1), *edges]
    return np.concatenate([*colours, x.mean(2), spread, np.stack(more, 1)], axis=1)


def spaces(looks: Floats, head: NDArray[np.floating]) -> dict[str, Floats]:
    """The two spaces of images: how they look, by `appearance`, and their pooled features (N, C)."""
    return {"appearance": looks, "head": np.asarray(head, np.float64)}


def fit(known: Spaces, groups: NDArray[np.str_], kept: float = KEPT) -> dict[str, Any]:
    """The content of calibration.json's "ood" from training images: each space's distribution, and the threshold.

    The threshold is what the share `kept` of the images stays below when each is measured by statistics of the others:
    whole groups are left out where there are any, since new images will come from new patients; else a fifth of the
    images at a time. Empty for fewer than 8 images.

    Args:
      known: each space's values (N, F).
      groups: (N,), '' where unknown.
    """
    if len(groups) < LEAST:
        return {}
    made: dict[str, Any] = {}
    parts, crossed = _parts(groups), []
    for name, values in known.items():
        axes = AXES[name]
        far = np.empty(len(values))
        for part in np.unique(parts):
            far[parts == part] = _distance(_distribution(values[parts != part], axes), values[parts == part])
        unit = _rounded(_level(far, kept))
        made[name] = {**_distribution(values, axes), "unit": unit}
        crossed.append(far / unit)
    threshold = _rounded(_level(np.max(crossed, axis=0), kept))
    return {"score": "mahalanobis", "kept": kept, "threshold": threshold, "spaces": made}


def score(facts: Mapping[str, Any], seen: Spaces) -> Floats:
    """(N,): the larger of the spaces' distances, each in units of the distance that training images keep to.

    Raises:
      KeyError, TypeError, ValueError: statistics that are none, or are of other features.
    """
    each = [_distance(part, seen[name]) / float(part["unit"]) for name, part in facts["spaces"].items()]
    return np.max(each, axis=0)  # type: ignore[no-any-return]


def evenly(rows: NDArray[np.integer], most: int) -> NDArray[np.integer]:
    """The rows, or `most` of them at equal distances."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def fit_to(bundle: Bundle, data: PreparedSet, rows: NDArray[np.integer], placement: Placement) -> dict[str, Any]:
    """`fit` on the rows that a bundle's network was trained on; every process must take part."""
    rows = evenly(rows, MAX_FIT_IMAGES)
    return fit(_seen(bundle, data, rows, placement), data.examples.group[rows])


def ratio(bundle: Bundle, data: PreparedSet, rows: Ints, placement: Placement) -> Floats:
    """(n,) score of each row over the bundle's threshold; (0,) where the bundle has none."""
    facts = bundle.calibration.get("ood")
    if not facts or not len(rows):
        return np.zeros(0)
    return score(facts, _seen(bundle, data, rows, placement)) / float(facts["threshold"])


def _seen(bundle: Bundle, data: PreparedSet, rows: NDArray[np.integer], placement: Placement) -> Spaces:
    images = data.images(rows)
    return spaces(appearance(images), bundle.responses(images, placement).embedding)


def with_raised_threshold(facts: Mapping[str, Any], ratios: Floats) -> dict[str, Any]:
    """The statistics with the threshold raised to keep as many new images as promised.

    A network knows its training images too well, so others lie a little farther out. `ratios` (M,) holds, for images
    that a network of the same making had not seen, their score over its threshold; the quantile of these, where it is
    above 1, is the factor that this network's threshold takes as well.
    """
    if not facts or not len(ratios):
        return dict(facts)
    factor = max(1.0, _level(ratios, float(facts["kept"])))
    return {**facts, "threshold": _rounded(float(facts["threshold"]) * factor), "widened": _rounded(factor)}


def _parts(groups: NDArray[np.str_]) -> Ints:
    """(N,) which part of the cross-fit each row is in."""
    parts = np.arange(len(groups)) % OOD_FOLDS
    names, known = np.unique(groups[groups != ""]), groups != ""
    if len(names) < 2:
        return parts
    whole = parts.copy()
    whole[known] = np.searchsorted(names, groups[known]) % OOD_FOLDS
    # A part that is nearly all would be measured by next to nothing.
    return whole if np.bincount(whole).max() <= 0.75 * len(whole) else parts


def _level(values: Floats, kept: float) -> float:
    """The ceil((n + 1) kept)-th smallest value, the largest where there is none such."""
    rank = min(math.ceil((len(values) + 1) * kept - 1e-9), len(values))
    return float(np.sort(values)[rank - 1])


def _rounded(value: float) -> float:
    """The value as it is stored, so that a score is the same before and after."""
    return float(f"{value:.{_DIGITS}g}")


def _text(values: Floats) -> str:
    """A vector as one line of text: a file of 100 kB stays readable."""
    return " ".join(f"{value:.{_DIGITS}g}" for value in values.tolist())


@functools.lru_cache(maxsize=256)  # a bundle has some 50, and a service asks for them with every image
def _vector(text: str) -> Floats:
    vector = np.array(text.split(), np.float64)
    vector.flags.writeable = False
    return vector


def _distribution(values: Floats, axes: int) -> dict[str, Any]:
    """Mean, scale and covariance of values (N, F): `axes` principal directions, and one variance for all others.

    That is probabilistic PCA (Tipping & Bishop 1999): fewer numbers than a covariance, and sound with few images.
    """
    mean, variance = values.mean(0), values.var(0)
    scale = np.sqrt(variance + 1e-4 * variance.max() + 1e-12)  # a feature that never fires must not decide all
    z = (values - mean) / scale
    spread, directions = np.linalg.eigh(z.T @ z / len(z))
    kept = max(min(axes, ROOM // len(mean), len(mean), len(values) // 5), 1)
    spread, directions = spread[::-1], directions[:, ::-1]
    rest = max(float(spread[kept:].mean()) if kept < len(spread) else 0.0, 1e-3)
    return {
        "mean": _text(mean),
        "scale": _text(scale),
        "axes": [_text(direction) for direction in directions[:, :kept].T],
        "spread": _text(np.maximum(spread[:kept], rest)),
        "rest": _rounded(rest),
    }


def _distance(facts: Mapping[str, Any], values: Floats) -> Floats:
    """(N,) squared Mahalanobis distance of values (N, F) from a `_distribution`."""
    z = (values - _vector(facts["mean"])) / _vector(facts["scale"])
    along = z @ np.stack([_vector(line) for line in facts["axes"]]).T
    beside = np.maximum((z**2).sum(1) - (along**2).sum(1), 0) / float(facts["rest"])
    far: Floats = (along**2 / _vector(facts["spread"])).sum(1) + beside
    return far
