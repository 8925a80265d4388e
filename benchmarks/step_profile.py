"""Where a training step's time goes on the CPU, by operation: ours by XLA's own events, PyTorch's by its profiler.

    python -m benchmarks.step_profile --model rcmnet --size 64
    python -m benchmarks.step_profile --model rcmnet --size 64 --contender "PyTorch, eager"

Ours is processor time, of all threads together. Convolutions and products hand their work to a pool of threads, which
leave no events: their time is what the processor time of the whole step, as the system counts it, has beyond that of
all other events. PyTorch's is the time of the thread that calls, which waits for its helpers, times the cores; of an
operation that calls others, what is its own.
"""

from __future__ import annotations

import argparse
import collections
import re
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contest import Contender, publish
from benchmarks.step import OURS, THEIRS, Work, contender
from rcmnet_jax import runtime  # sets XLA's flags before JAX starts

STEPS = 5
HEAVY = re.compile(r"(aten::)?((mkldnn_)?conv(?!ert)|dot|(add|b)?mm$)")  # convolutions and products
REST = "convolutions and products, in the pool"  # HEAVY matches it too

Spent = dict[str, tuple[float, int]]  # milliseconds and calls a step


def ours(one: Contender) -> Spent:
    """Milliseconds of processor time of each kind of operation, and of what leaves no events."""
    import jax

    with tempfile.TemporaryDirectory() as name:
        with jax.profiler.trace(name):
            before = _processor_seconds()
            one.run(STEPS)
            whole = 1e3 * (_processor_seconds() - before) / STEPS
        own: dict[str, list[float]] = collections.defaultdict(list)
        for op, milliseconds in _events(Path(name)):
            own[re.sub(r"[.\d]+$", "", op)].append(milliseconds)
    spent = {kind: (sum(each) / STEPS, len(each) // STEPS) for kind, each in own.items()}
    light = {kind: entry for kind, entry in spent.items() if not HEAVY.match(kind)}
    calls = sum(count for kind, (_, count) in spent.items() if kind not in light)
    return {**light, REST: (whole - sum(ms for ms, _ in light.values()), calls)}


def theirs(one: Contender) -> Spent:
    """PyTorch's: milliseconds of the calling thread in each operation, times the cores."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as made:
        one.run(STEPS)
    cores = torch.get_num_threads()
    return {e.key: (cores * e.self_cpu_time_total / 1e3 / STEPS, e.count // STEPS) for e in made.key_averages()}


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _events(folder: Path) -> Iterator[tuple[str, float]]:
    """Each of XLA's events and its own milliseconds, without those of events within it."""
    from jax.profiler import ProfileData

    for path in folder.rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                found = [e for e in line.events if any(key == "hlo_op" for key, _ in e.stats)]
                yield from _own([(e.start_ns, e.start_ns + e.duration_ns, e.name) for e in found])


def _own(events: list[tuple[float, float, str]]) -> Iterator[tuple[str, float]]:
    """(name, milliseconds) of one thread's (start, end, name), each less what lies within it."""
    around: list[list[Any]] = []  # [end, name, nanoseconds of its own], the innermost last
    for start, end, name in sorted(events, key=lambda e: (e[0], -e[1])):
        while around and around[-1][0] <= start:
            yield around[-1][1], around.pop()[2] / 1e6
        if around:
            around[-1][2] -= end - start
        around.append([end, name, end - start])
    for _, name, own in around:
        yield name, own / 1e6


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="rcmnet")
    words.add_argument("--size", type=int, default=64)
    words.add_argument("--batch", type=int, default=32)
    words.add_argument("--contender", choices=OURS["train"] + THEIRS, default=OURS["train"][-1])
    words.add_argument("--top", type=int, default=15)
    words.add_argument("--output", type=Path, help="JSON")
    chosen = words.parse_args()
    one = contender(chosen.contender, Work(chosen.model, chosen.size, chosen.batch))
    one.run(3)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    one.run(STEPS)
    whole, after = 1e3 * (time.perf_counter() - start) / STEPS, resource.getrusage(resource.RUSAGE_SELF)
    faults = (after.ru_minflt - before.ru_minflt) / STEPS
    system = 1e3 * (after.ru_stime - before.ru_stime) / STEPS
    spent = (theirs if chosen.contender in THEIRS else ours)(one)
    heavy = sum(ms for kind, (ms, _) in spent.items() if HEAVY.match(kind))
    ordered = sorted(spent.items(), key=lambda entry: -entry[1][0])[: chosen.top]
    total = sum(ms for ms, _ in spent.values())
    rows = [
        ["all", "", f"{total:.1f}"],
        ["of these convolutions and products", "", f"{heavy:.1f}"],
        *([kind, str(calls), f"{ms:.1f}"] for kind, (ms, calls) in ordered),
    ]
    title = (
        f"{chosen.contender}: {chosen.model}, {chosen.size} px, batch {chosen.batch}: {whole:.0f} ms a step, "
        f"{faults:.0f} page faults, {system:.0f} ms in the system; {after.ru_maxrss >> 10} MB at the peak"
    )
    facts = {"step_ms": whole, "page_faults": faults, "system_ms": system, "spent": spent}
    publish(title, ["operation", "calls", "ms of processors"], rows, facts, chosen.output)


if __name__ == "__main__":
    runtime.use_huge_pages()  # as launch.py does; PyTorch computes under the same conditions
    runtime.set_up()
    main()
