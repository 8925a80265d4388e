"""A prepared set of pixels on disk: written once beside its place and renamed, checked each time it is opened.

A folder `KEY` holds `images.array_record` (row i: S * S * 3 bytes RGB), `index.npz` (columns path, sha256, pixels,
signals), `set.json` (rule, images that could not be read) and SHA256SUMS. KEY hangs on the images' bytes, their paths
and the rule alone: labels, groups and splits are joined when the set is opened.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rcmnet_jax import files
from rcmnet_jax.data.formats.base import Item, Skipped, Source, UnreadableError
from rcmnet_jax.data.images import SIGNALS, ImageError, ImageRule, Pixels, decode_as, signals, standardise
from rcmnet_jax.errors import UserError
from rcmnet_jax.runtime import cores

FORMAT = 1  # of the folder and of the image rule; a change prepares every set again
RECORDS, INDEX, FACTS = "images.array_record", "index.npz", "set.json"
# Above this the records are not hashed as a whole at each opening: each record has a checksum of its own, which is
# checked whenever it is read.
_HASH_WHOLE = 4 << 30  # bytes
_TASK_BYTES = 4 << 20  # of prepared pixels in one task of a thread
_NO_SIGNALS = np.zeros(0, np.float32)
Progress = Callable[[int, int], None]


class _Made(NamedTuple):
    """One item's outcome: either `pixels` or a `reason`. `sha256` is '' where not even the bytes could be read."""

    sha256: str
    reason: str = ""
    image: bytes = b""
    pixels: str = ""
    signals: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Index:
    """What an opened folder says of its rows, all in the order of the records; and the images that gave none."""

    path: npt.NDArray[np.str_]
    sha256: npt.NDArray[np.str_]
    pixels: npt.NDArray[np.str_]
    signals: npt.NDArray[np.float32]
    skipped: tuple[Skipped, ...]


class PixelReader:
    """Random access to a prepared set, as Grain wants it: `len` and `[i]` -> (S, S, 3) uint8. Can be pickled."""

    def __init__(self, path: Path, length: int, size: int):
        self._path, self._length, self._size = path, length, size
        self._reader: Any = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Pixels:
        number = index.__index__()
        if not -self._length <= number < self._length:
            raise IndexError(f"row {number} of a set of {self._length}")
        made: Pixels = self.read(np.array([number % self._length]))[0]
        return made

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def read(self, rows: npt.NDArray[np.integer[Any]]) -> Pixels:
        """Images of the rows in their order, (len(rows), S, S, 3) uint8.

        Raises:
          UserError: a record is damaged on disk.
        """
        shape = (self._size, self._size, 3)
        try:
            if self._reader is None:
                from array_record.python.array_record_module import ArrayRecordReader

                options = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}
                self._reader = ArrayRecordReader(str(self._path), **options)
            records = self._reader.read([int(row) for row in rows]) if len(rows) else []
            made = np.empty((len(rows), *shape), np.uint8)
            for place, record in enumerate(records):
                made[place] = np.frombuffer(record, np.uint8).reshape(shape)
        except (RuntimeError, OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                (self._path.parent / files.SUMS).unlink()  # of a large set only this tells the next run
            words = " ".join(str(error).split())[:200]
            raise UserError(f"{self._path}: damaged ({words}). Run again to prepare it anew.") from error
        return made


def build(source: Source, rule: ImageRule, parent: Path, progress: Progress | None) -> str:
    """Reads, decodes and writes every image of `source`; returns the KEY of the folder made in `parent`.

    Needs memory for a few images a core, whatever the set's size. The caller holds `parent`'s lock.

    Raises:
      UserError: not one image could be read.
      OSError: for instance no space left; nothing stays behind.
    """
    _need_space(parent, len(source.items) * rule.size**2 * 3)
    temporary = parent / f".tmp-{os.getpid()}"
    files.remove(temporary)
    temporary.mkdir()
    try:
        made = _write_records(source, rule, temporary / RECORDS, progress)
        key = _key(source.items, made, rule)
        _write_index(source, rule, made, temporary)
        # A set that a power cut leaves torn does not match its checksums, and is prepared again.
        files.write_sums(temporary, durable=False)
        if open_index(parent / key) is None:
            files.commit_folder(temporary, parent / key, durable=False)
        return key
    finally:
        files.remove(temporary)


def read_all(source: Source, rule: ImageRule) -> tuple[Index, Pixels]:
    """The pixels (N, S, S, 3) of all images that can be read, in memory, and an index that does not describe them.

    That is what `build` would write without `pixels` ('' each) and `signals` (N, 0), which take longer than to decode
    a small image.

    Raises:
      UserError: not one image could be read.
    """
    with contextlib.closing(_in_threads(source, rule, described=False)) as batches:
        made = [one for batch in batches for one in batch]
    _refuse_none(source, made)
    pixels = np.frombuffer(b"".join(one.image for one in made), np.uint8)
    return _index(source, made), pixels.reshape(-1, rule.size, rule.size, 3)


def _need_space(parent: Path, needed: int) -> None:
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"No space left on device: preparing needs {needed >> 20} MiB, {free >> 20} MiB are free",
            str(parent),
        )


def _write_records(source: Source, rule: ImageRule, path: Path, progress: Progress | None) -> list[_Made]:
    """Writes the images in the items' order; returns every outcome, without its image."""
    from array_record.python.array_record_module import ArrayRecordWriter

    total = len(source.items)
    made: list[_Made] = []
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    try:
        with contextlib.closing(_in_threads(source, rule)) as batches:
            for batch in batches:
                for one in batch:
                    if not one.reason:
                        writer.write(one.image)
                    made.append(one._replace(image=b""))
                if progress is not None:
                    progress(len(made), total)
        _refuse_none(source, made)
    except BaseException:
        _close_quietly(writer)
        raise
    writer.close()
    return made


def _refuse_none(source: Source, made: Sequence[_Made]) -> None:
    if all(one.reason for one in made):
        first = f"{source.items[0].path}: {made[0].reason}"
        raise UserError(f"{source.spec}: not one of {len(made)} images could be read ({first}). Check the files.")


def _close_quietly(writer: Any) -> None:
    """Frees a writer whose file is given up; what it says on closing would hide the first error."""
    try:
        writer.close()
    except RuntimeError:
        return


def _in_threads(source: Source, rule: ImageRule, described: bool = True) -> Generator[list[_Made], None, None]:
    """Outcomes of the items in order, a few at a time, from one thread a core.

    Reading, decoding, resizing and hashing let go of Python's lock; of small images what keeps it takes as long.
    """
    if len(source.items) == 1:
        # Threads would take longer to start than an image to read.
        yield _make_all(source, source.items, rule, described)
        return
    from threadpoolctl import threadpool_limits

    workers = cores()
    step = max(1, min(32, _TASK_BYTES // (rule.size**2 * 3)))
    waiting: deque[Future[list[_Made]]] = deque()
    # The cores are taken already: BLAS's own threads would wait for one another, 50 times slower when drawing.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        try:
            for start in range(0, len(source.items), step):
                waiting.append(pool.submit(_make_all, source, source.items[start : start + step], rule, described))
                if len(waiting) >= workers + 2:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _make_all(source: Source, items: Sequence[Item], rule: ImageRule, described: bool) -> list[_Made]:
    return [_make(source, item, rule, described) for item in items]


def _make(source: Source, item: Item, rule: ImageRule, described: bool) -> _Made:
    try:
        data = source.read(item)
    except UnreadableError as error:
        return _Made("", str(error))
    digest = files.sha256_bytes(data)
    try:
        image, form = decode_as(data)
        made = standardise(image, rule).tobytes()
    except ImageError as error:
        return _Made(digest, str(error))
    if not described:
        return _Made(digest, "", made, "", _NO_SIGNALS)
    pixels = hashlib.sha256(f"{image.shape[0]} {image.shape[1]}\n".encode())
    pixels.update(np.ascontiguousarray(image).data)
    return _Made(digest, "", made, pixels.hexdigest(), signals(image, len(data), form))


def _key(items: Sequence[Item], made: Sequence[_Made], rule: ImageRule) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, rule.to_dict()], sort_keys=True).encode())
    for item, one in zip(items, made, strict=True):
        digest.update(json.dumps([item.path, one.sha256, one.reason]).encode())
    return digest.hexdigest()[:32]


def _index(source: Source, made: Sequence[_Made]) -> Index:
    pairs = list(zip(source.items, made, strict=True))
    good = [(item.path, one) for item, one in pairs if not one.reason]
    return Index(
        path=np.array([path for path, _ in good], np.str_),
        sha256=np.array([one.sha256 for _, one in good], np.str_),
        pixels=np.array([one.pixels for _, one in good], np.str_),
        signals=np.stack([one.signals for _, one in good if one.signals is not None]),
        skipped=tuple(Skipped(item.path, one.reason) for item, one in pairs if one.reason),
    )


def _write_index(source: Source, rule: ImageRule, made: list[_Made], folder: Path) -> None:
    index = _index(source, made)
    np.savez(folder / INDEX, path=index.path, sha256=index.sha256, pixels=index.pixels, signals=index.signals)
    bad = [(skipped.path, skipped.reason) for skipped in index.skipped]
    facts = {"format": FORMAT, "rule": rule.to_dict(), "rows": len(index.path), "skipped": bad, "signals": SIGNALS}
    files.write_atomic(folder / FACTS, json.dumps(facts, indent=1), durable=False)


def open_index(folder: Path) -> Index | None:
    """The index of a sound prepared folder; None where it is missing, unfinished or damaged."""
    if not folder.is_dir() or not _is_sound(folder):
        return None
    try:
        facts = json.loads((folder / FACTS).read_text("utf-8"))
        with np.load(folder / INDEX, allow_pickle=False) as columns:
            index = Index(
                columns["path"], columns["sha256"], columns["pixels"], columns["signals"],
                tuple(Skipped(path, reason) for path, reason in facts["skipped"]),
            )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    return index if facts["format"] == FORMAT and len(index.path) == facts["rows"] else None


def _is_sound(folder: Path) -> bool:
    try:
        if (folder / RECORDS).stat().st_size <= _HASH_WHOLE:
            return not files.verify_sums(folder)
        listed = dict(line.split("  ")[::-1] for line in (folder / files.SUMS).read_text("utf-8").splitlines())
        return all(files.sha256_file(folder / name) == listed[name] for name in (INDEX, FACTS)) and RECORDS in listed
    except (OSError, ValueError, KeyError):
        return False
