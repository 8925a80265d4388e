"""A zip of a class folder. Members are read into memory one at a time; nothing is ever written to disk by its name."""

from __future__ import annotations

import contextlib
import stat
import zipfile
from pathlib import Path

from rcmnet_jax.data.formats.base import (
    DAMAGE,
    MAX_FILE,
    Item,
    Skipped,
    Source,
    UnreadableError,
    by_folder,
    printable,
    stamp_of_zip,
)
from rcmnet_jax.errors import UserError

_MAX_RATIO = 200  # expanded to stored: images are packed already; a deflate bomb reaches 1000
_SMALL = 16 << 20  # bytes that any member may expand to whatever the ratio: a blank BMP packs well
# Bytes asked for at once: asked for a whole member, zipfile expands all that is packed in it before it looks at the
# size that the member claims. It can stop midway with these methods alone.
_PIECE = 1 << 16
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAX_TOTAL = 4 << 30  # bytes that the whole may expand to whatever the ratio


class ZipSource(Source):
    """Images that are members of a zip file."""

    def __init__(
        self, spec: str, path: Path, archive: zipfile.ZipFile, root: str, items: list[Item], skipped: list[Skipped]
    ):
        super().__init__(spec, items, skipped)
        self._path, self._archive = path, archive
        members = {printable(_plain(info)): info for info in archive.infolist()}
        self._members = {item.path: members[root + item.path] for item in items}

    def read(self, item: Item) -> bytes:
        info = self._members[item.path]
        try:
            with self._archive.open(info) as member:
                return b"".join(iter(lambda: member.read(_PIECE), b""))
        except DAMAGE as error:
            raise UnreadableError(f"damaged member of the zip ({' '.join(str(error).split())[:100]})") from error

    def stamp(self) -> str | None:
        return stamp_of_zip(self._path, self._archive)


def open_zip(spec: str, path: Path, *, labelled: bool) -> Source:
    """The images in a zip of a class folder, or of a folder around one, the label the class folder's name.

    Members whose names climb out, links, encrypted ones and bombs are left out and said.

    Raises:
      UserError: not a zip, a repeated name, members that share bytes, a whole that would expand beyond measure.
    """
    try:
        archive = zipfile.ZipFile(path)
        infos = [info for info in archive.infolist() if not info.is_dir()]
    except DAMAGE as error:
        raise UserError(f"{spec}: not a whole zip file ({error}). Download or pack it again.") from error
    _refuse(spec, path, infos)
    skipped, names = [], []
    for info in infos:
        name = printable(_plain(info))
        if reason := _unusable(info):
            skipped.append(Skipped(name, reason))
        else:
            names.append(name)
    root, items, more = by_folder(sorted(names), spec, labelled=labelled)
    skipped = [Skipped(s.path.removeprefix(root), s.reason) for s in skipped] + more
    return ZipSource(spec, path, archive, root, items, skipped)


def _plain(info: zipfile.ZipInfo) -> str:
    """A member's name; UTF-8 that is not marked as such, as some packers leave it, is read as what it is."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _refuse(spec: str, path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Refuses what no honest zip has: a name twice, members over one another, and a total beyond all measure."""
    seen: set[str] = set()
    for info in infos:
        name = _plain(info)
        if name in seen:
            raise UserError(f"{spec}: '{printable(name)}' is in it twice, and the two may differ. Pack it again.")
        seen.add(name)
    end = -1
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise UserError(f"{spec}: '{printable(_plain(info))}' shares bytes with another member. Not read.")
        end = info.header_offset + info.compress_size
    total, size = sum(info.file_size for info in infos), path.stat().st_size
    if total > max(_MAX_TOTAL, _MAX_RATIO * size):
        raise UserError(
            f"{spec}: {size:,} bytes would expand to {total:,}. Not read; unpack it yourself if you trust it."
        )


def _unusable(info: zipfile.ZipInfo) -> str:
    """Why a member is not read, by its entry alone; '' if it is."""
    name, kind = _plain(info), info.external_attr >> 16
    if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
        return "name climbs out of the zip"
    if any(part in ("", ".") for part in name.split("/")):
        return "name is not a plain path"
    if kind and stat.S_IFMT(kind) not in (0, stat.S_IFREG):
        return "link, not a file" if stat.S_ISLNK(kind) else "not a plain file"
    if info.flag_bits & 1:
        return "encrypted"
    if info.compress_type not in _METHODS:
        return "packed by another method than deflate"
    if info.file_size > MAX_FILE or info.file_size > max(_SMALL, _MAX_RATIO * info.compress_size):
        return "would expand beyond measure"
    return ""
