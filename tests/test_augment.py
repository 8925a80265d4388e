"""Augmentation: against numpy, and independent of batch and device."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmnet_jax.config import AugmentConfig
from rcmnet_jax.data.augment import augment, mixing, split_position
from rcmnet_jax.training.sharding import Placement

OFF = AugmentConfig(dihedral=False, scale=0, shift=0, brightness=0, contrast=0, saturation=0, stain=0)
run = jax.jit(augment, static_argnames="config")


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (16, 12, 12, 3), dtype=np.uint8)


def views(images, config, start=0, seed=1):
    return np.asarray(
        run(images, split_position(np.arange(start, start + len(images))), np.uint32(seed), config=config)
    )


def test_switched_off_it_only_scales(images):
    np.testing.assert_allclose(views(images, OFF), images / 255.0, atol=1e-6)


def test_dihedral_gives_each_of_the_eight_views_and_no_other(images):
    one = np.repeat(images[:1], 200, axis=0)
    made = views(one, dataclasses.replace(OFF, dihedral=True))
    turned = [np.rot90(one[0], k) for k in range(4)]
    known = np.stack([*turned, *(view[:, ::-1] for view in turned)]) / 255.0
    distance = np.abs(made[:, None] - known[None]).max((2, 3, 4))
    assert (distance.min(1) < 1e-5).all()
    assert set(distance.argmin(1)) == set(range(8))


def test_a_view_depends_on_seed_and_position_alone(images):
    config = AugmentConfig()
    whole = views(images, config, start=100)
    part = views(images[5:9], config, start=105)
    np.testing.assert_allclose(whole[5:9], part, atol=1e-6)
    assert np.abs(whole - views(images, config, start=100, seed=2)).max() > 0.05
    assert np.abs(whole - views(images, config, start=100 + 2**33)).max() > 0.05


def test_shift_and_zoom_equal_bilinear_sampling_with_repeated_edges(images):
    from scipy.ndimage import map_coordinates

    config = dataclasses.replace(OFF, scale=0.3, shift=0.2)
    made = views(images, config)
    positions = split_position(np.arange(len(images)))
    base = jax.random.key(np.uint32(1))
    for i in range(4):
        key = jax.random.fold_in(jax.random.fold_in(base, positions[i, 0]), positions[i, 1])
        draw = np.asarray(jax.random.uniform(key, (16,)), np.float64)
        zoom, shift = np.exp((2 * draw[1] - 1) * 0.3), (2 * draw[2:4] - 1) * 0.2
        centre = (np.arange(12) + 0.5) / 12 - 0.5
        rows, columns = (((centre - s) / zoom + 0.5) * 12 - 0.5 for s in shift)
        for channel in range(3):
            wanted = map_coordinates(
                images[i, :, :, channel] / 255.0, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="nearest"
            )
            np.testing.assert_allclose(made[i, :, :, channel], wanted, atol=1e-4)


@pytest.mark.parametrize("padding", ["edge", "reflect"])
def test_turns_equal_bilinear_sampling_of_turned_coordinates(images, padding):
    from scipy.ndimage import map_coordinates

    config = dataclasses.replace(OFF, dihedral=True, scale=0.3, shift=0.2, rotate=60.0, padding=padding)
    made, positions, seen = views(images, config), split_position(np.arange(len(images))), []
    base, mode = jax.random.key(np.uint32(1)), {"edge": "nearest", "reflect": "grid-mirror"}[padding]
    for i in range(8):
        key = jax.random.fold_in(jax.random.fold_in(base, positions[i, 0]), positions[i, 1])
        draw = np.asarray(jax.random.uniform(key, (16,)), np.float64)
        image = images[i].swapaxes(0, 1) / 255.0 if draw[0] < 0.5 else images[i] / 255.0
        zoom, shift, flip = np.exp((2 * draw[1] - 1) * 0.3), (2 * draw[2:4] - 1) * 0.2, np.where(draw[4:6] < 0.5, -1, 1)
        angle = np.deg2rad((2 * draw[6] - 1) * 60)
        seen.append(angle)
        away = np.stack(np.meshgrid(*[(np.arange(12) + 0.5) / 12 - 0.5] * 2, indexing="ij"))
        away = flip[:, None, None] * (away - shift[:, None, None]) / zoom
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        where = (np.einsum("ab,bij->aij", turn, away) + 0.5) * 12 - 0.5
        for channel in range(3):
            wanted = map_coordinates(image[..., channel], where, order=1, mode=mode)
            np.testing.assert_allclose(made[i, :, :, channel], wanted, atol=1e-4)
    assert np.ptp(seen) > 0.5


def test_turned_by_nothing_the_image_is_what_it_is(images):
    np.testing.assert_allclose(views(images, dataclasses.replace(OFF, rotate=1e-6)), images / 255.0, atol=1e-5)


def test_stain_jitter_moves_the_density_and_stays_in_range(images):
    made = views(images, dataclasses.replace(OFF, stain=0.5))
    assert made.min() >= 0
    assert made.max() <= 1
    assert 0.01 < np.abs(made - images / 255.0).mean() < 0.3


def test_positions_keep_all_64_bits():
    np.testing.assert_array_equal(split_position(np.array([2**33 + 5])), [[2, 5]])


def further_draws(n, which=1, seed=1):
    """The draws behind the first sixteen, (n, 29) float64."""
    keys = [further_key(i, which, seed) for i in range(n)]
    return np.array([jax.random.uniform(key, (29,)) for key in keys], np.float64)


def further_key(position, which, seed=1):
    key = jax.random.key(np.uint32(seed))
    for word in (0, position, which):
        key = jax.random.fold_in(key, np.uint32(word))
    return key


def test_a_reflected_edge_is_the_mirror_image(images):
    from scipy.ndimage import map_coordinates

    made = views(images, dataclasses.replace(OFF, scale=0.7, shift=0.2, padding="reflect"))
    positions = split_position(np.arange(len(images)))
    base = jax.random.key(np.uint32(1))
    for i in range(4):
        key = jax.random.fold_in(jax.random.fold_in(base, positions[i, 0]), positions[i, 1])
        draw = np.asarray(jax.random.uniform(key, (16,)), np.float64)
        zoom, shift = np.exp((2 * draw[1] - 1) * 0.7), (2 * draw[2:4] - 1) * 0.2
        centre = (np.arange(12) + 0.5) / 12 - 0.5
        rows, columns = (((centre - s) / zoom + 0.5) * 12 - 0.5 for s in shift)
        wanted = map_coordinates(
            images[i, :, :, 0] / 255.0, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="reflect"
        )
        np.testing.assert_allclose(made[i, :, :, 0], wanted, atol=1e-4)


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_blur_is_a_gaussian_cut_at_the_edges(images, power):
    made = views(images, dataclasses.replace(OFF, blur=0.2, blur_power=power))
    sigma = np.maximum(further_draws(16)[:, 0] ** power * 0.2 * 12, 0.1)
    apart = np.arange(12)[:, None] - np.arange(12)
    for i in range(4):
        matrix = np.exp(-((apart / sigma[i]) ** 2) / 2)
        matrix /= matrix.sum(1, keepdims=True)
        wanted = np.einsum("ij,jkc,lk->ilc", matrix, images[i] / 255.0, matrix)
        np.testing.assert_allclose(made[i], wanted, atol=1e-5)


def test_gamma_and_white_balance_act_on_each_image_as_a_cameras(images):
    images = np.maximum(images, 1)
    draw = 2 * further_draws(16)[:, 2:6] - 1
    bent = views(images, dataclasses.replace(OFF, gamma=0.5))
    np.testing.assert_allclose(bent, (images / 255.0) ** np.exp(0.5 * draw[:, 0])[:, None, None, None], atol=1e-5)
    lit = views(images, dataclasses.replace(OFF, white=0.3))
    gain = np.exp(0.3 * draw[:, None, None, 1:4])
    np.testing.assert_allclose(lit, np.minimum(images / 255.0 * gain, 1), atol=1e-5)


def test_mixed_densities_turn_colours_and_leave_greys(images):
    made = views(images, dataclasses.replace(OFF, hue=0.3))
    assert 0.02 < np.abs(made - images / 255.0).mean() < 0.3
    greys = np.repeat(np.maximum(images[..., :1], 1), 3, axis=-1)
    np.testing.assert_allclose(views(greys, dataclasses.replace(OFF, hue=0.3)), greys / 255.0, atol=1e-5)


def test_reinhards_transfer_gives_log_colours_the_drawn_means_and_deviations(images):
    images = (images // 4 + 120).astype(np.uint8)  # so dim and even that nothing is clipped at white
    made = views(images, dataclasses.replace(OFF, reinhard=1.0))
    axes = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
    draw = further_draws(16)[:, 2 + 13 :]
    low, high = np.array([[-1.08, -0.32, -0.03], [-0.10, 0.35, 0.28]])
    flat, strong = np.log([[0.085, 0.023, 0.015], [1.13, 0.49, 0.29]])
    compared = 0
    for i in range(16):
        seen, now = (np.log(view.reshape(-1, 3).astype(np.float64)) @ axes.T for view in (images[i] / 255.0, made[i]))
        far = draw[i, 1]
        deviation = (seen.std(0) ** (1 - far)) * np.exp(far * (flat + (strong - flat) * draw[i, 5:8]))
        stretch = np.clip(deviation / seen.std(0), 1 / 3, 3)
        if made[i].max() < 1:  # else light was cut off at white
            wanted = (1 - far) * seen.mean(0) + far * (low + (high - low) * draw[i, 2:5])
            np.testing.assert_allclose(now.mean(0), wanted, atol=1e-3)
            np.testing.assert_allclose(now.std(0), seen.std(0) * stretch, rtol=1e-2)
            compared += 1
    assert compared > 4


@pytest.mark.parametrize(("name", "column"), [("grey", -6), ("erase", -5), ("reinhard", 2 + 13)])
def test_a_probability_is_kept_by_the_draw_of_each_image(images, name, column):
    images = np.maximum(images, 1)
    made = views(images, dataclasses.replace(OFF, **{name: 0.4}))
    changed = np.abs(made - images / 255.0).max((1, 2, 3)) > 1e-5
    np.testing.assert_array_equal(changed, further_draws(16)[:, column] < 0.4)
    assert 0 < changed.sum() < 16


def test_a_grey_image_has_the_luminance_in_each_channel(images):
    made = views(images, dataclasses.replace(OFF, grey=1.0))
    np.testing.assert_allclose(made, (images / 255.0 @ [0.299, 0.587, 0.114])[..., None].repeat(3, -1), atol=1e-5)


def test_an_erased_rectangle_has_the_mean_colour_and_its_share_of_the_area():
    images = np.random.default_rng(0).integers(0, 256, (64, 40, 40, 3), dtype=np.uint8)
    made = views(images, dataclasses.replace(OFF, erase=1.0))
    hidden = np.abs(made - images / 255.0).max(-1) > 1e-5
    hidden |= np.abs(images / 255.0 - images.mean((1, 2), keepdims=True) / 255).max(-1) < 1e-3
    draw = further_draws(64)[:, -5:]
    for i in range(64):
        np.testing.assert_allclose(
            made[i][hidden[i]], (images[i].mean((0, 1)) / 255)[None].repeat(hidden[i].sum(), 0), atol=1e-5
        )
        rows, columns = np.flatnonzero(hidden[i].any(1)), np.flatnonzero(hidden[i].any(0))
        assert hidden[i].sum() == len(rows) * len(columns)
        assert (len(rows), len(columns)) == (np.ptp(rows) + 1, np.ptp(columns) + 1)
        area, ratio = 0.02 + 0.18 * draw[i, 1], 0.3 ** (2 * draw[i, 2] - 1)
        assert len(rows) / 40 == pytest.approx(np.sqrt(area * ratio), abs=1 / 40)
        assert len(columns) / 40 == pytest.approx(np.sqrt(area / ratio), abs=1 / 40)


def test_noise_is_as_strong_as_drawn_and_another_in_each_image_and_channel():
    even = np.full((16, 32, 32, 3), 128, np.uint8)
    made = views(even, dataclasses.replace(OFF, noise=0.1)) - 128 / 255
    deviation = further_draws(16)[:, 1] * 0.1
    np.testing.assert_allclose(made.std((1, 2, 3)), deviation, rtol=0.06)
    bytes_of = (
        np.asarray(jax.random.bits(further_key(3, 2), (32, 32, 3), jnp.uint32)).view(np.uint8).reshape(32, 32, 3, 4)
    )
    wanted = (bytes_of.astype(np.float64).sum(-1) - 510) / np.sqrt(4 * (256**2 - 1) / 12) * deviation[3]
    np.testing.assert_allclose(made[3], wanted, atol=1e-5)


STRONG = AugmentConfig(
    scale=0.5, padding="reflect", blur=0.02, gamma=0.4, white=0.2, hue=0.15, reinhard=0.5, grey=0.1, noise=0.05,
    erase=0.5,
)  # fmt: skip


def test_a_strong_view_too_depends_on_seed_and_position_alone(images):
    whole = views(images, STRONG, start=100)
    np.testing.assert_allclose(whole[5:9], views(images[5:9], STRONG, start=105), atol=1e-5)
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert np.abs(whole - views(images, STRONG, start=100, seed=2)).max() > 0.05


def mixed(images, **config):
    run_mix = jax.jit(mixing.mix, static_argnames="config")
    made = [
        run_mix(images, np.int32(step), np.uint32(4), config=dataclasses.replace(OFF, **config)) for step in range(40)
    ]
    return [(np.asarray(x), float(own)) for x, own in made]


@pytest.fixture
def marked():
    """Images of one value each: what a pixel shows says whose it is."""
    return np.arange(8, dtype=np.float32)[:, None, None, None].repeat(10, 1).repeat(10, 2).repeat(3, 3)


def test_mixup_blends_each_image_with_the_one_before_by_one_draw_of_beta(marked):
    before = np.roll(marked, 1, axis=0)
    found = mixed(marked, mixup=0.4)
    for made, own in found:
        np.testing.assert_allclose(made, own * marked + (1 - own) * before, atol=1e-5)
    shares = np.array([own for _, own in found])
    assert len(set(shares)) == 40
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.4)  # Beta(a, a)'s variance


def test_cutmix_puts_in_a_box_of_the_one_before_and_weighs_labels_by_its_exact_area(marked):
    before = np.roll(marked, 1, axis=0)
    for made, own in mixed(marked, cutmix=1.0):
        box = (made == before).all(-1)
        assert ((made == marked).all(-1) | box).all()
        assert (box == box[0]).all()
        rows, columns = box[0].any(1), box[0].any(0)
        np.testing.assert_array_equal(box[0], rows[:, None] & columns)
        assert own == pytest.approx(1 - box[0].mean(), abs=1e-6)


def test_with_both_set_a_coin_decides_for_each_batch(marked):
    both, cut = mixed(marked, mixup=0.4, cutmix=1.0), mixed(marked, cutmix=1.0)
    same = [np.array_equal(one[0], other[0]) for one, other in zip(both, cut, strict=True)]
    assert 8 < sum(same) < 32


@pytest.mark.slow
def test_views_and_mixtures_are_the_same_on_one_device_and_on_eight(images):
    config, split = dataclasses.replace(STRONG, rotate=45.0, mixup=0.4, cutmix=1.0), Placement.everywhere().split

    @jax.jit
    def view(images, positions):
        return mixing.mix(augment(images, positions, np.uint32(1), config), np.int32(5), np.uint32(1), config)

    given = images, split_position(np.arange(16))
    for one, eight in zip(view(*given), view(*jax.device_put(given, split)), strict=True):
        np.testing.assert_allclose(one, eight, atol=1e-5)
