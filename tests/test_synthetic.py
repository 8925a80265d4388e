"""The embedded smears: the same bytes everywhere, labelled as synthetic, and not to be solved by colour alone."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from rcmnet_jax.data import synthetic
from rcmnet_jax.data.synthetic import fields
from rcmnet_jax.errors import UserError

PBC = ["basophil", "eosinophil", "erythroblast", "ig", "lymphocyte", "monocyte", "neutrophil", "platelet"]
# Mean and standard deviation of each channel. A change here is a change of every result on the embedded data.
GOLDEN = [
    ("pbc", 12, (211.1, 184.2, 177.3), (46.3, 52.7, 24.3)),
    ("pbc", 300, (215.7, 179.7, 188.0), (37.1, 44.7, 22.9)),
    ("pbc", 1100, (223.6, 197.4, 192.6), (33.8, 41.2, 21.4)),
    ("pbc", 1599, (224.4, 199.9, 185.8), (29.1, 30.8, 21.9)),
    ("cart", 0, (158.2, 160.3, 170.4), (56.0, 61.0, 35.1)),
    ("cart", 499, (150.6, 149.7, 172.9), (56.1, 56.0, 33.8)),
]
SETS = ("pbc", "cart", "pbc-tiny", "cart-tiny")


def digest(name: str, index: int, seed: int = 0) -> str:
    return hashlib.sha256(synthetic.encode(name, index, seed)).hexdigest()


def colour_features(images: np.ndarray) -> np.ndarray:
    return np.concatenate([images.mean((1, 2)), images.std((1, 2))], axis=1)


def border_features(images: np.ndarray) -> np.ndarray:
    rim = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1).astype(float)
    return np.concatenate([rim.mean(1), rim.std(1)], axis=1)


def balanced_accuracy(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """Of a logistic regression, 5-fold; whole groups are held out where there are any."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kind = StratifiedGroupKFold if groups[0] else StratifiedKFold
    folds = kind(5, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return float(
        balanced_accuracy_score(
            labels, cross_val_predict(model, features, labels, groups=groups if groups[0] else None, cv=folds)
        )
    )


@pytest.mark.parametrize("name", SETS)
def test_an_image_depends_on_name_index_and_seed_alone(name):
    last = len(synthetic.catalogue(name)) - 1
    first = synthetic.render(name, last)
    synthetic.render(name, 0)
    np.testing.assert_array_equal(synthetic.render(f"synthetic:{name}", last), first)
    assert digest(name, last) != digest(name, last, seed=1)
    assert digest(name, last) != digest(name, last - 1)


def test_another_process_draws_the_same_bytes():
    wanted = [digest("pbc", 700, 3), digest("cart", 41, 3)]
    code = (
        "import hashlib; from rcmnet_jax.data.synthetic import encode\n"
        "for name, index in (('pbc', 700), ('cart', 41)): print(hashlib.sha256(encode(name, index, 3)).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == wanted


@pytest.mark.parametrize(("name", "index", "mean", "deviation"), GOLDEN)
def test_the_pictures_stay_what_they_were(name, index, mean, deviation):
    image = synthetic.render(name, index).astype(float)
    np.testing.assert_allclose(image.mean((0, 1)), mean, atol=0.5)
    np.testing.assert_allclose(image.std((0, 1)), deviation, atol=0.5)


def test_pbc_has_the_eight_published_classes_and_no_groups():
    items = synthetic.catalogue("synthetic:pbc")
    assert sorted({item.label for item in items}) == PBC
    assert len(items) == 1600
    assert {item.group for item in items} == {item.split for item in items} == {""}
    assert Counter(item.label for item in synthetic.catalogue("pbc-tiny")) == dict.fromkeys(PBC, 12)


@pytest.mark.parametrize(("name", "donors", "size"), [("cart", 10, 500), ("cart-tiny", 8, 64)])
def test_cart_spreads_four_classes_unevenly_over_its_donors(name, donors, size):
    items = synthetic.catalogue(name)
    assert len(items) == size
    assert {item.group for item in items} == {f"donor_{k}" for k in range(1, donors + 1)}
    counts = Counter((item.group, item.label) for item in items)
    labels = {item.label for item in items}
    assert len(labels) == 4
    for label in labels:
        spread = [counts[f"donor_{k}", label] for k in range(1, donors + 1)]
        assert max(spread) >= 3 * min(spread)
        assert sum(count > 0 for count in spread) >= 5  # enough donors for five grouped folds


@pytest.mark.parametrize("name", SETS)
def test_every_path_says_synthetic_and_is_unique(name):
    items = synthetic.catalogue(name)
    assert all(item.path == f"{item.label}/synthetic_{i:05d}.png" for i, item in enumerate(items))


def test_an_unknown_set_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="did you mean 'pbc'") as refusal:
        synthetic.catalogue("synthetic:pcb")
    for name in SETS:
        assert f"synthetic:{name}" in str(refusal.value)
    with pytest.raises(UserError, match="Use one of synthetic:pbc"):
        synthetic.render("synthetic:", 0)


@pytest.mark.parametrize("index", [-1, 96])
def test_an_index_outside_the_set_is_refused(index):
    with pytest.raises(IndexError, match="0 to 95"):
        synthetic.render("pbc-tiny", index)


@pytest.mark.parametrize(("name", "side"), [("pbc-tiny", 96), ("cart-tiny", 80)])
def test_the_file_is_a_png_of_the_picture_whose_size_tells_nothing(name, side):
    every = range(0, len(synthetic.catalogue(name)), 7)
    files = [synthetic.encode(name, i) for i in every]
    assert len({len(data) for data in files}) == 1
    assert len(set(files)) == len(files)
    for i, data in zip(every, files, strict=True):
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (side, side))
            assert "synthetic" in image.info["Comment"]
            np.testing.assert_array_equal(np.asarray(image), synthetic.render(name, i))


def test_each_donor_has_a_look_of_its_own():
    items = synthetic.catalogue("cart-tiny")
    rims = border_features(np.stack([synthetic.render("cart-tiny", i) for i in range(len(items))]))[:, 2]
    donors = np.array([item.group for item in items])
    means = np.array([rims[donors == d].mean() for d in sorted(set(donors))])
    within = np.mean([rims[donors == d].std() for d in sorted(set(donors))])
    assert means.std() > 0.7 * within


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step"), [("pbc", 2), ("cart", 1)])
def test_colours_alone_do_not_give_the_class_away(name, step):
    items = synthetic.catalogue(name)[::step]
    images = np.stack([synthetic.render(name, i * step) for i in range(len(items))])
    labels, groups = (np.array([getattr(item, key) for item in items]) for key in ("label", "group"))
    chance = 1 / len(set(labels))
    assert chance + 0.1 < balanced_accuracy(colour_features(images), labels, groups) < 0.75
    assert balanced_accuracy(border_features(images), labels, groups) < chance + 0.12


def test_blur_keeps_the_light_and_small_blurs_change_nothing():
    image = np.full((32, 32, 3), 0.4)
    np.testing.assert_allclose(fields.blur(image, 2.0), image)
    spot = np.zeros((33, 33))
    spot[16, 16] = 1.0
    blurred = fields.blur(spot, 1.5)
    np.testing.assert_allclose(blurred.sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(blurred, blurred.T)
    assert fields.blur(spot, 0.1) is spot


def test_a_colour_image_is_blurred_plane_by_plane():
    image = np.random.default_rng(0).random((20, 20, 3))
    expected = np.stack([fields.blur(np.ascontiguousarray(image[..., c]), 1.2) for c in range(3)], axis=-1)
    np.testing.assert_allclose(fields.blur(image, 1.2), expected)


def test_noise_has_mean_zero_and_variance_one_at_any_scale():
    rng = np.random.default_rng(0)
    for knots in (3, 8, 30):
        draws = np.stack([fields.noise(rng, 48, knots) for _ in range(60)])
        assert abs(draws.mean()) < 0.1
        assert 0.85 < draws.std() < 1.15


def test_outline_without_waves_is_a_circle():
    y, x = np.mgrid[-3:4, -3:4].astype(float)
    depth = fields.outline(x, y, 2.0, np.zeros(3), np.zeros(3))
    np.testing.assert_allclose(depth, 2.0 - np.hypot(x, y), atol=1e-9)


def test_specks_fall_only_where_they_may():
    where = np.zeros((16, 16))
    assert not fields.specks(np.random.default_rng(0), 16, where, 5, 0.5).any()
    where[4, 5] = 1.0
    grains = fields.specks(np.random.default_rng(0), 16, where, 5, 0.5)
    assert np.unravel_index(grains.argmax(), grains.shape) == (4, 5)
