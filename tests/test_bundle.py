"""Bundles of every format that was ever written load and answer as they did; anything else is refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rcmnet_jax import bundle as bundles
from rcmnet_jax.errors import UserError
from rcmnet_jax.files import write_sums
from rcmnet_jax.training.sharding import Placement
from tests.commands import run

FORMATS = sorted((Path(__file__).parent / "bundles").glob("format_*"))


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(FORMATS[-1] / "bundle", tmp_path / "bundle"))


def rewrite(folder, **changes):
    facts = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(facts | changes))
    write_sums(folder)


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_a_bundle_of_each_format_gives_its_stored_probabilities(folder):
    stored = np.load(folder / "answers.npz")
    found = bundles.load(folder / "bundle").answers(stored["images"], Placement.everywhere())
    np.testing.assert_allclose(found.probabilities, stored["probabilities"], atol=1e-4)


def test_a_bundle_written_again_has_the_same_weights_and_the_same_bytes(copy, tmp_path):
    first = bundles.load(copy)
    for name in ("one", "two"):
        bundles.write(tmp_path / name, first)
    again = bundles.load(tmp_path / "one")
    jax.tree.map(np.testing.assert_array_equal, (first.params, first.batch_stats), (again.params, again.batch_stats))
    bare = [dataclasses.replace(bundle, params={}, batch_stats={}) for bundle in (first, again)]
    assert bare[0] == bare[1]
    assert (tmp_path / "one/SHA256SUMS").read_bytes() == (tmp_path / "two/SHA256SUMS").read_bytes()


def test_weights_that_are_views_of_larger_arrays_are_written_as_what_they_show(copy, tmp_path):
    bundle = bundles.load(copy)

    def view(leaf):
        wide = np.pad(np.asarray(leaf), [(0, 3)] * np.ndim(leaf), constant_values=7)
        return wide[tuple(slice(0, n) for n in np.shape(leaf))]

    bundles.write(tmp_path / "again", dataclasses.replace(bundle, params=jax.tree.map(view, bundle.params)))
    again = bundles.load(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, again.params, bundle.params)


@pytest.mark.slow
def test_a_bundle_knows_its_views_and_one_from_before_there_was_a_choice_has_one(copy, tmp_path):
    old = bundles.load(copy)
    assert old.views == "one"
    bundles.write(tmp_path / "new", dataclasses.replace(old, views="dihedral"))
    assert bundles.load(tmp_path / "new").views == "dihedral"
    images = np.random.default_rng(0).integers(0, 256, (2, old.rule.size, old.rule.size, 3), dtype=np.uint8)
    new, place = bundles.load(tmp_path / "new"), Placement.everywhere()
    np.testing.assert_allclose(new.logits(images, place), new.logits(images[:, ::-1], place), atol=1e-5)
    rewrite(copy, preprocessing=json.loads((copy / "bundle.json").read_text())["preprocessing"] | {"views": "ten"})
    with pytest.raises(UserError, match=r"preprocessing\.views is 'ten'"):
        bundles.load(copy)


def test_a_newer_format_is_refused_with_the_way_out(copy):
    rewrite(copy, format_version=99)
    with pytest.raises(UserError, match=r"format_version is 99.*Update rcmnet_jax"):
        bundles.load(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "bundle.json", "calibration.json", "card.md", "SHA256SUMS"])
def test_one_flipped_byte_in_any_file_is_refused(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        bundles.load(copy)


def test_a_file_that_is_not_in_the_sums_is_refused(copy):
    (copy / "model.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match=r"model\.pkl is not in SHA256SUMS"):
        bundles.load(copy)


def test_weights_that_are_no_safetensors_are_refused_whatever_the_sums_say(copy):
    (copy / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    write_sums(copy)
    with pytest.raises(UserError, match="not a safetensors file"):
        bundles.load(copy)


@pytest.mark.parametrize("changes", [{"classes": ["one"]}, {"architecture": {}}, {"preprocessing": 3}])
def test_a_description_that_describes_no_network_is_refused(copy, changes):
    rewrite(copy, **changes)
    with pytest.raises(UserError, match=r"bundle\.json"):
        bundles.load(copy)


def test_weights_of_another_class_count_are_refused_by_leaf(copy):
    rewrite(copy, classes=["a", "b", "c"])
    with pytest.raises(UserError, match=r"leaf params\.fc\.(bias|kernel)"):
        bundles.load(copy)


@pytest.mark.slow
def test_the_command_names_a_damaged_bundle_in_one_line_and_exits_2(copy, tmp_path):
    (copy / "card.md").write_text("changed")
    status, _, err = run("-m", "rcmnet_jax", "predict", copy, "synthetic:cart-tiny", "--output", tmp_path / "p.csv")
    assert status == 2
    assert "card.md is damaged" in err
    assert "Traceback" not in err
