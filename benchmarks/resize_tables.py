"""What a trained network's logits become when it is moved to another image size, its position tables interpolated.

    python -m benchmarks.resize_tables BUNDLE DATA [--split FILE.csv] [--part val] [--to 96 128] [--images 400]

Each line compares with the bundle itself on its own size. Beside interpolated tables stand tables as a new network
has them and tables of zeros: what of a change is due to the size alone, and what interpolation saves.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import platform
import sys
from collections.abc import Callable
from datetime import date
from typing import Any

import jax
import numpy as np

from benchmarks.selection import options, rows_of
from rcmnet_jax import bundle as bundles
from rcmnet_jax import runtime
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.checkpoint.transfer import transfer
from rcmnet_jax.cli import guarded
from rcmnet_jax.data.prepare import prepare
from rcmnet_jax.models import Network
from rcmnet_jax.training.sharding import Placement


def moved(bundle: Bundle, size: int) -> Bundle:
    """The bundle for images of another side, every leaf loaded or, where it is a position table, interpolated."""
    network = Network(
        bundle.network.config, classes=bundle.network.classes, image_size=size, imported=bundle.network.imported
    )
    params, stats, report = transfer(
        bundle.params, bundle.batch_stats, *network.init(0), head=(), position=network.is_position_table
    )
    assert not report.of("new")
    rule = dataclasses.replace(bundle.rule, size=size)
    return dataclasses.replace(bundle, network=network, rule=rule, params=jax.device_get(params), batch_stats=stats)


def with_tables(bundle: Bundle, make: Callable[[Any], Any]) -> Bundle:
    """The bundle with each position table replaced by `make` of what a new network of its size has there."""
    flat, structure = jax.tree_util.tree_flatten_with_path(bundle.params)
    fresh = jax.tree.leaves(bundle.network.init(0)[0])
    leaves = [
        make(start) if bundle.network.is_position_table(tuple(key.key for key in path)) else leaf
        for (path, leaf), start in zip(flat, fresh, strict=True)
    ]
    return dataclasses.replace(bundle, params=jax.tree.unflatten(structure, leaves))


def logits(bundle: Bundle, images: np.ndarray, tables: Callable[[Any], Any] | None = None) -> np.ndarray:
    """Logits (N, K) of images (N, S, S, 3), where given with other tables."""
    used = bundle if tables is None else with_tables(bundle, tables)
    return used.logits(images, Placement.everywhere())


def new(leaf: Any) -> Any:
    """Tables as a new network has them."""
    return leaf


def zeros(leaf: Any) -> Any:
    """Tables that say nothing of position."""
    return 0 * leaf


def line(name: str, found: np.ndarray, wanted: np.ndarray, labels: np.ndarray) -> str:
    """One row of the table from logits (N, K), the bundle's own logits, and labels (N,)."""
    change, guess = np.abs(found - wanted), found.argmax(1)
    same, right = (guess == wanted.argmax(1)).mean(), (guess == labels).mean()
    return f"| {name} | {change.mean():.3f} | {change.max():.2f} | {100 * same:.1f}% | {100 * right:.1f}% |"


def table(given: argparse.Namespace) -> list[str]:
    """The rows of the table, Markdown."""
    bundle = bundles.load(given.bundle)
    near = prepare(given.data, bundle.rule, splits=given.split)
    rows = rows_of(given.part, near.examples.split)
    rows = np.sort(np.random.default_rng(0).permutation(rows)[: given.images])
    small, labels, size = near.images(rows), near.examples.label[rows], bundle.rule.size
    own = logits(bundle, small)
    cases = {f"not at all, {size} px": own, f"not at all, {size} px, tables of zeros": logits(bundle, small, zeros)}
    for side in given.to:
        far = prepare(given.data, dataclasses.replace(bundle.rule, size=side), splits=given.split)
        large, other = far.images(rows), moved(bundle, side)
        cases |= {
            f"to {side} px and back to {size}": logits(moved(other, size), small),
            f"to {side} px": logits(other, large),
            f"to {side} px, tables of zeros": logits(other, large, zeros),
            f"to {side} px, tables of a new network": logits(other, large, new),
        }
    spread = f"{len(rows)} images; the bundle's own logits: standard deviation {own.std():.2f}"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax"))
    return [
        f"{spread}; {platform.machine()}, Python {platform.python_version()}, {versions}, {date.today()}\n",
        "| moved | mean change of a logit | largest | same top-1 | top-1 right |\n|---|---|---|---|---|",
        *(line(name, found, own, labels) for name, found in cases.items()),
    ]


def main() -> None:
    """Prints the table."""
    parser = options(__doc__)
    parser.add_argument("--to", type=int, nargs="+", default=[96, 128], metavar="PIXELS")
    parser.add_argument("--images", type=int, default=400, metavar="N", help="drawn at random")
    given = parser.parse_args()
    runtime.enable_compilation_cache()
    print("\n".join(table(given)))


if __name__ == "__main__":
    sys.exit(guarded(main))
