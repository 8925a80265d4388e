"""`predict --adapt`: another laboratory's images reach the network as its own would, and what was done is said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from rcmnet_jax import bundle as bundles
from rcmnet_jax.data.appearance import describe
from rcmnet_jax.data.images import standardise
from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation.adapt import adapt, parse_adapt_parts
from rcmnet_jax.evaluation.neighbours import smooth
from rcmnet_jax.evaluation.predict_command import predict
from rcmnet_jax.training.sharding import Placement
from tests.test_appearance import smear

BUNDLE = sorted((Path(__file__).parent / "bundles").glob("format_*"))[-1] / "bundle"
SIZES = np.linspace(20, 28, 24)
OURS = [smear(diameter=d) for d in SIZES]
THEIRS = [smear((190, 170), 3 * d, 384, tint=(0.8, 0.95, 0.7), gamma=1.4) for d in SIZES]


def shown(images, rule):
    return np.stack([standardise(image, rule) for image in images])


@pytest.fixture(scope="module")
def bundle():
    """A bundle whose training images were OURS."""
    made = bundles.load(BUNDLE)
    known = {**made.calibration, "appearance": describe(shown(OURS, made.rule)).to_dict()}
    return dataclasses.replace(made, calibration=known)


def adapted(bundle, images, *parts):
    return adapt(bundle, lambda i: images[i], len(images), Placement.everywhere(), parts)


def test_another_laboratorys_images_become_like_the_training_images(bundle):
    near, far = (np.abs(x.astype(int) - shown(OURS, bundle.rule)).mean() for x in (
        adapted(bundle, THEIRS, "scale", "colour").images, shown(THEIRS, bundle.rule)))  # fmt: skip
    assert near < 0.25 * far


def test_images_like_the_training_images_stay_as_they_are(bundle):
    made = adapted(bundle, OURS, "scale")
    np.testing.assert_array_equal(made.images, shown(OURS, bundle.rule))
    assert made.facts["scale"]["ratio"] == 1
    changed = adapted(bundle, OURS, "scale", "colour").images.astype(int) - made.images
    assert np.abs(changed).max() <= 2


def test_the_dark_around_a_field_is_painted_over_and_told(bundle):
    dark = [image.copy() for image in OURS]
    for image in dark[::2]:
        image[:, :8] = 20
    made = adapted(bundle, dark, "scale")
    assert made.facts["scale"]["dark_surround"] == 12
    assert "In 12 the dark around" in made.sentences[0]
    assert made.images.max(-1).min() > 100 > shown(dark, bundle.rule).max(-1).min()


def test_what_chance_may_have_made_of_a_few_sizes_is_left_at_the_second_look_too(bundle):
    few = adapted(bundle, [smear(diameter=1.2 * d) for d in (22, 23, 24, 25, 26)], "scale").facts["scale"]["ratio"]
    many = adapted(bundle, [smear(diameter=1.2 * d) for d in SIZES] * 8, "scale").facts["scale"]["ratio"]
    assert few == 1 or few < 1.12 < many


def test_batch_norm_sees_images_together_that_the_network_calls_alike(bundle, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "rcmnet_jax.evaluation.adapt.reestimate",
        lambda _network, _params, batch_stats, images, _placement: seen.append(images) or batch_stats,
    )

    def called(images):
        return images[..., 0].mean((1, 2)) > 150

    monkeypatch.setattr(bundles.Bundle, "logits", lambda _, images, __: np.eye(2)[called(images).astype(int)])
    adapted(bundle, [smear(tint=(tint, 1, 1)) for tint in (1, 0.5) * 20], "norm")
    np.testing.assert_array_equal(called(seen[0]), [False] * 20 + [True] * 20)


def test_batch_norm_takes_no_image_for_one_of_a_class_that_cannot_be(bundle, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "rcmnet_jax.evaluation.adapt.reestimate",
        lambda _network, _params, batch_stats, images, _placement: seen.append(images) or batch_stats,
    )
    first = bundle.classes[0]

    def logits(_, images, __):  # the first class is likeliest for dark images, the last for none
        dark = images[..., 0].mean((1, 2)) <= 150
        made = np.zeros((len(images), len(bundle.classes)))
        made[dark, 0], made[:, 1] = 2.0, 1.0
        return made

    monkeypatch.setattr(bundles.Bundle, "logits", logits)
    images = [smear(tint=(tint, 1, 1)) for tint in (1, 0.5) * 20]
    adapted(bundle, images, "norm")
    others = [name for name in bundle.classes if name != first]
    adapted(bundle.restricted_to(others), images, "norm")
    dark = [(part[..., 0].mean((1, 2)) <= 150).astype(int) for part in seen]
    assert np.abs(np.diff(dark[0])).sum() == 1  # sorted into two heaps
    assert np.abs(np.diff(dark[1])).sum() > 1  # all are of one class, and stay in the order that they were drawn in


@pytest.mark.slow
def test_the_same_images_are_adapted_to_the_same_bits(bundle):
    one, two = (adapted(bundle, THEIRS, "scale", "colour", "norm") for _ in range(2))
    np.testing.assert_array_equal(one.images, two.images)
    jax.tree.map(np.testing.assert_array_equal, one.bundle.batch_stats, two.bundle.batch_stats)
    assert one.facts == two.facts


@pytest.mark.slow
def test_batch_norm_moves_the_less_the_fewer_images_there_are(bundle):
    def moved(count):
        made = adapted(bundle, THEIRS[:count], "norm")
        gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).sum()), made.bundle.batch_stats, bundle.batch_stats)
        return made.facts["norm"]["share"], sum(jax.tree.leaves(gaps))

    (few, little), (many, more) = moved(1), moved(len(THEIRS))
    assert few < 0.1 < 0.3 < many
    assert 0 < little < more


@pytest.mark.slow
def test_predict_writes_what_it_found_beside_the_table(bundle, tmp_path, capsys):
    bundles.write(tmp_path / "bundle", bundle)
    (tmp_path / "cells").mkdir()
    for i, image in enumerate(THEIRS):
        Image.fromarray(image).save(tmp_path / f"cells/{i:02}.png")
    parts = ("scale", "colour", "neighbours")
    table = predict(tmp_path / "bundle", str(tmp_path / "cells"), tmp_path / "p.csv", adapt=parts)
    facts = json.loads((tmp_path / "p.adapt.json").read_text())
    assert facts["images"] == len(table) == len(THEIRS)
    assert facts["scale"]["ratio"] == pytest.approx(72 / 384 / 0.25, rel=0.1)
    said = capsys.readouterr().out
    assert "times as large in their images as in training" in said
    changed = facts["neighbours"]["changed"]
    assert f"{changed} of {len(THEIRS)} are called otherwise than by themselves" in said
    by_themselves = predict(tmp_path / "bundle", str(tmp_path / "cells"), tmp_path / "q.csv", adapt=parts[:2])
    assert (by_themselves.prediction != table.prediction).sum() == changed
    assert np.abs(by_themselves.probabilities - table.probabilities).max() > 1e-3
    assert set(table.ood.tolist()) == {-1}


def test_a_bundle_that_knows_nothing_of_its_images_is_adapted_by_batch_norm_alone(bundle):
    bare = dataclasses.replace(bundle, calibration={})
    made = adapted(bare, THEIRS[:8], "scale", "colour", "norm")
    np.testing.assert_array_equal(made.images, shown(THEIRS[:8], bundle.rule))
    assert "does not say how its training images look" in made.sentences[0]
    with pytest.raises(UserError, match="neither says how its training images look nor"):
        adapted(bare, THEIRS[:8], "scale")


def test_answers_lean_on_one_another_in_a_set_that_is_large_enough(bundle):
    many = adapted(bundle, THEIRS, "neighbours")
    assert many.facts["neighbours"] == {"near": 2}
    alone, features = many.bundle.answers_and_features(many.images, Placement.everywhere())
    np.testing.assert_array_equal(many.answers(alone, features).probabilities, smooth(alone, features).probabilities)
    assert np.abs(many.answers(alone, features).probabilities - alone.probabilities).max() > 1e-3
    few = adapted(bundle, THEIRS[:9], "neighbours", "norm")
    assert few.answers(alone, features) is alone
    assert "Fewer than 10 images" in few.sentences[-1]
    with pytest.raises(UserError, match="neither says how its training images look nor"):
        adapted(dataclasses.replace(bundle, calibration={}), THEIRS[:9], "neighbours")


def test_parts_are_named_or_refused():
    assert parse_adapt_parts("norm, scale") == ("scale", "norm")
    with pytest.raises(UserError, match="--adapt-parts=stain: give one or more of scale,colour,norm,neighbours"):
        parse_adapt_parts("stain")
