"""`predict --explain`: a picture for each image, the input beside what was looked at, and a page of them all."""

from __future__ import annotations

import functools
import hashlib
import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation import explain
from rcmnet_jax.files import refuse_within_bundle, write_atomic

if TYPE_CHECKING:
    from rcmnet_jax.bundle import Bundle
    from rcmnet_jax.console import Console
    from rcmnet_jax.data.prepare import PreparedSet
    from rcmnet_jax.evaluation.table import Table

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

TILE = 224  # pixels: side of a picture's tiles, so that single positions of a map can be told
HEAD, FOOT, GAP = 22, 44, 6  # pixels above and below the tiles, and between them
OPACITY = 0.55  # of the heat map over the grey image
UNUSUAL = "_other_names"  # folder of the pictures whose own name could not be kept
_PLAIN = re.compile(r"\w[\w .()+=,@-]*", re.ASCII)
_LONGEST = 120  # characters of a name
PAGE = "index.html"


def check_folder(folder: Path) -> None:
    """Refuses a place where pictures would lie among other things, or over them.

    Raises:
      UserError: `folder` is a file, holds anything, or lies within a bundle.
    """
    refuse_within_bundle(folder, "--explain")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--explain={folder}: is a file. Name a new folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--explain={folder}: is not empty. Name a new folder.")


def write_overlays(folder: Path, bundle: Bundle, data: PreparedSet, table: Table, console: Console) -> None:
    """Writes a PNG for each row of the table, under the row's path, and index.html last. A batch is held at a time.

    Args:
      table: the bundle's predictions on all of `data`, in its order.
    """
    names, shown = Names(), []
    classes = np.array([table.classes.index(name) for name in table.prediction.tolist()], np.int32)
    with console.progress("explain", len(table), unit=1) as bar:
        for start in range(0, len(table), explain.BATCH):
            rows = np.arange(start, min(start + explain.BATCH, len(table)))
            images = data.images(rows)
            maps = explained(bundle, images, classes[rows])
            for k, row in enumerate(rows.tolist()):
                words = caption(table, row)
                name = names.take(str(table.path[row]), row)
                panel = draw(images[k], {title: part[k] for title, part in maps.items()}, words)
                write_atomic(folder / name, panel)
                shown.append({"href": quote(name), "path": str(table.path[row]), "words": words})
            bar.update(int(rows[-1]) + 1)
    write_atomic(folder / PAGE, page(bundle, shown, list(maps) if len(table) else [], synthetic=data.synthetic))


def explained(bundle: Bundle, images: Image, classes: NDArray[np.integer]) -> dict[str, Floats]:
    """Maps (N, S, S) from 0 to 1 of images (N, S, S, 3), by title: the class's heat map, and attention where there is.

    The title says by which method and on which layer. A single position holds all attention: that is not shown.
    """
    network, weights = bundle.network, (bundle.params, bundle.batch_stats)
    layer, method = explain.choice(network)
    raw, received = explain.chosen(network, *weights, images, classes)
    found = {f"{explain.NAMES[method]} ({layer})": explain.enlarge(raw, images.shape[1])}
    if received is not None and received[0].size > 1:
        found["attention"] = explain.enlarge(received, images.shape[1])
    return found


def caption(table: Table, row: int) -> str:
    """'neutrophil, p = 0.981', and the label where there is one."""
    label = str(table.label[row])
    told = f" (labelled {label})" if label else ""
    return f"{table.prediction[row]}, p = {table.confidence[row]:.3f}{told}"


class Names:
    """A file name for each path that stays below its folder, whatever the path, and that no other path has."""

    def __init__(self) -> None:
        self._taken: set[bytes] = set()

    def take(self, path: str, row: int) -> str:
        """The path with .png behind it where it is plain, else UNUSUAL/ROW-WHAT_IS_LEFT_OF_IT.png."""
        parts = path.split("/")
        plain = all(_PLAIN.fullmatch(p) and p[-1] not in " ." and len(p) <= _LONGEST for p in parts)
        # A folder called x.png could stand where the picture of an image called x belongs.
        kept = plain and parts[0].lower() != UNUSUAL and not any(p.lower().endswith(".png") for p in parts[:-1])
        if kept and self._free(path):
            return f"{path}.png"
        left = re.sub(r"[^A-Za-z0-9]+", "_", unicodedata.normalize("NFKD", parts[-1])).strip("_")[:60]
        return f"{UNUSUAL}/{row:07d}-{left}.png"

    def _free(self, path: str) -> bool:
        """Whether no earlier path has this name, on file systems that ignore case as well; it is taken then."""
        digest = hashlib.blake2b(path.lower().encode(), digest_size=16).digest()
        fresh = digest not in self._taken
        self._taken.add(digest)
        return fresh


def blend(image: Image, heat: Floats) -> Image:
    """The image (S, S, 3) in grey under its heat map (S, S) in viridis, which all kinds of colour vision can read."""
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    colours = _viridis()[np.clip(heat * 255, 0, 255).astype(np.uint8)]
    mixed = (1 - OPACITY) * grey[..., None] + OPACITY * colours
    return np.clip(mixed, 0, 255).astype(np.uint8)


@functools.cache
def _viridis() -> Floats:
    from matplotlib import colormaps

    table: Floats = (colormaps["viridis"](np.arange(256))[:, :3] * 255).astype(np.float32)
    return table


def draw(image: Image, maps: dict[str, Floats], words: str) -> bytes:
    """A PNG: the input and its maps side by side, titles above, `words` and the colours' scale below."""
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFont

    tiles = {"input": image} | {title: blend(image, heat) for title, heat in maps.items()}
    width = len(tiles) * (TILE + GAP) - GAP
    sheet = Pictures.new("RGB", (width, HEAD + TILE + FOOT), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, (title, tile) in enumerate(tiles.items()):
        left = place * (TILE + GAP)
        sheet.paste(Pictures.fromarray(tile).resize((TILE, TILE), Pictures.Resampling.BICUBIC), (left, HEAD))
        pen.text((left + 2, 3), title, "black", font)
    line = words
    while pen.textlength(line, font) > width - 4 and len(line) > 1:
        line = line.removesuffix("…")[:-1] + "…"
    pen.text((2, HEAD + TILE + 4), line, "black", font)
    _scale(sheet, pen, font, HEAD + TILE + 24)
    out = io.BytesIO()
    sheet.save(out, format="PNG", compress_level=6)
    return out.getvalue()


def _scale(sheet: Any, pen: Any, font: Any, top: int) -> None:
    """The colours from least to most, as they look on white."""
    from PIL import Image as Pictures

    ramp = blend(np.full((10, 120, 3), 255, np.uint8), np.repeat(np.linspace(0, 1, 120, dtype=np.float32)[None], 10, 0))
    pen.text((2, top), "least", "black", font)
    sheet.paste(Pictures.fromarray(ramp), (40, top + 4))
    pen.text((166, top), "most", "black", font)


def page(bundle: Bundle, shown: Sequence[dict[str, str]], titles: Sequence[str], *, synthetic: bool) -> str:
    """index.html: every picture with its path and words; names are always text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    jinja = Environment(loader=PackageLoader("rcmnet_jax.report"), autoescape=True, undefined=StrictUndefined)
    text: str = jinja.get_template("explain.html").render(
        model=bundle.network.config.name, shown=shown, titles=titles, synthetic=synthetic
    )
    return text
