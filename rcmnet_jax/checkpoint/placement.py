"""Where a tree's arrays live and who owns their memory: copies before a save, places after a restore.

One process hands Orbax arrays of the host. Of those on devices Orbax writes the places as well, an array each, which
took a third longer for a training state of full width, and nothing reads them: `like` says where a leaf is to be.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def own(leaf: Any) -> Any:
    """A copy whose memory nothing else writes to. On the CPU `np.asarray` would alias what the next step donates.

    `device_put` is dispatched without waiting for the step that makes the array, and compiles nothing.
    """
    if not isinstance(leaf, jax.Array):
        return np.array(leaf, copy=True)
    if leaf.is_fully_addressable:
        return jax.device_put(leaf, may_alias=False)
    shards = [jax.device_put(shard.data, may_alias=False) for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)


def fetched(leaves: Any) -> Any:
    """What Orbax writes of owned leaves. Waits for their values, which leave the devices together; keys stay keys."""
    return leaves if jax.process_count() > 1 else jax.device_get(leaves)


def abstract(leaf: Any) -> Any:
    """What Orbax is asked for in place of `leaf`."""
    alone = jax.process_count() == 1 and not _is_key(leaf)
    if alone or isinstance(leaf, np.ndarray | np.generic) or _is_uncommitted(leaf):
        return np.empty(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))  # type: ignore[no-untyped-call]


def place(found: Any, like: Any) -> Any:
    """`found` in memory of its own, placed as `like`; None stands for an empty array, which is not stored."""
    if isinstance(like, np.ndarray | np.generic):
        return np.zeros(like.shape, like.dtype) if found is None else np.array(found, copy=True)
    if found is None:
        return jnp.zeros(like.shape, like.dtype, device=like.sharding)
    # An uncommitted array (a fresh jnp.zeros) follows the others it meets; committed to a device it would refuse them.
    if _is_uncommitted(like):
        return jnp.array(found, copy=True)
    return own(found) if isinstance(found, jax.Array) else jax.device_put(found, _sharding(like), may_alias=False)


def _sharding(leaf: Any) -> Any:
    return leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _is_uncommitted(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not _is_key(leaf) and not getattr(leaf, "committed", True)
