"""The one image rule: any picture becomes the same square of RGB bytes, in training and in prediction.

`decode` reads a file's bytes, `standardise` makes the square. Both are pure, so that the same file always gives the
same pixels. What each kind of file becomes is in docs/data.md.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

# A closed list: Pillow's other readers are rare in microscopy, and some of them run other programs (EPS).
FORMATS = (
    *("JPEG", "PNG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "JPEG2000", "PPM", "TGA", "MPO", "AVIF", "PCX", "SGI"),
    "ICO",
)
MAX_PIXELS = 64_000_000  # decoded at once, 192 MB: a whole field of view fits, a decompression bomb does not
MAX_BYTES = 1 << 30  # of one file
RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


class ImageError(ValueError):
    """A file that gives no picture; the message is the reason in a few words, without the file's name."""


@dataclass(frozen=True)
class ImageRule:
    """How any image becomes (size, size, 3) uint8. Fields as in `config.ImageConfig`."""

    size: int  # side, pixels
    square: str = "pad"  # pad (edge colour's median) | crop | stretch
    crop: float = 1.0  # central fraction of the side kept before resizing
    resample: str = "bilinear"  # bilinear | bicubic | lanczos | box, antialiased
    frame: int = 0  # under pad: side of the square before `crop`, pixels of the image; 0: its larger side

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageRule:
        """The rule that `to_dict` gave."""
        known = {"frame": 0, **values}  # rules from before there was a frame have none
        return cls(**{f.name: known[f.name] for f in dataclasses.fields(cls)})


_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF: bits a sample; 0 where white is zero, which Pillow heeds in 8 bits alone
_TOO_DEEP = "grey values beyond 16 bits; save it as 8 or 16 bit"


def decode(data: bytes) -> Pixels:
    """The picture in an encoded file, (H, W, 3) uint8 RGB, upright.

    Grey is repeated in the three channels; 16-bit grey is divided by 257 and rounded, 16-bit colour keeps its upper
    byte; transparency is laid over white; CMYK and palettes are converted; EXIF's orientation is applied; of several
    frames the first is taken; colour profiles are not applied.

    Raises:
      ImageError: no picture, a damaged or truncated one, more than MAX_PIXELS, or pixels without a fixed scale.
    """
    return decode_as(data)[0]


def decode_as(data: bytes) -> tuple[Pixels, str]:
    """As `decode`, with the name of the file's format, one of FORMATS."""
    if not data:
        raise ImageError("empty file")
    if len(data) > MAX_BYTES:
        raise ImageError(f"larger than {MAX_BYTES >> 20} MiB")
    if data.startswith(b"\xff\xd8\xff"):
        quick = _decode_jpeg(data)
        if quick is not None:
            return quick, "JPEG"
    try:
        with Image.open(io.BytesIO(data), formats=_readable()) as picture:
            _check_size(*picture.size)
            name = picture.format or ""
            return _to_rgb(picture), name
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"more than {MAX_PIXELS // 10**6} million pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError("not an image in a format that is read here") from error
    # Pillow's readers raise whatever the damage makes them stumble on (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        words = " ".join(str(error).split())[:120] or type(error).__name__
        raise ImageError("truncated image" if "runcated" in words else f"damaged image ({words})") from error


@functools.cache
def _readable() -> tuple[str, ...]:
    """FORMATS that this build of Pillow opens; MPO is opened as JPEG."""
    Image.init()
    return tuple(form for form in FORMATS if form in Image.OPEN)


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise ImageError(f"more than {MAX_PIXELS // 10**6} million pixels ({width} x {height})")


def _decode_jpeg(data: bytes) -> Pixels | None:
    """A plain JPEG, twice as fast as Pillow and bit for bit the same; None for all that Pillow should judge."""
    # An orientation may stand in EXIF or in XMP; both words inside the pixels only cost a little time.
    if b"Exif\0\0" in data or b"Orientation" in data:
        return None
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or not 0 < height * width <= MAX_PIXELS:
            return None
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB"), np.uint8)
    except ValueError as error:
        # Pillow would fill in grey. Stray bytes before a marker may be no loss, and are left to it.
        if any(loss in str(error) for loss in ("premature end of data segment", "bad Huffman code")):
            raise ImageError(f"damaged image ({error})") from error
        return None


def _to_rgb(picture: Image.Image) -> Pixels:
    """Loads the first frame and brings any mode to RGB."""
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):
        tags = picture.tag_v2 if isinstance(picture, TiffImagePlugin.TiffImageFile) else {}
        if max(tags.get(_BITS, (16,))) > 16:
            raise ImageError(_TOO_DEEP)
        grey = np.asarray(upright).astype(np.int64)
        return _from_deep_grey(65535 - grey if tags.get(_PHOTOMETRIC) == 0 else grey)
    if upright.mode == "F":
        raise ImageError("floating-point pixels have no fixed scale; save it as 8 or 16 bit")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, upright)
    return np.array(upright.convert("RGB"), np.uint8)


def _from_deep_grey(grey: npt.NDArray[Any]) -> Pixels:
    """Grey of up to 16 bits to RGB: 65535 / 257 = 255, so white stays white."""
    if grey.min() < 0 or grey.max() > 65535:
        raise ImageError(_TOO_DEEP)
    return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)


def border(image: npt.NDArray[np.uint8]) -> Pixels:
    """The outermost frame of pixels, (P, 3) uint8; all of them where a side is 1 or 2 pixels."""
    if min(image.shape[:2]) <= 2:
        return image.reshape(-1, 3)
    return np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])


def standardise(image: npt.NDArray[np.uint8], rule: ImageRule) -> Pixels:
    """Makes an image (H, W, 3) uint8 the rule's square (S, S, 3) uint8.

    First square (pad: centred on the larger side, or on a frame of fixed size, and filled with the per-channel median
    of the outermost pixels; crop: the central smaller side; stretch: as it is), then the central `crop` fraction of
    each side, then resized; where it shrinks, the filter widens with the factor, so that nothing aliases.

    Raises:
      ImageError: so elongated that padding would make more than MAX_PIXELS.
    """
    height, width = image.shape[:2]
    if rule.square == "pad":
        image = _padded(image, max(1, round((rule.frame or max(height, width)) * rule.crop)))
    elif rule.square == "crop":
        side = max(1, round(min(height, width) * rule.crop))
        image = _centre(image, side, side)
    elif rule.square == "stretch":
        image = _centre(image, max(1, round(height * rule.crop)), max(1, round(width * rule.crop)))
    else:
        raise ValueError(f"ImageRule.square={rule.square!r} is not pad, crop or stretch")
    if image.shape[:2] == (rule.size, rule.size):
        return np.ascontiguousarray(image)
    made = Image.fromarray(np.ascontiguousarray(image))
    return np.array(made.resize((rule.size, rule.size), RESAMPLE[rule.resample]), np.uint8)


def _centre(image: Pixels, height: int, width: int) -> Pixels:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _padded(image: Pixels, side: int) -> Pixels:
    """The central `side` x `side` of the image on an endless ground of its border's median colour."""
    height, width = image.shape[:2]
    if height >= side and width >= side:
        return _centre(image, side, side)
    if side * side > MAX_PIXELS:
        raise ImageError(f"too elongated to be padded to a square ({width} x {height})")
    frame = border(image)
    middle = len(frame) // 2
    ground = np.empty((side, side, 3), np.uint8)
    ground[:] = np.partition(frame, middle, axis=0)[middle]
    image = _centre(image, min(height, side), min(width, side))
    top, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
    ground[top : top + image.shape[0], left : left + image.shape[1]] = image
    return ground


SIGNALS = (
    *("height", "width", "aspect", "file_bytes", "format"),
    *("border_r", "border_g", "border_b", "mean_r", "mean_g", "mean_b", "std_r", "std_g", "std_b"),
)


def signals(image: npt.NDArray[np.uint8], file_bytes: int, form: str) -> npt.NDArray[np.float32]:
    """What an image tells besides the cell, (F,) float32 in the order of SIGNALS, of the image as it was.

    Height and width in pixels, aspect = width / height, bytes of the file, place of the format in FORMATS, then mean
    colour of the border, mean and standard deviation of each channel, in [0, 255].
    """
    height, width = image.shape[:2]
    levels = np.arange(256, dtype=np.float64)
    # Through Pillow's histogram: exact, and several times faster than float statistics over the pixels. In bands, since
    # Pillow copies what it counts.
    counts, band = np.zeros((3, 256), np.int64), max(1, (1 << 18) // width)
    for top in range(0, height, band):
        counts += np.reshape(Image.fromarray(image[top : top + band]).histogram(), counts.shape)
    mean = counts @ levels / (height * width)
    variance = np.maximum(counts @ levels**2 / (height * width) - mean**2, 0)
    code = FORMATS.index(form) if form in FORMATS else -1
    facts = [height, width, width / height, file_bytes, code]
    return np.concatenate([facts, border(image).mean(0), mean, np.sqrt(variance)]).astype(np.float32)
