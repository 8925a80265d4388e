"""Two loaders, one interface: batch k of a stage is the same whichever is used, on any number of hosts or workers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rcmnet_jax.data.augment import split_position
from rcmnet_jax.runtime import cores


class Placing(Protocol):
    """The part of a placement that a loader needs: where this process's rows are, and how to make a global array."""

    def process_rows(self, batch_size: int) -> slice: ...
    def put_batch(self, local: np.ndarray) -> jax.Array: ...
    def put_batches(self, local: np.ndarray) -> jax.Array: ...


class Reader(Protocol):
    """Random access to prepared images, uint8 (S, S, 3) each."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any) -> np.ndarray: ...


class Batch(NamedTuple):
    """A global batch, split over the devices along its first axis; of several steps, with an axis of steps before."""

    images: jax.Array  # (B, S, S, 3) uint8
    labels: jax.Array  # (B,) int32
    positions: jax.Array  # (B, 2) uint32: words of the position in the stream, for the augmentation's keys
    soft: jax.Array | None = None  # (B, K) float32, what of the target is not the label's: 0, or its share times p


class Loader(Protocol):
    """Batches by step number: the step is the only cursor there is."""

    def batch(self, step: int) -> Batch: ...
    def batches(self, steps: range) -> Batch: ...


class Order:
    """The endless stream of rows: example i of epoch e stands at e * n + i, each epoch in an order of its own."""

    def __init__(self, rows: np.ndarray, seed: int):
        import grain

        self.rows = np.asarray(rows, np.int64)
        self._order = grain.MapDataset.range(len(self.rows)).seed(seed).shuffle().repeat()

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Rows at the positions, int64 (B,)."""
        return self.rows[[self._order[int(p)] for p in positions]]


class BalancedOrder:
    """A stream with as many rows of each class: every K positions hold each of the K classes present once.

    Position p takes the next row of its class, of which each has an endless order of its own; so it depends on the seed
    and p alone, as `Order` does.
    """

    def __init__(self, rows: np.ndarray, labels: np.ndarray, seed: int):
        """`labels` (n,) are those of `rows` (n,)."""
        rows = np.asarray(rows, np.int64)
        keys = np.random.SeedSequence(seed).generate_state(int(labels.max()) + 2) >> 1
        present = np.unique(labels).tolist()
        self._class = Order(np.arange(len(present)), int(keys[-1]))
        self._rows = [Order(rows[labels == k], int(keys[k])) for k in present]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Rows at the positions, int64 (B,)."""
        turn = np.asarray(positions) // len(self._rows)
        found = [self._rows[k](turn[i : i + 1]) for i, k in enumerate(self._class(positions))]
        return np.concatenate(found)


def make_order(rows: np.ndarray, labels: np.ndarray, seed: int, sampling: str) -> Callable[[np.ndarray], np.ndarray]:
    """From positions to rows: `uniform` takes each row once an epoch, `balanced` the classes equally often."""
    return Order(rows, seed) if sampling == "uniform" else BalancedOrder(rows, labels[rows], seed)


def positions_of(step: int, batch_size: int, share: slice) -> np.ndarray:
    """Stream positions of this process's rows of batch `step`, int64."""
    return np.arange(step * batch_size + share.start, step * batch_size + share.stop, dtype=np.int64)


@jax.jit
def _take(images: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.take(images, rows, axis=0)


class ResidentLoader:
    """Batches gathered on the device from a decoded set that lives there."""

    def __init__(
        self,
        images: jax.Array,
        labels: np.ndarray,
        rows: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        placing: Placing,
        sampling: str = "uniform",
        soft: np.ndarray | None = None,
    ):
        """
        Args:
          images: uint8 (N, S, S, 3), a copy on each device.
          labels: int32 (N,).
          rows: the rows to train on, int64 (n,).
          batch_size: global.
          seed: of the order.
          placing: of the global batch.
          sampling: uniform | balanced, as for `make_order`.
          soft: float32 (N, K), each row's part of `Batch.soft`.
        """
        self._soft = soft
        self._images, self._labels, self._placing = images, np.asarray(labels, np.int32), placing
        self._order, self._batch_size = make_order(rows, self._labels, seed, sampling), batch_size
        self._rows_here = placing.process_rows(batch_size)

    def batch(self, step: int) -> Batch:
        """Batch `step`, dispatched without waiting."""
        return self._gathered(positions_of(step, self._batch_size, self._rows_here), self._placing.put_batch)

    def batches(self, steps: range) -> Batch:
        """Those of several steps, gathered at once."""
        positions = np.stack([positions_of(step, self._batch_size, self._rows_here) for step in steps])
        return self._gathered(positions, self._placing.put_batches)

    def _gathered(self, positions: np.ndarray, put: Callable[[np.ndarray], jax.Array]) -> Batch:
        rows = self._order(positions.ravel()).reshape(positions.shape)
        soft = None if self._soft is None else put(self._soft[rows])
        images = _take(self._images, put(rows.astype(np.int32)))
        return Batch(images, put(self._labels[rows]), put(split_position(positions)), soft)


class StreamLoader:
    """Batches read through Grain, for a set larger than the device's memory. Reading runs ahead in threads."""

    def __init__(
        self,
        reader: Reader,
        labels: np.ndarray,
        rows: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        placing: Placing,
        workers: int = 0,
        sampling: str = "uniform",
        soft: np.ndarray | None = None,
    ):
        """As ResidentLoader, with a random-access reader in place of the array, and the number of reading threads."""
        self._reader, self._labels, self._placing = reader, np.asarray(labels, np.int32), placing
        self._order, self._batch_size = make_order(rows, self._labels, seed, sampling), batch_size
        self._rows_here, self._workers = placing.process_rows(batch_size), workers or cores()
        self._next, self._stream = -1, iter(())  # type: tuple[int, Iterator[Any]]
        self._soft = soft

    def batch(self, step: int) -> Batch:
        """Batch `step`; steps asked for in order are read ahead, a jump starts a new stream."""
        return self._placed(self._read(step), self._placing.put_batch)

    def batches(self, steps: range) -> Batch:
        """Those of several steps, read in turn."""
        read = [self._read(step) for step in steps]
        return self._placed({key: np.stack([one[key] for one in read]) for key in read[0]}, self._placing.put_batches)

    def _read(self, step: int) -> dict[str, np.ndarray]:
        if step != self._next:
            self._stream = self._start(step)
        self._next = step + 1
        found: dict[str, np.ndarray] = next(self._stream)
        return found

    def _placed(self, found: dict[str, np.ndarray], put: Callable[[np.ndarray], jax.Array]) -> Batch:
        soft = None if self._soft is None else put(self._soft[found["row"]])
        return Batch(put(found["image"]), put(found["label"]), put(split_position(found["position"])), soft)

    def _start(self, step: int) -> Iterator[Any]:
        import grain

        local = self._rows_here.stop - self._rows_here.start
        read = _Read(self._reader, self._labels, self._order, self._batch_size, self._rows_here)
        # Batching comes last: read ahead of it, the order would depend on the number of workers.
        stream = grain.MapDataset.range(step * local, 2**62).map(read)
        options = grain.ReadOptions(num_threads=self._workers, prefetch_buffer_size=8 * local)
        return iter(stream.to_iter_dataset(options).batch(local))


class _Read:
    """From this process's running number of an example to the example itself."""

    def __init__(
        self,
        reader: Reader,
        labels: np.ndarray,
        order: Callable[[np.ndarray], np.ndarray],
        batch_size: int,
        share: slice,
    ):
        self._reader, self._labels, self._order = reader, labels, order
        self._batch_size, self._rows_here = batch_size, share

    def __call__(self, number: int) -> dict[str, Any]:
        step, place = divmod(number, self._rows_here.stop - self._rows_here.start)
        position = step * self._batch_size + self._rows_here.start + place
        row = int(self._order(np.array([position]))[0])
        label = self._labels[row]
        return {"image": self._reader[row], "label": label, "row": np.int64(row), "position": np.int64(position)}


class GrowingLoader:
    """Another loader's batches, those before a step shrunk to a smaller size by the mean over areas."""

    def __init__(self, loader: Loader, size: int, until: int):
        """`size` is the smaller side in pixels, `until` the first step at full size."""
        self._loader, self._size, self._until = loader, size, until

    def batch(self, step: int) -> Batch:
        """Batch `step`, dispatched without waiting."""
        return self._at_size(self._loader.batch(step), step)

    def batches(self, steps: range) -> Batch:
        """Those of several steps, on one side of the change of size."""
        return self._at_size(self._loader.batches(steps), steps.start)

    def _at_size(self, batch: Batch, step: int) -> Batch:
        return batch._replace(images=shrink(batch.images, self._size)) if step < self._until else batch


@functools.partial(jax.jit, static_argnums=1)
def shrink(images: jax.Array | np.ndarray, size: int) -> jax.Array:
    """uint8 (..., S, S, 3) -> (..., size, size, 3): each pixel the mean of the area that it covers, rounded."""
    share = jnp.asarray(_areas(images.shape[-2], size), jnp.float32)
    shrunk = jnp.einsum("ij,...jkc,lk->...ilc", share, images.astype(jnp.float32), share, precision="highest")
    return jnp.round(shrunk).astype(jnp.uint8)


def _areas(old: int, new: int) -> np.ndarray:
    """What share of each new pixel's length each old pixel covers, (new, old)."""
    edges = np.arange(new + 1) * (old / new)
    low, high = np.maximum(edges[:-1, None], np.arange(old)), np.minimum(edges[1:, None], np.arange(old) + 1)
    share: np.ndarray = np.maximum(high - low, 0) * (new / old)
    return share
