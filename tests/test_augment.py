"""Augmentation: against numpy, and independent of batch and device."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rcmnet_jax.config import AugmentConfig
from rcmnet_jax.data.augment import augment, split_position

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
    import dataclasses

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
    import dataclasses

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


def test_stain_jitter_moves_the_density_and_stays_in_range(images):
    import dataclasses

    made = views(images, dataclasses.replace(OFF, stain=0.5))
    assert made.min() >= 0
    assert made.max() <= 1
    assert 0.01 < np.abs(made - images / 255.0).mean() < 0.3


def test_positions_keep_all_64_bits():
    np.testing.assert_array_equal(split_position(np.array([2**33 + 5])), [[2, 5]])
