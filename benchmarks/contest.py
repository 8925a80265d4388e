"""What the speed benchmarks share: contenders in turn, medians and spread, the machine's limits, a table, JSON."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rcmnet_jax.console import Console
from rcmnet_jax.runtime import cores, cpu_model

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy", "grain", "simplejpeg", "Pillow")


def options(about: str | None, *, seconds: float, size: bool = True) -> argparse.ArgumentParser:
    """The command line that contests share; `seconds` is the default of a contender's time in each round."""
    words = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if size:
        words.add_argument("--size", type=int, default=64, help="side of the images, pixels")
        words.add_argument("--batch", type=int, default=32)
    words.add_argument("--rounds", type=int, default=7)
    words.add_argument("--seconds", type=float, default=seconds, help="of each contender in each round")
    words.add_argument("--output", type=Path, help="JSON")
    return words


@dataclass
class Contender:
    """Something to time: `run(n)` does n iterations and returns when the last has ended."""

    name: str
    run: Callable[[int], Any]
    images: int = 1  # an iteration's


@dataclass(frozen=True)
class Result:
    """Images a second over the rounds of one contender."""

    name: str
    rates: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles."""
        low, _, high = statistics.quantiles(self.rates, n=4) if len(self.rates) > 1 else (0.0, 0.0, 0.0)
        return (high - low) / 2


def contest(contenders: Sequence[Contender], *, rounds: int = 7, seconds: float = 2.0) -> list[Result]:
    """Times the contenders in turn, `rounds` times about `seconds` each; who starts changes from round to round.

    Each turn begins with iterations that do not count, for a quarter of its time and three at least: a system takes
    memory and caches from a contender that waits, and the first steps after a wait pay for it, which no program that
    runs alone does.
    """
    repeats = [_repeats(one, seconds) for one in contenders]
    rates = _in_turn(len(contenders), rounds, lambda i: _rate(contenders[i], repeats[i]))
    return [Result(one.name, values) for one, values in zip(contenders, rates, strict=True)]


def turns(
    module: str, arguments: Sequence[str], names: Sequence[str], *, rounds: int = 5, seconds: float = 2.0
) -> list[Result]:
    """The same with a process for each turn, `python -m MODULE ARGUMENTS --alone NAME SECONDS`, ended by `alone`.

    For what takes gigabytes: of contenders in one process those that wait have their memory taken by the system, and
    the threads of one library go on spinning in the turn of the next.
    """

    def turn(i: int) -> float:
        command = [sys.executable, "-m", module, *arguments, "--alone", names[i], str(seconds)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(f"{names[i]} ended with {ended.returncode}:\n{ended.stderr[-1000:]}")
        return float(ended.stdout.splitlines()[-1])

    rates = _in_turn(len(names), rounds, turn)
    return [Result(name, values) for name, values in zip(names, rates, strict=True)]


def alone(one: Contender, seconds: float) -> None:
    """One turn of `turns`: prints images a second."""
    print(_rate(one, _repeats(one, seconds)))


def _in_turn(count: int, rounds: int, rate: Callable[[int], float]) -> list[tuple[float, ...]]:
    """`rate(i)` of each of so many contenders in each round; who starts changes from round to round."""
    rates: list[list[float]] = [[] for _ in range(count)]
    for r in range(rounds):
        for k in range(count):
            i = (k + r) % count
            rates[i].append(rate(i))
    return [tuple(values) for values in rates]


def _repeats(one: Contender, seconds: float) -> int:
    """Iterations that take about so long, after one that compiles."""
    one.run(1)
    start = time.perf_counter()
    one.run(1)
    return max(1, round(seconds / max(time.perf_counter() - start, 1e-6)))


def _rate(one: Contender, repeats: int) -> float:
    """Images a second over so many iterations, after a quarter as many, and three at least, that do not count."""
    one.run(max(3, repeats // 4))
    start = time.perf_counter()
    one.run(repeats)
    return repeats * one.images / (time.perf_counter() - start)


def ratio(ours: Result, theirs: Result) -> tuple[float, float, float]:
    """Ratio of the medians, and the least and greatest ratio within a round."""
    each = [a / b for a, b in zip(ours.rates, theirs.rates, strict=True)]
    return ours.median / theirs.median, min(each), max(each)


def roofline(precision: str = "float32") -> dict[str, float]:
    """Best of several: GFLOP/s of a product of 2048 x 2048 (on accelerators 8192 x 8192) by XLA in a precision and, in
    float32 on the host, by numpy's BLAS; of the two on a CPU the larger is nearer to the machine's limit. And GB/s of
    the host's copy (read and written) of 256 MB.
    """
    # JAX takes most of an accelerator's memory when it starts, which the contenders' processes will need.
    preallocates = "XLA_PYTHON_CLIENT_PREALLOCATE"
    unset = preallocates not in os.environ
    if unset:
        os.environ[preallocates] = "false"
    import jax
    import jax.numpy as jnp

    side = 2048 if jax.default_backend() == "cpu" else 8192
    multiply = jax.jit(lambda a: a @ a)
    a = np.random.default_rng(0).random((2048, 2048), np.float32)
    b = np.zeros(64 << 20, np.float32)
    c = np.ones_like(b)
    times: dict[str, list[float]] = {"xla": [], "numpy": []}
    copy, held = [], jax.random.uniform(jax.random.key(0), (side, side), jnp.dtype(precision))
    multiply(held).block_until_ready()
    for _ in range(5):
        for name, once in (("xla", lambda: multiply(held).block_until_ready()), ("numpy", lambda: a @ a)):
            start = time.perf_counter()
            once()
            times[name].append(time.perf_counter() - start)
        start = time.perf_counter()
        np.copyto(b, c)
        copy.append(2 * b.nbytes / (time.perf_counter() - start) / 1e9)
    if unset:
        del os.environ[preallocates]
    sides = {"xla": side, "numpy": len(a)}
    products = {f"product_{k}_gflops": round(2 * sides[k] ** 3 / min(each) / 1e9, 1) for k, each in times.items()}
    return {**products, "copy_gb_per_s": round(max(copy), 1)}


def surroundings() -> dict[str, Any]:
    """The machine and the versions that a figure belongs to."""
    names: dict[str, str] = {}
    for package in PACKAGES:
        try:
            names[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "processor": _processor(),
        "cores": cores(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": names,
    }


def _processor() -> str:
    """Its model and widest vector instructions, which machines of one name need not share."""
    model, flags = cpu_model()
    widest = next((word for word in ("amx_tile", "avx512f", "avx2", "asimd") if word in flags.split()), "")
    return f"{model} ({widest})" if widest else model


def publish(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], facts: Mapping[str, Any], output: Path | None
) -> None:
    """Prints one table, then where it was measured; writes facts as JSON where asked."""
    around = surroundings()
    console = Console()
    console.table(title, list(head), [list(row) for row in rows])
    versions = ", ".join(f"{name} {version}" for name, version in around["versions"].items())
    console.say(
        f"{around['processor']}, {around['cores']} cores, load {around['load']} at the end; "
        f"Python {around['python']}, {versions}; {around['date']} UTC"
    )
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"title": title, "around": around, **facts}, indent=2) + "\n")
