"""What a network leaves, and in which order."""

from __future__ import annotations

import dataclasses

import pytest

from rcmnet_jax import run_outputs, training_job
from rcmnet_jax.bundle import is_sound
from rcmnet_jax.checkpoint.store import Store
from rcmnet_jax.errors import Interrupted
from rcmnet_jax.evaluation import ood
from tests.small_job import small_job

pytestmark = pytest.mark.usefixtures("quickly_compiled")


class Waited(Store):
    """A store that notes when it was waited for, and whose last save may have failed."""

    error: Exception | None = None
    waited = False

    def wait(self) -> None:
        self.waited = True
        super().wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
def job(tmp_path):
    with small_job(tmp_path, optimizer={"learning_rate": 0.0}) as made:
        yield made


@pytest.fixture
def trained(job, tmp_path):
    return training_job.Trained(*job.start, 3, Waited(tmp_path / "checkpoints"))


def test_the_last_checkpoint_is_on_disk_when_the_bundle_is(job):
    trained = training_job.fit(job)
    run_outputs.write_bundle(job, trained)
    assert is_sound(job.folder_of / "bundle")
    assert trained.store.steps() == [job.steps]


def test_a_bundle_made_anew_is_not_marked_as_done_by_the_metrics_of_the_one_before(job):
    trained = training_job.fit(job)
    (job.folder_of / "metrics.json").write_text("{}")
    (job.folder_of / "predictions.csv").write_text("")
    run_outputs.write_bundle(job, trained)
    assert not run_outputs.is_done(job.folder_of)


def test_a_network_whose_last_checkpoint_failed_leaves_no_bundle(job, trained):
    trained.store.error = Interrupted("no space left")
    with pytest.raises(Interrupted, match="no space"):
        run_outputs.write_bundle(job, trained)
    assert not (job.folder_of / "bundle").exists()


def test_an_error_on_the_way_waits_for_the_checkpoint(job, trained, monkeypatch):
    def fails(*_):
        raise ValueError("on the way")

    monkeypatch.setattr(ood, "fit_to", fails)
    with pytest.raises(ValueError, match="on the way"):
        run_outputs.write_bundle(job, trained)
    assert trained.store.waited


def test_an_error_after_the_last_step_waits_for_the_checkpoint(job, monkeypatch):
    made = []
    monkeypatch.setattr(training_job, "Store", lambda *words, **more: made.append(Waited(*words, **more)) or made[-1])
    monkeypatch.setattr(training_job, "Trained", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training_job.fit(dataclasses.replace(job, watch=job.watch[:0]))
    assert made[0].waited
    assert made[0].steps() == [job.steps]
