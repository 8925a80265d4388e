"""Runs in a process of its own, which the tests kill, starve of disk, or pair with another."""

from __future__ import annotations

import faulthandler
import resource
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rcmnet_jax.checkpoint.store import Store
from rcmnet_jax.errors import RunError


def tree_of(step: int) -> dict[str, jax.Array]:
    return {"w": jnp.full((128, 256), float(step)), "b": jnp.arange(64.0) + step, "step": jnp.int32(step)}


def forever(folder: Path) -> None:
    """Saves as fast as it can, until it is killed."""
    store = Store(folder, keep=2)
    found = store.restore(tree_of(0))
    step = found[0] if found else 0
    while True:
        step += 1
        store.save(step, tree_of(step))
        print(step, flush=True)


def starve(folder: Path, limit: int) -> None:
    """Saves once, then again with no file allowed to pass `limit` bytes; exits as the program would."""
    store = Store(folder)
    store.save(1, tree_of(1))
    store.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    store.save(2, {**tree_of(2), "w": jnp.asarray(np.random.default_rng(0).normal(size=(128, 256)), jnp.float32)})
    try:
        store.wait()
    except RunError as error:
        print(error)
        sys.exit(error.status)


def pair(folder: Path, port: int, rank: int) -> None:
    """One of two processes with an array split over both, a copied one, and a damaged newest step.

    In folder/alone lies what one process has saved of the same.
    """
    faulthandler.dump_traceback_later(60, exit=True)  # a deadlock shows where it stands
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, rank)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, copied = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (["data"], []))

    def make(step: int) -> dict[str, jax.Array]:
        values = {"split": np.arange(8.0, dtype=np.float32) + step, "copied": np.full((3,), step, np.int32)}
        places = {"split": split, "copied": copied}
        return {k: jax.make_array_from_callback(v.shape, places[k], lambda i, v=v: v[i]) for k, v in values.items()}

    update = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
    warned: list[str] = []
    store = Store(folder / "together", keep=2, warn=warned.append)
    state = make(0)
    for step in range(4):
        store.save(step, state, {"step": step})
        for _ in range(20):
            state = update(state)  # goes on while the save runs
        jax.block_until_ready(jax.jit(lambda t: t["split"].sum(), out_shardings=copied)(state))
    store.close()
    assert store.steps() == [2, 3]
    multihost_utils.sync_global_devices("both have looked")
    if rank == 0:
        next((store.folder / "step_000000003" / "state").glob("**/manifest.ocdbt")).write_bytes(b"x")
    want = make(40)
    for kept in (store, Store(folder / "alone")):
        found = kept.restore(make(9))
        assert found is not None
        step, tree, facts = found
        assert (step, facts["step"]) == (2, 2)
        for name, leaf in tree.items():
            assert leaf.sharding == want[name].sharding
            for mine, theirs in zip(leaf.addressable_shards, want[name].addressable_shards, strict=True):
                assert np.asarray(mine.data).tobytes() == np.asarray(theirs.data).tobytes()
    assert len(warned) == (1 if rank == 0 else 0)
    print("same bits", flush=True)


if __name__ == "__main__":
    kind, where, *rest = sys.argv[1:]
    {"forever": forever, "starve": starve, "pair": pair}[kind](Path(where), *map(int, rest))
