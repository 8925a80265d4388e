"""A run without a target calibrates its bundle on `val`, and never reports rows by a calibration that saw them."""

from __future__ import annotations

import csv
import json

import pytest

from tests.commands import launch, run

pytestmark = pytest.mark.slow
PARTS = ("train", "train", "val", "test")


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def calibration(folder):
    return json.loads((folder / "bundle/calibration.json").read_text())


@pytest.fixture(scope="module")
def on_val(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("val") / "run"
    status, _, err = launch(workdir, "--config.source.val_fraction=0.3", config="configs/pbc.py:smoke")
    assert status == 0, err
    return workdir


def test_with_val_alone_only_the_top_bundle_is_calibrated_and_the_table_is_not(on_val):
    rows, facts = table(on_val / "predictions.csv"), calibration(on_val)
    assert {row["split"] for row in rows} == {"val"}
    assert {row["abstain"] for row in rows} == {""}
    assert facts["rows"] == len(rows) >= 20
    assert facts["conformal"]["alpha"] == 0.1
    assert set(facts["reliability"]) == {"before", "after"}
    assert "temperature" not in calibration(on_val / "pretrain")
    assert f"fitted on {len(rows)} validation images" in (on_val / "report.html").read_text()


def test_with_a_test_part_the_table_on_it_is_of_the_bundle_calibrated_on_val(on_val, tmp_path):
    rows = [row for row in table(on_val / "data/splits.csv") if row["set"] == "source"]
    lines = [f"{row['path']},{PARTS[i % 4]}" for i, row in enumerate(rows)]
    (tmp_path / "splits.csv").write_text("path,split\n" + "\n".join(lines) + "\n")
    workdir, words = tmp_path / "run", (f"--config.source.splits={tmp_path / 'splits.csv'}",)
    status, _, err = launch(workdir, *words, "--config.evaluation.error_rate=0.3", config="configs/pbc.py:smoke")
    assert status == 0, err
    told, facts = table(workdir / "predictions.csv"), calibration(workdir)
    assert {row["split"] for row in told} == {"test"}
    assert {row["abstain"] for row in told} <= {"0", "1"}
    assert facts == calibration(workdir / "pretrain")
    assert facts["rows"] == sum(line.endswith(",val") for line in lines)
    assert facts["conformal"]["alpha"] == 0.3
    assert "before_temperature" in json.loads((workdir / "metrics.json").read_text())["calibration"]
    words = ("predict", workdir / "bundle", "synthetic:pbc-tiny", "--output", tmp_path / "again.csv")
    status, _, err = run("-m", "rcmnet_jax", *words)
    assert status == 0, err
    again = {row["path"]: row for row in table(tmp_path / "again.csv")}
    for row in told:
        assert row["abstain"] == again[row["path"]]["abstain"]
        assert float(row["confidence"]) == pytest.approx(float(again[row["path"]]["confidence"]), abs=1e-5)
