"""Where a training step's time goes on the CPU: XLA's own events, added up by operation.

    python -m benchmarks.step_profile --model rcmnet --size 64

Convolutions and products hand their work to other threads, so that their own events are short: their time is what the
rest of the step leaves. Events of several threads overlap, and add up to more than the step.
"""

from __future__ import annotations

import argparse
import collections
import re
import resource
import tempfile
import time
from pathlib import Path

from benchmarks.contest import publish
from benchmarks.step import ours
from rcmnet_jax import runtime  # sets XLA's flags before JAX starts

STEPS = 5


def events(folder: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Milliseconds and count of each operation in a trace, a step."""
    from jax.profiler import ProfileData

    spent: dict[str, float] = collections.defaultdict(float)
    count: dict[str, int] = collections.defaultdict(int)
    for path in folder.rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    if any(key == "hlo_op" for key, _ in event.stats):
                        spent[event.name] += event.duration_ns / 1e6 / STEPS
                        count[event.name] += 1
    return spent, count


def main() -> None:
    import jax

    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="rcmnet")
    words.add_argument("--size", type=int, default=64)
    words.add_argument("--batch", type=int, default=32)
    words.add_argument("--top", type=int, default=15)
    words.add_argument("--output", type=Path, help="JSON")
    chosen = words.parse_args()
    step = ours(chosen.model, chosen.size, chosen.batch, "train")[0]
    step.run(3)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    step.run(STEPS)
    whole, after = 1e3 * (time.perf_counter() - start) / STEPS, resource.getrusage(resource.RUSAGE_SELF)
    faults = (after.ru_minflt - before.ru_minflt) / STEPS
    system = 1e3 * (after.ru_stime - before.ru_stime) / STEPS
    with tempfile.TemporaryDirectory() as name:
        with jax.profiler.trace(name):
            step.run(STEPS)
        spent, count = events(Path(name))
    kinds: dict[str, float] = collections.defaultdict(float)
    calls: dict[str, int] = collections.defaultdict(int)
    for op, milliseconds in spent.items():
        kind = re.sub(r"[.\d]+$", "", op)
        kinds[kind] += milliseconds
        calls[kind] += count[op] // STEPS
    rows = [
        [kind, str(calls[kind]), f"{milliseconds:.2f}"]
        for kind, milliseconds in sorted(kinds.items(), key=lambda entry: -entry[1])[: chosen.top]
    ]
    title = (
        f"{chosen.model}, {chosen.size} px, batch {chosen.batch}: {whole:.0f} ms a step, {faults:.0f} page faults, "
        f"{system:.0f} ms in the system; {after.ru_maxrss >> 10} MB at the peak"
    )
    facts = {"step_ms": whole, "page_faults": faults, "system_ms": system, "spent": kinds}
    publish(title, ["operation", "calls", "ms"], rows, facts, chosen.output)


if __name__ == "__main__":
    runtime.use_huge_pages()  # as launch.py does; PyTorch computes under the same conditions
    runtime.set_up()
    main()
