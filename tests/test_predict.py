"""Predictions: padding changes nothing, and BatchNorm's statistics can be estimated anew."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rcmnet_jax import bundle as bundles
from rcmnet_jax.config import ModelConfig
from rcmnet_jax.console import Console
from rcmnet_jax.data.prepare import prepare
from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation.calibration import Calibrated, abstain
from rcmnet_jax.evaluation.predict import BATCH, _batch, begin, forward, reestimate
from rcmnet_jax.evaluation.predict_command import _say_strange, _say_unknown, answered, predict, table_of
from rcmnet_jax.models import Network
from rcmnet_jax.training.sharding import Placement
from tests.bad_input.case import BUNDLE


@pytest.fixture(scope="module")
def model():
    network = Network(ModelConfig(name="resnet18", width=8), classes=3, image_size=32)
    return network, *network.init(0), Placement.everywhere()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2 * BATCH + 5, 32, 32, 3), dtype=np.uint8)


def test_each_image_is_answered_as_if_alone(model, images):
    network, params, stats, placement = model
    whole = forward(network, params, stats, images, placement)
    assert whole.shape == (len(images), 3)
    tail = forward(network, params, stats, images[-5:], placement)
    np.testing.assert_allclose(whole[-5:], tail, atol=1e-5)
    for views in ("one", "dihedral"):
        assert forward(network, params, stats, images[:0], placement, views=views).shape == (0, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "imported"),
    [
        ({"name": "rcmnet"}, False),
        ({"name": "rcmnet"}, True),
        ({"name": "resnet18_cbam", "norm": "group"}, True),
        ({"name": "vit_s16"}, False),
    ],
    ids=str,
)
def test_the_body_and_the_head_are_the_network(options, imported, images):
    made = [Network(ModelConfig(width=8, **options), classes=k, image_size=32, imported=imported) for k in (3, 5)]
    assert made[0].body == made[1].body
    params, stats = made[0].init(1)
    found = begin(made[0], params, stats, images[:8], Placement.everywhere())()
    shown = images[:8].astype(np.float32) / 255
    np.testing.assert_allclose(found.logits, made[0](params, stats, shown)[0], atol=1e-5)
    np.testing.assert_allclose(found.embedding, made[0].embed(params, stats, shown), atol=1e-5)


@pytest.mark.parametrize("count", [6, 11])  # eight views of which are one batch, and more than one
def test_eight_views_are_averaged_so_that_a_turned_image_is_answered_alike(model, images, count):
    network, params, stats, placement = model
    some = images[:count]
    found = begin(network, params, stats, some, placement, "dihedral")()
    turned = [np.rot90(some, k, (1, 2)) for k in range(4)]
    each = [begin(network, params, stats, view, placement)() for one in turned for view in (one, one[:, ::-1])]
    for name in ("logits", "embedding"):
        wanted = np.mean([getattr(part, name) for part in each], axis=0, dtype=np.float64)
        np.testing.assert_allclose(getattr(found, name), wanted, atol=1e-5)
    again = begin(network, params, stats, turned[1], placement, "dihedral")()
    np.testing.assert_allclose(again.logits, found.logits, atol=1e-5)
    by_head = found.embedding @ params["fc"]["kernel"] + params["fc"]["bias"]
    np.testing.assert_allclose(found.logits, by_head, atol=1e-4)


@pytest.mark.slow
def test_reestimated_statistics_are_the_mean_of_the_batches_moments(model, images):
    network, params, stats, placement = model
    found = jax.device_get(reestimate(network, params, stats, images[: 2 * BATCH], placement))
    # The first layer sees the same input whatever the statistics: its moments follow from two training passes.
    first = [
        jax.device_get(network(params, jax.tree.map(np.zeros_like, stats), part / np.float32(255), train=True)[1])
        for part in (images[:BATCH], images[BATCH : 2 * BATCH])
    ]
    for name in ("mean", "var"):
        wanted = np.mean([part["bn1"][name] / 0.1 for part in first], axis=0)
        np.testing.assert_allclose(found["bn1"][name], wanted, rtol=2e-4, atol=1e-4)


@pytest.mark.slow
def test_classes_that_cannot_be_get_no_probability_and_are_in_no_prediction_set(tmp_path):
    names = bundles.load(BUNDLE).classes
    whole = predict(BUNDLE, "synthetic:cart-tiny", tmp_path / "all.csv")
    some = predict(BUNDLE, "synthetic:cart-tiny", tmp_path / "some.csv", classes=names[1:])
    assert names[0] in whole.prediction.tolist(), "or nothing is shown"
    assert names[0] not in some.prediction.tolist()
    rest = whole.probabilities[:, 1:] / whole.probabilities[:, 1:].sum(1, keepdims=True)
    np.testing.assert_allclose(some.probabilities, np.pad(rest, ((0, 0), (1, 0))), atol=1e-6)


@pytest.mark.parametrize(
    ("place", "said"), [(".", "is a folder"), ("m.csv", "what is to be read"), ("b/x/p.csv", "within")]
)
def test_a_table_takes_no_place_where_it_would_destroy_something(tmp_path, place, said):
    (tmp_path / "m.csv").write_text("path,label\n")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "bundle.json").write_text("{}")
    with pytest.raises(UserError, match=said):
        predict(tmp_path / "b", str(tmp_path / "m.csv"), tmp_path / place)
    assert (tmp_path / "m.csv").read_text() == "path,label\n"
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["bundle.json"]


def test_labels_that_the_bundle_does_not_know_are_said_with_the_spelling_that_it_does(capsys):
    bundle = bundles.load(BUNDLE)
    names = (bundle.classes[0].upper(), bundle.classes[1], "other")
    examples = SimpleNamespace(label=np.array([0, 0, 1, 2, -1]))
    _say_unknown(bundle, SimpleNamespace(classes=names, examples=examples), Console())
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"warning: 2 images of '{names[0]}' have no label in the table")
    assert first.endswith(f"; it has '{bundle.classes[0]}'.")
    assert second == "warning: 1 images of 'other' have no label in the table: the bundle has no such class."
    many = SimpleNamespace(classes=[f"patient{k}" for k in range(200)], examples=SimpleNamespace(label=np.arange(200)))
    _say_unknown(bundle, many, Console())
    (line,) = capsys.readouterr().out.splitlines()  # and not a line a folder
    assert "200 images of 'patient0', 'patient1'" in line
    assert "and 195 more have no label" in line


@pytest.mark.parametrize(("flags", "said"), [([1] * 9 + [0] * 91, True), ([1] * 3 + [0] * 97, False), ([1, 0], False)])
def test_a_set_with_many_strange_images_is_said(flags, said, capsys):
    ood = np.array(flags)
    _say_strange(Calibrated(np.ones((len(ood), 1)), np.zeros_like(ood), ood), Console())
    assert capsys.readouterr().out.startswith(f"{sum(flags)} of {len(flags)} images are unlike") == said


def test_a_set_in_parts_is_answered_as_it_is_at_once(tmp_path):
    bundle, placement = bundles.load(BUNDLE), Placement.everywhere()
    data = prepare("synthetic:cart-tiny", bundle.rule, cache=tmp_path, labelled=False, keep=False)
    answers, features = answered(bundle, data, placement)
    half = len(features) // 2 - 1  # two images are left for a third part
    in_parts, features_too = answered(bundle, data, placement, chunk=half)
    np.testing.assert_allclose(features_too, features, rtol=1e-4, atol=1e-5)
    whole, parts = (table_of(bundle, data, found) for found in (answers, in_parts))
    for name in ("path", "abstain"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)
    for name in ("probabilities", "ood"):  # passes of other sizes round differently
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("backend", "side", "images", "most"),
    [("cpu", 64, 100, 64), ("cpu", 128, 100, 64), ("cpu", 224, 100, 16), ("cpu", 224, 1, 1), ("gpu", 224, 100, 64)],
)
def test_a_pass_on_cpu_has_fewer_images_the_larger_they_are(monkeypatch, backend, side, images, most):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    placement = Placement.everywhere()
    assert _batch(images, side, placement) == -(-most // placement.devices) * placement.devices


def test_a_class_that_cannot_be_makes_nobody_abstain():
    sure = np.array([[0.0, 0.05, 0.95]])
    levels = {"a": 1.0, "b": 0.1, "c": 0.1}
    assert abstain(sure, levels, "abc").tolist() == [True]
    assert abstain(sure, levels, "abc", sure > 0).tolist() == [False]


@pytest.mark.parametrize(("classes", "said"), [(("monocyt",), "'monocyt' is no class"), ((), "fewer than two classes")])
def test_classes_of_a_set_are_those_of_the_bundle_and_two_at_least(classes, said):
    bundle = bundles.load(BUNDLE)
    with pytest.raises(UserError, match=f"^--classes.*{said}"):
        bundle.restricted_to((*classes, bundle.classes[0]))
