"""The main job at toy size, by the real command: what it leaves, what it says, and how it ends."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from rcmnet_jax.files import verify_sums
from tests.commands import ROOT, launch, run, start

pytestmark = pytest.mark.slow
METRICS = ("top1", "balanced_accuracy", "macro_f1", "auroc", "nll", "brier", "ece")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "smoke"
    status, out, err = launch(workdir, JAX_LOG_COMPILES="1")
    assert status == 0, err
    (workdir.parent / "said").write_text(err)
    return workdir, out


def test_all_networks_are_trained_by_one_program_which_was_compiled_while_the_data_were_read(smoke):
    said = (smoke[0].parent / "said").read_text()
    assert said.count("Finished tracing train_step") == said.count("Finished XLA compilation of jit(train_step)") == 1
    assert "nothing was compiled ahead" not in said
    assert said.index("Finished tracing train_step") < said.index("Finished tracing _take"), "batches came first"


def leaves(workdir, *arms):
    return [path for arm in arms for path in sorted((workdir / arm).glob("seed_*/fold_*"))]


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_ends_with_a_table_and_the_path_of_the_report(smoke):
    workdir, out = smoke
    assert "SYNTHETIC" in out
    assert all(arm in out for arm in ("transfer", "scratch", "probe", "shortcut"))
    assert str(workdir / "report.html") in out
    assert "Research use only, not a medical device" in out


def test_the_workdir_holds_what_scripts_rely_on(smoke):
    workdir, _ = smoke
    for name in (
        "config.json", "environment.json", "log.jsonl", "tensorboard", "data/audit.json", "data/splits.csv",
        "data/audit.html", "pretrain/bundle", "predictions.csv", "metrics.json", "report.html", "transfer/final/bundle",
    ):  # fmt: skip
        assert (workdir / name).exists(), name
    for leaf in leaves(workdir, "transfer", "scratch", "probe"):
        assert {"predictions.csv", "metrics.json", "checkpoints", "bundle"} <= {p.name for p in leaf.iterdir()}
    assert len(leaves(workdir, "transfer", "scratch", "probe", "shortcut")) == 8
    for bundle in workdir.rglob("bundle"):
        assert verify_sums(bundle) == []
        assert json.loads((bundle / "bundle.json").read_text())["format_version"] == 1
        assert "not a medical device" in (bundle / "card.md").read_text()
        assert "SYNTHETIC" in (bundle / "card.md").read_text()
    said = json.loads((workdir / "comparison.json").read_text())["sentences"][0]
    assert said.split(" (")[0] in (workdir / "bundle/card.md").read_text()


def test_every_target_image_is_predicted_once_out_of_fold(smoke):
    workdir, _ = smoke
    rows = table(workdir / "predictions.csv")
    assert len({row["path"] for row in rows}) == len(rows) == 64
    assert {row["split"] for row in rows} == {"oof"}
    folds = {}
    for row in rows:
        folds.setdefault(row["group"], set()).add(row["fold"])
    assert all(len(found) == 1 for found in folds.values())


def test_metrics_have_intervals_that_hold_their_value(smoke):
    workdir, _ = smoke
    for path in [workdir / "metrics.json", *workdir.glob("*/seed_0/fold_*/metrics.json")]:
        metrics = json.loads(path.read_text())
        for name in METRICS:
            metric = metrics[name]
            if metric["value"] is None:
                assert metric["reason"]
            else:
                assert metric["low"] <= metric["value"] <= metric["high"]


def test_predict_repeats_each_leafs_table(smoke, tmp_path):
    workdir, _ = smoke
    for i, leaf in enumerate([workdir / "pretrain", *leaves(workdir, "transfer", "scratch", "probe")]):
        data = "synthetic:pbc-tiny" if leaf.name == "pretrain" else "synthetic:cart-tiny"
        out = tmp_path / f"{i}.csv"
        status, _, err = run("-m", "rcmnet_jax", "predict", leaf / "bundle", data, "--output", out)
        assert status == 0, err
        again = {row["path"]: row for row in table(out)}
        for row in table(leaf / "predictions.csv"):
            other = again[row["path"]]
            assert (row["sha256"], row["label"], row["group"]) == (other["sha256"], other["label"], other["group"])
            assert row["ood"] == other["ood"] != ""
            for name in row:
                if name.startswith("p_"):
                    assert abs(float(row[name]) - float(other[name])) < 1e-5


def test_a_finished_run_says_so_and_does_nothing(smoke):
    workdir, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"}
    status, out, _ = launch(workdir)
    assert status == 0
    assert "finished" in out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_same_command_takes_answers_into_the_card_and_trains_nothing(smoke, tmp_path):
    done, _ = smoke
    workdir = tmp_path / "answered"
    shutil.copytree(done, workdir)
    assert "ethics" in (workdir / "card.yaml").read_text()
    (workdir / "card.yaml").write_text("ethics: 'Approved: by nobody, a test.'\n")
    steps = (workdir / "log.jsonl").read_text()
    status, _, err = launch(workdir)
    assert status == 0, err
    assert "Approved: by nobody" in (workdir / "bundle/card.md").read_text()
    assert verify_sums(workdir / "bundle") == []
    assert (workdir / "log.jsonl").read_text() == steps
    for name in ("model.safetensors", "bundle.json", "calibration.json"):
        assert (workdir / "bundle" / name).read_bytes() == (done / "bundle" / name).read_bytes()
    assert "finished" in launch(workdir)[1]
    (workdir / "card.yaml").write_text("use: x\nethics: a: b\n")
    status, _, err = launch(workdir)
    assert status == 2
    assert "card.yaml, line 2" in err
    assert "Traceback" not in err


def test_another_config_in_the_same_workdir_is_refused(smoke):
    workdir, _ = smoke
    status, _, err = launch(workdir, "--config.seed=5")
    assert status == 2
    assert "seed was 0, is now 5" in err
    assert "Traceback" not in err


def test_sigterm_saves_and_the_same_command_goes_on(smoke, tmp_path):
    done, _ = smoke
    workdir = tmp_path / "stopped"
    words = (ROOT / "launch.py", "--config=configs/cart.py:smoke", f"--workdir={workdir}")
    process = start(*words)
    deadline = time.time() + 300
    while not list(workdir.glob("pretrain/checkpoints/step_*")) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    assert b"Traceback" not in err
    status, _, err_text = run(*words)
    assert status == 0, err_text
    assert (workdir / "bundle/SHA256SUMS").read_text() == (done / "bundle/SHA256SUMS").read_text()


def test_a_folder_that_holds_other_things_is_left_as_it_is(tmp_path):
    (tmp_path / ".old-notes").mkdir()
    (tmp_path / "thesis.txt").write_text("mine")
    status, _, err = launch(tmp_path)
    assert status == 2
    assert "thesis.txt" in err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == [".old-notes", "thesis.txt"]


def test_a_workdir_in_use_is_refused(tmp_path):
    workdir = tmp_path / "busy"
    process = start(ROOT / "launch.py", "--config=configs/cart.py:smoke", f"--workdir={workdir}")
    try:
        deadline = time.time() + 120
        while not (workdir / "config.json").exists() and time.time() < deadline:
            time.sleep(0.05)
        status, _, err = launch(workdir)
    finally:
        process.kill()
        process.communicate()
    assert status == 2
    assert "in use" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--config.sorce.data=x",), "config.sorce: no such setting; did you mean 'source'?"),
        (("--config.wrkdir=x",), "config.wrkdir: no such setting; known: "),
        (("--config.batch_size=many",), "batch_size"),
        (("--config.batch_size=0",), "batch_size"),
        (("stray",), "stray"),
        (("--nonsense=1",), "nonsense"),
        (("--config.source.data=/nowhere/at.all",), "/nowhere/at.all"),
        (("--config.target.folds=9",), "folds"),
        (("--config.source.init_from=/nowhere",), "init_from"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(tmp_path, words, sentence):
    status, _, err = launch(tmp_path / "bad", *words)
    assert status == 2, err
    assert sentence in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def get_config():\n    return misspelt()\n", "mine.py, line 2: NameError: name 'misspelt' is not defined"),
        ("import sys\nsys.path.insert(0, FOLDER)\nfrom helper import get_config\n", "helper.py, line 2: KeyError"),
        ("def get_config():\n    raise TypeError('no such thing')\n", "mine.py, line 2: TypeError: no such thing"),
        ("def get_config():\n    return open('gone')\n", "mine.py, line 2: FileNotFoundError: "),
        ("def get_config(:\n", "mine.py, line 1: invalid syntax"),
        (None, "mine.py: no such config file. Try --config=configs/cart.py."),
    ],
)
def test_a_fault_in_a_users_config_file_is_said_with_its_file_and_line(tmp_path, text, sentence):
    (tmp_path / "helper.py").write_text("def get_config():\n    return {}['batch']\n")
    if text:
        (tmp_path / "mine.py").write_text(text.replace("FOLDER", repr(str(tmp_path))))
    status, _, err = launch(tmp_path / "run", config=str(tmp_path / "mine.py"))
    assert status == 2
    assert err.startswith(f"error: {tmp_path}/{sentence}")
    assert err.count("\n") == 1


def test_a_pretraining_alone_leaves_its_own_bundle_at_the_top(tmp_path):
    status, out, err = launch(tmp_path / "pbc", config="configs/pbc.py:smoke")
    assert status == 0, err
    metrics = json.loads((tmp_path / "pbc/metrics.json").read_text())
    assert metrics["n"] == len(table(tmp_path / "pbc/predictions.csv")) == 16
    assert "pretrain" in out
    assert any(line.startswith("Not calibrated: fewer than 20") for line in metrics["warnings"])
    assert (tmp_path / "pbc/report.html").stat().st_size > 10_000
    baseline = table(tmp_path / "pbc/shortcut/seed_0/fold_0/predictions.csv")
    assert [row["path"] for row in baseline] == [row["path"] for row in table(tmp_path / "pbc/predictions.csv")]
    (pair,) = json.loads((tmp_path / "pbc/comparison.json").read_text())["pairs"]
    assert (pair["first"], pair["second"]) == ("pretrain", "shortcut")


def test_real_cells_go_the_whole_way(tmp_path, real_data):
    status, out, err = launch(
        tmp_path / "real",
        f"--config.source.data={real_data / 'pbc_tiny/manifest.csv'}",
        f"--config.target.data={real_data / 'tcell/manifest.csv'}",
        "--config.target.folds=auto",
        "--config.source.epochs=1.0",
        "--config.target.epochs=1.0",
    )
    assert status == 0, err
    rows = table(tmp_path / "real/predictions.csv")
    assert len(rows) == 656
    assert len({row["fold"] for row in rows}) == 4
    assert "SYNTHETIC" not in out
    report = (tmp_path / "real/report.html").read_text()
    assert "Research use only" in report
    assert not np.isnan(float(rows[0]["confidence"]))
    assert Path(tmp_path / "real/comparison.json").exists()


def test_what_a_run_leaves_knows_its_cells(tmp_path):
    """Far above chance when read back from disk: a wrong head, or images shown otherwise, would not be."""
    status, _, err = launch(
        tmp_path / "run",
        "--config.target.data=synthetic:cart",
        "--config.target.epochs=12.0",
        "--config.target.optimizer.learning_rate=0.4",
        "--config.target.arms=transfer",
        "--config.checkpoint.every_steps=0",
        JAX_DISABLE_MOST_OPTIMIZATIONS="0",  # many steps
    )
    assert status == 0, err
    for fold in ("fold_0", "fold_1"):
        metrics = json.loads((tmp_path / "run/transfer/seed_0" / fold / "metrics.json").read_text())
        assert metrics["balanced_accuracy"]["value"] > 1.5 / 4, fold  # of four classes; 0.6 to 0.7 was seen
    answers = tmp_path / "answers.csv"
    assert run("-m", "rcmnet_jax", "predict", tmp_path / "run/bundle", "synthetic:cart", "--output", answers)[0] == 0
    rows = table(answers)
    assert np.mean([row["label"] == row["prediction"] for row in rows]) > 2 / 4
