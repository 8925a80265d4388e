"""The loaders: one stream, whatever reads it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcmnet_jax.data.loader import BalancedOrder, GrowingLoader, Order, ResidentLoader, StreamLoader, positions_of
from rcmnet_jax.training.sharding import Placement


class Share:
    """One of several processes, without the processes."""

    def __init__(self, process=0, processes=1):
        self.process, self.processes = process, processes

    def process_rows(self, batch_size):
        local = batch_size // self.processes
        return slice(self.process * local, (self.process + 1) * local)

    def put_batch(self, local):
        return local


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)


LABELS = np.arange(30) % 3
ROWS = np.arange(2, 25)


def stream(images, workers, placing=None, sampling="uniform"):
    return StreamLoader(
        images, LABELS, ROWS, batch_size=8, seed=5, placing=placing or Share(), workers=workers, sampling=sampling
    )


def equal(a, b):
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(a, b, strict=True))


@given(n=st.integers(1, 60), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 2**20))
@settings(max_examples=40, deadline=None)
def test_each_epoch_holds_every_row_once(n, seed, epoch):
    rows = np.arange(n) * 3 + 1
    found = Order(rows, seed)(np.arange(epoch * n, epoch * n + n))
    assert sorted(found) == sorted(rows)


def test_epochs_and_seeds_have_orders_of_their_own():
    rows = np.arange(50)
    order = Order(rows, 1)
    first, second = order(np.arange(50)), order(np.arange(50, 100))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Order(rows, 2)(np.arange(50)))


@given(counts=st.lists(st.integers(0, 9), min_size=2, max_size=5).filter(any), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=10, deadline=None)
def test_balanced_sampling_gives_each_class_the_same_share_and_each_of_its_rows_too(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(labels)) * 2 + 5
    turns, present = 3 * max(counts), sum(count > 0 for count in counts)
    order = BalancedOrder(rows, labels, seed)
    found = order(np.arange(turns * present))
    drawn = labels[(found - 5) // 2].reshape(turns, present)
    assert (np.sort(drawn, 1) == np.flatnonzero(counts)).all()  # each class once in each turn
    times = np.unique(found, return_counts=True)[1]
    for k in np.unique(labels):  # the rows of a class are used up before one of them comes again
        assert np.ptp(times[labels == k]) <= 1
    some = np.random.default_rng(0).integers(0, turns * present, 7)
    np.testing.assert_array_equal(order(some), found[some])  # by position alone


def test_batches_are_the_same_for_any_worker_count(images):
    one, many = stream(images, 1), stream(images, 7)
    assert all(equal(one.batch(step), many.batch(step)) for step in range(9))


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_both_loaders_give_the_same_batches(images, sampling):
    import jax.numpy as jnp

    resident = ResidentLoader(
        jnp.asarray(images), LABELS, ROWS, batch_size=8, seed=5, placing=Placement.everywhere(), sampling=sampling
    )
    streamed = stream(images, 2, sampling=sampling)
    assert all(equal(resident.batch(step), streamed.batch(step)) for step in range(6))


def test_a_stream_started_in_the_middle_goes_on_the_same(images):
    straight, jumped = stream(images, 3), stream(images, 3)
    for step in range(5):
        straight.batch(step)
    assert equal(straight.batch(5), jumped.batch(5))
    assert equal(straight.batch(6), jumped.batch(6))


def test_processes_share_a_batch_between_them(images):
    whole = stream(images, 2).batch(3)
    parts = [stream(images, 2, Share(process, 4)).batch(3) for process in range(4)]
    for column, name in enumerate(("images", "labels", "positions")):
        joined = np.concatenate([np.asarray(part[column]) for part in parts])
        np.testing.assert_array_equal(joined, np.asarray(whole[column]), err_msg=name)


def test_positions_run_on_from_step_to_step():
    assert positions_of(3, 8, slice(4, 8)).tolist() == [28, 29, 30, 31]


def test_both_loaders_carry_each_rows_soft_labels(images):
    import jax.numpy as jnp

    soft = np.random.default_rng(0).random((30, 3), dtype=np.float32)
    rest = {"batch_size": 8, "seed": 5, "placing": Placement.everywhere(), "soft": soft}
    resident, streamed = (
        ResidentLoader(jnp.asarray(images), LABELS, ROWS, **rest),
        StreamLoader(images, LABELS, ROWS, **rest),
    )
    for step in range(4):
        one, other = resident.batch(step), streamed.batch(step)
        rows = Order(ROWS, 5)(np.arange(step * 8, step * 8 + 8))
        np.testing.assert_array_equal(one.soft, soft[rows])
        np.testing.assert_array_equal(other.soft, soft[rows])


def test_a_growing_loader_shows_means_over_areas_until_its_step(images):
    import jax.numpy as jnp

    whole = ResidentLoader(jnp.asarray(images), LABELS, ROWS, batch_size=8, seed=5, placing=Placement.everywhere())
    side = images.shape[1]
    for size in (side // 2, side - 1):
        growing = GrowingLoader(whole, size, until=2)
        fine = np.asarray(whole.batch(1).images).repeat(size, 1).repeat(size, 2).astype(np.float64)
        wanted = fine.reshape(8, size, side, size, side, 3).mean((2, 4))
        assert np.abs(np.asarray(growing.batch(1).images) - wanted).max() < 0.5 + 1e-3
        assert equal(growing.batch(2), whole.batch(2))
