"""What starts a run on a cluster: that it names what there is, and starts what it should. No cluster takes part."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
import yaml

from tests.commands import ROOT, start

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


@pytest.mark.parametrize(("status", "again"), [(0, False), (2, False), (75, True)])
def test_slurm_starts_a_process_a_task_and_queues_a_stopped_run_again(shell, status, again):
    more = {"RCMNET_CACHE": "/shared/cache", "SLURM_JOB_ID": "7", "STATUS_srun": str(status)}
    code, calls, _ = shell("bash", DEPLOY / "slurm.sbatch", *WORDS, **more)
    assert code == status
    assert calls[0][-5:] == ["launch.py", *WORDS, "cache=/shared/cache", "distributed=1"]
    assert [call[:3] for call in calls[1:]] == ([["scontrol", "requeue", "7"]] if again else [])


def test_slurm_wants_a_cache_that_nodes_share(shell, monkeypatch):
    monkeypatch.delenv("RCMNET_CACHE", raising=False)
    code, calls, said = shell("bash", DEPLOY / "slurm.sbatch", *WORDS)
    assert code
    assert not calls
    assert "name a folder that all nodes share" in said


def test_slurms_tasks_find_each_other():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tasks = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    more = {**tasks, "JAX_COORDINATOR_PORT": str(port), "RCMNET_DISTRIBUTED": "1", "JAX_PLATFORMS": "cpu"}
    both = [start("-c", JOINED, **more, SLURM_PROCID=str(task)) for task in range(2)]
    said = [process.communicate(timeout=120) for process in both]
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
    code, calls, _ = shell(DEPLOY / "tpu_pod.sh", "slice", "a-zone", *WORDS, SHARED="/mnt/all of us")
    assert code == 0
    copied, started = calls
    assert copied[4] == "scp"
    assert copied[6] == "slice:"
    assert started[4:8] == ["ssh", "slice", "--zone=a-zone", "--worker=all"]
    command = started[8].removeprefix("--command=")
    # What the hosts' shells make of it: the last command, with an empty installation.
    last = re.sub(r"\.venv/bin/python", "python", command.split(" && ")[-1])
    (tmp_path / "said").unlink()
    code, calls, _ = shell("bash", "-c", last)
    assert code == 0
    assert calls == [["python", "launch.py", *WORDS, "cache=/mnt/all of us/cache", "distributed=1"]]


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
    words = [sys.executable, "launch.py", "--config=configs/cart.py:smoke", "--config.batch_size=0"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2  # the config was read, and refused
    assert "batch_size" in done.stderr
