"""Changes that another laboratory makes to images of cells: stain, camera, scale, framing, focus, compression.

A change takes an image (H, W, 3) uint8, a strength from 0 (none) to 1, and a generator for the little by which images
of one laboratory differ among one another.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from rcmnet_jax.data.cellfinder import background, find
from rcmnet_jax.data.images import Pixels, decode

_LEAST = 0.06  # of the side: the radius that a nucleus not found is taken to have
Change = Callable[[Pixels, float, np.random.Generator], Pixels]


def changes(platelets: Sequence[Pixels]) -> dict[str, Change]:
    """All changes by name. `platelets` are images with a small cell in the middle, for fields of red cells."""
    bluer = stain([[1.3, 0.1, 0.2], [0.0, 0.8, 0.3], [0.0, 0.0, 1.3]])
    pinker = stain([[0.55, 0.1, 0.0], [0.0, 0.75, 0.1], [0.0, 0.1, 0.8]])
    bluish = stain([[0.9, 0.25, 0.0], [0.1, 1.0, 0.2], [0.0, 0.1, 0.7]])
    field = Field([emptied(image) for image in platelets])
    return {
        "stain, bluer": bluer,
        "stain, paler and pinker": pinker,
        "light, greenish": light([205, 225, 170]),
        "light, grey": light([170, 172, 185]),
        "gamma 1.8": gamma(1.8),
        "gamma 1/1.8": gamma(1 / 1.8),
        "camera": camera,
        "crop, cells 2 x larger": closer,
        "field of 3 x 3 frames": field,
        "blur": blur,
        "noise": noise,
        "JPEG": jpeg,
        "greenish, pale, cropped": together(pinker, light([205, 225, 170]), closer),
        "yellow, bluer, field": together(field, bluer, light([235, 205, 130])),
        "field of view, round, black around": aperture,
        "field of view, dark beyond an edge": shaded,
        "red cells gone, yellow, cropped": together(alone, bluish, light([225, 205, 140]), closer),
        "boxes around the cells": boxed,
        "phone: cropped, dark, blurred, JPEG": together(closer, gamma(1.6), light([190, 190, 200]), blur, jpeg),
    }


def laboratory(seed: int, platelets: Sequence[Pixels]) -> Change:
    """A laboratory drawn at random: stain, lamp, gamma, framing, and maybe blur, a camera's curve and JPEG."""
    rng = np.random.default_rng(seed)
    turn = np.diag(np.exp(rng.normal(0, 0.25, 3))) + rng.normal(0, 0.15, (3, 3)) * (1 - np.eye(3))
    parts = [[], [closer], [Field([emptied(image) for image in platelets])]][rng.integers(3)]
    parts = [*parts, stain(turn), light(rng.uniform(130, 255, 3)), gamma(math.exp(rng.uniform(-0.5, 0.5)))]
    return together(*parts, *(change for change in (camera, weaker(blur), weaker(jpeg)) if rng.random() < 0.5))


def together(*parts: Change) -> Change:
    """One change after the other."""

    def change(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
        for part in parts:
            image = part(image, strength, rng)
        return image

    return change


def weaker(part: Change) -> Change:
    """A change at half its strength."""
    return lambda image, strength, rng: part(image, strength / 2, rng)


def stain(turn: Sequence[Sequence[float]] | np.ndarray) -> Change:
    """Optical densities times a matrix between the identity and `turn`: other dyes, or the same in other amounts."""

    def change(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
        ground = background(image)
        matrix = np.eye(3) + strength * (np.array(turn) - np.eye(3) + rng.normal(0, 0.02, (3, 3)))
        density = np.log(ground / np.maximum(image, 1)) @ matrix
        return _bytes(ground * np.exp(-density))

    return change


def light(field: Sequence[float] | np.ndarray) -> Change:
    """Another colour of the empty field: lamp and white balance."""

    def change(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
        factor = (np.array(field) / background(image)) ** strength
        return _bytes(image * factor * np.exp(strength * rng.normal(0, 0.02, 3)))

    return change


def gamma(power: float) -> Change:
    """Another tone curve."""

    def change(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
        return _bytes(255 * (image / 255) ** (power * math.exp(rng.normal(0, 0.05))) ** strength)

    return change


def camera(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """An S-shaped tone curve, channels that mix, and shade towards the corners."""
    mix = np.array([[0.9, 0.1, 0.0], [0.15, 0.75, 0.1], [0.0, 0.2, 0.8]])
    x = (image / 255) @ (np.eye(3) + strength * (mix - np.eye(3))).T
    x = x + strength * 0.25 * (x - 0.5) * (1 - np.abs(2 * x - 1))
    rows, columns = (np.arange(n) / n - 0.5 for n in image.shape[:2])
    far = (rows[:, None] ** 2 + columns**2)[..., None]
    return _bytes(255 * x * (1 - strength * rng.uniform(0.4, 0.6) * far))


def blur(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Out of focus: a Gaussian of up to a fiftieth of the image's height."""
    sigma = strength * image.shape[0] / 50 * math.exp(rng.normal(0, 0.1))
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, 0)))


def noise(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """A sensor's noise, up to 25 of 255."""
    return _bytes(image + rng.normal(0, 25 * strength, image.shape))


def jpeg(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Compression down to a quality of 8."""
    target = io.BytesIO()
    Image.fromarray(image).save(target, "JPEG", quality=round(60 - 52 * strength + rng.uniform(-2, 2)))
    return decode(target.getvalue())


def closer(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """A crop around the cell, up to twice as close, saved with 400 pixels a side."""
    height = image.shape[0]
    side = round(height / 2**strength)
    top, left = (height - side) // 2 + rng.integers(-3, 4, 2)
    piece = Image.fromarray(image[max(top, 0) : top + side, max(left, 0) : left + side])
    return np.asarray(piece.resize((400, 400), Image.Resampling.BICUBIC))


def alone(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """The cell without its neighbours, where red cells are dissolved: empty from 1.7 to 2.1 nuclear radii."""
    cell, ground = find(image), background(image)
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    radii = np.hypot(rows - cell.row, columns - cell.column) / max(cell.diameter / 2, _LEAST * image.shape[0])
    empty = strength * np.clip((radii - 1.7) / 0.4, 0, 1)[..., None]
    return _bytes(image * (1 - empty) + empty * ground * np.exp(rng.normal(0, 0.01, image.shape)))


def boxed(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Each cell cut out by a box of its own, at the strongest 1.5 nuclei wide: files of many sizes."""
    cell = find(image)
    width = max(cell.diameter, 2 * _LEAST * image.shape[0]) * 1.5 * math.exp(rng.normal(0, 0.05))
    half = (image.shape[0] / width) ** (1 - strength) * width / 2
    top, left = max(round(cell.row - half), 0), max(round(cell.column - half), 0)
    return image[top : round(cell.row + half), left : round(cell.column + half)]


def aperture(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """A round field of view, black around it; the strongest has a radius of a third of the side."""
    rows, columns = _from_the_middle(image)
    radius = (0.71 - 0.38 * strength) * min(image.shape[:2]) * math.exp(rng.normal(0, 0.03))
    return np.where((np.hypot(rows, columns) > radius)[..., None], np.uint8(4), image)


def shaded(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Dark grey beyond a straight edge somewhere, no farther from the middle than a fifth of the side at the most."""
    rows, columns = _from_the_middle(image)
    angle = rng.uniform(0, 2 * math.pi)
    beyond = rows * math.sin(angle) + columns * math.cos(angle) > (0.71 - 0.5 * strength) * min(image.shape[:2])
    return np.where(beyond[..., None], np.uint8(45), image)


def _from_the_middle(image: Pixels) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    return rows - (image.shape[0] - 1) / 2, columns - (image.shape[1] - 1) / 2


class Field:
    """The cell anywhere in a field of red cells, up to three frames wide, 5 : 4."""

    def __init__(self, empties: Sequence[Pixels]):
        self.empties = empties

    def __call__(self, image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
        """The field with the image's cell."""
        side, picks = image.shape[0], rng.integers(0, len(self.empties), (3, 3))
        whole = np.concatenate([np.concatenate([self.empties[k] for k in row], 1) for row in picks], 0)
        whole[side : 2 * side, side : 2 * side] = image
        height, width = round(side * (1 + 2 * strength) * 0.8), round(side * (1 + 2 * strength))
        top, left = (_corner(side, length, rng) for length in (height, width))
        return whole[top : top + height, left : left + width]


def _corner(side: int, length: int, rng: np.random.Generator) -> int:
    """Where a window of `length` starts within three tiles of `side`, so that the middle half tile is inside."""
    low, high = max(round(1.75 * side) - length, 0), min(round(1.25 * side), 3 * side - length)
    return int(rng.integers(min(low, high), max(low, high) + 1))


def emptied(image: Pixels) -> Pixels:
    """A platelet's image without its platelet."""
    made, side = image.copy(), image.shape[0]
    rows, columns = np.indices((side, side))
    made[np.hypot(rows - side / 2, columns - side / 2) < 0.14 * side] = background(image)
    return made


def _bytes(values: np.ndarray) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
