"""features.npz: what a network makes of images before its head, for maps of how they lie to each other."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import NDArray

from rcmnet_jax.evaluation.ood import evenly
from rcmnet_jax.files import write_atomic
from rcmnet_jax.training.sharding import is_main_process

if TYPE_CHECKING:
    from rcmnet_jax.bundle import Bundle

FILE = "features.npz"
MAX_FEATURES = 20_000  # images kept, drawn evenly: 20 MB at 512 channels


@dataclass(frozen=True)
class Features:
    """Pooled features of some images. Only those with equal `space`, a digest of the body's weights, compare."""

    path: NDArray[np.str_]  # (N,)
    values: NDArray[np.float16]  # (N, C)
    space: str


def space_of(bundle: Bundle) -> str:
    """16 hex digits that stand for all of a network but its head, and for the views that it is shown."""
    digest = hashlib.sha256(b"" if bundle.views == "one" else bundle.views.encode())
    body = {name: part for name, part in bundle.params.items() if name not in bundle.network.head}
    for key, leaf in jax.tree_util.tree_flatten_with_path((body, bundle.batch_stats))[0]:
        digest.update(jax.tree_util.keystr(key).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def write(folder: Path, found: Features) -> None:
    """Writes features.npz, the same bytes for the same features."""
    out = io.BytesIO()
    np.savez(out, path=found.path, features=found.values, space=np.array(found.space))
    write_atomic(folder / FILE, out.getvalue())


def write_features(folder: Path, bundle: Bundle, path: NDArray[np.str_], values: NDArray[np.floating]) -> None:
    """Writes a bundle's features (N, C) of images by path (N,), or of 20,000 of them, evenly drawn."""
    kept = evenly(np.arange(len(path)), MAX_FEATURES)
    if is_main_process():
        write(folder, Features(path[kept], values[kept].astype(np.float16), space_of(bundle)))


def read(folder: Path) -> Features | None:
    """What `write` left, None where there is none or it cannot be read: a map is not worth a failure."""
    try:
        # From memory: NumPy leaves a file open that it cannot read.
        with np.load(io.BytesIO((folder / FILE).read_bytes()), allow_pickle=False) as arrays:
            return Features(arrays["path"], arrays["features"], str(arrays["space"]))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def joined(parts: Sequence[Features | None]) -> Features | None:
    """All parts as one, None unless each is there and all are of one space."""
    there = [part for part in parts if part is not None]
    if not there or len(there) < len(parts) or len({part.space for part in there}) > 1:
        return None
    values: Any = np.concatenate([part.values for part in there])
    return Features(np.concatenate([part.path for part in there]), values, there[0].space)
