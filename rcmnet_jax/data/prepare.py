"""Prepares DATA once per content and image rule, and opens it again in no time: the entry to all data."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rcmnet_jax import files
from rcmnet_jax.data.formats.base import Item, Skipped, Source
from rcmnet_jax.data.images import SIGNALS, ImageRule, Pixels
from rcmnet_jax.data.pixels import FORMAT, RECORDS, Index, PixelReader, Progress, build, open_index, read_all
from rcmnet_jax.data.sources import open_source
from rcmnet_jax.errors import UserError
from rcmnet_jax.runtime import cache_root

_CHUNK = 256  # images read at once
_HELD_BYTES = 128 << 20  # of pixels, above which a set is kept on disk in any case


@dataclass(frozen=True)
class Examples:
    """What is known of each image, in the order of the rows, which is that of the paths."""

    path: npt.NDArray[np.str_]  # (N,) relative to DATA's root, with '/'
    group: npt.NDArray[np.str_]  # (N,) '' where not known
    split: npt.NDArray[np.str_]  # (N,) train, val, test or ''
    sha256: npt.NDArray[np.str_]  # (N,) of the file's bytes
    pixel_sha256: npt.NDArray[np.str_]  # (N,) of the decoded original's height, width and RGB bytes; '' in a HeldSet
    label: npt.NDArray[np.int32]  # (N,) place in the set's classes, -1 where there is none
    signals: npt.NDArray[np.float32]  # (N, F) of the original image, see `images.signals`
    signal_names: tuple[str, ...]  # (F,); none in a HeldSet

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(N, 2) height and width of the original images, pixels; not of a HeldSet."""
        return self.signals[:, [self.signal_names.index(name) for name in ("height", "width")]].astype(np.int64)


@dataclass(frozen=True)
class PreparedSet:
    """A set of images of one size, on disk."""

    spec: str
    folder: Path
    fingerprint: str  # of images, paths, labels, groups, splits and rule
    rule: ImageRule
    classes: tuple[str, ...]  # sorted
    examples: Examples
    skipped: tuple[Skipped, ...]
    synthetic: bool

    def images(self, rows: npt.ArrayLike | None = None) -> npt.NDArray[np.uint8]:
        """Pixels of the rows (all without), in their order, in memory: (N, S, S, 3) uint8.

        Raises:
          UserError: the prepared set is damaged on disk.
        """
        wanted = np.arange(len(self.examples.path)) if rows is None else np.asarray(rows, np.int64)
        made = np.empty((len(wanted), self.rule.size, self.rule.size, 3), np.uint8)
        reader = self.reader()
        for start in range(0, len(wanted), _CHUNK):
            made[start : start + _CHUNK] = reader.read(wanted[start : start + _CHUNK])
        return made

    def reader(self) -> PixelReader:
        """Random access for Grain: `len` and `[i]` -> (S, S, 3) uint8; can be pickled."""
        return PixelReader(self.folder / RECORDS, len(self.examples.path), self.rule.size)


@dataclass(frozen=True)
class HeldSet(PreparedSet):
    """A set whose images are in memory alone; `folder` is not there, and the originals are not described."""

    held: Pixels  # (N, S, S, 3)

    def images(self, rows: npt.ArrayLike | None = None) -> Pixels:
        return self.held if rows is None else self.held[np.asarray(rows, np.int64)]


def cache_folder(configured: str = "") -> Path:
    """Where prepared sets live: as configured, else `runtime.cache_root()`."""
    return Path(configured).expanduser().absolute() if configured else cache_root()


def prepare(
    spec: str,
    rule: ImageRule,
    *,
    cache: Path | None = None,
    labelled: bool = True,
    splits: str = "",
    clashes: bool = False,
    progress: Progress | None = None,
    keep: bool = True,
    at_open: Callable[[int, int], None] | None = None,
) -> PreparedSet:
    """Opens the prepared set of `spec` under `rule`, making it first where it is missing, stale or damaged.

    Args:
      spec: DATA, see `sources.open_source`.
      rule: the image rule.
      cache: where prepared sets live; None: `cache_folder()`.
      labelled: whether every image must have a class.
      splits: the user's CSV `path,split[,group]`.
      clashes: whether classes that differ only by case, space or Unicode spelling are kept, not refused.
      progress: called with (done, total) while it is made; may raise, which leaves nothing half-made.
      keep: whether a set that is missing is written to the cache; without, a small one is read into memory alone, and
        its originals are not described (`Examples.pixel_sha256`, `signals`), which is quicker for one look at it.
      at_open: called with the numbers of classes and of images that DATA names, before any image is read.

    Raises:
      UserError: DATA that cannot be used, or a cache folder that cannot be written.
    """
    source = open_source(spec, labelled=labelled, splits=splits, clashes=clashes)
    if at_open is not None:
        at_open(len({item.label for item in source.items} - {None}), len(source.items))
    parent = (cache or cache_folder()) / "sets"
    small = len(source.items) * rule.size**2 * 3 <= _HELD_BYTES
    if not keep and small and _found(source, rule, parent, source.stamp()) is None:
        return _held(source, rule)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder, index = _found(source, rule, parent, source.stamp()) or _made(source, rule, parent, progress)
    except OSError as error:
        if files.is_disk_full(error):
            raise
        raise UserError(
            f"{error.filename or parent}: cannot be used as cache ({error.strerror}). Set loader.cache or RCMNET_CACHE."
        ) from error
    return _joined(source, rule, folder, index)


def _held(source: Source, rule: ImageRule) -> HeldSet:
    with _quiet():
        index, pixels = read_all(source, rule)
    joined = _joined(source, rule, Path(), index)
    return HeldSet(**{f.name: getattr(joined, f.name) for f in dataclasses.fields(joined)}, held=pixels)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of oddities that are decided here: an image is read, or left out with a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _found(source: Source, rule: ImageRule, parent: Path, stamp: str | None) -> tuple[Path, Index] | None:
    """The set that an earlier run made of the same unchanged files."""
    note = _note(source, rule, parent, stamp)
    if note is None:
        return None
    try:
        folder = parent / note.read_text("ascii")
    except (OSError, ValueError):
        return None
    index = open_index(folder) if folder.parent == parent else None
    return (folder, index) if index is not None else None


def _note(source: Source, rule: ImageRule, parent: Path, stamp: str | None) -> Path | None:
    """The small file that leads from the files' sizes and times to their prepared set."""
    if stamp is None:
        return None
    digest = hashlib.sha256(json.dumps([FORMAT, stamp, rule.to_dict()], sort_keys=True).encode())
    for item in source.items:
        digest.update(json.dumps(item.path).encode())
    return parent / "notes" / digest.hexdigest()[:32]


def _made(source: Source, rule: ImageRule, parent: Path, progress: Progress | None) -> tuple[Path, Index]:
    with _locked(parent, progress, len(source.items)) as alone, _quiet():
        if alone:
            files.recover_folders(parent)
            files.recover_folders(parent / "notes")
        stamp = source.stamp()
        # Another process may have made it while this one waited.
        if (found := _found(source, rule, parent, stamp)) is not None:
            return found
        folder = parent / build(source, rule, parent, progress)
        note = _note(source, rule, parent, stamp)
        if note is not None and source.stamp() == stamp:
            files.write_atomic(note, folder.name, durable=False)
        index = open_index(folder)
    if index is None:
        raise UserError(
            f"{folder}: does not hold what was just written. Check the disk, or set RCMNET_CACHE to another."
        )
    return folder, index


@contextlib.contextmanager
def _locked(parent: Path, progress: Progress | None, total: int) -> Iterator[bool]:
    """Holds the cache alone; others wait. The kernel frees it with the process. Yields False if there are no locks."""
    handle = os.open(parent / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
                if progress is not None:
                    progress(0, total)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                # Two runs on such a file system may both prepare; each in a folder of its own, and the last one stays.
                yield False
                return
        yield True
    finally:
        os.close(handle)


def _joined(source: Source, rule: ImageRule, folder: Path, index: Index) -> PreparedSet:
    """The prepared rows with the labels, groups and splits that DATA has now."""
    known = {item.path: item for item in source.items}
    rows: list[Item] = [known[path] for path in index.path.tolist()]
    classes = tuple(sorted({item.label for item in rows if item.label is not None}))
    place = {name: k for k, name in enumerate(classes)}
    digest = hashlib.sha256(json.dumps([FORMAT, rule.to_dict()], sort_keys=True).encode())
    for item, sha256 in zip(rows, index.sha256.tolist(), strict=True):
        digest.update(json.dumps([item.path, sha256, item.label, item.group, item.split]).encode())
    examples = Examples(
        path=index.path,
        group=np.array([item.group for item in rows], np.str_),
        split=np.array([item.split for item in rows], np.str_),
        sha256=index.sha256,
        pixel_sha256=index.pixels,
        label=np.array([-1 if item.label is None else place[item.label] for item in rows], np.int32),
        signals=index.signals,
        signal_names=SIGNALS if index.signals.shape[1] else (),
    )
    skipped = tuple(sorted((*source.skipped, *index.skipped), key=lambda s: (s.path, s.reason)))
    synthetic = source.synthetic
    return PreparedSet(source.spec, folder, digest.hexdigest(), rule, classes, examples, skipped, synthetic)
