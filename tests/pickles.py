"""Files as torch.save writes them, made without PyTorch: plain ones, and such as would run code when unpickled."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


class Payload:
    """What a hostile file holds: unpickling it makes a file, here a harmless one."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class _Named:
    """Stands for a function or type of PyTorch's, which the pickle only names."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class _Call:
    def __init__(self, function: _Named, *arguments: Any):
        self.function, self.arguments = function, arguments


class _Storage:
    def __init__(self, key: str, size: int):
        self.key, self.size = key, size


class _Writer(pickle._Pickler):  # the one in Python: the one in C writes no name without importing it
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, _Named):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, _Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        return "storage", _Named("torch", "FloatStorage"), obj.key, "cpu", obj.size


def tensor(key: str, values: np.ndarray, **changes: Any) -> Any:
    """A float32 tensor whose elements are the storage `key`; `changes` tell lies about it."""
    steps = tuple(step // values.itemsize for step in values.strides)
    facts = {"offset": 0, "shape": values.shape, "strides": steps} | changes
    rebuild = _Named("torch._utils", "_rebuild_tensor_v2")
    return _Call(rebuild, _Storage(key, values.size), facts["offset"], facts["shape"], facts["strides"], False, None)


def save(
    path: Path, content: Any, *storages: np.ndarray, protocol: int = 2, compression: int = zipfile.ZIP_STORED
) -> Path:
    """Writes `content` as torch.save would, with the storages '0', '1', ... that its tensors name."""
    packed = io.BytesIO()
    _Writer(packed, protocol).dump(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", packed.getvalue())
        archive.writestr("archive/byteorder", "little")
        for i, values in enumerate(storages):
            archive.writestr(f"archive/data/{i}", np.ascontiguousarray(values, np.float32).tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def save_state(path: Path, state: dict[str, np.ndarray]) -> Path:
    """Writes a float32 state dict as torch.save would."""
    content = {name: tensor(str(i), np.ascontiguousarray(values)) for i, (name, values) in enumerate(state.items())}
    return save(path, content, *state.values())
