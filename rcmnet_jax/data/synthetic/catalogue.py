"""The embedded sets by name: their classes, counts, donors and looks.

- `synthetic:pbc`: 1,600 images, the 8 classes of PBC (Acevedo et al. 2020), 96 px, no groups, as published there.
- `synthetic:cart`: 500 images of 4 classes that matter while CAR-T cells are followed in blood, 80 px, 10 donors with
  their own stain, light, focus and cell size, the classes unevenly spread over them; another scale and stain than pbc.
- `synthetic:pbc-tiny`, `synthetic:cart-tiny`: a few dozen of the same kind, for tests.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rcmnet_jax.data.synthetic.fields import Array
from rcmnet_jax.data.synthetic.smear import Look
from rcmnet_jax.errors import UserError, suggestion

PBC = {
    "basophil": 170, "eosinophil": 230, "erythroblast": 180, "ig": 230,
    "lymphocyte": 170, "monocyte": 180, "neutrophil": 240, "platelet": 200,
}  # fmt: skip
CART = ("activated_lymphocyte", "blast", "monocyte", "resting_lymphocyte")
# Images of each class of CART, a row per donor: some respond (activated cells), some relapse (blasts), some wait.
DONORS = (
    (30, 3, 9, 18), (6, 24, 5, 12), (22, 9, 14, 16), (9, 4, 12, 27), (17, 19, 4, 7),
    (4, 15, 16, 14), (26, 0, 8, 16), (12, 12, 12, 12), (2, 21, 7, 5), (15, 6, 10, 20),
)  # fmt: skip
DONORS_TINY = (
    (4, 1, 1, 2), (1, 4, 1, 2), (2, 2, 2, 2), (1, 1, 3, 3), (3, 2, 2, 1), (1, 3, 3, 1), (3, 0, 2, 3), (1, 3, 2, 2),
)  # fmt: skip


@dataclass(frozen=True)
class SyntheticItem:
    """One image of an embedded set. `group` and `split` are '' where the set has none."""

    path: str
    label: str
    group: str
    split: str


@dataclass(frozen=True)
class Plan:
    """What a set holds: the class and the donor (-1: none) of every index, and the side of its images in pixels."""

    kind: str  # pbc | cart
    size: int
    classes: tuple[str, ...]
    labels: tuple[str, ...]
    donors: tuple[int, ...]


def names() -> tuple[str, ...]:
    """The embedded sets, as they are written behind `synthetic:`."""
    return tuple(_PLANS)


def _pbc(counts: dict[str, int]) -> Plan:
    labels = tuple(label for label, count in counts.items() for _ in range(count))
    return Plan("pbc", 96, tuple(counts), labels, (-1,) * len(labels))


def _cart(table: tuple[tuple[int, ...], ...]) -> Plan:
    rows = [(k, d) for k in range(len(CART)) for d in range(len(table)) for _ in range(table[d][k])]
    return Plan("cart", 80, CART, tuple(CART[k] for k, _ in rows), tuple(d for _, d in rows))


_PLANS = {
    "pbc": lambda: _pbc(PBC),
    "cart": lambda: _cart(DONORS),
    "pbc-tiny": lambda: _pbc(dict.fromkeys(PBC, 12)),
    "cart-tiny": lambda: _cart(DONORS_TINY),
}


@lru_cache(maxsize=8)
def plan(name: str) -> Plan:
    """The plan of a set, named with or without `synthetic:`.

    Raises:
      UserError: no such set; names those there are.
    """
    short = name.removeprefix("synthetic:")
    if short not in _PLANS:
        known = ", ".join(f"synthetic:{n}" for n in _PLANS)
        hint = suggestion(short, _PLANS) if short else ""
        hint = hint if hint.startswith("; did") else "."
        raise UserError(f"synthetic:{short}: no such embedded set{hint} Use one of {known}.")
    return _PLANS[short]()


def catalogue(name: str, seed: int = 0) -> list[SyntheticItem]:
    """The items of an embedded set in the order of their index, without drawing any.

    The plan is the same for every seed: a seed changes the pictures, and the donors' looks, alone.
    """
    del seed
    made = plan(name)
    return [
        SyntheticItem(f"{label}/synthetic_{i:05d}.png", label, f"donor_{donor + 1}" if donor >= 0 else "", "")
        for i, (label, donor) in enumerate(zip(made.labels, made.donors, strict=True))
    ]


def generator(name: str, seed: int, *words: int) -> np.random.Generator:
    """A Philox stream of its own for (name, seed, words)."""
    entropy = [zlib.crc32(name.removeprefix("synthetic:").encode()), seed, *words]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def look(name: str, index: int, seed: int, rng: np.random.Generator) -> Look:
    """The stain, light and focus of one image, drawn from `rng` around the set's or donor's own, not from the class."""
    made = plan(name)
    if made.kind == "pbc":
        return _pbc_look(rng)
    return _cart_look(rng, generator(name, seed, 1, made.donors[index]))


def _jitter(rng: np.random.Generator, spread: float, shape: int = 3) -> Array:
    return np.exp(spread * rng.standard_normal(shape).clip(-2.2, 2.2))


def _pbc_look(rng: np.random.Generator) -> Look:
    warm = np.array([0.995, 0.905, 0.815]) * (1 + np.array([0.004, 0.013, 0.02]) * rng.standard_normal(3).clip(-2, 2))
    cold = np.array([0.88, 0.89, 0.95]) * _jitter(rng, 0.02)
    background = cold if rng.random() < 0.03 else warm
    tint = np.array([0.23, 0.32, 0.20]) * _jitter(rng, 0.08) * _jitter(rng, 0.16, 1)
    return Look(
        pitch=0.30 * float(_jitter(rng, 0.03, 1)[0]),
        background=np.clip(background, 0.0, 1.0),
        stain=_jitter(rng, 0.05) * _jitter(rng, 0.09, 1),
        red_cells=tint,
        crowding=float(rng.uniform(0.25, 1.0)),
        pallor=float(rng.uniform(0.3, 0.95)),
        blur_px=float(rng.uniform(0.3, 0.8)),
        noise=float(rng.uniform(0.004, 0.014)),
        sharpen=float(rng.uniform(0.2, 0.8)),
    )


def _cart_look(rng: np.random.Generator, donor: np.random.Generator) -> Look:
    """Wright stain under a dimmer, bluer lamp and a softer lens; each donor's slide differs more than its images do."""
    background = np.array([0.86, 0.845, 0.865]) * _jitter(donor, 0.02) * _jitter(donor, 0.04, 1)
    stain = np.array([1.12, 0.92, 1.0]) * _jitter(donor, 0.08) * _jitter(donor, 0.16, 1)
    tint = np.array([0.16, 0.36, 0.30]) * _jitter(donor, 0.12)
    size, focus, crowding = float(_jitter(donor, 0.06, 1)[0]), donor.uniform(0.7, 1.25), donor.uniform(0.1, 0.7)
    return Look(
        pitch=0.27 * float(_jitter(rng, 0.02, 1)[0]),
        background=np.clip(background * _jitter(rng, 0.012) * _jitter(rng, 0.015, 1), 0.0, 1.0),
        stain=stain * _jitter(rng, 0.03) * _jitter(rng, 0.07, 1),
        red_cells=tint * _jitter(rng, 0.08, 1),
        crowding=float(crowding * rng.uniform(0.6, 1.4)),
        pallor=float(rng.uniform(0.3, 0.9)),
        blur_px=float(focus * rng.uniform(0.75, 1.35)),
        noise=float(rng.uniform(0.006, 0.016)),
        sharpen=0.0,
        size=size,
    )
