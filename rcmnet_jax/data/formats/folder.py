"""A folder with one sub-folder per class, a folder of unlabelled images, or one image."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from rcmnet_jax.data.formats.base import (
    Item,
    Skipped,
    Source,
    UnreadableError,
    by_folder,
    printable,
    read_plain,
    stamp_of,
)
from rcmnet_jax.errors import UserError


class FileSource(Source):
    """Images that are files below one folder."""

    def __init__(self, spec: str, root: Path, items: list[Item], skipped: list[Skipped]):
        super().__init__(spec, items, skipped)
        self._root = root

    def read(self, item: Item) -> bytes:
        return read_plain(self._root / item.path)

    def stamp(self) -> str | None:
        now, files = time.time(), []
        try:
            for item in self.items:
                files.append((item.path, (self._root / item.path).stat()))
        except OSError:
            return None
        return stamp_of(files, now)


def open_folder(spec: str, folder: Path, *, labelled: bool) -> Source:
    """Every image below `folder`, its class the first sub-folder's name.

    Links to files inside the folder are followed; links out of it, links to folders, and all but plain files are left
    out and said. A single folder around the class folders is looked through.

    Raises:
      UserError: the folder cannot be read.
    """
    root = folder.resolve()
    paths, skipped, empty = _walk(spec, root)
    inner, items, more = by_folder(paths, spec, labelled=labelled)
    root, skipped = root / inner, [Skipped(s.path.removeprefix(inner), s.reason) for s in skipped] + more
    held = {path.removeprefix(inner).split("/")[0] for path in paths}
    names = {printable(name.removeprefix(inner)) for name in empty}
    skipped += [Skipped(name, "class folder without images") for name in sorted(names) if name and name not in held]
    return FileSource(spec, root, items, skipped)


def _walk(spec: str, root: Path) -> tuple[list[str], list[Skipped], list[str]]:
    """Plain files below root in sorted order, what is no plain file, and folders at most two deep that hold nothing."""
    paths: list[str] = []
    skipped: list[Skipped] = []
    empty: list[str] = []
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(root / prefix) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise UserError(f"{spec}: cannot be read ({error.strerror}). Correct its permissions.") from error
            skipped.append(Skipped(printable(prefix.rstrip("/")), f"folder cannot be read ({error.strerror})"))
            continue
        if not entries and prefix.count("/") <= 2:
            empty.append(prefix.rstrip("/"))
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(name + "/")
            elif reason := _not_plain(entry, root):
                skipped.append(Skipped(printable(name), reason))
            else:
                paths.append(name)
    return sorted(paths), skipped, empty


def _not_plain(entry: os.DirEntry[str], root: Path) -> str:
    """Why an entry is not read as a file; '' if it is one."""
    try:
        if entry.is_symlink():
            target = Path(entry.path).resolve(strict=True)
            if not target.is_relative_to(root):
                return "link out of the folder"
            if target.is_dir():
                return "link to a folder"
        return "" if stat.S_ISREG(entry.stat().st_mode) else "not a plain file"
    except (OSError, RuntimeError):
        return "broken link"


def open_image(spec: str, path: Path) -> Source:
    """One image file, without a label; its path is its name.

    Raises:
      UserError: it is no plain file or cannot be read.
    """
    try:
        read_plain(path)
    except UnreadableError as error:
        raise UserError(f"{spec}: {error}. Give an image, a folder, a CSV or a zip.") from error
    return FileSource(spec, path.parent.resolve(), [Item(path.name, None)], [])
