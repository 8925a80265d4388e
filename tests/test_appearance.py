"""Finding the stained cell, what a set looks like, and the colours and framing that bring another set to it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rcmnet_jax.data import framing
from rcmnet_jax.data.appearance import Appearance, colours, density_factors, describe, summarise
from rcmnet_jax.data.cellfinder import find
from rcmnet_jax.data.images import ImageRule, standardise

FIELD, NUCLEUS, RED = (np.array(c, float) for c in ([250, 228, 205], [90, 45, 140], [205, 165, 165]))


def smear(at=(48, 48), diameter=24.0, side=96, tint=(1, 1, 1), gamma=1.0, reds=True):
    """A nucleus between red cells, as another lamp and camera see it: (side, side, 3) uint8."""
    rows, columns = np.indices((side, side))
    image = np.broadcast_to(FIELD, (side, side, 3)).copy()
    spots = [(10, 12), (14, 80), (80, 16), (84, 78), (6, 48)] if reds else []
    for row, column in spots:
        image[np.hypot(rows - row * side / 96, columns - column * side / 96) < 8] = RED
    image[np.hypot(rows - at[0], columns - at[1]) < diameter / 2] = NUCLEUS
    return np.clip(255 * (image * np.array(tint) / 255) ** gamma, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize(("tint", "gamma"), [((1, 1, 1), 1.0), ((0.8, 0.95, 0.6), 1.0), ((0.7, 0.7, 0.9), 1.6)])
def test_the_nucleus_is_found_under_any_lamp_and_camera(tint, gamma):
    cell = find(smear(at=(40, 60), diameter=24, tint=tint, gamma=gamma))
    assert (cell.row, cell.column, cell.diameter) == pytest.approx((40, 60, 24), abs=1.0)
    assert cell.confidence > 0.9


def test_a_large_field_is_measured_in_its_own_pixels():
    cell = find(smear(at=(400, 180), diameter=100, side=640))
    assert (cell.row, cell.column, cell.diameter) == pytest.approx((400, 180, 100), abs=5)


def test_lobes_of_one_nucleus_are_one_cell():
    image = smear(at=(42, 48), diameter=14)
    lobe = smear(at=(58, 50), diameter=14)
    cell = find(np.minimum(image, lobe))
    assert (cell.row, cell.column) == pytest.approx((50, 49), abs=1.5)
    assert cell.diameter == pytest.approx(14 * 2**0.5, rel=0.1)


def test_the_black_around_a_field_of_view_is_no_cell():
    image = smear(at=(40, 52))
    rows, columns = np.indices(image.shape[:2])
    image[np.hypot(rows - 47.5, columns - 47.5) > 50] = 8
    cell = find(image)
    assert (cell.row, cell.column, cell.diameter) == pytest.approx((40, 52, 24), abs=1.0)


@pytest.mark.parametrize("level", [4, 45])
def test_a_dark_side_beyond_the_field_of_view_is_neither_cell_nor_red_cells_nor_shown(source, level):
    plain = smear(at=(40, 40))
    image = plain.copy()
    image[:, 66:] = level
    cell, whole = find(image), find(plain)
    assert (cell.row, cell.column, cell.diameter) == pytest.approx((40, 40, 24), abs=1.0)
    np.testing.assert_allclose(cell.red, whole.red, atol=0.02)
    for rule, plan in ((rule, planned([image], source, rule)[1]) for rule in (ImageRule(96), ImageRule(96, crop=0.7))):
        made = framing.shown(image, cell, plan.sides[0], plan, rule)
        assert made.max(2).min() > 100


def test_a_nearly_black_nucleus_at_the_edge_is_a_cell_and_no_surround(source):
    image = smear(at=(8, 48), diameter=24)
    image[(image == NUCLEUS).all(2)] = (16, 6, 40)
    cell = find(image)
    assert not cell.dark
    assert (cell.row, cell.column) == pytest.approx((8, 48), abs=1.5)
    plan = planned([image], source, ImageRule(96))[1]
    assert framing.shown(image, cell, plan.sides[0], plan, ImageRule(96)).max(2).min() < 60


@pytest.mark.parametrize("tint", [(1, 1, 1), (0.95, 0.8, 0.45)])
def test_a_black_pointer_into_the_field_is_no_cell(source, tint):
    image = smear(at=(40, 40), tint=tint)
    image[60:64, 50:] = 12
    cell = find(image)
    assert (cell.row, cell.column, cell.diameter) == pytest.approx((40, 40, 24), abs=1.0)
    plan = planned([image], source, ImageRule(96))[1]
    assert framing.shown(image, cell, plan.sides[0], plan, ImageRule(96)).max(2).min() > 60


@pytest.mark.parametrize("level", [0, 128, 255])
def test_where_nothing_is_stained_nothing_is_found(level):
    cell = find(np.full((32, 48, 3), level, np.uint8))
    assert (cell.confidence, cell.row, cell.column) == (0, 15.5, 23.5)


def test_an_appearance_survives_json():
    whole = describe(np.stack([smear(), smear(diameter=28)]))
    assert Appearance.from_dict(json.loads(json.dumps(whole.to_dict()))).to_dict() == whole.to_dict()
    bare = describe(smear(reds=False)[None])
    assert bare.to_dict()["red"] == [None] * 3
    with pytest.raises(ValueError, match="positive"):
        Appearance.from_dict({**whole.to_dict(), "diameter": 0})


def test_colours_of_another_laboratory_become_the_sources():
    ours, theirs = smear(), smear(tint=(0.7, 0.9, 0.6), gamma=1.5)
    change = colours(describe(ours[None]), describe(theirs[None]))
    np.testing.assert_allclose(change(theirs[None])[0].astype(int), ours, atol=4)


def test_red_cells_in_one_image_of_many_do_not_speak_for_the_set():
    few = describe(np.stack([smear()] + [smear(reds=False)] * 39))
    many = describe(np.stack([smear()] * 6 + [smear(reds=False)] * 34))
    assert np.isnan(few.red).all()
    assert np.isfinite(many.red).all()


def test_cells_in_hardly_any_image_say_nothing_of_the_set():
    blank = np.broadcast_to(FIELD.astype(np.uint8), (96, 96, 3))
    assert describe(np.stack([smear()] * 2 + [blank] * 38)) is None
    assert describe(np.stack([smear()] * 5 + [blank] * 35)).cells == 5


def test_without_red_cells_the_nuclei_alone_set_the_colours():
    ours, theirs = smear(reds=False), smear(gamma=1.5, reds=False)
    change = colours(describe(ours[None]), describe(theirs[None]))
    assert not (change.matrix - np.diag(np.diag(change.matrix))).any()
    np.testing.assert_allclose(change(theirs[None])[0].astype(int), ours, atol=4)


def planned(images, source, rule):
    cells = [find(image) for image in images]
    return cells, framing.plan(source, cells, np.array([image.shape[:2] for image in images]), rule)


@pytest.fixture(scope="module")
def source():
    return describe(np.stack([smear(diameter=d) for d in np.linspace(20, 28, 40)]))


def test_a_set_like_the_sources_is_shown_by_the_image_rule_bit_for_bit(source):
    rule, images = ImageRule(64), [smear(at=(47, 49), diameter=d) for d in np.linspace(19, 30, 40)]
    cells, plan = planned(images, source, rule)
    assert not plan.moves
    made = framing.shown(images[0], cells[0], plan.sides[0], plan, rule)
    np.testing.assert_array_equal(made, standardise(images[0], rule))


def test_larger_cells_somewhere_in_a_field_come_out_as_the_sources(source):
    rule, rng = ImageRule(96), np.random.default_rng(0)
    images = [smear(rng.uniform(150, 350, 2), d, side=500) for d in 2 * np.linspace(20, 28, 40)]
    cells, plan = planned(images, source, rule)
    assert plan.centred
    made = [framing.shown(i, c, s, plan, rule) for i, c, s in zip(images, cells, plan.sides, strict=True)]
    after = summarise([find(image) for image in made], np.full((40, 2), 96), np.full(40, 96.0))
    assert after.diameter == pytest.approx(source.diameter, rel=0.1)
    assert after.offset == 0.05
    # One zoom for all: the smallest and the largest keep their ratio.
    first, last = (find(made[k]).diameter for k in (0, -1))
    assert last / first == pytest.approx(1.4, rel=0.1)


def test_crops_of_different_sizes_with_one_scale_get_one_side(source):
    rule = ImageRule(64)
    images = [smear((side / 2, side / 2), 30, side) for side in np.linspace(60, 140, 40).astype(int).tolist()]
    _, plan = planned(images, source, rule)
    assert plan.ruler == "pixels"
    np.testing.assert_allclose(plan.sides, 30 / source.diameter, rtol=0.1)


def test_one_image_is_too_few_to_tell_a_small_cell_from_a_small_scale(source):
    wide = Appearance(**{**vars(source), "spread": 0.3})
    assert planned([smear(diameter=40)], wide, ImageRule(64))[1].ratio == 1


def test_a_square_beyond_the_image_is_filled_with_the_ground():
    image = smear()
    made = framing.cut(image, (47.5, 47.5), 192, ImageRule(64), [1, 2, 3])
    np.testing.assert_array_equal(made[:15, :15], np.broadcast_to([1, 2, 3], (15, 15, 3)))
    np.testing.assert_array_equal(made[18:46, 18:46], standardise(image, ImageRule(32))[2:-2, 2:-2])


def test_a_square_of_gigabytes_is_cut_from_a_smaller_image(monkeypatch):
    image = smear(side=400)
    whole = framing.cut(image, (199.5, 199.5), 900, ImageRule(64), [200, 200, 200])
    monkeypatch.setattr(framing, "LARGEST", 300)
    laid = []
    monkeypatch.setattr(np, "empty", lambda shape, *more: laid.append(shape) or np.zeros(shape, *more))
    small = framing.cut(image, (199.5, 199.5), 900, ImageRule(64), [200, 200, 200])
    assert max(laid[0][:2]) <= 301
    assert np.abs(whole.astype(int) - small).mean() < 3


def test_colours_that_cannot_be_told_are_not_said_to_be_infinite(source):
    dark = Appearance(**{**vars(source), "nucleus": (0.5, -0.2, 0.0)})
    factors = density_factors(source, dark)
    assert np.isfinite(factors).all()
    assert (factors > 0).all()
    assert factors.max() == 3


@pytest.mark.parametrize("kind", ["basophil", "erythroblast", "neutrophil", "platelet"])
def test_cells_of_the_public_set_are_found_in_the_middle(real_data, kind):
    from rcmnet_jax.data.images import decode

    files = sorted((real_data / "pbc_tiny" / kind).glob("*.jpg"))[:30]
    cells = [find(decode(file.read_bytes())) for file in files]
    near = [np.hypot(cell.row - 47.5, cell.column - 47.5) < 0.12 * 96 for cell in cells]
    assert np.mean(near) >= 0.9
    assert all(0.08 < cell.diameter / 96 < 0.5 for cell in cells)
