"""Input that a command refuses."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input import arrays
from tests.bad_input.case import Plant, Refused
from tests.planting import fill, pack, patch, png, sparse, table, write

Words = list[Any]


def _nothing(name: str) -> Plant:
    return lambda here: [here / name]


def _file(name: str, content: bytes) -> Plant:
    return lambda here: [write(here / name, content)]


def _filled(*paths: str) -> Plant:
    return lambda here: [fill(here / "cells", *paths)]


def _csv(*lines: str, **spelling: str) -> Plant:
    return lambda here: [table(fill(here, "a/1.png", "a/2.png") / "m.csv", *lines, **spelling)]


def _zip(change: Callable[[Path], object]) -> Plant:
    def plant(here: Path) -> Words:
        path = pack(here / "t.zip", {"a/1.png": png(1), "a/2.png": png(2), "b/3.png": png(3)})
        change(path)
        return [path]

    return plant


def _source(plant: Plant) -> Plant:
    """As the source of a run."""
    return lambda here: [f"--config.source.data={plant(here)[0]}"]


def _splits(*lines: str) -> Plant:
    """A run whose splits file has these lines."""

    def plant(here: Path) -> Words:
        data = fill(here / "cells", "a/1.png", "a/2.png", "b/1.png", "b/2.png")
        return [f"--config.source.data={data}", f"--config.source.splits={table(here / 's.csv', *lines)}"]

    return plant


# ---- any form ----


def _misspelt(here: Path) -> Words:
    table(here / "cells.csv", "path,label")
    return [here / "cell.csv"]


def _pipe(here: Path) -> Words:
    os.mkfifo(here / "cells.csv")
    return [here / "cells.csv"]


def _text_alone(here: Path) -> Words:
    return [write(here / "cells/a/n.txt", b"x").parents[1]]


def _one_group(here: Path) -> Words:
    rows = [f"{'ab'[i % 2]}/{i}.png,{'ab'[i % 2]},d1" for i in range(4)]
    data = table(fill(here, *(row.split(",")[0] for row in rows)) / "m.csv", "path,label,group", *rows)
    return [f"--config.target.data={data}"]


_MISSING, _KIND, _NO_IMAGE, _ONE, _CLASH = (
    "no such file; no name; a name one letter off",
    "neither folder nor plain file (pipe, device); another kind of file",
    "no image at all; not one readable image",
    "one class, one image, one group",
    "classes that differ only by case, space or Unicode spelling",
)
_TWICE = ("Neutrophil /1.png", "neutrophil/2.png", "b/3.png")
_UNREADABLE = _file("cells/a/1.png", b"")

ANY = (
    Refused(_MISSING, "missing", _nothing("cells"), "no such file or folder. Give a class folder"),
    Refused(_MISSING, "no name", lambda _: [""], "DATA is ''. Give a class folder"),
    Refused(_MISSING, "misspelt", _misspelt, "/cells.csv?"),
    Refused(_MISSING, "missing for predict", _nothing("cells"), "no such file or folder. Give", "predict"),
    Refused(_KIND, "pipe", _pipe, "neither a folder nor a plain file"),
    Refused(_KIND, "device", lambda _: [Path("/dev/null")], "/dev/null: neither a folder nor a plain file"),
    Refused(_KIND, "another kind", _file("cells.txt", b"x"), "cells.txt: not a form of DATA"),
    Refused(_KIND, "one image", _file("1.png", png()), "One image has no class to learn from"),
    Refused(_NO_IMAGE, "no image", _text_alone, "(a/n.txt: not an image by its name)"),
    Refused(_NO_IMAGE, "flat", _filled("1.png"), "(1.png: not in a class folder). Give a class folder"),
    Refused(_NO_IMAGE, "unreadable", lambda here: [_UNREADABLE(here)[0].parents[1]], "(a/1.png: empty file)"),
    Refused(_NO_IMAGE, "unreadable for predict", _UNREADABLE, "(1.png: empty file)", "predict"),
    Refused(_ONE, "one class", _source(_filled("a/1.png", "a/2.png")), "of a single class or none", "launch"),
    Refused(_ONE, "one group", _one_group, "belong to one of the groups: none can be held out", "launch"),
    Refused(_CLASH, "folders", _source(_filled(*_TWICE)), "'neutrophil' differs from 'Neutrophil '", "launch"),
    Refused(_CLASH, "labels", _source(_csv("path,label", "a/1.png,x", "a/2.png,X")), "m.csv, line 3: class", "launch"),
    Refused(_CLASH, "for predict", _filled(*_TWICE), "differs from 'Neutrophil ' only by", "predict"),
)

# ---- CSV ----

_TEXT, _COLUMNS, _PATH, _SPLIT, _SOME, _DIFFER, _OWN = (
    "UTF-16, Latin-1, zero bytes, a cell over 128 KiB, a file over 512 MiB, an open quote, a row "
    "longer or shorter than the first",
    "`path`, `label` (or `split` in a splits file) missing; one of them twice",
    "absolute path, drive letter, `..`, empty path",
    "unknown word in `split`",
    "`split` empty in some rows only",
    "same path twice, label, group or split differ",
    "splits CSV: names no image at all; empty split; label contradicts DATA",
)


def _large(here: Path) -> Words:
    sparse(here / "m.csv", (1 << 29) + 1)
    return [here / "m.csv"]


_HEAD, _LONG_HEAD = "path,label", "path,label,group,split"
_half_split = _csv("path,label,split", "a/1.png,a,train", "a/2.png,b,")

CSV = (
    Refused(_TEXT, "utf-16", _csv(_HEAD, "a/1.png,ä", encoding="utf-16"), "m.csv: not UTF-8 text at byte 0"),
    Refused(_TEXT, "latin-1", _csv(_HEAD, "a/1.png,ä", encoding="latin-1"), "m.csv: not UTF-8 text at byte 19"),
    Refused(_TEXT, "zero byte", _csv(_HEAD, "a/1.png,a\0"), "m.csv: holds a zero byte"),
    Refused(_TEXT, "long cell", _csv(_HEAD, "a/1.png," + "x" * 132_000), "m.csv, line 2: field larger than"),
    Refused(_TEXT, "large", _large, "m.csv: larger than 512 MiB"),
    Refused(_TEXT, "open quote", _csv(_HEAD, 'a/1.png,"a'), "m.csv, line 2: unexpected end of data"),
    Refused(_TEXT, "long row", _csv(_HEAD, "a/1.png,a,b"), "m.csv, line 2: 3 cells where the first line has 2"),
    Refused(_TEXT, "short row", _csv(_HEAD, "a/1.png"), "m.csv, line 2: 1 cells where the first line has 2"),
    Refused(_COLUMNS, "no path", _csv("file,label", "a/1.png,a"), "m.csv, line 1: no column 'path'"),
    Refused(_COLUMNS, "no label", _csv("path,class", "a/1.png,a"), "m.csv, line 1: no column 'label'"),
    Refused(_COLUMNS, "no split", _splits("path,part", "a/1.png,train"), "s.csv, line 1: no column 'split'", "launch"),
    Refused(_COLUMNS, "twice", _csv("path,label,label", "a/1.png,a,b"), "m.csv, line 1: column 'label' stands 2 times"),
    Refused(_PATH, "absolute", _csv(_HEAD, "/etc/a.png,a"), "m.csv, line 2: path '/etc/a.png' is absolute"),
    Refused(_PATH, "drive", _csv(_HEAD, "C:\\a.png,a"), "m.csv, line 2: path 'C:\\a.png' is absolute"),
    Refused(
        _PATH, "climbs", _csv(_HEAD, "a/1.png,a", "../b.png,a"), "m.csv, line 3: path '../b.png' leaves the folder"
    ),
    Refused(_PATH, "empty", _csv(_HEAD, ",a"), "m.csv, line 2: the path is empty"),
    Refused(_SPLIT, "in DATA", _csv("path,label,split", "a/1.png,a,trian"), "line 2: split 'trian' is not train, val"),
    Refused(_SPLIT, "in splits", _splits("path,split", "a/1.png,held"), "s.csv, line 2: split 'held'", "launch"),
    Refused(_SOME, "one", _source(_half_split), "a/2.png: 1 of 2 labelled images have no split", "launch"),
    *(
        Refused(_DIFFER, name, _csv(_LONG_HEAD, "a/1.png,a,d1,train", row), "line 3: 'a/1.png' stands in line 2 with")
        for name, row in {
            "label": "a/1.png,b,d1,train",
            "group": "a/1.png,a,d2,train",
            "split": "a/1.png,a,d1,test",
        }.items()
    ),
    Refused(_OWN, "stranger", _splits("path,split", "cells/a/1.png,train"), "s.csv: names no image of", "launch"),
    Refused(_OWN, "empty split", _splits("path,split", "a/1.png,"), "s.csv, line 2: the split is empty", "launch"),
    Refused(_OWN, "label", _splits("path,split,label", "a/1.png,train,b"), "s.csv, line 2: label 'b', but", "launch"),
)

# ---- zip ----


def _explode(path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        patch(path, name, "size", 2_000_000_000)


def _repeat(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("a/1.png", png(9))


def _share(path: Path) -> None:
    patch(path, "a/2.png", "header", 0)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


_WHOLE, _SAME, _NO_ZIP = (
    "whole that would expand over 200 times its size and over 4 GiB",
    "a name twice; members that share bytes",
    "not a zip, cut off",
)

ZIP = (
    Refused(_WHOLE, "explodes", _zip(_explode), "would expand to 6,000,000,000"),
    Refused(_SAME, "repeated", _zip(_repeat), "t.zip: 'a/1.png' is in it twice"),
    Refused(_SAME, "overlap", _zip(_share), "shares bytes with another member"),
    Refused(_NO_ZIP, "text", _file("t.zip", b"not a zip, only words"), "t.zip: not a whole zip file"),
    Refused(_NO_ZIP, "cut off", _zip(_cut), "t.zip: not a whole zip file"),
)

# ---- synthetic ----

SYNTHETIC = (
    Refused("unknown name", "synthetic", lambda _: ["synthetic:nothing"], "synthetic:nothing: no such embedded set"),
)

CASES = (*ANY, *CSV, *ZIP, *arrays.CASES, *SYNTHETIC)
