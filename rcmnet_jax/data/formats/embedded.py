"""`synthetic:NAME`: the embedded sets that the code draws itself."""

from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np

from rcmnet_jax.data.formats.base import Item, Source


class SyntheticSource(Source):
    """Images drawn on demand; `read` gives PNG bytes."""

    synthetic = True

    def __init__(self, spec: str, name: str):
        from rcmnet_jax.data import synthetic

        self._name, self._encode = name, synthetic.encode
        listed = synthetic.catalogue(name)
        self._index = {item.path: i for i, item in enumerate(listed)}
        super().__init__(spec, [Item(item.path, item.label, item.group, item.split) for item in listed])

    def read(self, item: Item) -> bytes:
        return self._encode(self._name, self._index[item.path])

    def stamp(self) -> str | None:
        # The pixels hang on the drawing code and on NumPy's generators alone.
        digest = hashlib.sha256(f"{self._name}\0{np.__version__}\0".encode())
        for file in sorted(resources.files("rcmnet_jax.data.synthetic").iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py"):
                digest.update(file.read_bytes())
        return digest.hexdigest()
