"""The field around the cell and the microscope above it: red cells, platelets, dirt, stain, light, focus, sensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rcmnet_jax.data.synthetic.cells import Cell, stain_cell
from rcmnet_jax.data.synthetic.fields import Array, blur, noise, outline, soft
from rcmnet_jax.data.synthetic.recipes import AZUROPHIL, HAEMOGLOBIN, RECIPES, platelet

Rng = np.random.Generator


@dataclass(frozen=True)
class Look:
    """How one image was stained and taken. Drawn per image around its slide or donor."""

    pitch: float  # micrometres per pixel
    background: Array  # (3,) colour of the empty field, 0 to 1
    stain: Array  # (3,) factors on the optical density of red, green, blue
    red_cells: Array  # (3,) optical density of haemoglobin on this slide
    crowding: float  # red cells per field, as the share of places tried
    pallor: float  # how pale the red cells' centres are
    blur_px: float
    noise: float  # standard deviation at mid grey, 0 to 1
    sharpen: float  # the camera's own unsharp mask
    size: float = 1.0  # factor on the cell of interest


def _scatter(rng: Rng, look: Look, extent: float, keep_out: float) -> Array:
    """(n, 2) centres of red cells, thrown at random: neighbours may overlap a little, the middle stays free."""
    half = extent / 2 + 3.5
    gap = rng.uniform(5.2, 7.8)
    placed = np.zeros((0, 2))
    for spot in rng.uniform(-half, half, (round(look.crowding * half * half * 0.5), 2)):
        room = np.hypot(*spot) > keep_out + rng.uniform(2.3, 3.9)
        if room and (not len(placed) or np.hypot(*(placed - spot).T).min() > gap * rng.uniform(0.75, 1.15)):
            placed = np.vstack([placed, spot])
    return placed


def red_cells(rng: Rng, look: Look, size: int, keep_out: float) -> Array:
    """(size, size, 3) optical density of the red cells: biconcave discs, darker where they overlap."""
    extent = size * look.pitch
    centres = _scatter(rng, look, extent, keep_out)
    count = len(centres)
    if not count:
        return np.zeros((size, size, 3))
    radius = 3.65 * (1 + 0.08 * rng.standard_normal(count).clip(-2, 2))
    reach = int(np.ceil(5.4 / look.pitch))
    side = 2 * reach + 1
    middle = np.rint((centres + extent / 2) / look.pitch - 0.5).astype(int)  # (n, 2) pixel columns and rows
    steps = np.arange(-reach, reach + 1)
    residue = (middle + 0.5) * look.pitch - extent / 2 - centres
    x = steps[None, None, :] * look.pitch + residue[:, 0, None, None] + np.zeros((count, side, 1))
    y = steps[None, :, None] * look.pitch + residue[:, 1, None, None] + np.zeros((count, 1, side))
    waves = rng.standard_normal((4, count)).clip(-2, 2) * np.array([0.07, 0.03, 0.02, 0.015])[:, None]
    turns = rng.uniform(0, 2 * np.pi, (4, count))
    depth = outline(x, y, radius[:, None, None], waves[..., None, None], turns[..., None, None])
    far = np.sqrt(x * x + y * y)
    u = far / (far + depth)  # 0 in the middle, 1 on the outline
    pale = np.clip(look.pallor + 0.22 * rng.standard_normal(count), 0.0, 1.0)[:, None, None]
    wide = rng.uniform(0.22, 0.5, count)[:, None, None]
    profile = 0.84 + 0.26 * np.exp(-(((u - 0.9) / 0.1) ** 2)) + 0.2 * np.exp(-(((u - 0.55) / 0.17) ** 2))
    profile = profile - pale * np.exp(-((u / wide) ** 4))
    thickness = soft(depth, 0.55) * profile * rng.uniform(0.8, 1.2, count)[:, None, None]
    canvas = np.zeros((size + 2 * side, size + 2 * side))
    for k in range(count):
        column, row = middle[k] - reach + side
        if 0 <= row <= size + side and 0 <= column <= size + side:
            canvas[row : row + side, column : column + side] += thickness[k]
    thickness = canvas[side : side + size, side : side + size]
    # Stacked cells absorb less than the sum: they flatten each other.
    return (thickness / (1 + 0.12 * thickness))[..., None] * 1.12 * look.red_cells


def place(rng: Rng, od: Array, cell: Cell, look: Look, x0: float, y0: float) -> None:
    """Draws `cell` at (x0, y0), micrometres from the image's centre, over what is there, in place."""
    size = od.shape[0]
    reach = int(np.ceil((cell.radius * 1.35 + cell.warp + 0.6) / look.pitch))
    column, row = (round(v / look.pitch + size / 2) for v in (x0, y0))
    steps = np.arange(-reach, reach)
    x, y = np.meshgrid(
        (steps + column + 0.5 - size / 2) * look.pitch - x0, (steps + row + 0.5 - size / 2) * look.pitch - y0
    )
    body, stain = stain_cell(rng, cell, x, y, look.pitch)
    top, left = max(row - reach, 0), max(column - reach, 0)
    bottom, right = min(row + reach, size), min(column + reach, size)
    if top >= bottom or left >= right:
        return
    window = np.s_[top - row + reach : bottom - row + reach, left - column + reach : right - column + reach]
    under = od[top:bottom, left:right]
    under *= 1 - 0.92 * body[window][..., None]
    under += stain[window]


def _neighbours(rng: Rng, od: Array, look: Look, keep_out: float, strangers: tuple[str, ...], chance: float) -> None:
    """Platelets, stain dirt and now and then a second white cell at the rim: none of it tells the class."""
    half = od.shape[0] * look.pitch / 2
    for _ in range(int(rng.poisson(0.9))):
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(keep_out + 1.5, half * 1.3)
        place(rng, od, platelet(rng), look, reach * np.cos(angle), reach * np.sin(angle))
    if rng.random() < chance:
        other = RECIPES[strangers[int(rng.integers(len(strangers)))]](rng)
        angle = rng.uniform(0, 2 * np.pi)
        reach = max(half * rng.uniform(0.95, 1.2), keep_out + 0.9 * other.radius)
        place(rng, od, other, look, reach * np.cos(angle), reach * np.sin(angle))
    for _ in range(int(rng.poisson(0.5))):
        x, y = rng.uniform(-half, half, 2)
        steps = (np.arange(od.shape[0]) + 0.5) * look.pitch - half
        spot = soft(rng.uniform(0.15, 0.4) - np.hypot(steps[None, :] - x, steps[:, None] - y), 0.4)
        od += spot[..., None] * AZUROPHIL * rng.uniform(0.4, 1.4)


def field_of_view(
    rng: Rng, cell: Cell, look: Look, size: int, strangers: tuple[str, ...], *, chance: float = 0.2
) -> Array:
    """(size, size, 3) optical density of a field with `cell` near its middle, and by `chance` a second white cell."""
    od = red_cells(rng, look, size, cell.radius * 0.96)
    _neighbours(rng, od, look, cell.radius, strangers, chance)
    x0, y0 = rng.normal(0.0, 0.55, 2)
    place(rng, od, cell, look, x0, y0)
    plasma = 0.012 * (1 + 0.5 * noise(rng, size, 4)) * rng.uniform(0.2, 2.2)
    od += np.clip(plasma, 0.0, None)[..., None] * HAEMOGLOBIN * 3
    return od * look.stain


def photograph(rng: Rng, od: Array, look: Look) -> np.ndarray:
    """(S, S, 3) uint8: the light left by `od` (Beer-Lambert), an uneven lamp, focus, sharpening and noise."""
    size = od.shape[0]
    light = look.background * np.exp(-od)
    ramp = np.linspace(-1, 1, size)
    tilt = rng.normal(0.0, 0.012, 2)
    fall = abs(rng.normal(0.0, 0.02))
    lamp = 1 + tilt[0] * ramp[:, None] + tilt[1] * ramp[None, :] - fall * (ramp[:, None] ** 2 + ramp[None, :] ** 2) / 2
    light = blur(light * lamp[..., None], look.blur_px)
    if look.sharpen:
        light = light + look.sharpen * (light - blur(light, 1.4))
    grey = rng.standard_normal((size, size, 1))
    colour = rng.standard_normal((size, size, 3))
    shot = np.sqrt(np.clip(light, 0.02, 1.0) * 2)
    light = light + look.noise * shot * (0.8 * grey + 0.6 * colour)
    return np.rint(np.clip(light, 0.0, 1.0) * 255).astype(np.uint8)
