"""Where rows and copies live: the rows of a process stay together, whatever order its devices come in."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rcmnet_jax.errors import UserError
from rcmnet_jax.training import sharding
from rcmnet_jax.training.sharding import Placement


def devices(*processes):
    """One for each number, which is its process."""
    return [SimpleNamespace(process_index=process, id=k) for k, process in enumerate(processes)]


@pytest.fixture
def ordered(monkeypatch):
    """From the processes of the devices, as JAX lists them, to those of the mesh."""

    def made(*processes):
        monkeypatch.setattr(jax, "devices", lambda: devices(*processes))
        monkeypatch.setattr(sharding, "Mesh", lambda found, *_, **__: found)
        return [device.process_index for device in Placement.everywhere().mesh]

    return made


def test_devices_of_a_process_lie_side_by_side_in_the_mesh(ordered):
    """Each process takes and gives a run of rows of a batch; a TPU slice's own order mixes its hosts."""
    assert ordered(0, 1, 0, 1, 0, 1, 0, 1) == [0] * 4 + [1] * 4
    assert ordered(3, 2, 2, 0, 0, 1, 1, 3) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_processes_with_different_numbers_of_devices_are_refused(ordered):
    with pytest.raises(UserError, match=r"process 0 has 1, process 1 has 3"):
        ordered(0, 1, 1, 1)


def test_rows_of_a_batch_come_back_as_they_went_in():
    placement = Placement.everywhere()
    rows = np.arange(4 * placement.devices)
    np.testing.assert_array_equal(placement.put_batch(rows[placement.process_rows(len(rows))]), rows)
