"""Embedded blood smears, drawn by the code itself, so that every stage runs without a download.

An image depends on (name, index, seed) alone. The cells are made up: they are for trying out and testing the pipeline,
and say nothing about accuracy on real blood. Every path made from them contains the word "synthetic".
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np

from rcmnet_jax.data.synthetic.catalogue import SyntheticItem, catalogue, generator, look, names, plan
from rcmnet_jax.data.synthetic.recipes import RECIPES
from rcmnet_jax.data.synthetic.smear import field_of_view, photograph

__all__ = ["SyntheticItem", "catalogue", "encode", "names", "render"]


def render(name: str, index: int, seed: int = 0) -> np.ndarray:
    """Image `index` of an embedded set: (S, S, 3) uint8 RGB, S = 96 (pbc) or 80 (cart), in some 8 ms on one core.

    Raises:
      UserError: no such set.
      IndexError: no such index.
    """
    made = plan(name)
    if not 0 <= index < len(made.labels):
        raise IndexError(f"{name} has indices 0 to {len(made.labels) - 1}, not {index}")
    rng = generator(name, seed, 0, index)
    scene = look(name, index, seed, rng)
    cell = RECIPES[made.labels[index]](rng)
    if scene.size != 1.0:
        nucleus = cell.nucleus * scene.size
        cell = replace(cell, radius=cell.radius * scene.size, nucleus=nucleus)
    od = field_of_view(rng, cell, scene, made.size, made.classes, chance=0.2 if made.kind == "pbc" else 0.12)
    return photograph(rng, od, scene)


def encode(name: str, index: int, seed: int = 0) -> bytes:
    """The same image as the bytes of a PNG file.

    The pixels are stored uncompressed: the bytes then do not hang on the version of a compression library, and the
    file's size cannot give the class away.
    """
    return _png(render(name, index, seed))


def _png(image: np.ndarray) -> bytes:
    """An RGB PNG (ISO/IEC 15948) whose one IDAT holds a single stored deflate block (RFC 1951, 3.2.4)."""
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # filter type 0 in front of each row
    rows[:, 1:] = image.reshape(height, -1)
    raw = rows.tobytes()
    if len(raw) > 0xFFFF:
        raise ValueError(f"{height}x{width} pixels do not fit one stored block of 65,535 bytes")
    stored = (
        b"\x78\x01\x01" + struct.pack("<HH", len(raw), len(raw) ^ 0xFFFF) + raw + struct.pack(">I", zlib.adler32(raw))
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"tEXt", b"Comment\0synthetic blood cell, drawn by rcmnet_jax"),
        (b"IDAT", stored),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
