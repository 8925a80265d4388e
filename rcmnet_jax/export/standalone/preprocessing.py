"""The one way to make an image file the array that the network wants. Needs numpy and pillow, nothing else.

For upright or EXIF-turned 8-bit images, grey or colour, without transparency.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageOps

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def prepare(path: str, rule: dict[str, Any]) -> Pixels:
    """(size, size, 3) uint8 RGB of an image file; the rule is preprocessing.json's `image`."""
    with Image.open(path) as opened:
        image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    return standardise(image, rule)


def standardise(image: Pixels, rule: dict[str, Any]) -> Pixels:
    """Makes (H, W, 3) square, keeps the central `crop` of each side, and resizes it with antialiasing."""
    height, width = image.shape[:2]
    if rule["square"] == "stretch":
        sides = (height, width)
    else:
        sides = (rule["frame"] or max(height, width),) * 2 if rule["square"] == "pad" else (min(height, width),) * 2
    rows, columns = (max(1, round(side * rule["crop"])) for side in sides)
    made = centre(image, rows, columns)
    if made.shape[:2] == (rule["size"], rule["size"]):
        return made
    filters = Image.Resampling[rule["resample"].upper()]
    return np.asarray(Image.fromarray(made).resize((rule["size"], rule["size"]), filters))


def centre(image: Pixels, rows: int, columns: int) -> Pixels:
    """The image's centre, laid on a ground of its border's median colour where it is smaller than rows x columns."""
    height, width = min(image.shape[0], rows), min(image.shape[1], columns)
    border = [image[0], image[-1], image[1:-1, 0], image[1:-1, -1]]
    frame = np.concatenate(border) if min(image.shape[:2]) > 2 else image.reshape(-1, 3)
    ground = np.empty((rows, columns, 3), np.uint8)
    ground[:] = np.partition(frame, len(frame) // 2, axis=0)[len(frame) // 2]
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    down, right = (rows - height) // 2, (columns - width) // 2
    ground[down : down + height, right : right + width] = image[top : top + height, left : left + width]
    return ground
