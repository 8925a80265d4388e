"""The traits of one cell, and how they become optical density: nucleus, chromatin, cytoplasm, vacuoles, grains."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import numpy as np

from rcmnet_jax.data.synthetic.fields import Array, blobs, noise, outline, soft, specks

Rng = np.random.Generator


@dataclass(frozen=True)
class Granules:
    """Grains within a cell; `over` is how far they also cover the nucleus, 0 to 1."""

    count: int
    radius: float
    colour: Array
    strength: float
    over: float = 0.0


@dataclass(frozen=True)
class Cell:
    """The traits of one cell."""

    radius: float
    cytoplasm: Array  # (3,) optical density
    nucleus: Array  # (n, 3) discs x, y, radius; empty for platelets
    _: KW_ONLY
    chromatin: Array  # (3,) optical density
    density: float = 1.0  # of the nucleus
    clumps: float = 0.2  # contrast of the chromatin
    grain: float = 0.8  # size of its clumps
    fusion: float = 0.3  # how far lobes run into each other
    nucleoli: int = 0
    oval: float = 0.05
    rough: float = 0.02  # of the outline
    warp: float = 0.25  # irregularity of outline and nucleus, micrometres
    vacuoles: int = 0
    mottle: float = 0.12  # unevenness of the cytoplasm
    halo: float = 0.0  # paler zone beside the nucleus
    granules: tuple[Granules, ...] = ()


def _nucleus(rng: Rng, cell: Cell, x: Array, y: Array, pitch: float) -> tuple[Array, Array]:
    """Coverage (P, P) of the nucleus and its density (P, P) with chromatin, rim and nucleoli."""
    size, extent = x.shape[0], x.shape[0] * pitch
    if not len(cell.nucleus):
        return np.zeros_like(x), np.zeros_like(x)
    depth = blobs(x, y, cell.nucleus, cell.fusion)
    cover = soft(depth, 0.35)
    fine, coarse = noise(rng, size, extent / (0.6 * cell.grain)), noise(rng, size, extent / (1.8 * cell.grain))
    density = 1 + cell.clumps * (0.7 * fine + 0.6 * coarse) + 0.18 * np.exp(-(((depth - 0.2) / 0.45) ** 2))
    for _ in range(cell.nucleoli):
        home = cell.nucleus[int(rng.integers(len(cell.nucleus)))]
        angle, reach = rng.uniform(0, 2 * np.pi), home[2] * rng.uniform(0.1, 0.65)
        distance = np.hypot(x - home[0] - reach * np.cos(angle), y - home[1] - reach * np.sin(angle))
        density = density * (1 - rng.uniform(0.22, 0.42) * soft(rng.uniform(0.45, 0.9) - distance, 0.6))
    return cover, cell.density * np.clip(density, 0.35, 1.7)


def stain_cell(rng: Rng, cell: Cell, x: Array, y: Array, pitch: float) -> tuple[Array, Array]:
    """Coverage (P, P) and optical density (P, P, 3) of `cell` on the grid x, y (P, P), micrometres from its centre."""
    size, extent = x.shape[0], x.shape[0] * pitch
    bend = cell.warp * min(1.0, cell.radius / 5)
    x = x + bend * noise(rng, size, extent / 4.0)
    y = y + bend * noise(rng, size, extent / 4.0)
    orders = np.array([cell.oval, *(cell.rough * np.array([0.9, 0.7, 0.5, 0.4, 0.35]))])
    depth = outline(x, y, cell.radius, orders * rng.standard_normal(6).clip(-1.6, 1.6), rng.uniform(0, 2 * np.pi, 6))
    body = soft(depth, 0.4)
    nucleus, density = _nucleus(rng, cell, x, y, pitch)
    # A nucleus lies within its cell, whatever the draws say.
    nucleus = nucleus * soft(depth - 0.05, 0.4)

    cytoplasm = 1 + cell.mottle * noise(rng, size, extent / 0.9) + 0.10 * np.exp(-((depth / 0.5) ** 2))
    if len(cell.nucleus) and cell.halo:
        centre = cell.nucleus[:, :2].mean(0)
        cytoplasm = cytoplasm * (
            1 - cell.halo * np.exp(-(((x + 0.6 * centre[0]) / 1.8) ** 2 + ((y + 0.6 * centre[1]) / 1.8) ** 2))
        )
    for _ in range(cell.vacuoles):
        angle, reach = rng.uniform(0, 2 * np.pi), cell.radius * rng.uniform(0.3, 0.95)
        distance = np.hypot(x - reach * np.cos(angle), y - reach * np.sin(angle))
        hole = soft(rng.uniform(0.3, 0.85) - distance, 0.4) * rng.uniform(0.5, 0.95)
        cytoplasm, nucleus = cytoplasm * (1 - hole), nucleus * (1 - 0.5 * hole)
    od = (np.clip(cytoplasm, 0.05, 2.0) * body * (1 - nucleus))[..., None] * cell.cytoplasm
    od += (nucleus * density)[..., None] * cell.chromatin
    inside = soft(depth - 0.3, 0.5)
    for grains in cell.granules:
        where = inside * (1 - (1 - grains.over) * nucleus)
        if not len(cell.nucleus):  # the granulomere of a platelet keeps to the middle
            where = soft(depth - 0.35 * cell.radius, 0.8)
        bumps = specks(rng, size, where, grains.count, max(grains.radius / pitch, 0.55))
        amount = grains.strength * np.clip(bumps, 0.0, 1.4) * where
        od += amount[..., None] * (grains.colour - 0.55 * od * (nucleus * grains.over)[..., None])
    return body, od
