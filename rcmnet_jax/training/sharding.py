"""One mesh over every device of every host: batches are split along it, everything else is copied to each device."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rcmnet_jax.errors import UserError

Tree = Any


@dataclass(frozen=True)
class Cluster:
    """How to find the other processes; empty values leave it to the cluster's environment (Slurm, TPU slices)."""

    coordinator: str = ""  # host:port of process 0
    processes: int = 0
    process: int = -1


def join_cluster(cluster: Cluster) -> None:
    """Connects this process to the others, if there are any; must run before anything asks for a device.

    With an explicit coordinator that is used; else JAX_COORDINATOR_ADDRESS, or a cluster that JAX knows how to detect
    when RCMNET_DISTRIBUTED=1. Alone otherwise.

    Raises:
      UserError: flags that do not fit each other, or no cluster where one was announced. Where the others do not come,
        JAX itself ends the process after five minutes.
    """
    if bool(cluster.coordinator) != bool(cluster.processes):
        raise UserError("--coordinator and --num_processes go together: give both, or neither.")
    if cluster.coordinator and not 0 <= cluster.process < cluster.processes:
        raise UserError(
            f"--process_id={cluster.process}: must be from 0 to {cluster.processes - 1}, another one for each process."
        )
    automatic = bool(os.environ.get("JAX_COORDINATOR_ADDRESS")) or os.environ.get("RCMNET_DISTRIBUTED") == "1"
    if not cluster.coordinator and not automatic:
        return
    try:
        if cluster.coordinator:
            jax.distributed.initialize(cluster.coordinator, cluster.processes, cluster.process)
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"The other processes could not be joined: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Placement:
    """Where arrays live. The mesh has one axis, `data`."""

    mesh: Mesh

    @classmethod
    def everywhere(cls) -> Placement:
        """Over all devices of all processes, those of a process side by side.

        Raises:
          UserError: JAX cannot start the devices that were asked for, or processes have different numbers of them.
        """
        try:
            found = jax.devices()
        except (RuntimeError, AssertionError) as error:
            asked = os.environ.get("JAX_PLATFORMS", "")
            said = (str(error).splitlines() or ["no reason given"])[0]
            raise UserError(f"JAX found no device (JAX_PLATFORMS='{asked}'): {said}. Correct or unset it.") from error
        # `process_rows` counts on it. jax.make_mesh orders a TPU slice by its topology, which mixes the hosts.
        ordered = sorted(found, key=lambda device: (device.process_index, device.id))
        counts = Counter(device.process_index for device in ordered)
        if len(set(counts.values())) > 1:
            told = ", ".join(f"process {process} has {count}" for process, count in sorted(counts.items()))
            raise UserError(f"Processes have different numbers of devices ({told}). Give each as many.")
        return cls(Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,)))

    @property
    def devices(self) -> int:
        """Number of devices in the mesh."""
        return int(self.mesh.size)

    @property
    def replicated(self) -> NamedSharding:
        """A whole copy on each device."""
        return NamedSharding(self.mesh, PartitionSpec())  # type: ignore[no-untyped-call]

    @property
    def split(self) -> NamedSharding:
        """The leading axis split over the devices."""
        return NamedSharding(self.mesh, PartitionSpec("data"))  # type: ignore[no-untyped-call]

    @property
    def split_steps(self) -> NamedSharding:
        """The second axis split over the devices, behind one of steps."""
        return NamedSharding(self.mesh, PartitionSpec(None, "data"))  # type: ignore[no-untyped-call]

    def check_batch(self, batch_size: int) -> None:
        """Raises UserError where a global batch cannot be split evenly."""
        if batch_size % self.devices:
            raise UserError(
                f"config.batch_size={batch_size}: must be a multiple of the {self.devices} devices; "
                f"take {-(-batch_size // self.devices) * self.devices}."
            )

    def process_rows(self, batch_size: int) -> slice:
        """This process's rows of a global batch."""
        local = batch_size // jax.process_count()
        start = jax.process_index() * local
        return slice(start, start + local)

    def put_batch(self, local: np.ndarray) -> jax.Array:
        """Makes a global array, split along its first axis, of each process's own rows."""
        made: jax.Array = jax.make_array_from_process_local_data(self.split, local)  # type: ignore[no-untyped-call]
        return made

    def put_batches(self, local: np.ndarray) -> jax.Array:
        """The same for the batches of several steps, (steps, rows, ...), split along the second axis."""
        made: jax.Array = jax.make_array_from_process_local_data(self.split_steps, local)  # type: ignore[no-untyped-call]
        return made

    def for_jit(self, local: np.ndarray) -> np.ndarray | jax.Array:
        """This process's rows as a jitted function with a `split` argument takes them; quicker than `put_batch` alone.

        The array itself in one process, else a global array. The rows must stay as they are until the function has run.
        """
        return local if jax.process_count() == 1 else self.put_batch(local)

    def put_copies(self, tree: Tree) -> Tree:
        """Copies host arrays, the same in every process, to each device. None aliases its source."""

        def put(leaf: Any) -> jax.Array:
            value = np.asarray(leaf)
            made: jax.Array
            if jax.process_count() == 1:
                made = jax.device_put(value, self.replicated, may_alias=False)
            else:
                made = jax.make_array_from_callback(value.shape, self.replicated, lambda at: np.array(value[at]))
            return made

        return jax.tree.map(put, tree)


def is_main_process() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def main_process_value(flag: bool) -> bool:
    """What the main process says: files may show late to the others. All processes must ask together."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.int32(flag)))


def barrier(name: str) -> None:
    """Waits until every process has come here; does nothing alone."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
