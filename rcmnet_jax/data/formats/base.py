"""What every form of DATA gives: a list of images with what is known of each, and the bytes of any of them."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import stat
import struct
import time
import unicodedata
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rcmnet_jax.errors import UserError

EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".mpo", ".png", ".tif", ".tiff", ".bmp", ".dib"),
        *(".gif", ".webp", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".sgi", ".rgb", ".bw", ".ico"),
    }
)
SPLITS = {
    "": "", "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_APART = "only by case, space or Unicode spelling"
_JUNK = ("__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db")
MAX_FILE = 1 << 30  # bytes of one image file
# What zipfile and NumPy's header reader raise on damaged bytes: besides their own, whatever they stumble on.
DAMAGE: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError, TypeError),
    *(LookupError, ArithmeticError, NotImplementedError, RuntimeError, SyntaxError),
)


@dataclass(frozen=True)
class Item:
    """One image. `path` is relative to DATA's root, with '/'; '' where group or split is not known, None: no label."""

    path: str
    label: str | None
    group: str = ""
    split: str = ""


@dataclass(frozen=True)
class Skipped:
    """A file that is no part of the set, and why, in a few words."""

    path: str
    reason: str


class Source(ABC):
    """An opened DATA: its images sorted by path, and what was left out. Reading is safe from several threads."""

    synthetic = False

    def __init__(self, spec: str, items: Iterable[Item], skipped: Iterable[Skipped] = ()):
        self.spec = spec
        self.items = sorted(items, key=lambda item: item.path)
        self.skipped = list(skipped)

    def line(self, label: str) -> int:  # noqa: ARG002
        """The line of DATA in which a label first stands; 0 in forms that have no lines."""
        return 0

    @abstractmethod
    def read(self, item: Item) -> bytes:
        """The bytes of the image's file.

        Raises:
          UnreadableError: they cannot be had; the message is the reason in a few words.
        """

    @abstractmethod
    def stamp(self) -> str | None:
        """A cheap mark of the content: as long as it is equal, no image has changed. None where none can be trusted."""


class UnreadableError(Exception):
    """A listed image whose bytes cannot be had; the message is the reason in a few words."""


def stamp_of(files: Iterable[tuple[str, os.stat_result]], now: float) -> str | None:
    """A mark from the files' names, sizes and times; None where one is younger than 2 s by `now` (seconds since 1970).

    A file that was written a moment ago can be written again within the same tick of the file system's clock.
    """
    digest = hashlib.sha256()
    for name, facts in files:
        if max(facts.st_mtime, facts.st_ctime) > now - 2:
            return None
        line = f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ctime_ns}\0{facts.st_ino}\0{facts.st_dev}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def stamp_of_zip(path: Path, archive: zipfile.ZipFile) -> str | None:
    """`stamp_of` an open zip; None where another file has taken its place since it was opened."""
    try:
        there = path.stat()
        held = there if archive.fp is None else os.fstat(archive.fp.fileno())
    except OSError:
        return None
    same = (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)
    return stamp_of([(str(path), there)], time.time()) if same else None


def is_image_name(name: str) -> bool:
    """Whether the ending of a file's name is that of an image."""
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def junk_reason(path: str) -> str:
    """Why a path is no image by its name alone: hidden, the system's, another kind; '' for images."""
    parts = path.split("/")
    if any(part.startswith(".") or part.lower() in _JUNK for part in parts):
        return "hidden or system file"
    if not is_image_name(parts[-1]):
        return "not an image by its name"
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "name is not valid UTF-8"
    return ""


def printable(path: str) -> str:
    """A path that can be written as UTF-8: bytes of no meaning become backslash escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def top_folder(paths: list[str]) -> str:
    """'NAME/' where every path is NAME/CLASS/...: one folder around the class folders; else ''."""
    tops = {path.split("/")[0] for path in paths}
    if len(tops) == 1 and all(path.count("/") >= 2 for path in paths):
        return tops.pop() + "/"
    return ""


def by_folder(paths: list[str], spec: str, *, labelled: bool) -> tuple[str, list[Item], list[Skipped]]:
    """Items of a class folder from its files' paths: the root inside (see `top_folder`), the images, and the rest.

    The label is the first folder's name; where all first folders are named train, val or test, that is the split and
    the next folder is the label. Without `labelled`, images outside of any folder have the label None.

    Raises:
      UserError: folders of splits, with classes in them, beside others.
    """
    reasons = {path: junk_reason(path) for path in paths}
    good = [path for path in paths if not reasons[path]]
    within = [path for path in good if "/" in path] if labelled else good
    root = top_folder(within)
    shorts = [path.removeprefix(root) for path in within]
    firsts = {short.split("/")[0] for short in shorts if "/" in short}
    deeper = {short.split("/")[0] for short in shorts if short.count("/") >= 2}
    parts = sorted(name for name in deeper if name.lower() in SPLITS)
    others = sorted(name for name in firsts if name.lower() not in SPLITS)
    if labelled and others and len(parts) > 1:
        raise UserError(
            f"{spec}: folders {', '.join(parts)} are a split's, with classes in them, but there is '{others[0]}' "
            "beside them. Move it elsewhere, or rename them if they are classes."
        )
    by_split = bool(parts) and not others and (labelled or all(short.count("/") >= 2 for short in shorts))
    items, skipped = [], []
    for path in paths:
        short = path.removeprefix(root)
        first, slash, rest = short.partition("/")
        if reasons[path]:
            skipped.append(Skipped(printable(short), reasons[path]))
        elif by_split and "/" in rest:
            items.append(Item(short, rest.partition("/")[0], "", SPLITS[first.lower()]))
        elif not by_split and (slash or not labelled):
            items.append(Item(short, first if slash else None, "", ""))
        else:
            skipped.append(Skipped(short, "not in a class folder"))
    return root, items, skipped


def clash(label: str) -> str:
    """The form under which two labels count as the same but for case, space and Unicode spelling."""
    plain = unicodedata.normalize("NFKC", label).casefold()
    kinds = {c: unicodedata.category(c) for c in set(plain)}
    # Dashes, the minus sign among them, are one; characters that nobody sees are none.
    shown = (("-" if kinds[c] == "Pd" or c == "\u2212" else c) for c in plain if kinds[c] != "Cf")
    words = " ".join("".join(shown).split())
    return re.sub(r"(?<!\d) | (?!\d)", "", words)  # between two digits a space tells numbers apart: 1 12, 11 2


def refuse_clashes(source: Source) -> None:
    """Raises a UserError where two labels differ only by case, space or Unicode spelling."""
    labels = {item.label for item in source.items if item.label is not None}
    if pair := _spelled_twice(sorted(labels, key=lambda label: (source.line(label), label))):
        line = source.line(pair[1])
        where = f"{source.spec}, line {line}" if line else source.spec
        raise UserError(f"{where}: class '{pair[1]}' differs from '{pair[0]}' {_APART}. Use one form.")


def refuse_group_clashes(source: Source) -> None:
    """Raises a UserError where two groups differ only so: one patient would be on two sides of a split."""
    if pair := _spelled_twice(sorted({item.group for item in source.items if item.group})):
        raise UserError(
            f"{source.spec}: group '{pair[1]}' differs from '{pair[0]}' {_APART}, and would count as another patient. "
            "Use one form."
        )


def _spelled_twice(names: Iterable[str]) -> tuple[str, str] | None:
    """The first of the names that clashes with an earlier one, after that one."""
    seen: dict[str, str] = {}
    return next(((seen[clash(name)], name) for name in names if seen.setdefault(clash(name), name) != name), None)


def read_plain(path: Path) -> bytes:
    """All bytes of a plain file; never waits on a pipe or a device.

    Raises:
      UnreadableError: the reason in a few words.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise UnreadableError("not a plain file")
            if facts.st_size > MAX_FILE:
                raise UnreadableError(f"larger than {MAX_FILE >> 20} MiB")
            return file.read()
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror})") from error
