"""Inputs of every form, good, odd and hostile, for the tests that open them or give them to the commands."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import socket
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def png(level: int = 0) -> bytes:
    """A plain PNG of 4 x 3 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((3, 4, 3), level, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def encoded(pixels: np.ndarray, form: str) -> bytes:
    """An array in a format."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds next to nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(100))),
        (b"IEND", b""),
    ]
    made = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        made += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return made


def fill(root: Path, *paths: str) -> Path:
    """Writes a PNG of its own at each path below root."""
    for level, path in enumerate(paths):
        write(root / path, png(level))
    return root


def write(path: Path, content: bytes) -> Path:
    """A file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sparse(path: Path, size: int) -> None:
    """A file of `size` bytes that takes no space."""
    with write(path, b"").open("r+b") as file:
        file.truncate(size)


def plug(path: Path) -> None:
    """A socket that nobody listens on any more."""
    # A socket's address has room for 107 bytes: its name alone, from within its folder.
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


def device(path: Path) -> None:
    """The null device; a pipe where making a device needs a privilege that is not there."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        os.mkfifo(path)


def table(path: Path, *lines: str, encoding: str = "utf-8", end: str = "\n") -> Path:
    """A CSV of these lines."""
    return write(path, (end.join(lines) + end).encode(encoding))


def pack(path: Path, members: Mapping[Any, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip; members are named by text, or by a ZipInfo with a method of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def special(name: str, mode: int = 0o100644, method: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    """The name of a member that has the mode of a link or a device, or is packed in its own way."""
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, method
    return info


def patch(path: Path, name: str, field: str, value: int) -> None:
    """Overwrites a field of a member's entry in the central directory (offsets as in APPNOTE 4.3.12)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    while data[at + 46 : at + 46 + len(name)] != name.encode():
        at = data.index(b"PK\x01\x02", at + 1)
    offset, form = {"compressed": (20, "<I"), "size": (24, "<I"), "flags": (8, "<H"), "header": (42, "<I")}[field]
    struct.pack_into(form, data, at + offset, value)
    path.write_bytes(data)


def flip(path: Path, mark: bytes, offset: int) -> Path:
    """Changes the byte that stands `offset` bytes behind the first `mark`."""
    data = bytearray(path.read_bytes())
    data[data.index(mark) + offset] ^= 0xFF
    path.write_bytes(data)
    return path


def medmnist(
    path: Path,
    sizes: tuple[tuple[str, int], ...] = (("train", 5), ("val", 2), ("test", 3)),
    *,
    shape: tuple[int, ...] = (6, 7, 3),
    compressed: bool = True,
    **other: Any,
) -> dict[str, np.ndarray]:
    """An npz in MedMNIST's layout, and its arrays; `other` replaces arrays by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in sizes:
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 3).astype(np.uint8)[:, None]
    (np.savez_compressed if compressed else np.savez)(path, **(arrays | other))
    return arrays


_BUILDER = """
import io
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("good", "twice", "no_image", "no_label")]
    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=["a", "b"]), "group": tfds.features.Text()}
        name = self.builder_config.name
        if name == "twice":
            features["path"] = tfds.features.Text()
        if name.startswith("no_"):
            del features[name[3:]]
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "test": self._generate_examples(2)}
    def _generate_examples(self, count):
        for i in range(count):
            buffer = io.BytesIO()
            Image.fromarray(np.full((3, 4, 3), i, np.uint8)).save(buffer, "png")
            example = {"image": buffer.getvalue(), "label": i % 2, "group": f"d{i}", "path": "a/1.png"}
            yield i, {key: example[key] for key in self.info.features}
"""


def tfds_set(code: Path, prepared: Path, name: str) -> str:
    """Prepares a configuration of a small set in the folder `prepared`, its code in `code`; returns its spec."""
    import tensorflow_datasets as tfds

    write(code / "rcmtoy" / "__init__.py", b"from rcmtoy.rcmtoy_dataset_builder import Builder\n")
    write(code / "rcmtoy" / "rcmtoy_dataset_builder.py", _BUILDER.encode())
    if str(code) not in sys.path:
        sys.path.insert(0, str(code))
    importlib.import_module("rcmtoy")
    tfds.builder(f"rcmtoy/{name}", data_dir=prepared, file_format="array_record").download_and_prepare()
    return f"tfds:rcmtoy/{name}"
