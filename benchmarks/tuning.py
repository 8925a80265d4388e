"""Is a step faster with another value of a constant that chooses forms? Both in one process, a step of each in turn.

    python -m benchmarks.tuning 'turned.LARGEST=2**24' --size 224 --steps 16
    python -m benchmarks.tuning conv._LARGE=2**31 --what infer --batch 64

Constants are those of rcmnet_jax.models. On a machine whose speed drifts by a tenth within minutes, turns of seconds
tell apart what differs by a tenth at best; neighbouring steps tell apart a hundredth.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import operator
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contest import Contender, publish
from benchmarks.step import OURS, Work, contender
from rcmnet_jax import runtime  # sets XLA's flags before JAX starts


def change(text: str) -> None:
    """Sets MODULE.NAME=VALUE below rcmnet_jax.models; VALUE is a number, or one to the power of another (2**20)."""
    where, _, value = text.partition("=")
    module_name, _, name = where.rpartition(".")
    module = importlib.import_module(f"rcmnet_jax.models.{module_name}")
    parts = [ast.literal_eval(part) for part in value.split("**")]
    setattr(module, name, type(getattr(module, name))(operator.pow(*parts) if len(parts) == 2 else parts[0]))


def alternate(pair: Sequence[Contender], steps: int) -> list[list[float]]:
    """Seconds of so many steps of each; who goes first changes from step to step."""
    spent: list[list[float]] = [[], []]
    for step in range(steps):
        for k in (0, 1) if step % 2 else (1, 0):
            start = time.perf_counter()
            pair[k].run(1)
            spent[k].append(time.perf_counter() - start)
    return spent


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("change", nargs="+", metavar="MODULE.NAME=VALUE")
    words.add_argument("--model", default="rcmnet")
    words.add_argument("--what", choices=tuple(OURS), default="train")
    words.add_argument("--size", type=int, default=64)
    words.add_argument("--batch", type=int, default=32)
    words.add_argument("--steps", type=int, default=40)
    words.add_argument("--output", type=Path, help="JSON")
    chosen = words.parse_args()
    runtime.set_up()
    from rcmnet_jax.training.step import make_train_step

    def last() -> Contender:
        """The step of runs, or inference."""
        made = contender(OURS[chosen.what][-1], Work(chosen.model, chosen.size, chosen.batch, chosen.what))
        made.run(2)
        return made

    before = last()
    make_train_step.cache_clear()  # or the second would be the first's program
    for text in chosen.change:
        change(text)
    pair = [before, last()]
    alternate(pair, 2)
    spent = alternate(pair, chosen.steps)
    ratios = [b / a for a, b in zip(*spent, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    rows = [
        [name, f"{1e3 * statistics.median(times):.1f}", f"{1e3 * min(times):.1f}"]
        for name, times in zip(("as it is", ", ".join(chosen.change)), spent, strict=True)
    ]
    rows.append(["ratio", f"{middle:.3f} ({low:.3f}-{high:.3f})", f"{min(spent[1]) / min(spent[0]):.3f}"])
    title = f"{chosen.model}, {chosen.size} px, batch {chosen.batch}, {chosen.what}, {chosen.steps} steps of each"
    publish(title, ["", "median, ms (quartiles)", "least, ms"], rows, {"seconds": spent}, chosen.output)


if __name__ == "__main__":
    runtime.use_huge_pages()
    main()
