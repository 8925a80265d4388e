"""Arrays and records that a command refuses."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.bad_input.case import Plant, Refused
from tests.planting import flip, medmnist, pack, tfds_set, write

Words = list[Any]

# ---- npz ----


def _npz(**arrays: Any) -> Plant:
    def plant(here: Path) -> Words:
        medmnist(here / "m.npz", **arrays)
        return [here / "m.npz"]

    return plant


def _text(here: Path) -> Words:
    return [write(here / "m.npz", b"words")]


class _Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def _pickled(here: Path) -> Words:
    medmnist(here / "m.npz", train_labels=np.array([_Trap(here / "unpickled")] * 5, object))
    return [here / "m.npz"]


def _lying(here: Path) -> Words:
    medmnist(here / "m.npz")
    with zipfile.ZipFile(here / "m.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["train_images.npy"] = members["train_images.npy"].replace(b"(5, 6, 7, 3)", b"(9, 6, 7, 3)")
    return [pack(here / "m.npz", members)]


def _bzipped(here: Path) -> Words:
    medmnist(here / "m.npz")
    with zipfile.ZipFile(here / "m.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return [pack(here / "m.npz", members, zipfile.ZIP_BZIP2)]


def _unlabelled(here: Path) -> Words:
    np.savez(here / "m.npz", train_images=_IMAGES)
    return [here / "m.npz"]


def _other_layout(here: Path) -> Words:
    np.savez(here / "m.npz", x=np.zeros(3))
    return [here / "m.npz"]


def _damaged(here: Path) -> Words:
    medmnist(here / "m.npz", (("train", 30),), shape=(60, 70, 3), compressed=False)
    return [flip(here / "m.npz", b"train_images", 300_000)]


_ARRAYS, _BYTES = (
    "objects (pickles), floats, Fortran order, other shapes, packed by another method, several labels "
    "an image, labels below 0 or over 9999",
    "shape that does not fit the bytes; not an npz; no `train_images`, no labels; damaged anywhere (one checksum "
    "covers all)",
)
_IMAGES = np.zeros((5, 6, 7, 3), np.uint8)
_FORTRAN, _SEVEN = np.asfortranarray(_IMAGES), np.zeros((5, 6, 7, 7), np.uint8)
_LABELS = np.zeros((5, 14), np.uint8)

NPZ = (
    Refused(_ARRAYS, "pickle", _pickled, "m.npz: train_labels.npy holds object"),
    Refused(_ARRAYS, "floats", _npz(train_images=_IMAGES.astype(np.float32)), "holds float32, not whole numbers"),
    Refused(_ARRAYS, "fortran", _npz(train_images=_FORTRAN), "not whole numbers in C order"),
    Refused(_ARRAYS, "shape", _npz(train_images=_SEVEN), "needed is uint8 (N, H, W) or (N, H, W, 3)"),
    Refused(_ARRAYS, "method", _bzipped, "train_images.npy is not as NumPy's savez writes it"),
    Refused(_ARRAYS, "several labels", _npz(train_labels=_LABELS), "needed is one label an image"),
    Refused(_ARRAYS, "negative", _npz(train_labels=np.full(5, -1)), "has labels from -1"),
    Refused(_ARRAYS, "over 9999", _npz(train_labels=np.full(5, 10_000)), "has labels from 10000 to 10000"),
    Refused(_BYTES, "no labels", _unlabelled, "m.npz: train_labels.npy is missing"),
    Refused(_BYTES, "lies", _lying, "says its shape is (9, 6, 7, 3), but holds 630 bytes"),
    Refused(_BYTES, "text", _text, "m.npz: not a whole npz file"),
    Refused(_BYTES, "layout", _other_layout, "m.npz: no train_images in it, but x.npy"),
    Refused(_BYTES, "damaged", _damaged, "m.npz: damaged ("),
)

# ---- TFDS ----


def _set(name: str) -> Plant:
    return lambda here: [tfds_set(here / "code", here / "tfds", name)]


def _uninstalled(here: Path) -> Words:
    write(here / "site" / "sitecustomize.py", b"import sys\nsys.modules['tensorflow_datasets'] = None\n")
    return ["tfds:bloodmnist/64"]


def _tfrecord(here: Path) -> Words:
    spec = tfds_set(here / "code", here / "tfds", "good")
    (info,) = (here / "tfds").rglob("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    return [spec]


def _damaged_set(here: Path) -> Words:
    spec = tfds_set(here / "code", here / "tfds", "good")
    (records,) = (here / "tfds").rglob("*train.array_record*")
    content = records.read_bytes()
    records.write_bytes(content[:-100_000] + bytes(len(content[-100_000:])))
    return [spec]


_TFDS = (
    "not installed, unknown name, not prepared, only as tfrecord, no `image`, no `label`, damaged, two records of one "
    "path"
)
_BUILD = "Run: python -m rcmnet_jax.data.builders bloodmnist/64"

TFDS = (
    Refused(_TFDS, "not installed", _uninstalled, "Run: pip install tensorflow-datasets"),
    Refused(_TFDS, "unknown", lambda _: ["tfds:rcm_no_such_set"], "knows no set of this name"),
    Refused(_TFDS, "not prepared", lambda _: ["tfds:bloodmnist/64"], _BUILD),
    Refused(_TFDS, "tfrecord", _tfrecord, "is there as tfrecord only"),
    Refused(_TFDS, "no image", _set("no_image"), "has no feature 'image'"),
    Refused(_TFDS, "no label", _set("no_label"), "has no feature 'label'"),
    Refused(_TFDS, "damaged", _damaged_set, "Delete it and prepare it again"),
    Refused(_TFDS, "one path", _set("twice"), "two records have the same path"),
)

CASES = (*NPZ, *TFDS)
