"""What each kind of cell looks like: a recipe draws the traits of one cell.

Sizes follow the haematology textbooks (micrometres); colours are optical densities per unit of stain, fitted by eye to
May-Grünwald-Giemsa smears.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rcmnet_jax.data.synthetic.cells import Cell, Granules, Rng
from rcmnet_jax.data.synthetic.fields import Array

# Optical densities (red, green, blue) at full concentration, against the empty background.
CHROMATIN = np.array([1.12, 1.80, 0.50])  # azure-eosin complex: purple
CHROMATIN_RED = np.array([0.85, 1.60, 0.50])  # open, young chromatin
MIXED = 0.5 * (CHROMATIN + CHROMATIN_RED)
BASOPHILIA = np.array([0.54, 0.56, 0.17])  # RNA: grey-blue
LILAC = np.array([0.30, 0.48, 0.13])
PINK = np.array([0.12, 0.24, 0.11])  # neutrophil cytoplasm
ORANGE = np.array([0.21, 0.60, 0.40])  # eosinophil granules
DARK = np.array([1.35, 2.10, 0.62])  # basophil granules
AZUROPHIL = np.array([0.50, 1.05, 0.30])
HAEMOGLOBIN = np.array([0.23, 0.33, 0.21])


def _near(rng: Rng, mean: float, spread: float) -> float:
    """A normal draw kept within two deviations."""
    return float(mean + spread * np.clip(rng.standard_normal(), -2, 2))


def _round(rng: Rng, radius: float, cell: float, *, slack: float = 0.8, oval: float = 0.12) -> Array:
    """A round to oval nucleus somewhere within the cell: two discs close together."""
    room = max(cell - radius, 0.0) * slack
    angle, turn = rng.uniform(0, 2 * np.pi, 2)
    reach = room * np.sqrt(rng.random())
    step = radius * rng.uniform(0, oval)
    core = radius - 0.5 * step - 0.15
    middle = reach * np.array([np.cos(angle), np.sin(angle)])
    offset = step * np.array([np.cos(turn), np.sin(turn)])
    return np.array([[*(middle - offset), core], [*(middle + offset), core]])


def _arc(rng: Rng, bend: float, span: float, radii: Array, wander: float) -> Array:
    """Discs of the given radii along an arc of radius `bend` that covers `span` radians, facing a random way."""
    angles = np.linspace(-span / 2, span / 2, len(radii))
    reach = bend + wander * rng.standard_normal(len(radii))
    x, y = reach * np.cos(angles), reach * np.sin(angles)
    x, y = x - x.mean() * rng.uniform(0.4, 0.9), y - y.mean()
    turn = rng.uniform(0, 2 * np.pi)
    return np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn), radii], axis=1)


def _lobed(rng: Rng, cell: float, lobes: int, lobe: float, thread: float, span: float) -> Array:
    """Lobes along an uneven arc, each of two discs, and thin threads of discs from one to the next."""
    main = _arc(rng, cell * rng.uniform(0.36, 0.5), span, lobe * rng.uniform(0.8, 1.15, lobes), 0.3)
    main[:, :2] += 0.3 * rng.standard_normal((lobes, 2)).clip(-1.5, 1.5)
    turn, stretch = rng.uniform(0, 2 * np.pi, lobes), rng.uniform(0.25, 0.8, lobes) * lobe
    twins = main + np.stack([stretch * np.cos(turn), stretch * np.sin(turn), np.zeros(lobes)], axis=1)
    twins[:, 2] *= rng.uniform(0.75, 0.95, lobes)
    steps = np.linspace(0.25, 0.75, 5)[None, :, None]
    threads = (main[:-1, None] * (1 - steps) + main[1:, None] * steps).reshape(-1, 3)
    threads[:, 2] = thread
    return np.vstack([main, twins, threads])


def neutrophil(rng: Rng) -> Cell:
    """Segmented nucleus of 2 to 5 lobes, or a band; fine pinkish granules."""
    radius = _near(rng, 6.4, 0.55)
    if rng.random() < 0.22:
        band = rng.uniform(1.2, 1.7) * (1 + 0.15 * np.cos(np.linspace(0, rng.uniform(4, 9), 9)))
        nucleus = _arc(rng, radius * 0.45, rng.uniform(2.6, 4.6), band, 0.12)
    else:
        lobes = int(rng.choice([2, 3, 4, 5], p=[0.2, 0.42, 0.28, 0.1]))
        size = rng.uniform(1.3, 1.65) * radius / 6 * (3.3 / lobes) ** 0.4
        nucleus = _lobed(rng, radius, lobes, size, rng.uniform(0.2, 0.65), min(1.5 * (lobes - 0.6), 4.9))
    grains = Granules(int(rng.integers(80, 200)), 0.17, LILAC, rng.uniform(0.25, 0.6))
    tone = PINK * rng.uniform(0.7, 1.3) + LILAC * rng.uniform(0.05, 0.3)
    return Cell(
        radius, tone, nucleus, chromatin=CHROMATIN, density=_near(rng, 1.02, 0.1), clumps=0.26, fusion=0.2,
        warp=0.25, granules=(grains,),
    )  # fmt: skip


def eosinophil(rng: Rng) -> Cell:
    """Two or three plump lobes among coarse orange granules."""
    radius = _near(rng, 6.5, 0.55)
    lobes = int(rng.choice([1, 2, 3], p=[0.06, 0.7, 0.24]))
    size = radius / 6 * rng.uniform(1.7, 2.1) * (1.0 if lobes < 3 else 0.84)
    nucleus = _lobed(rng, radius, lobes, size, rng.uniform(0.25, 0.7), 2.1 * (lobes - 1) * rng.uniform(0.8, 1.05))
    strength = _near(rng, 0.54, 0.15)
    grains = Granules(int(rng.integers(150, 320)), 0.28, ORANGE, strength, over=0.06)
    tone = ORANGE * rng.uniform(0.3, 0.65) + LILAC * rng.uniform(0.1, 0.55)
    return Cell(
        radius, tone, nucleus, chromatin=CHROMATIN, density=_near(rng, 0.88, 0.1), clumps=0.24, fusion=0.2,
        warp=0.25, granules=(grains,),
    )  # fmt: skip


def basophil(rng: Rng) -> Cell:
    """Coarse dark granules that hide most of a blurred, lobed nucleus."""
    radius = _near(rng, 5.5, 0.55)
    lobes = int(rng.integers(1, 4))
    nucleus = _lobed(rng, radius, lobes, radius * rng.uniform(0.40, 0.52), 1.0, 1.5 * (lobes - 1))
    grains = Granules(int(rng.integers(60, 150)), rng.uniform(0.3, 0.42), DARK, _near(rng, 0.74, 0.12), over=0.85)
    tone = LILAC * rng.uniform(0.75, 1.35) + BASOPHILIA * rng.uniform(0.0, 0.2)
    return Cell(
        radius, tone, nucleus, chromatin=MIXED, density=_near(rng, 0.56, 0.1), clumps=0.2, fusion=0.6, rough=0.03,
        granules=(grains,),
    )  # fmt: skip


def ig(rng: Rng) -> Cell:
    """Immature granulocyte, promyelocyte (age 0) to metamyelocyte (1): large, with a round to indented nucleus."""
    age = rng.random()
    radius = _near(rng, 7.0 - 0.7 * age, 0.6)
    if age < 0.55:
        nucleus = _round(rng, radius * (0.76 - 0.2 * age), radius, oval=0.25)
    else:
        thick = radius * rng.uniform(0.34, 0.42) * (1.15 - 0.3 * age)
        nucleus = _arc(rng, radius * 0.36, rng.uniform(1.5, 2.6) * (0.6 + 0.6 * age), np.full(7, thick), 0.1)
    tone = BASOPHILIA * (0.75 - 0.5 * age) * rng.uniform(0.6, 1.2) + LILAC * (0.3 + 0.3 * age) + PINK * 0.5 * age
    grains = Granules(int(rng.integers(50, 160)), 0.2, AZUROPHIL, rng.uniform(0.25, 0.7) * (1.2 - 0.6 * age), over=0.3)
    red = CHROMATIN_RED * (1 - 0.6 * age) + CHROMATIN * 0.6 * age
    return Cell(
        radius, tone, nucleus, chromatin=red, density=_near(rng, 0.9, 0.1), clumps=0.19, grain=0.55, fusion=0.5,
        oval=0.08, warp=0.35, halo=0.25, granules=(grains,),
    )  # fmt: skip


def lymphocyte(rng: Rng) -> Cell:
    """Round dense nucleus in a thin blue rim; now and then a large one with wider cytoplasm."""
    large = rng.random() < 0.25
    radius = _near(rng, 5.9, 0.5) if large else _near(rng, 4.7, 0.45)
    share = rng.uniform(0.70, 0.82) if large else rng.uniform(0.82, 0.93)
    nucleus = _round(rng, radius * share, radius, oval=0.2)
    tone = BASOPHILIA * rng.uniform(0.5, 1.1)
    return Cell(
        radius, tone, nucleus, chromatin=CHROMATIN, density=_near(rng, 1.02, 0.1), clumps=0.24, grain=0.75,
        fusion=0.5, oval=0.08, rough=rng.uniform(0.01, 0.05), warp=0.3,
    )  # fmt: skip


def monocyte(rng: Rng) -> Cell:
    """The largest cell: kidney-shaped, lacy nucleus, grey-blue cytoplasm with vacuoles and an uneven outline."""
    radius = _near(rng, 7.3, 0.8)
    thick = radius * rng.uniform(0.28, 0.38)
    radii = thick * (1 + 0.12 * rng.standard_normal(7).clip(-1.5, 1.5))
    nucleus = _arc(rng, radius * rng.uniform(0.32, 0.46), rng.uniform(1.8, 4.0), radii, 0.25)
    tone = BASOPHILIA * rng.uniform(0.4, 0.85) + LILAC * rng.uniform(0.0, 0.35)
    holes = int(rng.poisson(4)) if rng.random() < 0.65 else 0
    grains = Granules(int(rng.integers(0, 90)), 0.17, AZUROPHIL, rng.uniform(0.1, 0.35))
    return Cell(
        radius, tone, nucleus, chromatin=MIXED, density=_near(rng, 0.84, 0.1), clumps=0.26, grain=0.6, fusion=0.5,
        oval=0.12, rough=rng.uniform(0.01, 0.05), warp=0.5, vacuoles=holes, mottle=0.16, granules=(grains,),
    )  # fmt: skip


def erythroblast(rng: Rng) -> Cell:
    """Small cell with a very dense, round nucleus; cytoplasm from blue (young) to the red cells' colour."""
    age = rng.random()
    radius = _near(rng, 5.3 - 1.2 * age, 0.45)
    nucleus = _round(rng, radius * _near(rng, 0.72 - 0.14 * age, 0.04), radius, slack=0.9, oval=0.1)
    tone = BASOPHILIA * (1.15 - 0.85 * age) * rng.uniform(0.75, 1.2) + HAEMOGLOBIN * age * 0.9
    return Cell(
        radius, tone, nucleus, chromatin=CHROMATIN, density=_near(rng, 1.05 + 0.22 * age, 0.1), clumps=0.34 - 0.24 *
        age, grain=0.9, fusion=0.5, rough=rng.uniform(0.01, 0.035), warp=0.15, mottle=0.08,
    )  # fmt: skip


def platelet(rng: Rng) -> Cell:
    """A small anucleate disc: pale hyalomere, purple granulomere in its middle."""
    radius = _near(rng, 2.15, 0.4)
    grains = Granules(int(rng.integers(8, 26)), 0.22, AZUROPHIL, _near(rng, 0.65, 0.2))
    tone = LILAC * rng.uniform(0.45, 0.9) + BASOPHILIA * rng.uniform(0.0, 0.45)
    return Cell(
        radius, tone, np.zeros((0, 3)), chromatin=CHROMATIN, oval=0.12, rough=0.05, warp=0.25, mottle=0.35,
        granules=(grains,),
    )  # fmt: skip


def activated_lymphocyte(rng: Rng) -> Cell:
    """Activated or CAR-T-like T cell: larger, looser chromatin, a nucleolus, wide and deep blue uneven cytoplasm."""
    drive = rng.random()
    radius = _near(rng, 5.6 + 1.3 * drive, 0.6)
    nucleus = _round(rng, radius * _near(rng, 0.80 - 0.12 * drive, 0.05), radius, oval=0.35)
    tone = BASOPHILIA * (0.75 + 0.5 * drive) * rng.uniform(0.7, 1.2)
    grains = Granules(int(rng.integers(0, 22)), 0.22, AZUROPHIL, rng.uniform(0.3, 0.7))
    return Cell(
        radius, tone, nucleus, chromatin=MIXED, density=_near(rng, 0.9, 0.1), clumps=0.25, grain=0.7, fusion=0.5,
        nucleoli=int(rng.random() < 0.4 + 0.3 * drive), oval=0.12, rough=rng.uniform(0.02, 0.06), warp=0.55,
        mottle=0.16, halo=0.5 * drive, granules=(grains,),
    )  # fmt: skip


def blast(rng: Rng) -> Cell:
    """Leukaemic blast: nucleus nearly fills the cell, fine pale chromatin, up to three nucleoli."""
    radius = _near(rng, 6.0, 0.75)
    nucleus = _round(rng, radius * _near(rng, 0.86, 0.045), radius, oval=0.25)
    tone = BASOPHILIA * rng.uniform(0.55, 1.15)
    holes = int(rng.poisson(1.5)) if rng.random() < 0.15 else 0
    return Cell(
        radius, tone, nucleus, chromatin=CHROMATIN_RED, density=_near(rng, 0.85, 0.1), clumps=0.12, grain=0.5,
        fusion=0.5, nucleoli=int(rng.integers(0, 4)), oval=0.08, rough=rng.uniform(0.01, 0.04), warp=0.4,
        vacuoles=holes,
    )  # fmt: skip


RECIPES: dict[str, Callable[[Rng], Cell]] = {
    "basophil": basophil, "eosinophil": eosinophil, "erythroblast": erythroblast, "ig": ig, "lymphocyte": lymphocyte,
    "monocyte": monocyte, "neutrophil": neutrophil, "platelet": platelet, "resting_lymphocyte": lymphocyte,
    "activated_lymphocyte": activated_lymphocyte, "blast": blast,
}  # fmt: skip
