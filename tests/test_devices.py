"""One device, eight, and two processes train the same model on the same batches."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.commands import QUICKLY, ROOT, free_port
from tests.commands import start as launching


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.replica", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **QUICKLY, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(*processes):
    for process in processes:
        said, errors = process.communicate(timeout=600)
        assert process.returncode == 0, (said + (errors or b"")).decode()[-3000:]


def on_devices(folder, count, steps, precision):
    finish(start(folder / f"{count}.npz", count, steps, precision))
    return np.load(folder / f"{count}.npz")


def on_two_processes(folder, steps, precision):
    port = free_port()
    finish(*(start(folder / "two.npz", 4, steps, precision, port, 2, process) for process in range(2)))
    return np.load(folder / "two.npz")


@pytest.mark.slow
def test_in_float64_devices_and_processes_agree_after_20_steps(tmp_path):
    one, eight = (on_devices(tmp_path, count, 20, "float64") for count in (1, 8))
    two = on_two_processes(tmp_path, 20, "float64")
    assert np.isfinite(one["losses"]).all()
    assert one["losses"][-1] != one["losses"][0]
    for other in (eight, two):
        assert (one["digests"] == other["digests"]).all()
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-8, atol=1e-8)
        for name in one.files[2:]:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-8, atol=1e-8, err_msg=name)


@pytest.mark.slow
def test_in_float32_the_first_step_agrees(tmp_path):
    one, eight = (on_devices(tmp_path, count, 1, "float32") for count in (1, 8))
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5, atol=1e-5)
    for name in one.files[2:]:
        np.testing.assert_allclose(eight[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_do_a_whole_run_together(tmp_path):
    port = free_port()
    words = (
        "--config=configs/cart.py:smoke",
        "--config.steps_per_dispatch=2",
        f"--workdir={tmp_path / 'run'}",
        f"--coordinator=127.0.0.1:{port}",
    )
    words = (ROOT / "launch.py", *words, "--num_processes=2")
    finish(*(launching(*words, f"--process_id={process}") for process in range(2)))
    rows = (tmp_path / "run/predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + 64
    assert (tmp_path / "run/report.html").exists()
