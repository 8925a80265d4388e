"""Prepared sets: what they hold, when they are made again, and that nothing half-made or damaged is ever used."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcmnet_jax import files
from rcmnet_jax.data import prepare as module
from rcmnet_jax.data.images import ImageRule, decode, signals, standardise
from rcmnet_jax.data.pixels import FACTS, INDEX, RECORDS
from rcmnet_jax.data.prepare import cache_folder, prepare
from rcmnet_jax.errors import UserError

RULE = ImageRule(8)


def png(seed, size=(9, 11)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def data(tmp_path):
    """Two classes of 30 images each."""
    for label in ("b", "a"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(30):
            (tmp_path / "data" / label / f"{i}.png").write_bytes(png(i + ord(label) * 100))
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def later(monkeypatch):
    """Ten seconds pass, so that files just written count as old."""
    now = time.time
    for form in ("folder", "base"):
        monkeypatch.setattr(f"rcmnet_jax.data.formats.{form}.time.time", lambda: now() + 10)


class Calls(list):
    """A progress callback that keeps its calls."""

    def __call__(self, done, total):
        self.append((done, total))


def sets(cache):
    return sorted(p.name for p in (cache / "sets").iterdir() if p.is_dir() and p.name != "notes")


def test_rows_stand_in_the_order_of_the_paths_with_all_that_is_known(data, cache):
    made = prepare(str(data), RULE, cache=cache)
    paths = made.examples.path.tolist()
    assert paths == sorted(paths)
    assert made.classes == ("a", "b")
    for row in (0, 31):
        content = (data / paths[row]).read_bytes()
        image = decode(content)
        assert made.classes[made.examples.label[row]] == paths[row][0]
        assert made.examples.sha256[row] == hashlib.sha256(content).hexdigest()
        assert made.examples.pixel_sha256[row] == hashlib.sha256(b"9 11\n" + image.tobytes()).hexdigest()
        np.testing.assert_array_equal(made.images()[row], standardise(image, RULE))
        np.testing.assert_array_equal(made.examples.signals[row], signals(image, len(content), "PNG"))
    assert made.examples.signals.shape == (60, len(made.examples.signal_names))
    assert (made.examples.label.dtype, made.examples.signals.dtype) == (np.int32, np.float32)
    assert not made.synthetic


def test_images_come_in_the_order_asked_for(data, cache):
    made = prepare(str(data), RULE, cache=cache)
    rows = [5, 0, 59, 5]
    np.testing.assert_array_equal(made.images(rows), made.images()[rows])
    assert made.images([]).shape == (0, 8, 8, 3)


def test_the_reader_is_random_access_can_be_pickled_and_feeds_grain(data, cache):
    import grain

    made = prepare(str(data), RULE, cache=cache)
    made.reader()[0]
    reader = pickle.loads(pickle.dumps(made.reader()))
    assert len(reader) == 60
    np.testing.assert_array_equal(reader[np.int64(7)], made.images([7])[0])
    np.testing.assert_array_equal(reader[-1], made.images([59])[0])
    with pytest.raises(IndexError):
        reader[60]
    np.testing.assert_array_equal(grain.MapDataset.source(reader)[3], made.images([3])[0])


@pytest.mark.usefixtures("later")
def test_an_unchanged_set_is_not_prepared_again(data, cache):
    calls = Calls()
    first = prepare(str(data), RULE, cache=cache, progress=calls)
    assert calls[-1] == (60, 60)
    calls.clear()
    again = prepare(str(data), RULE, cache=cache, progress=calls)
    assert calls == []
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.images(), first.images())


def test_a_file_written_a_moment_ago_is_not_trusted_by_its_time(data, cache):
    prepare(str(data), RULE, cache=cache)
    calls = Calls()
    prepare(str(data), RULE, cache=cache, progress=calls)
    assert calls[-1] == (60, 60)
    assert len(sets(cache)) == 1


@pytest.mark.usefixtures("later")
def test_a_change_that_keeps_size_and_time_is_seen(data, cache):
    first = prepare(str(data), RULE, cache=cache)
    path = data / "a/3.png"
    facts, content = path.stat(), bytearray(path.read_bytes())
    other = Image.fromarray(255 - decode(bytes(content)))
    buffer = io.BytesIO()
    other.save(buffer, "png")
    path.write_bytes(buffer.getvalue().ljust(facts.st_size, b"\0")[: max(facts.st_size, len(buffer.getvalue()))])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    second = prepare(str(data), RULE, cache=cache)
    assert second.fingerprint != first.fingerprint
    row = second.examples.path.tolist().index("a/3.png")
    np.testing.assert_array_equal(second.images([row])[0], standardise(np.asarray(other), RULE))


@pytest.mark.usefixtures("later")
def test_the_fingerprint_hangs_on_content_rule_labels_groups_and_splits_alone(data, cache, tmp_path):
    base = prepare(str(data), RULE, cache=cache)
    moved = shutil.copytree(data, tmp_path / "elsewhere")
    assert prepare(str(moved), RULE, cache=tmp_path / "other").fingerprint == base.fingerprint
    assert prepare(str(data), ImageRule(8, "crop"), cache=cache).fingerprint != base.fingerprint
    (tmp_path / "s.csv").write_text("path,split\n" + "".join(f"{p},train\n" for p in base.examples.path.tolist()))
    split = prepare(str(data), RULE, cache=cache, splits=str(tmp_path / "s.csv"))
    assert split.fingerprint != base.fingerprint
    assert split.folder == base.folder, "the same pixels are kept once"
    assert set(split.examples.split.tolist()) == {"train"}


@pytest.mark.usefixtures("later")
def test_a_set_for_one_look_is_the_same_and_leaves_no_trace(data, cache):
    (data / "a" / "broken.png").write_bytes(b"no image")
    held = prepare(str(data), RULE, cache=cache, keep=False)
    assert not cache.exists()
    kept = prepare(str(data), RULE, cache=cache)
    np.testing.assert_array_equal(held.images([3, 1]), kept.images([3, 1]))
    np.testing.assert_array_equal(held.examples.sha256, kept.examples.sha256)
    assert held.examples.signals.shape == (len(kept.examples.path), 0), "for one look originals are not described"
    assert (held.fingerprint, held.skipped, len(held.skipped)) == (kept.fingerprint, kept.skipped, 1)


@pytest.mark.usefixtures("later")
def test_labels_are_those_that_data_has_now(data, cache):
    def write(label):
        rows = "".join(f"{k}/{i}.png,{label if k == 'a' else 'b'},d{i % 2}\n" for k in "ab" for i in range(30))
        (data / "m.csv").write_text("path,label,group\n" + rows)

    write("x")
    first = prepare(str(data / "m.csv"), RULE, cache=cache)
    write("y")
    calls = Calls()
    second = prepare(str(data / "m.csv"), RULE, cache=cache, progress=calls)
    assert (first.classes, second.classes) == (("b", "x"), ("b", "y"))
    assert calls == [], "no pixel has changed"
    assert first.fingerprint != second.fingerprint
    assert second.examples.group.tolist()[:2] == ["d0", "d1"]


def test_unlabelled_images_have_label_minus_one(data, cache):
    shutil.move(data / "a/0.png", data / "0.png")
    made = prepare(str(data), RULE, cache=cache, labelled=False)
    assert made.examples.label.tolist()[0] == -1
    assert made.examples.label.tolist()[1:] == [0] * 29 + [1] * 30


@pytest.mark.usefixtures("later")
def test_unreadable_files_are_listed_with_the_reason(data, cache):
    (data / "a/0.png").write_bytes(b"")
    (data / "a/1.png").write_bytes(png(1)[:-60])
    (data / "a/2.png").write_text("not an image")
    for _ in range(2):
        made = prepare(str(data), RULE, cache=cache)
        assert [(s.path, s.reason) for s in made.skipped] == [
            ("a/0.png", "empty file"),
            ("a/1.png", "truncated image"),
            ("a/2.png", "not an image in a format that is read here"),
        ]
        assert len(made.examples.path) == len(made.images()) == 57


def test_a_set_without_one_readable_image_is_refused_and_leaves_nothing(data, cache):
    for path in data.rglob("*.png"):
        path.write_bytes(b"no")
    with pytest.raises(UserError, match=r"not one of 60 images could be read \(a/0\.png: not an image"):
        prepare(str(data), RULE, cache=cache)
    assert sets(cache) == []


@pytest.mark.parametrize("name", [RECORDS, INDEX, FACTS, "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.usefixtures("later")
def test_damage_is_seen_at_opening_and_mended(data, cache, name, damage):
    first = prepare(str(data), RULE, cache=cache)
    expected, path = first.images(), first.folder / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-7])
    else:
        path.unlink()
    calls = Calls()
    again = prepare(str(data), RULE, cache=cache, progress=calls)
    assert calls, "prepared again"
    np.testing.assert_array_equal(again.images(), expected)
    assert files.verify_sums(again.folder) == []
    assert again.fingerprint == first.fingerprint


def test_damage_while_a_run_reads_is_an_error_not_wrong_pixels(data, cache):
    made = prepare(str(data), RULE, cache=cache)
    before = made.images()
    content = bytearray((made.folder / RECORDS).read_bytes())
    place = content.index(made.images([30])[0].tobytes())
    content[place + 5] ^= 1
    (made.folder / RECORDS).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        made.images()
    assert files.verify_sums(made.folder)  # a large set is not read through at its opening: the mark tells the next run
    calls = Calls()
    np.testing.assert_array_equal(prepare(str(data), RULE, cache=cache, progress=calls).images(), before)
    assert calls, "prepared again"


def test_a_set_that_was_cut_off_is_damaged_and_prepared_again(data, cache, monkeypatch):
    monkeypatch.setattr("rcmnet_jax.data.pixels._HASH_WHOLE", 0)
    made = prepare(str(data), RULE, cache=cache)
    before = made.images()
    os.truncate(made.folder / RECORDS, (made.folder / RECORDS).stat().st_size // 2)
    with pytest.raises(UserError, match="damaged"):
        prepare(str(data), RULE, cache=cache).images()
    np.testing.assert_array_equal(prepare(str(data), RULE, cache=cache).images(), before)


class Stop(Exception):
    """What a run raises to stop from outside."""


def test_stopping_leaves_nothing_half_made(data, cache):
    def stop(*_):
        raise Stop

    with pytest.raises(Stop):
        prepare(str(data), RULE, cache=cache, progress=stop)
    assert sets(cache) == []
    assert len(prepare(str(data), RULE, cache=cache).images()) == 60


RUN = """
import os, signal, sys
from pathlib import Path
from rcmnet_jax.data.images import ImageRule
from rcmnet_jax.data.prepare import prepare
def progress(done, total):
    if sys.argv[3] == "kill" and done:
        os.kill(os.getpid(), signal.SIGKILL)
    print("made", flush=True)
print(prepare(sys.argv[1], ImageRule(8), cache=Path(sys.argv[2]), progress=progress).fingerprint)
if sys.argv[3] == "peak":
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def start(data, cache, how="run"):
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[2])}
    command = [sys.executable, "-c", RUN, str(data), str(cache), how]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_kill_leaves_nothing_that_is_read_and_the_next_run_clears_up(data, cache):
    killed = start(data, cache, "kill")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert [name[:5] for name in sets(cache)] == [".tmp-"]
    made = prepare(str(data), RULE, cache=cache)
    assert sets(cache) == [made.folder.name]
    assert files.verify_sums(made.folder) == []


def test_two_runs_at_once_share_one_set(data, cache):
    time.sleep(2.1)  # the files are then old enough to be trusted by their times
    runs = [start(data, cache) for _ in range(2)]
    said = [run.communicate()[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert said[0][-1] == said[1][-1]
    assert sets(cache) == [prepare(str(data), RULE, cache=cache).folder.name]


def test_pixels_do_not_depend_on_the_number_of_threads(data, cache, tmp_path, monkeypatch):
    many = prepare(str(data), RULE, cache=cache)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    one = prepare(str(data), RULE, cache=tmp_path / "one")
    assert one.folder.name == many.folder.name
    np.testing.assert_array_equal(one.images(), many.images())


def test_a_full_disk_is_said_before_any_work(data, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 100))
    with pytest.raises(OSError, match="preparing needs") as error:
        prepare(str(data), RULE, cache=cache)
    assert files.is_disk_full(error.value)
    assert sets(cache) == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(data, cache):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
        with pytest.raises((OSError, RuntimeError)) as error:
            prepare(str(data), ImageRule(64), cache=cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert files.is_disk_full(error.value)
    assert sets(cache) == []


def test_a_cache_that_cannot_be_is_named(data, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="RCMNET_CACHE"):
        prepare(str(data), RULE, cache=tmp_path / "file")


def test_the_cache_is_the_configured_one_then_the_environments(monkeypatch, tmp_path):
    monkeypatch.setenv("RCMNET_CACHE", str(tmp_path / "r"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder(str(tmp_path / "c")) == tmp_path / "c"
    assert cache_folder() == tmp_path / "r"
    monkeypatch.delenv("RCMNET_CACHE")
    assert cache_folder() == tmp_path / "x" / "rcmnet_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rcmnet_jax"


def test_embedded_sets_are_marked_and_found_again(cache):
    first = prepare("synthetic:cart-tiny", RULE, cache=cache)
    calls = Calls()
    assert prepare("synthetic:cart-tiny", RULE, cache=cache, progress=calls).fingerprint == first.fingerprint
    assert first.synthetic
    assert calls == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    (tmp_path / "data/a").mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 3000), (9, 99, 200)).save(buffer, "png")
    for i in range(40):
        (tmp_path / f"data/a/{i}.png").write_bytes(buffer.getvalue())
    run = start(tmp_path / "data", tmp_path / "cache", "peak")
    said, _ = run.communicate()
    assert run.returncode == 0
    # 40 decoded images would be 1,080 MB. Not ru_maxrss: a forked child begins with its parent's peak there.
    assert int(said.split()[-1]) / 1024 < 300 + 60 * len(os.sched_getaffinity(0))


def test_the_t_cells_keep_their_donors(real_data, cache):
    made = prepare(str(real_data / "tcell" / "manifest.csv"), ImageRule(32), cache=cache)
    assert len(made.examples.path) == 656
    assert made.classes == ("activated", "quiescent")
    assert set(made.examples.group.tolist()) == {f"donor_{i}" for i in range(1, 5)}


@pytest.mark.slow
def test_the_published_set_is_decoded_once(real_data, cache, monkeypatch):
    rule, spec = ImageRule(128), str(real_data / "PBC_dataset_normal_DIB_128px.zip")
    first = prepare(spec, rule, cache=cache, splits=str(real_data / "pbc_128px_split.csv"))

    def forbidden(*_):
        raise AssertionError("the set is there; opening it must not make it again")

    monkeypatch.setattr(module, "build", forbidden)
    again = prepare(spec, rule, cache=cache, splits=str(real_data / "pbc_128px_split.csv"))
    assert len(first.examples.path) == 13_724
    assert again.fingerprint == first.fingerprint
