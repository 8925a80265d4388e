"""SIGKILL at a random moment, then the same command: the result has the same bits as one never interrupted."""

from __future__ import annotations

import os
import random
import signal
import time

import numpy as np
import pytest

from tests.commands import ROOT, launch, start, state_of

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("RCMNET_TEST_KILLS", "2"))
LEAVES = ("pretrain", "transfer/seed_0/fold_1", "scratch/seed_0/fold_0", "transfer/final")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run's folder, and how long it takes with the compilation cache filled."""
    for name in ("cold", "warm"):
        workdir = tmp_path_factory.mktemp("whole") / name
        begun = time.monotonic()
        status, _, err = launch(workdir)
        assert status == 0, err
    return workdir, time.monotonic() - begun


@pytest.mark.parametrize("trial", range(KILLS))
def test_a_killed_run_ends_with_the_same_bits(uninterrupted, tmp_path, trial):
    whole, seconds = uninterrupted
    workdir = tmp_path / "killed"
    wait = random.Random(trial).uniform(0.05, 1.0) * seconds
    process = start(ROOT / "launch.py", "--config=configs/cart.py:smoke", f"--workdir={workdir}")
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    status, _, err = launch(workdir)
    assert status == 0, f"killed after {wait:.1f} s: {err}"
    for name in ("bundle", *(f"{leaf}/bundle" for leaf in LEAVES)):
        sums = [(folder / name / "SHA256SUMS").read_text() for folder in (whole, workdir)]
        assert sums[0] == sums[1], f"{name}, killed after {wait:.1f} s"
    for leaf in LEAVES:
        ours, theirs = state_of(workdir / leaf), state_of(whole / leaf)
        assert ours.keys() == theirs.keys()
        assert any("opt_state" in name for name in ours)
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name], err_msg=f"{leaf} {name}")
    for name in ("predictions.csv", "metrics.json"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes()
