"""What was computed of an image, kept for the life of the process: the folds of a run share most of their images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from rcmnet_jax.data.images import Pixels

T = TypeVar("T")
MAX_ENTRIES = 2**14  # images of which it is kept


class PerImageCache(Generic[T]):
    """`compute` for images (N, S, S, 3), a value for each; the first `MAX_ENTRIES` of them are kept."""

    def __init__(self, compute: Callable[[Pixels], Iterable[T]]):
        self._compute = compute
        self._known: dict[bytes, T] = {}  # by the images' SHA-256

    def __call__(self, images: Pixels) -> list[T]:
        keys = [hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).digest() for image in images]
        missing = [i for i, key in enumerate(keys) if key not in self._known]
        made = dict(zip((keys[i] for i in missing), self._compute(images[missing]), strict=True)) if missing else {}
        room = max(MAX_ENTRIES - len(self._known), 0)
        values = [made[key] if key in made else self._known[key] for key in keys]
        self._known.update(list(made.items())[:room])
        return values

    def forget(self) -> None:
        """Begins anew, as a process does."""
        self._known.clear()
