"""Builders for TensorFlow Datasets: `tfds:pbc` and `tfds:bloodmnist/SIZE`. They need no TensorFlow.

A set is prepared once with `python -m rcmnet_jax.data.builders NAME`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rcmnet_jax.download import Progress, Remote, download, matches
from rcmnet_jax.errors import UserError
from rcmnet_jax.runtime import cache_root


def fetched(remote: Remote, name: str, dl_manager: Any, progress: Progress | None = None) -> Path:
    """The published file: the user's own in TFDS's `manual_dir` if it lies there, else downloaded into the cache.

    Raises:
      UserError: it cannot be had, or is not the published one.
    """
    try:
        own = Path(dl_manager.manual_dir) / name
    except AssertionError:  # TFDS's way to say that the folder is missing or empty
        own = Path(name)
    if own.is_absolute() and own.is_file():
        if not matches(own, remote.checksum):
            raise UserError(
                f"{own}: is not the published file ({remote.checksum}). Take it away to have it downloaded."
            )
        return own
    return download(remote, cache_root() / "downloads" / name, progress=progress)
