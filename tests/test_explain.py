"""Heat maps: right where the answer is known, different for another network, and safe where names are not."""

from __future__ import annotations

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rcmnet_jax import bundle as bundles
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.config import ModelConfig
from rcmnet_jax.data.images import ImageRule
from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation import explain
from rcmnet_jax.evaluation.overlay import UNUSUAL, Names, blend, draw, explained
from rcmnet_jax.evaluation.predict_command import predict
from rcmnet_jax.models import Network

CLASSES = ("blast", "<b>mono</b>", "other")


def network(name="resnet18", size=64):
    made = Network(ModelConfig(name=name, width=8), classes=3, image_size=size)
    return made, *jax.device_get(made.init(0))


def pictures(n=5, size=64):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_the_map_of_a_toy_with_a_known_answer_is_that_answer():
    # y = 2 mean(A1) - mean(A2) over 2x2: dy/dA is 2/4 and -1/4 everywhere.
    features = jnp.array([[[[1.0, 0.0], [0.0, 4.0]], [[3.0, 1.0], [0.0, 0.0]]]])
    gradient = jnp.broadcast_to(jnp.array([0.5, -0.25]), features.shape)
    np.testing.assert_allclose(explain.grad_cam(features, gradient), [[[0.5, 0.0], [1.25, 0.0]]])
    np.testing.assert_allclose(explain.layer_cam(features, gradient), [[[0.5, 0.0], [1.5, 0.0]]])


def test_at_the_last_layer_grad_cam_is_the_heads_weighted_sum_of_the_map():
    # The head is linear in the spatial mean: CAM (Zhou et al. 2016), which Grad-CAM generalises.
    made, params, stats = network("rcmnet")
    images, classes = pictures(), np.array([0, 1, 2, 0, 1])
    found = explain.heat(made, params, stats, images, classes, layer="layer4", method="gradcam")
    features = np.asarray(made.features(params, stats, images / np.float32(255)))
    wanted = np.einsum("bhwc,cb->bhw", features, params["fc"]["kernel"][:, classes]) / 4  # 2 x 2 positions
    np.testing.assert_allclose(found, np.maximum(wanted, 0), atol=1e-5)


def test_heat_is_where_the_only_thing_that_counts_is():
    made, params, stats = network("resnet18")
    images = np.full((1, 64, 64, 3), 124, np.uint8)
    images[0, 40:56, 8:24] = 255
    # A head that likes what the square excites more than the empty picture does.
    empty = np.full((1, 64, 64, 3), 124, np.uint8)
    gain = made.embed(params, stats, images / np.float32(255)) - made.embed(params, stats, empty / np.float32(255))
    params["fc"]["kernel"] = np.stack([np.asarray(gain)[0], 0 * gain[0], 0 * gain[0]], 1)
    maps = explain.heat(made, params, stats, images, np.array([0]), layer="layer2", method="layercam")
    large = explain.enlarge(maps, 64)[0]
    assert large[36:60, 4:28].mean() > 2 * large[:32, 32:].mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "rcmnet", "resnet50_cbam_mhsa", "vit_s16"])
def test_every_model_has_maps_of_its_layers_and_only_those_with_attention_have_that(name):
    made, params, stats = network(name)
    layer, method = explain.choice(made)
    maps = explain.heat(made, params, stats, pictures(2), np.zeros(2, int), layer=layer, method=method)
    assert maps.shape[0] == 2
    assert min(maps.shape[1:]) >= explain.FINE
    assert (maps >= 0).all()
    assert made.attends == (name != "resnet34")
    if made.attends:
        attention = explain.attention(made, params, stats, pictures(2))
        np.testing.assert_allclose(attention.sum((1, 2)), 1, rtol=1e-5)


def test_maps_have_the_images_size_and_range_and_repeat_bit_for_bit():
    made, params, stats = network("rcmnet")
    images, classes = pictures(explain.BATCH + 3), np.arange(explain.BATCH + 3) % 3
    twice = [explain.heat(made, params, stats, images, classes, layer="layer3", method="layercam") for _ in range(2)]
    np.testing.assert_array_equal(*twice)
    large = explain.enlarge(twice[0], 64)
    assert large.shape == (len(images), 64, 64)
    assert large.min() >= 0
    assert large.max() <= 1
    alone = explain.heat(made, params, stats, images[-1:], classes[-1:], layer="layer3", method="layercam")
    np.testing.assert_allclose(alone[0], twice[0][-1], rtol=1e-3, atol=1e-6)
    assert (explain.enlarge(np.zeros((1, 4, 4), np.float32), 64) == 0).all()


def test_another_networks_maps_are_others():
    made, params, stats = network("resnet18")
    other = jax.device_get(made.init(1))
    images, classes = pictures(), np.zeros(5, int)
    maps = [
        explain.heat(made, *weights, images, classes, layer="layer3", method="layercam").reshape(5, -1)
        for weights in ((params, stats), other)
    ]
    within = [np.corrcoef(a, b)[0, 1] for a, b in zip(*(m - m.mean(0) for m in maps), strict=True)]
    assert abs(np.mean(within)) < 0.5


def test_names_stay_inside_and_never_meet():
    paths = [
        "blast/a.png", "blast/A.png", "../../etc/passwd", "/etc/passwd", "a/../../b", "a//b", ".ssh/id", "x", "x.png/y",
        "con\n\0trol", "blast/" + "long" * 90, "blast/ä.png", "blast/a.png ", f"{UNUSUAL}/0000001-A_png", "..",
    ]  # fmt: skip
    names = Names()
    found = [names.take(path, row) for row, path in enumerate(paths)]
    assert found[0] == "blast/a.png.png"
    assert len({name.lower() for name in found}) == len(paths)
    for name in found:
        assert name.endswith(".png")
        assert not name.startswith("/")
        assert ".." not in name.split("/")
        assert "\0" not in name
        assert "\n" not in name
    files = {name.lower() for name in found}
    folders = {name.lower().rsplit("/", depth)[0] for name in found for depth in range(1, name.count("/") + 1)}
    assert not files & folders


def test_a_picture_shows_the_input_beside_its_maps():
    image = pictures(1)[0]
    data = draw(image, {"heat": np.zeros((64, 64), np.float32)}, "blast, p = 0.9 " * 60)
    assert data[:4] == b"\x89PNG"
    flat = blend(np.zeros((2, 2, 3), np.uint8), np.array([[0, 1], [0.5, 1]], np.float32))
    assert flat[0, 1, 0] > flat[0, 0, 0]  # yellow against dark blue: more red
    np.testing.assert_array_equal(flat[0, 1], flat[1, 1])


@pytest.fixture
def bundle(tmp_path):
    made, params, stats = network("rcmnet", 64)
    bundles.write(tmp_path / "bundle", Bundle(made, CLASSES, ImageRule(64), params, stats, {"stage": "test"}))
    return tmp_path / "bundle"


@pytest.fixture
def cells(tmp_path):
    for i, name in enumerate(("blast/one.png", "blast/two.png", "other/t<b>.png")):
        (tmp_path / "cells" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(3, 40)[i]).save(tmp_path / "cells" / name)
    return tmp_path / "cells"


def test_predict_explains_every_image_in_a_folder_of_its_own(bundle, cells, tmp_path):
    predict(bundle, str(cells), tmp_path / "p.csv", explain=tmp_path / "why")
    found = sorted(p.relative_to(tmp_path / "why").as_posix() for p in (tmp_path / "why").rglob("*") if p.is_file())
    assert found == [f"{UNUSUAL}/0000002-t_b_png.png", "blast/one.png.png", "blast/two.png.png", "index.html"]
    page = (tmp_path / "why/index.html").read_text()
    assert "<b>" not in page
    assert "t&lt;b&gt;.png" in page
    with Image.open(tmp_path / "why/blast/one.png.png") as picture:
        assert picture.width > 3 * 224  # input, heat map, attention
    with (tmp_path / "p.csv").open() as file:
        row = next(csv.DictReader(file))
    assert f"p = {float(row['confidence']):.3f}" in page


def test_predict_refuses_a_file_or_a_full_folder_before_it_writes(bundle, cells, tmp_path):
    (tmp_path / "file").write_text("x")
    for folder, why in ((tmp_path / "file", "is a file"), (cells, "not empty")):
        with pytest.raises(UserError, match=why):
            predict(bundle, str(cells), tmp_path / "p.csv", explain=folder)
    assert not (tmp_path / "p.csv").exists()


def test_labels_and_calibration_do_not_change_the_map(bundle):
    made = bundles.load(bundle)
    images = pictures(2)
    plain = explained(made, images, np.array([0, 1]))
    cooled = explained(dataclasses.replace(made, calibration={"temperature": 3.0}), images, np.array([0, 1]))
    assert list(plain) == list(cooled)
    assert "attention" in plain
    for title in plain:
        np.testing.assert_array_equal(plain[title], cooled[title])
