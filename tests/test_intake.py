"""What stands between the data and the first step: the audit that stops a run, and data that changed under one."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs.base import SMOKE, change
from rcmnet_jax import bundle as bundles
from rcmnet_jax.checkpoint import initial
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.console import Console
from rcmnet_jax.errors import UserError
from rcmnet_jax.intake import gather
from rcmnet_jax.training.stop import StopRequest
from tests.bad_input.case import BUNDLE
from tests.commands import launch
from tests.planting import encoded, table, write

LEAK = "exact_duplicate_across_splits"


@pytest.fixture
def leaking(tmp_path):
    """A manifest of 12 pictures, one of which is in training and in the test."""
    rows = []
    for i in range(12):
        path, label = f"data/{i}.png", "ab"[i % 2]
        pixels = np.random.default_rng(max(i, 2)).integers(0, 256, (20, 20, 3), np.uint8)  # 0, 1 and 2 are the same
        write(tmp_path / path, encoded(pixels, "png"))
        rows.append(f"{path},{label},{'test' if i == 2 or i > 7 else 'train'}")
    return table(tmp_path / "cells.csv", "path,label,split", *rows[:1], *rows[2:])


def config(manifest, *allow):
    """Only a target, at toy size."""
    small = {**SMOKE, "source": {"data": "none"}}
    return change(ExperimentConfig(), **small, target={"data": str(manifest)}, audit={"allow": allow})


def gathered(manifest, workdir, *allow):
    return gather(config(manifest, *allow), workdir, Console(), StopRequest())


def test_a_leak_stops_the_run_and_leaves_the_audit_to_be_read(leaking, tmp_path):
    with pytest.raises(UserError, match=rf"data/0\.png and data/2\.png.*--config\.audit\.allow={LEAK} if it may stand"):
        gathered(leaking, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run/data").iterdir()} == {"audit.json", "audit.html"}
    assert LEAK in (tmp_path / "run/data/audit.html").read_text("utf-8")


def test_a_leak_that_is_allowed_by_name_is_said_and_the_run_goes_on(leaking, tmp_path, capsys):
    data = gathered(leaking, tmp_path / "run", LEAK)
    assert "is allowed: target: 1 pair of images on two sides of a split" in capsys.readouterr().out
    assert len(data.folds[0][0].test) == 5
    assert (tmp_path / "run/data/splits.csv").is_file()


def test_data_that_changed_since_the_run_began_are_refused_before_anything_is_written(leaking, tmp_path):
    gathered(leaking, tmp_path / "run", LEAK)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    leaking.write_text(leaking.read_text().replace("data/5.png,b", "data/5.png,a"))
    with pytest.raises(UserError, match=r"config\.target\.data=.*its content has changed since .*run began"):
        gathered(leaking, tmp_path / "run", LEAK)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_weights_that_changed_since_the_run_began_are_refused_before_anything_is_written(leaking, tmp_path):
    weights = tmp_path / "start.safetensors"
    start = change(config(leaking, LEAK), source={"init_from": str(weights)})

    def begun():
        gather(start, tmp_path / "run", Console(), StopRequest())
        return {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    weights.write_bytes(b"one")
    before = begun()
    assert begun() == before
    weights.write_bytes(b"another")
    with pytest.raises(UserError, match=r"config\.source\.init_from=.*its content has changed since .*run began"):
        begun()
    weights.write_bytes(b"one")
    assert begun() == before


def test_weights_are_known_by_what_they_are_and_not_by_their_card(tmp_path):
    whole = bundles.load(BUNDLE)
    bundles.write(tmp_path / "one", whole)
    bundles.write(tmp_path / "two", whole, card="Another card.\n")
    first = initial.fingerprint(str(tmp_path / "one"))
    assert initial.fingerprint(str(tmp_path / "two")) == first
    bundles.write(tmp_path / "two", dataclasses.replace(whole, params=jax.tree.map(lambda x: x + 1, whole.params)))
    assert initial.fingerprint(str(tmp_path / "two")) != first
    (tmp_path / "w.safetensors").write_bytes(b"x")
    plain = initial.fingerprint(str(tmp_path / "w.safetensors"))
    seen = {plain}
    for imported in (True, False):
        (tmp_path / "architecture.json").write_text(json.dumps({"imported": imported, "model": {}}))
        seen.add(initial.fingerprint(str(tmp_path / "w.safetensors")))
    assert len(seen) == 3


@pytest.mark.slow
def test_the_command_ends_with_status_2_on_a_leak(leaking, tmp_path):
    words = ("--config.target.data=", f"--config.source.data={leaking}")
    status, _, err = launch(tmp_path / "run", *words)
    assert status == 2, err
    (line,) = err.splitlines()
    assert line.startswith("error: The audit stopped the run: source: 1 pair of images on two sides of a split")
    findings = json.loads((tmp_path / "run/data/audit.json").read_text())["findings"]
    assert [finding["name"] for finding in findings if finding["level"] == "error"] == [LEAK]


def test_each_stage_has_its_own_crop_and_frame(tmp_path):
    settings = change(
        ExperimentConfig(),
        **{**SMOKE, "source": {"data": "synthetic:pbc-tiny", "crop": 0.6, "frame": 0}},
        target={"data": "synthetic:cart-tiny", "folds": "2", "frame": 40},
        image={"crop": 0.9},
    )
    found = gather(settings, tmp_path, Console(active=False), StopRequest())
    assert (found.source.rule.crop, found.source.rule.frame) == (0.6, 0)
    assert (found.target.rule.crop, found.target.rule.frame) == (0.9, 40)


@pytest.mark.parametrize(("sides", "said"), [((10, 20, 40), True), ((38, 40, 42), False)])
def test_crops_of_many_sizes_are_said_to_lose_their_scale(tmp_path, capsys, sides, said):
    for i in range(12):
        side = sides[i % len(sides)]
        pixels = np.random.default_rng(i).integers(0, 256, (side, side - 2, 3), np.uint8)
        write(tmp_path / f"data/{'ab'[i % 2]}/{i}.png", encoded(pixels, "png"))
    gathered(tmp_path / "data", tmp_path / "run")
    assert ("--config.target.frame=40 keeps the cells' sizes" in capsys.readouterr().out) == said
