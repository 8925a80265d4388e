"""An `.npz` in MedMNIST's layout: arrays {train,val,test}_{images,labels}. Nothing in it is ever unpickled."""

from __future__ import annotations

import math
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rcmnet_jax.data.formats.base import DAMAGE, Item, Source, stamp_of_zip
from rcmnet_jax.data.images import MAX_PIXELS
from rcmnet_jax.errors import UserError

# The order of the labels in bloodmnist*.npz (Yang et al. 2023, MedMNIST v2; the images are PBC's).
BLOODMNIST = ("basophil", "eosinophil", "erythroblast", "ig", "lymphocyte", "monocyte", "neutrophil", "platelet")
_SPLITS = ("train", "val", "test")
_MAX_IMAGES = 20_000_000
_BLOCK = 8 << 20  # bytes read at once
_BLOCKS_KEPT = 4


class _Member(NamedTuple):
    """An array in the file that is read from its start: (N, H, W) or (N, H, W, C) uint8."""

    name: str
    shape: tuple[int, ...]
    start: int  # bytes of the header

    @property
    def one(self) -> int:
        """Bytes of one image."""
        return math.prod(self.shape[1:])


class NpzSource(Source):
    """Images that are rows of arrays; `read` gives each as the bytes of a PPM or PGM file."""

    def __init__(self, spec: str, path: Path, archive: zipfile.ZipFile, members: dict[str, _Member], items: list[Item]):
        super().__init__(spec, items)
        self._path, self._archive, self._members = path, archive, members
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._open: dict[str, tuple[IO[bytes], int]] = {}  # the stream and the block that comes next in it

    def read(self, item: Item) -> bytes:
        split, _, number = item.path.partition("/")
        member = self._members[split]
        per_block = max(1, _BLOCK // member.one)
        block, place = divmod(int(number), per_block)
        try:
            data = self._block(member, block, per_block)[place * member.one : (place + 1) * member.one]
        except DAMAGE as error:
            # One checksum covers the whole array, so that none of its images can be trusted.
            raise UserError(
                f"{self.spec}: damaged ({' '.join(str(error).split())[:100]}). Download it again."
            ) from error
        if len(data) != member.one:
            raise UserError(f"{self.spec}: ends before {item.path}. Download it again.")
        height, width = member.shape[1:3]
        kind = "P6" if member.shape[3:] == (3,) else "P5"
        return f"{kind}\n{width} {height}\n255\n".encode() + data

    def _block(self, member: _Member, block: int, per_block: int) -> bytes:
        """Compressed arrays can only be read forwards: keeps the last blocks, and starts again for an earlier one."""
        with self._lock:
            if (member.name, block) in self._blocks:
                return self._blocks[member.name, block]
            stream, at = self._open.get(member.name, (None, 0))
            if stream is None or block < at:
                stream, at = self._archive.open(member.name), 0
                stream.read(member.start)
            while at <= block:
                data = stream.read(per_block * member.one)
                self._blocks[member.name, at] = data
                at += 1
                while len(self._blocks) > _BLOCKS_KEPT:
                    self._blocks.popitem(last=False)
            self._open[member.name] = (stream, at)
            return data

    def stamp(self) -> str | None:
        return stamp_of_zip(self._path, self._archive)


def open_npz(spec: str, path: Path) -> Source:
    """The images of an npz file, with its own split; paths are `train/0000000` and so on.

    Labels are the numbers, padded so that they sort; for bloodmnist*.npz their names.

    Raises:
      UserError: not such a file, or arrays of another shape or type.
    """
    try:
        archive = zipfile.ZipFile(path)
        names = set(archive.namelist())
        found = [split for split in _SPLITS if f"{split}_images.npy" in names]
        if not found:
            shown = ", ".join(sorted(names)[:6]) or "nothing"
            raise UserError(f"{spec}: no train_images in it, but {shown}. Give an npz in MedMNIST's layout.")
        members = {split: _images(spec, archive, f"{split}_images.npy") for split in found}
        labels = {split: _labels(spec, archive, split, members[split].shape[0]) for split in found}
    except DAMAGE as error:
        raise UserError(f"{spec}: not a whole npz file ({error}). Download it again.") from error
    top = max(int(values.max(initial=0)) for values in labels.values())
    blood = path.name.lower().startswith("bloodmnist") and top < len(BLOODMNIST)
    label = BLOODMNIST if blood else tuple(f"{k:0{len(str(top))}d}" for k in range(top + 1))
    items = [
        Item(f"{split}/{i:07d}", label[k], "", split if len(found) > 1 else "")
        for split in found
        for i, k in enumerate(labels[split].tolist())
    ]
    return NpzSource(spec, path, archive, members, items)


def _header(spec: str, archive: zipfile.ZipFile, name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of a .npy member, the stream left behind its header; refuses objects and lies about the size."""
    version, packed = np.lib.format.read_magic(stream), archive.getinfo(name).compress_type
    # Later versions, for headers of up to 4 GiB, and methods that cannot expand a piece at a time, have no use here.
    if version != (1, 0) or packed not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{spec}: {name} is not as NumPy's savez writes it. Save it again.")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    size = archive.getinfo(name).file_size - stream.tell()
    if dtype.hasobject or dtype.kind not in "iu" or (fortran and len(shape) > 1):
        raise UserError(f"{spec}: {name} holds {dtype}, not whole numbers in C order. Save it again as uint8.")
    if math.prod(shape) * dtype.itemsize != size or not shape or shape[0] > _MAX_IMAGES:
        raise UserError(f"{spec}: {name} says its shape is {shape}, but holds {size:,} bytes. Download it again.")
    return shape, dtype


def _images(spec: str, archive: zipfile.ZipFile, name: str) -> _Member:
    with archive.open(name) as stream:
        shape, dtype = _header(spec, archive, name, stream)
        start = stream.tell()
    if dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))):
        raise UserError(f"{spec}: {name} is {dtype} {shape}; needed is uint8 (N, H, W) or (N, H, W, 3).")
    if not 0 < math.prod(shape[1:3]) <= MAX_PIXELS:
        raise UserError(f"{spec}: {name} has images of {shape[2]} x {shape[1]} pixels. Not read.")
    return _Member(name, shape, start)


def _labels(spec: str, archive: zipfile.ZipFile, split: str, count: int) -> npt.NDArray[np.int64]:
    name = f"{split}_labels.npy"
    if name not in archive.namelist():
        raise UserError(f"{spec}: {name} is missing. Give an npz in MedMNIST's layout.")
    with archive.open(name) as stream:
        shape, dtype = _header(spec, archive, name, stream)
        if shape not in ((count,), (count, 1)):
            raise UserError(f"{spec}: {name} has shape {shape} for {count} images; needed is one label an image.")
        # With the number of bytes: without, all that is packed there is expanded, whatever the member says of its size.
        values = np.frombuffer(stream.read(count * dtype.itemsize), dtype).astype(np.int64)
    if len(values) and not 0 <= values.min() <= values.max() < 10_000:
        raise UserError(f"{spec}: {name} has labels from {values.min()} to {values.max()}; needed are 0 to 9999.")
    return values
