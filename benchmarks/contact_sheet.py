"""Draws a contact sheet of one or more sets of cell images: a row per class, so that a person sees what a network sees.

    python -m benchmarks.contact_sheet synthetic:pbc synthetic:cart --colours 160 --output docs/images/synthetic.png

DATA is anything that the package reads: a folder with one sub-folder per class, a CSV, a zip, an .npz, synthetic:NAME.
With --augment a row has one image of the class, then views of it as training draws them:

    python -m benchmarks.contact_sheet synthetic:pbc --augment gamma=0.4,reinhard=0.5 --output views.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from rcmnet_jax.config import AugmentConfig
from rcmnet_jax.data.images import ImageRule, decode, standardise
from rcmnet_jax.data.sources import open_source
from rcmnet_jax.errors import UserError
from rcmnet_jax.settings import from_dict

MARGIN, TITLE, NAMES = 4, 22, 150  # pixels: gap between tiles' rows, height of a title, width of the classes' names


def block(spec: str, columns: int, tile: int, seed: int, augment: AugmentConfig | None) -> Image.Image:
    """The rows of one set: its name above, the classes' names on the left, `columns` images drawn at random of each.

    Or, with `augment`, one image of each and views of it.
    """
    source = open_source(spec)
    labels = np.array([str(item.label) for item in source.items])
    classes = sorted(set(labels))
    sheet = Image.new("RGB", (NAMES + columns * tile, TITLE + len(classes) * (tile + MARGIN)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    note = "   synthetic images, drawn by code: no real cells" if source.synthetic else ""
    pen.text((2, 3), f"{spec}{note}", "black", font)
    rng = np.random.default_rng(seed)
    for row, name in enumerate(classes):
        top = TITLE + row * (tile + MARGIN)
        pen.text((2, top + tile / 2 - 8), name, "black", font)
        members = np.flatnonzero(labels == name)
        chosen = rng.permutation(members)[: columns if augment is None else 1]
        rule = ImageRule(tile, "stretch", 1.0, "lanczos")
        images = [standardise(decode(source.read(source.items[index])), rule) for index in chosen]
        if augment is not None:
            images += views(images[0], columns - 1, seed + row, augment)
        for column, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (NAMES + column * tile, top))
    return sheet


def views(image: npt.NDArray[np.uint8], count: int, seed: int, config: AugmentConfig) -> list[npt.NDArray[np.uint8]]:
    """Views of an image (S, S, 3) as training draws them, `mixup` and `cutmix` left out."""
    import jax

    from rcmnet_jax.data.augment import augment, split_position

    given = jax.device_put((np.stack([image] * count), split_position(np.arange(count)), np.uint32(seed)))
    return list(np.round(np.asarray(augment(*given, config)) * 255).astype(np.uint8))


def contact_sheet(
    specs: list[str], columns: int, tile: int, seed: int, augment: AugmentConfig | None = None
) -> Image.Image:
    """All sets' rows, one under the other."""
    blocks = [block(spec, columns, tile, seed, augment) for spec in specs]
    sheet = Image.new("RGB", (blocks[0].width, sum(part.height for part in blocks)), "white")
    top = 0
    for part in blocks:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def main() -> int:
    """Reads the arguments and writes the PNG; status 2 if DATA cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="DATA")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("--columns", type=int, default=8, help="images of each class (default 8)")
    parser.add_argument("--tile", type=int, default=64, help="side of an image on the sheet, pixels (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default 0)")
    parser.add_argument(
        "--colours", type=int, default=0, help="palette of 2 to 256 colours, a smaller file; 0: full colour"
    )
    parser.add_argument("--augment", default="", metavar="KEY=VALUE,...", help="views, with these settings changed")
    args = parser.parse_args()
    try:
        augment = _settings(args.augment) if args.augment else None
        sheet = contact_sheet(args.data, args.columns, args.tile, args.seed, augment)
    except UserError as fault:
        print(fault, file=sys.stderr)
        return fault.status
    if args.colours:
        # Median cut would spend the palette on the red cells and dull the few orange granules.
        sheet = sheet.quantize(args.colours, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.output, optimize=True)
    print(f"{args.output}: {sheet.width}x{sheet.height} pixels, {args.output.stat().st_size / 1000:.0f} kB")
    return 0


def _settings(text: str) -> AugmentConfig:
    """'gamma=0.4,padding=reflect' as settings, the rest at their defaults.

    Raises:
      UserError: a setting that does not exist or is of another type.
    """
    values: dict[str, object] = {}
    for key, _, word in (pair.partition("=") for pair in text.split(",")):
        try:
            values[key] = float(word)
        except ValueError:
            values[key] = {"true": True, "false": False}.get(word.lower(), word)
    return from_dict(values, AugmentConfig, "augment")


if __name__ == "__main__":
    sys.exit(main())
