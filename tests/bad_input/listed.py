"""Input that is taken, with what is left out of it."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.bad_input.case import Listed
from tests.planting import (
    device,
    encoded,
    fill,
    flip,
    pack,
    patch,
    plug,
    png,
    png_header,
    sparse,
    special,
    table,
    write,
)

Words = list[Path]
_LONG, _WIDE = "x" * 251 + ".png", "長" * 80 + ".png"  # 255 and 244 bytes: file systems take 255


def _noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)


def folder(here: Path) -> Words:
    """A class folder with everything in it that is left out."""
    root = fill(here / "cells", "a/1.png", "b/2.png", f"a/{_LONG}", f"Zellen-ä-細胞/{_WIDE}", "stray.png")
    _faulty_images(root)
    fill(root, "a/.DS_169665.jpg", ".DS_Store", "__MACOSX/a/1.png", "b/Thumbs.db", "a/notes.txt")
    (root / "nothing").mkdir()
    fill(here, "outside.png")
    (root / "a/in.png").symlink_to("../b/2.png")
    (root / "a/out.png").symlink_to(here / "outside.png")
    (root / "a/gone.png").symlink_to("nowhere.png")
    (root / "b/loop").symlink_to(root)
    os.mkfifo(root / "a/pipe.png")
    plug(root / "a/socket.png")
    device(root / "b/device.png")
    (root / "a" / os.fsdecode(b"\xff.png")).write_bytes(png())
    return [root]


def _faulty_images(root: Path) -> None:
    write(root / "a/empty.png", b"")
    write(root / "a/text.jpg", b"not a picture, only words")
    write(root / "b/cut.png", encoded(_noise(), "png")[:-200])
    flip(write(root / "b/damaged.png", encoded(_noise(), "png")), b"IDAT", 100)
    write(root / "a/bomb.png", png_header(9000, 8000))
    sparse(root / "a/huge.png", (1 << 30) + 1)
    write(root / "b/strip.png", encoded(np.zeros((1, 9000, 3), np.uint8), "png"))
    write(root / "b/float.tif", encoded(np.ones((4, 4), np.float32), "tiff"))
    write(root / "b/deep.tif", encoded(np.full((4, 4), 70000, np.int32), "tiff"))


def manifest(here: Path) -> Words:
    """A CSV with every row that gives no image."""
    fill(here / "csv", "1.png", "2.png", "e.png", "notes.txt")
    fill(here, "outside.png")
    (here / "csv/link.png").symlink_to(here / "outside.png")
    (here / "csv/folder.png").mkdir()
    os.mkfifo(here / "csv/pipe.png")
    rows = ["1.png,a", "1.png,a", "2.png,b", "e.png,", "gone.png,a", "link.png,a", "pipe.png,a", "folder.png,b"]
    return [table(here / "csv/m.csv", "path,label", *rows, "notes.txt,b", f"{'x' * 300}.png,a")]


def archive(here: Path) -> Words:
    """A zip with every member that is left out."""
    members: dict[Any, bytes] = {"a/1.png": png(1), "b/2.png": png(2), f"a/{'長' * 300}.png": png(3)}
    members |= {
        "../../out.png": png(),
        "/abs.png": png(),
        "a\\..\\..\\back.png": png(),
        "C:\\drive.png": png(),
        "a//e.png": png(),
    }
    members |= {special("a/link.png", 0o120777): b"/etc/passwd", special("a/device.png", 0o020666): b""}
    members |= {"a/bomb.bmp": bytes(40 << 20), "a/locked.png": png(4), "b/damaged.png": png(5), "b/liar.png": png(6)}
    members |= {special("a/bzip2.png", method=zipfile.ZIP_BZIP2): png(8)}
    members |= {special("a/lzma.png", method=zipfile.ZIP_LZMA): png(9)}
    members |= {"b/vast.png": png(7)}  # the last, so that it covers no other
    path = pack(here / "t.zip", members)
    patch(path, "a/locked.png", "flags", 1)
    patch(path, "b/liar.png", "size", 20)
    for field in ("compressed", "size"):
        patch(path, "b/vast.png", field, (1 << 30) + 1)
    flip(path, b"b/damaged.png", 30)
    return [path]


def opened(here: Path) -> Words:
    """What looks odd and is used as it is: in the order of `_OPENED`."""
    fill(here, "around/set/a/1.png", "around/set/b/2.png")
    fill(here, "parts/Train/a/1.png", "parts/Train/b/1.png", "parts/test/a/2.png", "parts/test/b/3.png")
    fill(here, "single/a/1.png", "pair/a/1.png", "pair/b/1.png")
    fill(here, "case/Neutrophil /1.png", "case/neutrophil/2.png", "case/neutrophil/3.png")
    group = table(here / "pair/m.csv", "path,label,group", "a/1.png,a,d1", "b/1.png,b,d1")
    return [here / "around", here / "parts", here / "single", here / "case", group, *_alike(here / "alike")]


def _alike(here: Path) -> Words:
    """One manifest, spelled in four ways."""
    fill(here, "x/1.png", "y/2.png")
    return [
        table(here / "1.csv", "path,label,group", "x/1.png,ä,d1", "y/2.png,b,d2"),
        table(here / "2.csv", "Path;LABEL; Group", "x/1.png;ä;d1", "y/2.png;b;d2", encoding="utf-8-sig", end="\r\n"),
        table(here / "3.csv", "path\tlabel\tgroup", "x\\1.png\tä\td1", ".\\y\\2.png\tb\td2", end="\r"),
        table(here / "4.csv", "", "path,label,group", "", "./x/1.png, ä ,d1", ",,", "y//2.png,b, d2"),
    ]


def _names(audit: dict[str, Any], finding: str) -> list[str]:
    return [path for f in audit["findings"] if f["name"] == finding for path in f["paths"]]


_KEPT, _SINGLE, _CLASH = (
    "names in any script, up to the file system's length",
    "one class, one image, one group",
    "classes that differ only by case, space or Unicode spelling",
)
_ALIKE = (
    "byte order mark; CRLF, LF or CR; comma, semicolon or tab; column names in any case; space around cells; "
    "`\\` for `/`; `./`; blank lines"
)
_NO_FILE = "path of no file, of a link out of the CSV's folder, of a pipe or folder, of no image by its name, too long"
_CLIMB = "name climbs out of the zip"

CASES = (
    Listed(
        "folder",
        folder,
        {
            "empty (0 bytes), truncated, damaged or unknown image": {
                "a/empty.png": "empty file",
                "a/text.jpg": "not an image in a format that is read here",
                "b/cut.png": "truncated image",
                "b/damaged.png": "damaged image (",
            },
            "more than 64 million pixels, by its header; over 1 GiB": {
                "a/bomb.png": "more than 64 million pixels (9000 x 8000)",
                "a/huge.png": "larger than 1024 MiB",
            },
            "so elongated that padding would make more than 64 million pixels": {
                "b/strip.png": "too elongated to be padded to a square (9000 x 1)"
            },
            "floating-point or over-16-bit pixels, which have no fixed scale": {
                "b/float.tif": "floating-point pixels have no fixed scale",
                "b/deep.tif": "grey values beyond 16 bits",
            },
            "hidden files (`.DS_Store`, `.DS_169665.jpg`), `__MACOSX`, `Thumbs.db`": dict.fromkeys(
                (".DS_Store", "__MACOSX/a/1.png", "a/.DS_169665.jpg", "b/Thumbs.db"), "hidden or system file"
            ),
            "names without an image's ending": {"a/notes.txt": "not an image by its name"},
            "images beside the class folders": {"stray.png": "not in a class folder"},
            "class folder without images": {"nothing": "class folder without images"},
            "link out of the folder, to a folder, to nothing": {
                "a/out.png": "link out of the folder",
                "b/loop": "link to a folder",
                "a/gone.png": "broken link",
            },
            "pipe, socket, device, also if it takes a file's place later": dict.fromkeys(
                ("a/pipe.png", "a/socket.png", "b/device.png"), "not a plain file"
            ),
            "a name that is not valid UTF-8": {"a/\\xff.png": "name is not valid UTF-8"},
        },
        {
            _KEPT: lambda audit: audit["sets"][0]["classes"] == {"Zellen-ä-細胞": 1, "a": 3, "b": 1},
            "link to a file inside the folder": lambda audit: (
                _names(audit, "exact_duplicate") == ["a/in.png", "b/2.png"]
            ),
        },
    ),
    Listed(
        "csv",
        manifest,
        {
            "same path twice, all alike": {"1.png": "repeated row of m.csv"},
            "empty label": {"e.png": "label is empty"},
            _NO_FILE: {
                "gone.png": "no such file",
                "link.png": "link out of the folder",
                "pipe.png": "not a plain file",
                "folder.png": "not a plain file",
                "notes.txt": "not an image by its name",
                "x" * 300 + ".png": "cannot be read (File name too long)",
            },
        },
    ),
    Listed(
        "zip",
        archive,
        {
            "member name absolute, with `..` (or `\\..\\`), with a drive letter": {
                "../../out.png": _CLIMB,
                "/abs.png": _CLIMB,
                "C:/drive.png": _CLIMB,
                "a/../../back.png": _CLIMB,
            },
            "member name with an empty part or `.` in it": {"a//e.png": "name is not a plain path"},
            "link, device, encrypted, packed by another method than deflate": {
                "a/link.png": "link, not a file",
                "a/device.png": "not a plain file",
                "a/locked.png": "encrypted",
                "a/bzip2.png": "packed by another method than deflate",
                "a/lzma.png": "packed by another method than deflate",
            },
            "member that would expand over 200 times (and over 16 MiB), or over 1 GiB": dict.fromkeys(
                ("a/bomb.bmp", "b/vast.png"), "would expand beyond measure"
            ),
            "damaged member, member that lies about its size": dict.fromkeys(
                ("b/damaged.png", "b/liar.png"), "damaged member of the zip ("
            ),
        },
        {_KEPT: lambda audit: audit["sets"][0]["classes"] == {"a": 2, "b": 1}},
    ),
    Listed(
        "opened",
        opened,
        used={
            "one folder around the class folders": lambda audit: audit["sets"][0]["classes"] == {"a": 1, "b": 1},
            "first folders named `train`, `val`, `test`": lambda audit: (
                (audit["sets"][1]["classes"], audit["sets"][1]["parts"]) == ({"a": 2, "b": 2}, {"test": 2, "train": 2})
            ),
            _SINGLE: lambda audit: (audit["sets"][2]["images"], audit["sets"][4]["groups"]) == (1, 1),
            _CLASH: lambda audit: (
                _names(audit, "class_names_differ_by_case") == ["Neutrophil /1.png", "neutrophil/2.png"]
            ),
            _ALIKE: lambda audit: len({facts["fingerprint"] for facts in audit["sets"][5:]}) == 1,
        },
    ),
)
