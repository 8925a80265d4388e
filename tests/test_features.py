"""features.npz: what is written is read, a damaged file is no failure, and only one space is joined."""

import dataclasses

import jax
import numpy as np

from rcmnet_jax.bundle import Bundle
from rcmnet_jax.config import ModelConfig
from rcmnet_jax.data.images import ImageRule
from rcmnet_jax.evaluation import features
from rcmnet_jax.evaluation.features import Features
from rcmnet_jax.evaluation.projection import neighbours_agree, principal
from rcmnet_jax.models import Network


def some(space="s", n=4):
    return Features(np.array([f"{i}.png" for i in range(n)]), np.arange(3 * n, dtype=np.float16).reshape(n, 3), space)


def test_features_are_read_as_they_were_written_in_the_same_bytes(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        features.write(tmp_path / name, some())
    files = [(tmp_path / name / features.FILE).read_bytes() for name in "ab"]
    assert files[0] == files[1]
    found = features.read(tmp_path / "a")
    np.testing.assert_array_equal(found.values, some().values)
    np.testing.assert_array_equal(found.path, some().path)
    assert found.space == "s"


def test_a_missing_or_damaged_file_gives_none(tmp_path):
    assert features.read(tmp_path) is None
    features.write(tmp_path, some())
    whole = (tmp_path / features.FILE).read_bytes()
    for broken in (b"", whole[:50], b"x" * 200):
        (tmp_path / features.FILE).write_bytes(broken)
        assert features.read(tmp_path) is None


def test_only_features_of_one_space_are_joined():
    assert len(features.joined([some(), some()]).path) == 8
    assert features.joined([some("s"), some("t")]) is None
    assert features.joined([some(), None]) is None
    assert features.joined([]) is None


def test_the_space_is_that_of_the_body_without_the_head():
    network = Network(ModelConfig(name="resnet18", width=8), classes=3, image_size=32)
    params, stats = jax.device_get(network.init(0))
    made = Bundle(network, ("a", "b", "c"), ImageRule(32), params, stats, {})
    other_head = dataclasses.replace(made, params={**params, "fc": jax.device_get(network.init(1))[0]["fc"]})
    other_body = dataclasses.replace(made, params={**params, "conv1": jax.device_get(network.init(1))[0]["conv1"]})
    assert features.space_of(made) == features.space_of(other_head) != features.space_of(other_body)


def test_principal_components_are_those_of_the_singular_values():
    x = np.random.default_rng(0).normal(size=(50, 6)) * [9, 4, 1, 1, 1, 1]
    places, shares = principal(x)
    centred = x - x.mean(0)
    sizes = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(places, axis=0), sizes[:2])
    np.testing.assert_allclose(shares, sizes[:2] ** 2 / (sizes**2).sum())


def test_neighbours_of_the_own_group_do_not_count():
    values, label = np.array([[0.0], [0.1], [5.0], [5.1]]), np.array(["a", "a", "b", "b"])
    assert neighbours_agree(values, label, np.array([""] * 4)) == (1.0, 1 / 3)
    agree, chance = neighbours_agree(values, label, np.array(["g", "g", "h", "h"]))
    assert (agree, chance) == (0.0, 0.0)
    assert np.isnan(neighbours_agree(values, label, np.array(["g"] * 4))[0])
