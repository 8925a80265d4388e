"""How a bundle stands other laboratories' images: shifts of our own, by strength, with and without `predict --adapt`.

    python -m benchmarks.shift BUNDLE DATA --splits SPLITS.csv [--mix white [--known]] [--laboratories 12]

Validation images are changed as another laboratory would change them (benchmarks/shifted.py): one change for all images
of a set, with a little spread among them. A cell of the table is the balanced accuracy in per cent, over the classes
that the set has and against all that the bundle has, with its 95% interval.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shifted import Change, changes, laboratory
from rcmnet_jax import bundle as bundles
from rcmnet_jax import runtime
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.data.appearance import describe
from rcmnet_jax.data.images import Pixels, decode, standardise
from rcmnet_jax.data.sources import open_source
from rcmnet_jax.evaluation.adapt import ADAPT_STEPS, adapt
from rcmnet_jax.training.sharding import Placement

LEVELS = {"mild": 1 / 3, "medium": 2 / 3, "strong": 1.0}
ARMS = {
    "none": (), **{part: (part,) for part in ADAPT_STEPS}, "scale, colour": ("scale", "colour"),
    "without neighbours": ADAPT_STEPS[:-1], "all": ADAPT_STEPS,
}  # fmt: skip
# Images a class: "white" is about what a laboratory counts, so that the classes are unequal and three are missing.
WHITE = {"neutrophil": 200, "lymphocyte": 90, "monocyte": 40, "eosinophil": 40, "basophil": 30}
EQUAL = 40


def main() -> None:
    """Prints the table line by line, and writes it as JSON."""
    args = arguments()
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)  # now, not after the work
    runtime.enable_compilation_cache()
    bundle = with_appearance(bundles.load(args.bundle), args.data, args.splits)
    mix = WHITE if args.mix == "white" else dict.fromkeys(bundle.classes, EQUAL)
    if args.known:
        bundle = bundle.restricted_to(list(mix))
    images, labels = chosen(args.data, args.splits, bundle.classes, mix, "val")
    head = ["shift", "strength", *args.arms, *(["flagged"] if args.flagged else [])]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    rows = []
    for name, level, change in sets(args):
        rng = np.random.default_rng(0)
        moved = [change(image, LEVELS[level], rng) if change else image for image in images]
        row = {arm: balanced(bundle, moved, labels, ARMS[arm]) for arm in args.arms}
        rows.append({"shift": name, "strength": level, "arms": row})
        cells = [f"{100 * found['value']:.1f} ± {196 * found['error']:.1f}" for found in row.values()]
        if args.flagged:
            rows[-1]["flagged"] = flagged(bundle, moved)
            cells.append(f"{rows[-1]['flagged']:.1%}")
        print(f"| {name} | {level} | " + " | ".join(cells) + " |", flush=True)
    middle = [np.mean([row["arms"][arm]["value"] for row in rows[1:]]) for arm in args.arms]
    print("| mean of the shifts | | " + " | ".join(f"{100 * value:.1f}" for value in middle) + " |")
    if args.output:
        facts = {"date": date.today().isoformat(), "environment": runtime.environment(), "images": mix, "rows": rows}
        args.output.write_text(json.dumps(facts, indent=1, default=str) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data")
    parser.add_argument("--splits", default="")
    parser.add_argument(
        "--mix", choices=("equal", "white"), default="equal", help="of classes: all alike, or a count's"
    )
    parser.add_argument("--known", action="store_true", help="which classes a set holds is known: predict --classes")
    parser.add_argument("--arms", nargs="+", default=["none", "norm", "scale, colour", "all"], choices=ARMS)
    parser.add_argument("--flagged", action="store_true", help="what share the bundle calls strange, before adapting")
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=LEVELS)
    parser.add_argument("--only", default="", help="part of the names of the shifts to show")
    parser.add_argument("--laboratories", type=int, default=0, help="random ones, in place of the named shifts")
    parser.add_argument("--first", type=int, default=0, help="with --laboratories: the number of the first")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def sets(args: argparse.Namespace) -> Iterator[tuple[str, str, Change | None]]:
    """Name, strength and change of each set; the first is unchanged."""
    yield "no change", "strong", None
    platelets, _ = chosen(args.data, args.splits, ("platelet",), {"platelet": 60}, "train")
    if args.laboratories:
        seeds = range(args.first, args.first + args.laboratories)
        named = {f"laboratory {seed}": laboratory(seed, platelets) for seed in seeds}
    else:
        named = changes(platelets)
    for name, change in named.items():
        if args.only in name:
            yield from ((name, level, change) for level in args.levels)


def chosen(
    data: str, splits: str, classes: Sequence[str], mix: dict[str, int], split: str
) -> tuple[list[Pixels], np.ndarray]:
    """So many images of each class of a split, drawn evenly, and their labels as places in `classes`."""
    source = open_source(data, splits=splits)
    images, labels = [], []
    for name, count in mix.items():
        items = [item for item in source.items if item.label == name and item.split == split]
        for place in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int):
            images.append(decode(source.read(items[place])))
            labels.append(classes.index(name))
    return images, np.array(labels)


def with_appearance(bundle: Bundle, data: str, splits: str) -> Bundle:
    """The bundle; one that does not say how its training images look is told so."""
    if "appearance" in bundle.calibration:
        return bundle
    source = open_source(data, splits=splits)
    items = [item for item in source.items if item.split == "train"]
    drawn = [items[k] for k in np.linspace(0, len(items) - 1, 512).astype(int)]
    found = describe(np.stack([standardise(decode(source.read(item)), bundle.rule) for item in drawn]))
    assert found is not None
    return dataclasses.replace(bundle, calibration={**bundle.calibration, "appearance": found.to_dict()})


def balanced(bundle: Bundle, images: Sequence[Pixels], labels: np.ndarray, parts: Sequence[str]) -> dict[str, Any]:
    """Balanced accuracy after these parts of adapting, its standard error, and what was found."""
    placement = Placement.everywhere()
    made = adapt(bundle, lambda i: images[i], len(images), placement, parts)
    alone = made.bundle.answers_and_features(made.images, placement)
    guess = made.answers(*alone).probabilities.argmax(1)
    names, sizes = np.unique(labels, return_counts=True)
    recalls = np.array([(guess[labels == k] == k).mean() for k in names])
    error = math.sqrt(float((recalls * (1 - recalls) / sizes).sum())) / len(names)
    per_class = {bundle.classes[k]: recall for k, recall in zip(names.tolist(), recalls.tolist(), strict=True)}
    return {"value": float(recalls.mean()), "error": error, "recalls": per_class, "found": dict(made.facts)}


def flagged(bundle: Bundle, images: Sequence[Pixels]) -> float:
    """The share of images, as they come, whose column `ood` would be 1."""
    seen = np.stack([standardise(image, bundle.rule) for image in images])
    return float((bundle.answers(seen, Placement.everywhere()).ood == 1).mean())


if __name__ == "__main__":
    main()
