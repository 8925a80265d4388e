"""Odd and hostile input through the real commands: each row of the table in docs/data.md does what it says.

What is refused ends with status 2 and one sentence, and every file that was there is as it was. What is listed is named
with its reason on the console and in audit.json, and the rest is used.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import re
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from tests.bad_input import refused
from tests.bad_input.case import BUNDLE, Listed, Refused, rows_of_the_docs
from tests.bad_input.listed import CASES
from tests.commands import launch, run, start
from tests.planting import encoded, fill, table, write

# Rows that the two last tests here are about.
BY_A_RUN = ("splits CSV: image of DATA that it does not name", "splits CSV: row without an image in DATA")
HASHED = 64 << 20  # bytes: a larger file is a hole, and its time tells whether it was written to


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below `root` by its path: kind, and of files the size, the time of the last change and the content."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(root):
        for path in (Path(folder, name) for name in folders + files):
            facts = path.lstat()
            kind, content = stat.S_IFMT(facts.st_mode), ""
            if stat.S_ISLNK(kind):
                content = str(path.readlink())
            elif stat.S_ISREG(kind) and facts.st_size < HASHED:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = (kind,) if stat.S_ISDIR(kind) else (kind, facts.st_size, facts.st_mtime_ns, content)
    return found


@pytest.fixture
def here(tmp_path):
    """A folder with what good runs left, and a working folder deep enough for names to climb out of it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "work" / "deep").mkdir(parents=True)
    return fill(tmp_path, "out/audit.json", "out/audit.html", "predictions.csv")


def test_every_row_of_the_docs_has_a_case_of_its_outcome():
    tested = {(case.row, "refused") for case in refused.CASES} | {(row, "listed") for row in BY_A_RUN}
    tested |= {(row, "listed") for case in CASES for row in case.rows}
    tested |= {(row, "used") for case in CASES for row in case.used}
    promised = set(rows_of_the_docs().items())
    assert promised - tested == set()
    assert {row for row, _ in tested} - {row for row, _ in promised} == set()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] * (case.by != "audit"), id=f"{case.row[:24]}-{case.name}")
        for case in refused.CASES
    ],
)
@pytest.mark.filterwarnings("ignore")  # what TensorFlow Datasets says while a set is prepared
def test_what_is_refused_is_said_in_one_sentence_and_nothing_is_written_over(here, case: Refused):
    words = case.plant(here / "in")
    before = snapshot(here)
    status, out, err = case.run(here, words)
    assert status == 2, out + err
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert case.says in line
    after = snapshot(here)
    assert {path: facts for path, facts in after.items() if path in before} == before
    made = {str(Path(path).relative_to(here)) for path in after if path not in before}
    # A run notes in its folder what it is before it looks at DATA: files, and none of these, which are results.
    notes = {path for path in made if re.fullmatch(r"run(/[^/]+)?", path)} if case.by == "launch" else set()
    assert made - notes == set()
    assert not notes & {f"run/{name}" for name in ("predictions.csv", "metrics.json", "report.html", "bundle", "data")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_listed_is_named_with_its_reason_and_the_rest_is_used(here, case: Listed):
    words = case.plant(here / "in")
    before = snapshot(here)
    status, out, err = run("-m", "rcmnet_jax", "audit", *words, "--output", "../../out", cwd=here / "work" / "deep")
    assert (status, err) == (0, ""), out + err
    audit = json.loads((here / "out" / "audit.json").read_text("utf-8"))
    found = {path: why for finding in audit["findings"] for path, why in finding["details"].get("reasons", {}).items()}
    expected = {path: why for row in case.rows.values() for path, why in row.items()}
    assert {path: why[: len(expected.get(path, ""))] for path, why in found.items()} == expected
    for reason in found.values():
        first = sorted(path for path, why in found.items() if why == reason)[:3]
        assert f"{reason}: {', '.join(first)}" in out
    for row, holds in case.used.items():
        assert holds(audit), row
    changed = {path for path, facts in snapshot(here).items() if before.get(path) != facts}
    assert changed == {str(here / "out" / name) for name in ("audit.json", "audit.html")}


def test_a_pipe_that_takes_an_images_place_is_listed_and_not_waited_for(tmp_path):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("what a process has open is seen in /proc alone")
    data, sets = fill(tmp_path / "data", "a/1.png", "b/2.png"), tmp_path / "cache" / "sets"
    sets.mkdir(parents=True)
    with (sets / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the command has listed the images when it waits for the cache
        process = start("-m", "rcmnet_jax", "audit", data, RCMNET_CACHE=str(tmp_path / "cache"))
        held: set[str] = set()
        while str(sets / ".lock") not in held:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
            held = {str(path.readlink()) for path in Path(f"/proc/{process.pid}/fd").iterdir() if path.is_symlink()}
        (data / "a/1.png").unlink()
        os.mkfifo(data / "a/1.png")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "not a plain file: a/1.png" in out.decode()


@pytest.mark.slow
def test_prediction_takes_rows_without_a_label_and_names_what_it_leaves_out(tmp_path):
    fill(tmp_path, "a/1.png", "a/2.png")
    manifest = table(tmp_path / "m.csv", "path,label", "a/1.png,", "a/2.png,", "a/9.png,")
    status, out, err = run("-m", "rcmnet_jax", "predict", BUNDLE, manifest, "--output", tmp_path / "p.csv")
    assert status == 0, err
    assert "1 left out, no such file: a/9.png" in out
    with (tmp_path / "p.csv").open(newline="") as file:
        assert [(row["path"], row["label"]) for row in csv.DictReader(file)] == [("a/1.png", ""), ("a/2.png", "")]


@pytest.mark.slow
def test_a_run_names_what_a_splits_file_leaves_over_and_keeps_to_the_rest(tmp_path):
    images = [f"{label}/{i}.png" for i in range(5) for label in "ab"]
    wanted = {path: "val" if i > 5 else "train" for i, path in enumerate(images[:8])}
    for seed, path in enumerate(images):  # pictures of their own: equal ones would be leaks
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
        write(tmp_path / "data" / path, encoded(pixels, "png"))
    rows = [f"{path},{split}" for path, split in wanted.items()]
    splits = table(tmp_path / "s.csv", "path,split", *rows, "a/99.png,test")
    words = ("--config.target.data=", f"--config.source.data={tmp_path / 'data'}", "--config.source.epochs=0.1")
    status, out, err = launch(tmp_path / "run", *words, f"--config.source.splits={splits}")
    assert status == 0, err
    assert "source: 2 left out, not in s.csv: a/4.png, b/4.png" in out
    assert "source: 1 left out, in s.csv, but not in DATA: a/99.png" in out
    audit = json.loads((tmp_path / "run/data/audit.json").read_text())
    (finding,) = [f for f in audit["findings"] if f["name"] == "left_out"]
    assert finding["details"]["reasons"] == {
        "a/4.png": "not in s.csv", "b/4.png": "not in s.csv", "a/99.png": "in s.csv, but not in DATA",
    }  # fmt: skip
    with (tmp_path / "run/data/splits.csv").open(newline="") as file:
        assert {row["path"]: row["role"] for row in csv.DictReader(file)} == wanted
