"""PyTorch's files without PyTorch: the zip that torch.save writes, read by an unpickler that can call nothing.

The pickle inside names four things: an ordered dict, the rebuilding of a tensor and of a parameter, and types of
storage. Each is answered here by a plain description; any other name ends the reading before anything is called.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LARGEST_PICKLE = 1 << 26  # bytes; a state dict's names and shapes take some 100 bytes a tensor
_DEEPEST = 16  # dicts within dicts; deeper ones hold no weights
_ENTRY = 100  # bytes that a name in a dict stands for


class NotPlainError(ValueError):
    """The file is no plain state dict; the message says what was found instead."""


class _Tensor(NamedTuple):
    """What the pickle says of a tensor. It has no attributes that a pickle could set."""

    kind: str  # of storage
    key: str  # the storage's member of the zip
    offset: int  # in elements, as the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Made anew at each call: a pickle may set attributes of what it finds, and none of it outlasts the reading.
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: _Tensor(
                storage[0], storage[1], offset, shape, strides
            ),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) not in known:
            raise NotPlainError(f"it would call {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, kind, key, *_ = pid
        return kind, key


def load(path: Path) -> Mapping[str, Any]:
    """What torch.save put into `path`: a dict, its tensors as numpy arrays; what is no tensor or dict is left out.

    Raises:
      NotPlainError: no zip of torch.save's, a damaged one, or a pickle that names anything but tensors and dicts.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl") and n.count("/") == 1)
            if archive.getinfo(name).file_size > _LARGEST_PICKLE:
                raise NotPlainError("its pickle is too large for a state dict")
            found = _Reader(io.BytesIO(archive.read(name))).load()
            if not isinstance(found, Mapping):
                raise NotPlainError(f"it holds a {type(found).__name__}")
            content = _Content(archive, name.removesuffix("data.pkl"), 4 * path.stat().st_size + (1 << 20))
            return content.arrays(found, _DEEPEST)
    except NotPlainError:
        raise
    except zipfile.BadZipFile as error:
        old = "no zip; PyTorch's older form needs PyTorch to read: pip install -r requirements-extra.txt"
        raise NotPlainError(old) from error
    except Exception as error:  # what a damaged or hostile pickle raises is its own choice
        raise NotPlainError(f"{type(error).__name__}: {error}") from error


@dataclass
class _Content:
    """The zip's tensors, and how many bytes may yet be made of it: shared dicts and storages could fill any memory."""

    archive: zipfile.ZipFile
    root: str
    left: int

    def arrays(self, found: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        """The tensors of a dict, and of the dicts within it."""
        made: dict[str, Any] = {}
        for name, value in found.items():
            self._spend(_ENTRY)
            if isinstance(value, _Tensor):
                made[str(name)] = self._array(value)
            elif isinstance(value, Mapping) and depth:
                made[str(name)] = self.arrays(value, depth - 1)
        return made

    def _array(self, tensor: _Tensor) -> np.ndarray:
        """A copy of the tensor's elements, after checking that they lie inside its storage."""
        member = self.archive.getinfo(f"{self.root}data/{tensor.key}")
        # torch.save never compresses: a member that claims more bytes than the file has is no work of its.
        if member.compress_type != zipfile.ZIP_STORED:
            raise NotPlainError("its tensors are compressed")
        dtype = np.dtype(_STORAGES[tensor.kind])
        shape, strides = tuple(map(int, tensor.shape)), tuple(map(int, tensor.strides))
        size = math.prod(shape)
        if min((tensor.offset, *shape, *strides), default=0) < 0 or len(shape) != len(strides):
            raise NotPlainError("a tensor has a negative size")
        if not size:
            return np.zeros(shape, dtype)
        self._spend(size * dtype.itemsize)
        storage = np.frombuffer(self.archive.read(member), dtype)
        last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if last >= len(storage) or size > len(storage):
            raise NotPlainError("a tensor reaches beyond its storage")
        steps = tuple(step * dtype.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(storage[tensor.offset :], shape, steps).copy()

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise NotPlainError("it would unpack to far more than its own size")
