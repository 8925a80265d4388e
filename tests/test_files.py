"""Atomic files, committed folders, checksums and the folder lock."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rcmnet_jax import files
from rcmnet_jax.errors import UserError

HOLD = """
import sys, time
from rcmnet_jax.files import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
WRITE = """
import sys
from rcmnet_jax.files import write_atomic
for i in range(10**6):
    write_atomic(sys.argv[1], str(i % 10) * 50_000)
    print(i, flush=True)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("content", [b"\x00\xff", "zwölf\r\n", "", b""])
def test_a_file_holds_what_was_written(tmp_path, content):
    path = tmp_path / "new" / "folder" / "file"
    files.write_atomic(path, "old")
    files.write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_a_kill_during_writing_never_shows_half_a_file(tmp_path):
    path = tmp_path / "file"
    for pause in (0.0, 0.01, 0.03, 0.05, 0.002):
        with start(WRITE, str(path)) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(pause)
            writer.kill()
        text = path.read_text()
        assert len(text) == 50_000
        assert len(set(text)) == 1
    files.recover_folders(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def make_folder(path: Path, text: str = "a") -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "x").write_text(text)
    (path / "y").write_bytes(b"")
    return path


def test_a_folder_is_committed_in_place_of_the_old_one(tmp_path):
    files.commit_folder(make_folder(tmp_path / ".tmp-a", "1"), tmp_path / "a")
    files.commit_folder(make_folder(tmp_path / ".tmp-a", "2"), tmp_path / "a")
    assert (tmp_path / "a" / "deep" / "x").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("died_after", range(4))
def test_a_commit_that_dies_anywhere_leaves_one_whole_folder(tmp_path, monkeypatch, died_after):
    files.commit_folder(make_folder(tmp_path / ".tmp-a", "1"), tmp_path / "a")
    temporary = make_folder(tmp_path / ".tmp-a", "2")
    calls = 0

    class Died(BaseException):
        pass

    def mortal(function):
        def wrapped(*arguments):
            nonlocal calls
            if calls == died_after:
                raise Died
            calls += 1
            return function(*arguments)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", mortal(Path.rename))
        patch.setattr(files, "remove", mortal(files.remove))
        with pytest.raises(Died):
            files.commit_folder(temporary, tmp_path / "a")
    files.recover_folders(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "deep" / "x").read_text() == ("1" if died_after < 3 else "2")


def test_sums_are_readable_by_the_usual_tool(tmp_path):
    folder = make_folder(tmp_path / "a")
    files.write_sums(folder)
    assert files.verify_sums(folder) == []
    assert (folder / "SHA256SUMS").read_text().splitlines()[0].endswith("  deep/x")
    assert files.sha256_bytes(b"a") == files.sha256_file(folder / "deep" / "x")
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), which=st.sampled_from(["deep/x", "SHA256SUMS"]))
@example(place=72, bit=0, which="SHA256SUMS")  # the first line's end becomes a vertical tab
def test_any_flipped_bit_is_found(tmp_path, place, bit, which):
    folder = tmp_path / "a"
    files.remove(folder)
    make_folder(folder, "some text")
    files.write_sums(folder)
    data = bytearray((folder / which).read_bytes())
    data[place % len(data)] ^= 1 << bit
    (folder / which).write_bytes(data)
    assert files.verify_sums(folder)


def test_missing_added_and_absent_sums_are_each_named(tmp_path):
    folder = make_folder(tmp_path / "a")
    assert files.verify_sums(folder) == ["SHA256SUMS is missing"]
    files.write_sums(folder)
    (folder / "deep" / "x").unlink()
    (folder / "extra").write_text("")
    for litter in (".DS_Store", "deep/._a", "Thumbs.db"):  # what file managers leave about
        (folder / litter).write_text("")
    assert files.verify_sums(folder) == ["deep/x is missing", "extra is not in SHA256SUMS"]
    assert files.verify_sums(folder, extra=False) == ["deep/x is missing"]


def test_what_would_spoil_a_bundle_is_refused_however_deep(tmp_path, monkeypatch):
    (tmp_path / "bundle" / "deep").mkdir(parents=True)
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    files.refuse_within_bundle(tmp_path / "beside", "--output")
    monkeypatch.chdir(tmp_path / "bundle" / "deep")
    for inside in (tmp_path / "bundle" / "new", Path("new"), Path("../x/y.csv")):
        with pytest.raises(UserError, match=r"--output=.* lies within a bundle"):
            files.refuse_within_bundle(inside, "--output")


@given(st.lists(st.lists(st.text('a\r\n",', max_size=4), min_size=2, max_size=2)))
def test_csv_is_read_as_it_was_written_line_breaks_within_cells_too(rows):
    assert list(csv.reader(io.StringIO(files.csv_text(rows), newline=""), strict=True)) == rows


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", ""])
def test_sums_that_point_outside_the_folder_are_damaged(tmp_path, name):
    folder = make_folder(tmp_path / "a")
    (tmp_path / "outside").write_text("")
    (folder / "SHA256SUMS").write_text(f"{files.sha256_bytes(b'')}  {name}\n")
    assert files.verify_sums(folder) == ["SHA256SUMS is damaged"]


def test_a_folder_is_lent_to_one_process_at_a_time(tmp_path):
    with start(HOLD, str(tmp_path / "run")) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with (
            pytest.raises(UserError, match=f"workdir in use by process {holder.pid}"),
            files.lock_folder(tmp_path / "run"),
        ):
            pass
        holder.kill()
        holder.wait()
        with files.lock_folder(tmp_path / "run"):
            assert (tmp_path / "run" / files.LOCK).read_text() == f"{os.getpid()}\n"
    with files.lock_folder(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    said: list[str] = []
    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with files.lock_folder(tmp_path, said.append):
        assert "has no locks" in said[0]


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), files.lock_folder(tmp_path / "file"):
        pass


def test_full_disks_are_known_by_number_words_and_cause():
    assert files.is_disk_full(OSError(28, "x"))
    assert files.is_disk_full(ValueError("RESOURCE_EXHAUSTED: No space left on device [28]"))
    outer = RuntimeError("saving failed")
    outer.__cause__ = OSError(122, "quota")
    assert files.is_disk_full(outer)
    assert not files.is_disk_full(OSError(13, "denied"))
