"""What saving and restoring a training state costs, beside Orbax alone and the bare bytes on the same disk.

python -m benchmarks.checkpoint --width 64

The store's save has checksums and syncs what it writes; `until the loop goes on` is what training waits for.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contest import options, publish
from rcmnet_jax import runtime  # sets XLA's flags before JAX starts

Once = Callable[[Path], tuple[float, float]]  # does it below a folder; seconds, and the processor's, that count


def main() -> None:
    import jax

    words = options(__doc__, seconds=0.0, size=False)
    words.add_argument("--width", type=int, default=64, help="the model's")
    chosen = words.parse_args()
    state = _state(chosen.width)
    leaves = jax.tree.leaves(state)
    ways, walls, processor = _ways(state), {}, {}
    place = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=Path.cwd()))  # the disk here, not a /tmp in memory
    try:
        for turn in range(chosen.rounds + 1):  # the first does not count
            for name, once in ways.items():
                wall, used = once(place / f"{turn}-{name}")
                if turn:
                    walls.setdefault(name, []).append(wall)
                    processor.setdefault(name, []).append(used)
    finally:
        shutil.rmtree(place)
    rows = [
        [name, f"{1e3 * statistics.median(each):.0f}", f"{1e3 * min(each):.0f}-{1e3 * max(each):.0f}",
         f"{1e3 * statistics.median(processor[name]):.0f}"]
        for name, each in walls.items()
    ]  # fmt: skip
    size = sum(leaf.nbytes for leaf in leaves) / 1e6
    title = f"RCMNet of width {chosen.width}: {len(leaves)} arrays, {size:.1f} MB; median of {chosen.rounds}"
    publish(title, ["", "ms", "least-most", "processor ms"], rows, {"seconds": walls, "cpu": processor}, chosen.output)


def _state(width: int) -> Any:
    from rcmnet_jax.config import AugmentConfig, ModelConfig, OptimizerConfig
    from rcmnet_jax.models import Network
    from rcmnet_jax.training import state as states
    from rcmnet_jax.training.sharding import Placement
    from rcmnet_jax.training.step import StepConfig, make_optimizer

    network = Network(ModelConfig(width=width), classes=8, image_size=64)
    optimizer = make_optimizer(network, StepConfig(OptimizerConfig(), AugmentConfig()))
    return Placement.everywhere().put_copies(states.create(*network.init(0), optimizer))


def _ways(state: Any) -> dict[str, Once]:
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    from rcmnet_jax.checkpoint.store import Store

    def save(folder: Path, whole: bool) -> tuple[float, float]:
        with Store(folder) as store:

            def work() -> None:
                store.save(0, state)
                if whole:
                    store.wait()

            return _timed(work)

    def restore(folder: Path) -> tuple[float, float]:
        with Store(folder) as store:
            store.save(0, state)
            store.wait()
            return _timed(lambda: jax.block_until_ready(store.restore(state)))

    def orbax(folder: Path, tree: Any) -> tuple[float, float]:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            return _timed(lambda: checkpointer.save(folder.absolute(), args=ocp.args.StandardSave(tree)))

    def bare(folder: Path) -> tuple[float, float]:
        content = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))

        def work() -> None:
            with folder.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        return _timed(work)

    return {
        "save, until the loop goes on": lambda folder: save(folder, False),
        "save, until it is on disk": lambda folder: save(folder, True),
        "Orbax alone, arrays of the device": lambda folder: orbax(folder, state),
        "Orbax alone, arrays of the host": lambda folder: orbax(folder, jax.device_get(state)),
        "the bytes in one file, synced": bare,
        "restore, checksums included": restore,
    }


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - used


if __name__ == "__main__":
    runtime.set_up()
    main()
