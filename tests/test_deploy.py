"""What starts a run on a cluster: that it names what there is, and starts what it should. No cluster takes part."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.commands import ROOT, free_port, start

DEPLOY = ROOT / "deploy"
WORDS = ("--config=configs/cart.py:smoke", "--workdir=/shared/a run")
STUB = """#!/bin/sh
printf '%s\\n' {name} "$@" "cache=$RCMNET_CACHE" "distributed=$RCMNET_DISTRIBUTED" '' >> '{said}'
exit "${{STATUS_{name}:-0}}"
"""
JOINED = """
from rcmnet_jax.training.sharding import Cluster, join_cluster
join_cluster(Cluster())
import jax
print(jax.process_index(), jax.process_count())
"""


@pytest.fixture
def shell(tmp_path):
    """Runs a script whose cluster commands note what they are called with, a word a line, and end as they are told."""

    def run(*words, **more):
        for name in ("srun", "scontrol", "gcloud", "python"):
            stub = tmp_path / name
            stub.write_text(STUB.format(name=name, said=tmp_path / "said"))
            stub.chmod(0o755)
        found = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **more}
        done = subprocess.run(words, cwd=ROOT, env=found, capture_output=True, text=True, timeout=60)
        said = tmp_path / "said"
        calls = said.read_text().split("\n\n")[:-1] if said.exists() else []
        return done.returncode, [call.strip().split("\n") for call in calls], done.stderr

    return run


@pytest.mark.parametrize(
    ("status", "count", "again"), [(0, "", False), (2, "", False), (75, "", True), (75, "20", False)]
)
def test_slurm_starts_a_process_a_task_and_queues_a_stopped_run_again(shell, status, count, again):
    more = {"RCMNET_CACHE": "/shared/cache", "SLURM_JOB_ID": "7", "STATUS_srun": str(status)}
    code, calls, _ = shell("bash", DEPLOY / "slurm.sbatch", *WORDS, **more, SLURM_RESTART_COUNT=count)
    assert code == status
    settings = ["cache=/shared/cache", "distributed=1"]
    assert calls[0] == ["srun", "--kill-on-bad-exit=0", "--wait=300", "python", "launch.py", *WORDS, *settings]
    assert [call[:3] for call in calls[1:]] == ([["scontrol", "requeue", "7"]] if again else [])


def test_slurm_tells_a_run_to_stop_before_its_time_and_may_queue_it_again():
    lines = (DEPLOY / "slurm.sbatch").read_text().splitlines()
    asked = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert asked["signal"].startswith("TERM@")  # without B: to the tasks, not to the script
    assert {"requeue", "open-mode"} <= set(asked)
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    (wait,) = (int(found[1]) for line in lines if (found := re.search(r"^srun .*--wait=(\d+)", line)))
    assert int(asked["signal"].partition("@")[2]) > wait


def test_slurm_wants_a_cache_that_nodes_share(shell, monkeypatch):
    monkeypatch.delenv("RCMNET_CACHE", raising=False)
    code, calls, said = shell("bash", DEPLOY / "slurm.sbatch", *WORDS)
    assert (code, calls) == (2, [])
    assert "name a folder that all nodes share" in said


def test_slurms_tasks_find_each_other():
    tasks = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    more = {**tasks, "JAX_COORDINATOR_PORT": str(free_port()), "RCMNET_DISTRIBUTED": "1", "JAX_PLATFORMS": "cpu"}
    both = [start("-c", JOINED, **more, SLURM_PROCID=str(task)) for task in range(2)]
    try:
        said = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [out.decode().split() for out, _ in said] == [["0", "2"], ["1", "2"]], said


def test_a_jobset_starts_each_process_with_its_number(shell):
    facts = yaml.safe_load((DEPLOY / "jobset.yaml").read_text())
    (workers,) = facts["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    code, calls, _ = shell(*container["command"], *container["args"], JOB_COMPLETION_INDEX="1")
    assert code == 0
    words = dict(word.lstrip("-").split("=", 1) for word in calls[0][2:])
    host = f"{facts['metadata']['name']}-{workers['name']}-0-0.{facts['metadata']['name']}"
    assert words["coordinator"].startswith(f"{host}:")
    assert (words["num_processes"], words["process_id"]) == (str(job["completions"]), "1")
    assert job["parallelism"] == job["completions"]
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(words["workdir"].startswith(f"{path}/") for path in mounted)


def test_a_tpu_slice_gets_the_code_and_starts_on_all_its_hosts(shell, tmp_path):
    code, calls, _ = shell(DEPLOY / "tpu_pod.sh", "slice", "a-zone", *WORDS, SHARED="/mnt/all of us", PYTHON="true")
    assert code == 0
    copied, started = calls
    everywhere = ["--zone=a-zone", "--worker=all"]
    assert copied[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert copied[6:9] == ["slice:", *everywhere]
    assert started[:8] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice", *everywhere]
    # What a host makes of it, in its home with an old copy: where the environment is, commands that note their words.
    home = tmp_path / "home"
    tools = home / "rcmnet_venv" / "bin"
    tools.mkdir(parents=True)
    old, runs = (home / "rcmnet_jax" / name for name in ("rcmnet_jax/old.py", "runs/mine"))
    for file in (old, runs):
        file.parent.mkdir(parents=True)
        file.touch()
    for name in ("python", "pip"):
        shutil.copy(tmp_path / "python", tools / name)
    subprocess.run(["git", "archive", "--output", home / Path(copied[5]).name, "HEAD"], cwd=ROOT, check=True)
    (tmp_path / "said").unlink()
    code, calls, said = shell("bash", "-c", f"cd '{home}' && {started[8].removeprefix('--command=')}")
    assert code == 0, said
    installed, run = calls
    assert installed[1:6] == ["install", "--quiet", "-r", "requirements.txt", "jax[tpu]"]
    assert run[1:] == ["launch.py", *WORDS, "cache=/mnt/all of us/cache", "distributed=1"]
    assert (old.parent / "config.py").exists()
    assert not old.exists()
    assert runs.exists()


def test_a_tpu_slice_says_how_its_run_ended(shell):
    assert shell(DEPLOY / "tpu_pod.sh", "slice", "a-zone", *WORDS, STATUS_gcloud="75")[0] == 75


def test_a_tpu_slice_without_words_is_told_what_is_missing(shell):
    code, calls, said = shell(DEPLOY / "tpu_pod.sh", "slice")
    assert (code, calls) == (2, [])
    assert "usage" in said


def test_the_image_copies_what_a_run_imports(tmp_path):
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1] for line in lines if line.startswith("COPY")]
    sent = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert {line[1:] for line in sent if line.startswith("!")} == set(copied)
    for name in copied:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def python(*words):
        words = [sys.executable, *words]
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    refused = python("launch.py", "--config=configs/cart.py:smoke", "--config.batch_size=0")
    assert refused.returncode == 2  # the config was read
    assert "batch_size" in refused.stderr
    imported = python("-c", "from rcmnet_jax import experiment, __main__; print(experiment.__file__)")
    assert imported.stdout.strip() == str(tmp_path / "rcmnet_jax" / "experiment.py"), imported.stderr
