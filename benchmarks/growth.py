"""How cost grows with images (simulated), classes and image size; each figure from a process of its own.

    python -m benchmarks.growth images
    python -m benchmarks.growth classes
    python -m benchmarks.growth sizes

The last column is the exponent between a row and the one above it: 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.contest import publish
from rcmnet_jax import runtime  # sets XLA's flags before JAX starts

IMAGES, CLASSES, SIZES = (1_000, 10_000, 100_000, 1_000_000), (2, 10, 100, 300), (32, 64, 96, 128, 192, 224)


def near_duplicates(n: int) -> None:
    """The search for near hashes among random ones, eight views each."""
    from rcmnet_jax.data.audit.hashing import near_pairs

    codes = np.random.default_rng(0).integers(0, 2**64, (n, 8), dtype=np.uint64)
    for _ in near_pairs(codes, 4):
        continue


def folds(n: int) -> None:
    """Five grouped, stratified folds of groups of about ten images."""
    from rcmnet_jax.data.prepare import Examples
    from rcmnet_jax.data.splits import cross_validation

    random = np.random.default_rng(0)
    names = np.array([f"a/{i:07d}.png" for i in range(n)])
    groups = np.array([f"g{g}" for g in random.integers(0, max(n // 10, 8), n)])
    empty = np.full(n, "")
    examples = Examples(
        path=names, group=groups, split=empty, sha256=names, pixel_sha256=names,
        label=random.integers(0, 4, n).astype(np.int32), signals=np.zeros((n, 1), np.float32), signal_names=("x",),
    )  # fmt: skip
    cross_validation(examples, list("abcd"), folds="5", seed=0, inner_fraction=0.15)


def metrics(n: int, classes: int = 8) -> None:
    """All metrics with their intervals of a table of groups of about ten images."""
    from rcmnet_jax.evaluation.metrics import compute
    from rcmnet_jax.evaluation.table import make_table

    random = np.random.default_rng(0)
    names = [f"class{k}" for k in range(classes)]
    truth = random.integers(0, classes, n)
    p = random.random((n, classes)) ** 2
    p[np.arange(n), truth] += 1
    table = make_table(
        np.array([f"{i:07d}.png" for i in range(n)]), p / p.sum(1, keepdims=True), names,
        label=[names[k] for k in truth], group=np.array([f"g{g}" for g in random.integers(0, max(n // 10, 8), n)]),
    )  # fmt: skip
    compute(table)


def order(n: int) -> None:
    """The rows of a thousand batches of 32, drawn from an endless shuffle of n."""
    from rcmnet_jax.data.loader import Order

    made = Order(np.arange(n), 0)
    for step in range(1000):
        made(np.arange(32 * step, 32 * step + 32))


def steps(size: int = 64, classes: int = 8) -> float:
    """Seconds of a training step of RCMNet on 32 images."""
    from benchmarks import step

    runtime.set_up()  # here, since it imports JAX, whose memory is none of the other aspects'
    one = step.bare_step(step.Work(size=size, classes=classes))
    one.run(3)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        one.run(1)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


ASPECTS: dict[str, tuple[tuple[int, ...], dict[str, Callable[[int], float | None]]]] = {
    "images": (
        IMAGES,
        {"near-duplicate search": near_duplicates, "folds": folds, "metrics": metrics, "order of 1,000 batches": order},
    ),
    "classes": (
        CLASSES,
        {"training step": lambda k: steps(classes=k), "metrics of 10,000": lambda k: metrics(10_000, k)},
    ),
    "sizes": (SIZES, {"training step": lambda s: steps(size=s)}),
}


def one(aspect: str, what: str, n: int) -> None:
    """Prints seconds and peak memory of one measurement as JSON."""
    start = time.perf_counter()
    took = ASPECTS[aspect][1][what](n)
    seconds = took if took is not None else time.perf_counter() - start
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("aspect", choices=ASPECTS)
    words.add_argument("--one", nargs=2, metavar=("WHAT", "N"), help=argparse.SUPPRESS)
    words.add_argument("--output", type=Path, help="JSON")
    chosen = words.parse_args()
    if chosen.one:
        one(chosen.aspect, chosen.one[0], int(chosen.one[1]))
        return
    values, tasks = ASPECTS[chosen.aspect]
    rows, facts = [], {}
    for what in tasks:
        last: tuple[int, float] | None = None
        for n in values:
            command = [sys.executable, "-m", "benchmarks.growth", chosen.aspect, "--one", what, str(n)]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            seconds, memory = json.loads(said)
            slope = "" if last is None else f"{math.log(seconds / last[1]) / math.log(n / last[0]):.2f}"
            rows.append([what, f"{n:,}", f"{seconds:.3g}", f"{memory:.0f}", slope])
            facts[f"{what}/{n}"] = {"seconds": seconds, "peak_mb": memory}
            last = (n, seconds)
    publish(
        f"growth with {chosen.aspect}", ["", chosen.aspect, "seconds", "MB", "exponent"], rows, facts, chosen.output
    )


if __name__ == "__main__":
    runtime.use_huge_pages()  # as launch.py does; PyTorch computes under the same conditions
    main()
