"""The checkpoint store in fair weather: bits, placement, order, pruning, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rcmnet_jax import files
from rcmnet_jax.checkpoint.store import Store
from rcmnet_jax.errors import UserError
from tests.commands import free_port


class Momentum(NamedTuple):
    count: Any
    trace: Any


def make_tree(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "step": jnp.int32(seed),
        "params": {"conv1": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 4, 8)), jnp.float32)}},
        "half": jnp.asarray(rng.normal(size=(5, 7)), jnp.bfloat16),
        "key": jax.random.key_data(jax.random.key(seed)),
        "typed_key": jax.random.key(seed + 1),
        "opt_state": (Momentum(jnp.uint32(2**32 - 1 - seed), {"kernel": jnp.full((4,), -0.0)}), ()),
        "empty": jnp.zeros((0, 3)),
        "batch_stats": {},
    }


def assert_same_bits(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def blank(tree: Any) -> Any:
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x * 0, tree)


def test_a_restored_tree_has_the_bits_of_the_saved_one(tmp_path):
    tree = make_tree(3)
    with Store(tmp_path) as store:
        store.save(7, tree, {"stage": "pretrain", "lr": 0.1})
    step, restored, facts = Store(tmp_path).restore(blank(tree))
    assert (step, facts) == (7, {"stage": "pretrain", "lr": 0.1})
    assert_same_bits(tree, restored)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_array_comes_back_bit_for_bit(tmp_path, data):
    dtype = data.draw(st.sampled_from([np.float32, np.int32, np.uint32, np.uint8, np.bool_, np.float16]))
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)))
    tree = {"x": jnp.asarray(array), "y": (jnp.asarray(array[..., None]).astype(jnp.bfloat16), np.asarray(array))}
    store = Store(tmp_path)
    store.save(1, tree)
    _, restored, _ = store.restore(tree)
    assert_same_bits(tree, restored)


def test_nan_payloads_infinities_and_negative_zero_survive(tmp_path):
    bits = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001], np.uint32)
    tree = {"x": jnp.asarray(bits.view(np.float32))}
    store = Store(tmp_path)
    store.save(0, tree)
    _, restored, _ = store.restore(tree)
    np.testing.assert_array_equal(np.asarray(restored["x"]).view(np.uint32), bits)


def test_saving_copies_before_the_state_is_donated(tmp_path):
    update = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
    state = {"w": jnp.zeros((512, 512)), "step": jnp.int32(0)}
    store = Store(tmp_path, keep=20)
    for step in range(5):
        store.save(step, state)
        for _ in range(3):
            state = update(state)
    store.close()
    for step in reversed(range(5)):
        found, tree, _ = store.restore(state)
        assert found == step
        np.testing.assert_array_equal(tree["w"], np.full((512, 512), 3 * step))
        (tmp_path / f"step_{step:09d}").rename(tmp_path / f"seen_{step}")


def test_restored_arrays_can_be_donated_and_keep_their_values(tmp_path):
    update = jax.jit(lambda t: jax.tree.map(lambda x: x * 2, t), donate_argnums=0)
    state = {"w": jnp.arange(4096.0), "step": jnp.int32(1)}
    store = Store(tmp_path)
    store.save(1, state)
    _, first, _ = store.restore(state)
    _, second, _ = store.restore(state)
    for _ in range(3):
        first = update(first)
    np.testing.assert_array_equal(second["w"], np.arange(4096.0))
    np.testing.assert_array_equal(first["w"], 8 * np.arange(4096.0))


def test_arrays_come_back_placed_as_asked(tmp_path):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    store = Store(tmp_path)
    store.save(1, {"a": jnp.arange(4.0), "b": jnp.int32(2), "c": np.arange(3)})
    like = {"a": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding), "b": jnp.int32(0), "c": np.zeros(3, int)}
    _, tree, _ = store.restore(like)
    assert tree["a"].sharding == sharding
    assert tree["a"].committed
    assert not tree["b"].committed
    assert isinstance(tree["c"], np.ndarray)


def test_nothing_saved_restores_as_none(tmp_path):
    assert Store(tmp_path / "new").restore({"a": jnp.zeros(2)}) is None
    assert not (tmp_path / "new").exists()


def test_the_newest_keep_steps_stay(tmp_path):
    with Store(tmp_path, keep=2) as store:
        for step in (1, 5, 9, 10):
            store.save(step, {"a": jnp.float32(step)})
    assert store.steps() == [9, 10]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000000009", "step_000000010"]


def test_the_step_just_written_is_never_pruned(tmp_path):
    store = Store(tmp_path, keep=1)
    store.save(50, {"a": jnp.float32(50)})
    store.save(10, {"a": jnp.float32(10)})
    store.close()
    assert 10 in store.steps()


def test_saving_a_step_again_replaces_it(tmp_path):
    store = Store(tmp_path)
    store.save(4, {"a": jnp.float32(1)})
    store.save(4, {"a": jnp.float32(2)}, {"again": True})
    step, tree, facts = store.restore({"a": jnp.float32(0)})
    assert (step, float(tree["a"]), facts) == (4, 2.0, {"again": True})


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"p": {"w": jnp.zeros((2, 4))}}, r"'p/w' is float32 \(2, 3\) there and float32 \(2, 4\) here"),
        ({"p": {"w": jnp.zeros((2, 3), jnp.int32)}}, "float32 .* there and int32"),
        ({"p": {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}}, "has no 'p/b'"),
        ({"p": {"v": jnp.zeros((2, 3))}}, "'p/v'"),
        ({"p": {}}, "holds 'p/w'"),
    ],
)
def test_another_tree_is_refused_by_the_leafs_name(tmp_path, like, words):
    store = Store(tmp_path)
    store.save(1, {"p": {"w": jnp.zeros((2, 3))}})
    with pytest.raises(UserError, match=words):
        store.restore(like)
    assert store.steps() == [1]


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint.keep=0"):
        Store(tmp_path, keep=0)


def test_facts_that_are_no_json_are_refused_before_anything_is_written(tmp_path):
    store = Store(tmp_path / "c")
    with pytest.raises(ValueError):
        store.save(1, {"a": jnp.zeros(1)}, {"loss": float("nan")})
    store.close()
    assert not (tmp_path / "c").exists()


def test_a_save_returns_before_it_is_committed(tmp_path, monkeypatch):
    store, told = Store(tmp_path), threading.Event()
    commit = files.commit_folder
    monkeypatch.setattr(files, "commit_folder", lambda *given: (told.wait(60), commit(*given)))
    array = jnp.ones((250, 1000), jnp.float32)
    store.save(1, {"a": array})  # would wait for a minute if it wrote on its own
    array.delete()  # as donation to the next step does
    assert store.steps() == []
    told.set()
    store.wait()
    assert store.steps() == [1]
    _, tree, _ = store.restore({"a": jnp.zeros((250, 1000), jnp.float32)})
    assert np.array_equal(tree["a"], np.ones((250, 1000)))


@pytest.mark.slow
def test_two_processes_save_and_restore_together_and_each_what_one_alone_saved_and_the_reverse(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, copied = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (["data"], []))
    tree = {
        "split": jax.device_put(np.arange(8.0, dtype=np.float32) + 40, split),
        "copied": jax.device_put(np.full((3,), 40, np.int32), copied),
    }
    with Store(tmp_path / "alone") as store:
        store.save(2, tree, {"step": 2})
    worker = Path(__file__).parent / "faults" / "store_worker.py"
    port = free_port()
    # One device a process, whatever the tests around simulate.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(Path(__file__).parents[1])}
    workers = [
        subprocess.Popen(
            [sys.executable, str(worker), "pair", str(tmp_path), str(port), str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [w.communicate(timeout=90)[0] for w in workers]
    finally:
        for w in workers:
            w.kill()
    assert [w.returncode for w in workers] == [0, 0], "\n".join(outputs)
    assert all("same bits" in text for text in outputs)
    found = Store(tmp_path / "together").restore(jax.tree.map(jnp.zeros_like, tree))
    assert found is not None
    jax.tree.map(np.testing.assert_array_equal, found[1], tree)
    assert found[1]["split"].sharding == split
