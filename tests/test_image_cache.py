"""Values that are kept of images."""

import numpy as np
import pytest

from rcmnet_jax.data import appearance, image_cache
from rcmnet_jax.data.image_cache import PerImageCache
from rcmnet_jax.evaluation import ood


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)


@pytest.fixture
def asked():
    return []


@pytest.fixture
def sums(asked):
    def compute(images):
        asked.append(len(images))
        return images.astype(np.int64).sum((1, 2, 3))

    return PerImageCache(compute)


def test_only_new_images_are_asked_for(images, sums, asked):
    wanted = images.astype(np.int64).sum((1, 2, 3)).tolist()
    assert sums(images[:4]) == wanted[:4]
    assert sums(images[::-1]) == wanted[::-1]
    assert sums(images[2:5]) == wanted[2:5]
    assert asked == [4, 3]
    images[0, 0, 0, 0] ^= 1
    assert sums(images[:2]) == images[:2].astype(np.int64).sum((1, 2, 3)).tolist()
    assert asked == [4, 3, 1]


def test_the_same_bytes_in_another_shape_are_another_image(images, sums, asked):
    sums(images)
    sums(images.reshape(7, 8, 32, 3))
    assert asked == [7, 7]


def test_beyond_what_is_kept_values_are_right_all_the_same(images, sums, asked, monkeypatch):
    monkeypatch.setattr(image_cache, "MAX_ENTRIES", 3)
    assert sums(images) == sums(images) == images.astype(np.int64).sum((1, 2, 3)).tolist()
    assert asked == [7, 4]


def test_cells_and_looks_are_remembered(images, monkeypatch):
    first = appearance.describe(images), ood.appearance(images)
    for kept in (appearance._cells, ood._looks):
        monkeypatch.setattr(kept, "_compute", None)  # would be called for an image that is not known
    assert appearance.describe(images[::-1]) == first[0]
    assert np.array_equal(ood.appearance(images[::-1]), first[1][::-1])
