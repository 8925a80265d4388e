"""CSV files: a manifest `path,label[,group][,split]` as DATA, and a user's splits `path,split[,group]`."""

from __future__ import annotations

import csv
import io
import posixpath
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rcmnet_jax.data.formats.base import SPLITS, Item, Skipped, Source, clash, is_image_name
from rcmnet_jax.data.formats.folder import FileSource
from rcmnet_jax.errors import UserError

_MAX_BYTES = 1 << 29  # of a CSV: millions of rows


@dataclass(frozen=True)
class Row:
    """One line: `path` normalised, the other cells as written, '' where there is no such column."""

    line: int
    path: str
    label: str
    group: str
    split: str


def read_rows(file: Path, *, need: tuple[str, ...]) -> tuple[list[Row], set[str]]:
    """The rows of a CSV and the names of its columns, lower case. `need` names columns that must be there.

    UTF-8 with or without a byte order mark; any line ends; comma, semicolon or tab, as the first line has it.

    Raises:
      UserError: with the line, for what makes a row's meaning doubtful.
    """
    table = _cells(file)
    line, header = next(table, (1, []))
    names = [cell.strip().lower() for cell in header]
    for name in need:
        if name not in names:
            found = ", ".join(names) or "nothing"
            raise UserError(f"{file}, line {line}: no column '{name}' (found: {found}). Add it to the first line.")
    for name in ("path", "label", "group", "split"):
        if names.count(name) > 1:
            raise UserError(f"{file}, line {line}: column '{name}' stands {names.count(name)} times. Keep one.")
    places = {name: names.index(name) for name in ("path", "label", "group", "split") if name in names}
    rows = []
    for line, cells in table:
        if len(cells) != len(names):
            raise UserError(f"{file}, line {line}: {len(cells)} cells where the first line has {len(names)}. Mend it.")
        values = {name: cells[place] for name, place in places.items()}
        path = _inside(values["path"], f"{file}, line {line}")
        rows.append(Row(line, path, values.get("label", ""), values.get("group", "").strip(), values.get("split", "")))
    return rows, set(names)


def _cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not blank."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise UserError(f"{file}: not a plain file. Give a CSV file.")
        if file.stat().st_size > _MAX_BYTES:
            raise UserError(f"{file}: larger than {_MAX_BYTES >> 20} MiB. Split it up.")
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}). Check the name.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}. Save it as 'CSV UTF-8'.") from error
    if "\0" in text:
        raise UserError(f"{file}: holds a zero byte, so it is not a text file. Save it as 'CSV UTF-8'.")
    first = text.lstrip("\r\n").split("\n", 1)[0].split("\r", 1)[0]
    delimiter = "," if "," in first else ";" if ";" in first else "\t" if "\t" in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}. Mend the line.") from error


def _inside(path: str, where: str) -> str:
    """The path with '/' and without './', refused where it is empty, absolute or climbs."""
    plain = path.strip().replace("\\", "/")
    if not plain:
        raise UserError(f"{where}: the path is empty. Fill it in or remove the line.")
    if plain.startswith("/") or plain[1:2] == ":":
        raise UserError(f"{where}: path '{path}' is absolute. Write it relative to the CSV.")
    if ".." in plain.split("/"):
        raise UserError(f"{where}: path '{path}' leaves the folder by '..'. Put the CSV above the images.")
    return posixpath.normpath(plain)


def split_name(word: str, where: str) -> str:
    """train, val, test or '' from a cell.

    Raises:
      UserError: another word.
    """
    try:
        return SPLITS[word.strip().lower()]
    except KeyError:
        raise UserError(f"{where}: split '{word}' is not train, val or test. Correct it.") from None


def without_repeats(rows: list[Row], file: Path) -> tuple[list[Row], list[Skipped]]:
    """The first row of each path, and the repeats.

    Raises:
      UserError: two rows say different things of one path.
    """
    first: dict[str, Row] = {}
    repeats = []
    for row in rows:
        known = first.setdefault(row.path, row)
        if known is row:
            continue
        if (known.label, known.group, known.split) != (row.label, row.group, row.split):
            raise UserError(f"{file}, line {row.line}: '{row.path}' stands in line {known.line} with other values.")
        repeats.append(Skipped(row.path, f"repeated row of {file.name}"))
    return list(first.values()), repeats


class ManifestSource(FileSource):
    """Images that a CSV names; `lines` says where each label first stands."""

    def __init__(self, spec: str, root: Path, items: list[Item], skipped: list[Skipped], lines: Mapping[str, int]):
        super().__init__(spec, root, items, skipped)
        self._lines = lines

    def line(self, label: str) -> int:
        return self._lines.get(label, 0)


def open_manifest(spec: str, file: Path, *, labelled: bool) -> Source:
    """The images that a CSV names, relative to its own folder; without `labelled` it needs no label column.

    Raises:
      UserError: with the line; see docs/data.md for each case.
    """
    rows, _ = read_rows(file, need=("path", "label") if labelled else ("path",))
    rows, skipped = without_repeats(rows, file)
    labels = _labels(rows)
    root, items = file.resolve().parent, []
    for row in rows:
        split = split_name(row.split, f"{file}, line {row.line}")
        label = labels[row.label]
        if labelled and label is None:
            skipped.append(Skipped(row.path, "label is empty"))
        elif reason := _unusable(root, row.path):
            skipped.append(Skipped(row.path, reason))
        else:
            items.append(Item(row.path, label, row.group, split))
    lines = {label: row.line for row in reversed(rows) if (label := labels[row.label]) is not None}
    return ManifestSource(spec, root, items, skipped, lines)


def _labels(rows: list[Row]) -> dict[str, str | None]:
    """The class that each written label means: without the space around it, but for labels written in several ways.

    Those stay as written, so that 'cell ' beside 'cell' is seen as what it is.
    """
    forms: dict[str, set[str]] = {}
    for row in rows:
        forms.setdefault(clash(row.label), set()).add(row.label)
    return {
        label: None if not meant else label if len(labels) > 1 else label.strip()
        for meant, labels in forms.items()
        for label in labels
    }


def _unusable(root: Path, path: str) -> str:
    """Why a named file is not read, '' if it is."""
    full = root / path
    try:
        facts = full.lstat()
        if stat.S_ISLNK(facts.st_mode) and not full.resolve(strict=True).is_relative_to(root):
            return "link out of the folder"
        mode = full.stat().st_mode
    except FileNotFoundError:
        return "no such file"
    except (OSError, RuntimeError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    if not stat.S_ISREG(mode):
        return "not a plain file"
    return "" if is_image_name(path) else "not an image by its name"
