"""The checkpoint store in foul weather: rotten bytes, missing files, strays, kills and full disks."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmnet_jax.checkpoint.store import Store
from rcmnet_jax.errors import Interrupted, UserError

WORKER = Path(__file__).with_name("store_worker.py")
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(WORKER.parents[2])}


def tree_of(step: int) -> dict[str, jax.Array]:
    return {"w": jnp.full((128, 256), float(step)), "b": jnp.arange(64.0) + step, "step": jnp.int32(step)}


def assert_is_step(found, step: int) -> None:
    assert found is not None
    assert found[0] == step
    for name, leaf in tree_of(step).items():
        np.testing.assert_array_equal(found[1][name], leaf)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with Store(folder) as store:
        store.save(1, tree_of(1), {"n": 1})
        store.save(2, tree_of(2), {"n": 2})
    return folder


@pytest.fixture
def folder(two_steps, tmp_path):
    return Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


def contents(folder: Path) -> list[str]:
    newest = folder / "step_000000002"
    return sorted(p.relative_to(newest).as_posix() for p in newest.rglob("*") if p.is_file())


def restore(folder: Path):
    warned: list[str] = []
    return Store(folder, warn=warned.append).restore(tree_of(0)), warned


def test_a_flipped_bit_in_any_file_falls_back_and_is_named(two_steps, tmp_path):
    names = contents(two_steps)
    assert len(names) > 5
    for i, name in enumerate(names):
        folder = Path(shutil.copytree(two_steps, tmp_path / str(i)))
        path = folder / "step_000000002" / name
        data = bytearray(path.read_bytes())
        data[random.Random(i).randrange(len(data))] ^= 1 << (i % 8)
        path.write_bytes(data)
        found, warned = restore(folder)
        assert_is_step(found, 1)
        assert len(warned) == 1
        assert "step_000000002" in warned[0]
        assert name in warned[0] or "SHA256SUMS" in name
        assert (folder / "damaged-step_000000002" / name).read_bytes() == bytes(data)


@pytest.mark.parametrize("change", ["cut", "emptied", "removed"])
def test_a_cut_emptied_or_missing_file_falls_back(two_steps, tmp_path, change):
    for i, name in enumerate(contents(two_steps)):
        folder = Path(shutil.copytree(two_steps, tmp_path / str(i)))
        path = folder / "step_000000002" / name
        if change == "removed":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] if change == "cut" else b"")
        found, warned = restore(folder)
        assert_is_step(found, 1)
        assert len(warned) == 1


def test_strays_of_every_kind_are_passed_over(folder):
    (folder / "99").mkdir()
    (folder / "99" / "state").mkdir()
    (folder / "step_x").mkdir()
    (folder / "step_3").mkdir()
    (folder / "step_000000007").write_text("a file, not a folder")
    (folder / "step_000000002" / ".DS_Store").write_text("junk")
    (folder / "notes.txt").write_text("mine")
    half = folder / ".tmp-step_000000003"
    half.mkdir()
    (half / "state.orbax-checkpoint-tmp").mkdir()
    found, warned = restore(folder)
    assert_is_step(found, 2)
    assert warned == []
    assert not half.exists()
    assert (folder / "99").is_dir()
    assert (folder / "notes.txt").exists()


def test_an_empty_step_folder_is_damage_and_no_more(folder):
    (folder / "step_000000009").mkdir()
    found, warned = restore(folder)
    assert_is_step(found, 2)
    assert "SHA256SUMS is missing" in warned[0]


def test_all_steps_damaged_restores_none_and_deletes_nothing(folder):
    for step in (1, 2):
        (folder / f"step_00000000{step}" / "leaves.json").unlink()
    found, warned = restore(folder)
    assert found is None
    assert len(warned) == 2
    assert len(list(folder.glob("damaged-*/state"))) == 2


def test_a_step_damaged_twice_keeps_both_wrecks_and_can_be_saved_again(folder):
    for _ in range(2):
        (folder / "step_000000002" / "facts.json").write_text("{}")
        warned: list[str] = []
        store = Store(folder, warn=warned.append)
        assert_is_step(store.restore(tree_of(0)), 1)
        store.save(2, tree_of(2))
        store.close()
    assert_is_step(restore(folder)[0], 2)
    assert sorted(p.name for p in folder.glob("damaged-*")) == ["damaged-step_000000002", "damaged-step_000000002-2"]


def test_a_kill_between_the_renames_of_a_replacement_loses_nothing(folder):
    (folder / "step_000000002").rename(folder / ".old-step_000000002")
    (folder / ".tmp-step_000000002").mkdir()
    found, warned = restore(folder)
    assert_is_step(found, 2)
    assert warned == []


def test_an_error_in_the_background_surfaces_once_with_its_type(folder, monkeypatch):
    store = Store(folder)
    with monkeypatch.context() as patch:
        patch.setattr("rcmnet_jax.files.write_sums", lambda _: 1 / 0)
        store.save(3, tree_of(3))
        with pytest.raises(ZeroDivisionError):
            store.wait()
    store.wait()
    assert_is_step(store.restore(tree_of(0)), 2)
    store.save(3, tree_of(3))
    assert_is_step(store.restore(tree_of(0)), 3)


def test_a_full_disk_surfaces_at_the_next_save_and_leaves_no_rubbish(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    store = Store(folder)
    with monkeypatch.context() as patch:
        patch.setattr("rcmnet_jax.files.write_sums", full)
        store.save(3, tree_of(3))
        with pytest.raises(Interrupted, match="no space left while saving step 3; step 2 is untouched"):
            store.save(4, tree_of(4))
    assert sorted(p.name for p in folder.iterdir()) == ["step_000000001", "step_000000002"]


def test_too_little_space_is_seen_before_anything_is_written(folder, monkeypatch, capfd):
    free = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    store = Store(folder)
    store.save(3, tree_of(3))
    with pytest.raises(Interrupted, match="no space left"):
        store.close()
    assert store.steps() == [1, 2]
    assert capfd.readouterr().err == ""


def test_a_file_where_the_folder_should_be_is_the_users_to_mend(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    store = Store(tmp_path / "checkpoints")
    store.save(1, tree_of(1))
    with pytest.raises(UserError, match="cannot be written"):
        store.wait()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1000, 60_000])
def test_a_real_limit_on_the_disk_exits_75_with_the_last_step_intact(tmp_path, limit):
    result = subprocess.run(
        [sys.executable, str(WORKER), "starve", str(tmp_path), str(limit)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 75, result.stderr
    assert "step 1 is untouched" in result.stdout
    assert_is_step(restore(tmp_path)[0], 1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000001"]


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_sound_step(tmp_path):
    chance = random.Random(0)
    reached = 0
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, str(WORKER), "forever", str(tmp_path)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stdout is not None
            first = int(worker.stdout.readline())
            time.sleep(chance.uniform(0, 0.3))
            worker.kill()
            printed = [first, *map(int, worker.stdout.read().split())]
        found, warned = restore(tmp_path)
        assert warned == []
        if found is None:
            assert reached == 0
            continue
        # Two saves are never in the air at once: what was begun before the last one printed has been committed.
        assert found[0] >= max(reached, printed[-1] - 1)
        assert_is_step(found, found[0])
        reached = found[0]
    assert reached > 0
