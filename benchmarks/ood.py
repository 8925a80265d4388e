"""Which score tells strange images from known ones: energy, several distances, and the one that bundles hold.

    python -m benchmarks.ood BUNDLE DATA --splits SPLITS.csv [--other NAME=DATA ...] [--output FILE.json]

Each score is fitted on training rows of DATA, its threshold is what 99% of them stay below by cross-fitted statistics,
and it is then shown the validation rows, which should pass, and images that should not: other data sets, noise, blank
fields, and validation images with other colours, scales and focus. A cell of the table is "share flagged, AUROC".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from rcmnet_jax import bundle as bundles
from rcmnet_jax import runtime
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.data.prepare import prepare
from rcmnet_jax.evaluation import ood
from rcmnet_jax.evaluation.calibration import energy
from rcmnet_jax.training.sharding import Placement

Pixels = np.ndarray
KNOWN = 4096  # training images that scores are fitted on
SHOWN = 300  # images of each strange kind
Values = Mapping[str, np.ndarray]  # logits, head, appearance of the same images


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data")
    parser.add_argument("--splits", default="")
    parser.add_argument("--other", action="append", default=[], help="NAME=DATA")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    runtime.enable_compilation_cache()
    made, rng = bundles.load(args.bundle), np.random.default_rng(0)
    data = prepare(args.data, made.rule, splits=args.splits)
    train, val = (np.flatnonzero(data.examples.split == name) for name in ("train", "val"))
    train = np.sort(rng.permutation(train[data.examples.label[train] >= 0])[:KNOWN])
    known = values_of(made, data.images(train))
    images = data.images(val)
    shown = {"val": values_of(made, images)}
    for name, pixels in strange(images, args.other, made, rng).items():
        shown[name] = values_of(made, pixels)
        print(f"{name}: {len(pixels)} images", flush=True)
    rows = {name: judged(score, known, data.examples.label[train], shown) for name, score in SCORES.items()}
    report(rows, list(shown), args.output)


def values_of(made: Bundle, images: Pixels) -> dict[str, np.ndarray]:
    """What the scores are computed from."""
    found = made.responses(images, Placement.everywhere())
    return {"logits": found.logits.astype(np.float64), **ood.spaces(ood.appearance(images), found.embedding)}


# --- images that should be flagged ------------------------------------------------------------------------------------


def strange(images: Pixels, others: list[str], made: Bundle, rng: np.random.Generator) -> dict[str, Pixels]:
    """Kinds of images that are unlike `images`, by name."""
    found: dict[str, Pixels] = {}
    for spec in others:
        name, _, where = spec.partition("=")
        data = prepare(where, made.rule, labelled=False)
        found[name] = data.images(np.sort(rng.permutation(len(data.examples.path))[:SHOWN]))
    few = images[np.sort(rng.permutation(len(images))[:SHOWN])]
    return {**found, **no_cells(len(few), images.shape[1], rng), **changed(few, rng)}


def no_cells(n: int, size: int, rng: np.random.Generator) -> dict[str, Pixels]:
    """Noise, blank fields and smooth gradients."""
    shape = (n, size, size, 3)
    corners = rng.integers(0, 256, (n, 2, 2, 3)).astype(float)
    ramp = np.stack([1 - np.linspace(0, 1, size), np.linspace(0, 1, size)])
    return {
        "uniform noise": rng.integers(0, 256, shape, dtype=np.uint8),
        "Gaussian noise": np.clip(rng.normal(128, 40, shape), 0, 255).astype(np.uint8),
        "blank": np.broadcast_to(rng.integers(0, 256, (n, 1, 1, 3), dtype=np.uint8), shape).copy(),
        "blank, bright": np.broadcast_to(rng.integers(200, 256, (n, 1, 1, 3), dtype=np.uint8), shape).copy(),
        "gradients": np.einsum("ai,nabc,bj->nijc", ramp, corners, ramp).round().astype(np.uint8),
    }


def changed(images: Pixels, rng: np.random.Generator) -> dict[str, Pixels]:
    """The same cells with other colours, scale and focus, and with their pixels in any order."""
    size = images.shape[1]
    matrix = np.array([[0.8, 0.2, 0.0], [0.1, 0.8, 0.1], [0.0, 0.3, 0.7]])
    order = np.stack([rng.permutation(size * size) for _ in images])
    flat = images.reshape(len(images), -1, 3)
    density = -np.log(np.clip(images / 255, 1 / 255, 1))

    def each(change: Callable[[Image.Image], Image.Image]) -> Pixels:
        return np.stack([np.asarray(change(Image.fromarray(image))) for image in images])

    return {
        "pixels shuffled": np.take_along_axis(flat, order[:, :, None], 1).reshape(images.shape),
        "inverted": 255 - images,
        "red and blue swapped": images[..., ::-1].copy(),
        "grey": each(lambda image: image.convert("L").convert("RGB")),
        "hue +20 deg": each(lambda image: _turned(image, 20)),
        "hue -20 deg": each(lambda image: _turned(image, -20)),
        "colours mixed": np.clip(images @ matrix.T, 0, 255).round().astype(np.uint8),
        "stain x 1.6": (255 * np.exp(-1.6 * density)).round().astype(np.uint8),
        "stain x 0.6": (255 * np.exp(-0.6 * density)).round().astype(np.uint8),
        "scale 0.5": each(lambda image: _scaled(image, 0.5)),
        "scale 2": each(lambda image: _scaled(image, 2.0)),
        "blur": each(lambda image: image.filter(ImageFilter.GaussianBlur(size / 32))),
        "strong blur": each(lambda image: image.filter(ImageFilter.GaussianBlur(size / 16))),
    }


def _turned(image: Image.Image, degrees: float) -> Image.Image:
    colours = np.array(image.convert("HSV")).astype(int)
    colours[..., 0] = (colours[..., 0] + round(degrees / 360 * 256)) % 256
    return Image.fromarray(colours.astype(np.uint8), "HSV").convert("RGB")


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    size = image.width
    side = round(size * factor)
    scaled = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    if factor >= 1:
        start = (side - size) // 2
        return Image.fromarray(scaled[start : start + size, start : start + size])
    before = (size - side) // 2
    around = (before, size - side - before)
    return Image.fromarray(np.pad(scaled, (around, around, (0, 0)), mode="edge"))


# --- scores: from values and labels of training images to a function that is higher for stranger images ---------------

Score = Callable[[Values, np.ndarray], Callable[[Values], np.ndarray]]


def by_energy(_: Values, __: np.ndarray) -> Callable[[Values], np.ndarray]:
    """Liu et al. 2020."""
    return lambda seen: energy(seen["logits"])


def by_cosine(known: Values, labels: np.ndarray) -> Callable[[Values], np.ndarray]:
    """Less the cosine to the nearest class mean."""
    centre = known["head"].mean(0)
    means = np.stack([known["head"][labels == k].mean(0) for k in np.unique(labels)]) - centre
    means /= np.linalg.norm(means, axis=1, keepdims=True)

    def score(seen: Values) -> np.ndarray:
        moved = seen["head"] - centre
        near: np.ndarray = (moved @ means.T).max(1) / np.linalg.norm(moved, axis=1)
        return -near

    return score


def by_neighbours(known: Values, _: np.ndarray) -> Callable[[Values], np.ndarray]:
    """Less the cosine to the fifth nearest training image (Sun et al. 2022)."""
    kept = known["head"] / np.linalg.norm(known["head"], axis=1, keepdims=True)

    def score(seen: Values) -> np.ndarray:
        near = seen["head"] / np.linalg.norm(seen["head"], axis=1, keepdims=True) @ kept.T
        return -np.partition(near, -5, axis=1)[:, -5]

    return score


def by_classes(known: Values, labels: np.ndarray, relative: bool = False) -> Callable[[Values], np.ndarray]:
    """Distance to the nearest class mean, one covariance (Lee et al. 2018); less that to all (Ren et al. 2021)."""
    from sklearn.covariance import LedoitWolf

    values, names = known["head"], np.unique(labels)
    means = np.stack([values[labels == k].mean(0) for k in names])
    within = LedoitWolf().fit(values - means[np.searchsorted(names, labels)]).precision_
    whole, centre = LedoitWolf().fit(values).precision_, values.mean(0)

    def far(moved: np.ndarray, precision: np.ndarray) -> np.ndarray:
        squared: np.ndarray = ((moved @ precision) * moved).sum(1)
        return squared

    def score(seen: Values) -> np.ndarray:
        least = np.min([far(seen["head"] - mean, within) for mean in means], axis=0)
        return least - far(seen["head"] - centre, whole) if relative else least

    return score


def by_spaces(*names: str) -> Score:
    """What bundles hold, of these spaces."""

    def fit(known: Values, _: np.ndarray) -> Callable[[Values], np.ndarray]:
        facts = ood.fit({name: known[name] for name in names}, np.full(len(known["head"]), ""))
        return lambda seen: ood.score(facts, seen)

    return fit


SCORES: dict[str, Score] = {
    "energy": by_energy,
    "cosine to class mean, head": by_cosine,
    "5 nearest neighbours, head": by_neighbours,
    "class Mahalanobis, head": by_classes,
    "relative Mahalanobis, head": lambda known, labels: by_classes(known, labels, relative=True),
    "Mahalanobis, head": by_spaces("head"),
    "Mahalanobis, appearance": by_spaces("appearance"),
    "Mahalanobis, both (used)": by_spaces("appearance", "head"),
}


# --- judging ----------------------------------------------------------------------------------------------------------


def judged(score: Score, known: Values, labels: np.ndarray, shown: Mapping[str, Values]) -> dict[str, Any]:
    """Share flagged and AUROC against the validation images, for each kind."""
    from sklearn.metrics import roc_auc_score

    parts, crossed = np.arange(len(labels)) % 2, np.empty(len(labels))
    for part in (0, 1):
        rest = {name: values[parts != part] for name, values in known.items()}
        held = {name: values[parts == part] for name, values in known.items()}
        crossed[parts == part] = score(rest, labels[parts != part])(held)
    limit = np.quantile(crossed, ood.KEPT)
    found = {name: score(known, labels)(seen) for name, seen in shown.items()}
    val = found.pop("val")
    row: dict[str, Any] = {"val": {"flagged": float((val > limit).mean())}}
    for name, values in found.items():
        strangers = np.r_[np.zeros(len(val)), np.ones(len(values))]
        area = float(roc_auc_score(strangers, np.r_[val, values]))
        row[name] = {"flagged": float((values > limit).mean()), "auroc": area}
    others = list(row.values())[1:]
    row["mean"] = {key: float(np.mean([cell[key] for cell in others])) for key in ("flagged", "auroc")}
    return row


def report(rows: Mapping[str, Any], kinds: list[str], output: Path | None) -> None:
    """A Markdown table, one line a kind of image, and JSON."""
    print("\n| images | " + " | ".join(rows) + " |\n|---|" + "---|" * len(rows))
    for kind in [*kinds, "mean"]:
        cells = [rows[name][kind] for name in rows]
        texts = [f"{100 * c['flagged']:.1f}" + (f", {c['auroc']:.3f}" if "auroc" in c else "") for c in cells]
        print(f"| {kind} | " + " | ".join(texts) + " |")
    if output:
        facts = {"date": date.today().isoformat(), "environment": runtime.environment(), "scores": rows}
        output.write_text(json.dumps(facts, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
