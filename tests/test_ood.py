"""Strange images lie far out, known ones do not; new patients count as known; what is stored is what is applied."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation import calibration, ood

NO_GROUPS = np.full(400, "")


def drawn(n, seed, features=20):
    """Correlated normal values (n, features)."""
    mixing = np.random.default_rng(99).normal(size=(features, features))
    return np.random.default_rng(seed).normal(size=(n, features)) @ mixing + 5


def both(n, seed):
    return {"appearance": drawn(n, seed), "head": drawn(n, seed + 1000)}


def share_flagged(facts, seen):
    return (ood.score(facts, seen) > facts["threshold"]).mean()


def test_new_images_like_the_known_pass_and_others_do_not():
    facts = ood.fit(both(400, 0), NO_GROUPS)
    assert share_flagged(facts, both(4000, 1)) < 0.03
    one_space_is_enough = {**both(50, 2), "head": drawn(50, 3) + 30}
    assert share_flagged(facts, one_space_is_enough) == 1


def test_a_group_is_measured_by_the_others_so_that_a_new_patient_passes():
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=(40, 1, 5)) * 3

    def images(patients):
        values = (offsets[patients] + rng.normal(size=(len(patients), 40, 5))).reshape(-1, 5)
        return {"appearance": values}, np.repeat([f"p{p:02d}" for p in patients], 40)

    (known, groups), (new, _) = images(np.arange(10)), images(np.arange(10, 40))
    whole, single = (ood.fit(known, named) for named in (groups, np.full(len(groups), "")))
    assert whole["threshold"] * whole["spaces"]["appearance"]["unit"] > 1.2 * (
        single["threshold"] * single["spaces"]["appearance"]["unit"]
    )
    assert share_flagged(whole, new) < share_flagged(single, new)


def test_one_group_that_is_nearly_all_does_not_void_the_threshold():
    groups = np.array(["a"] * 395 + ["b"] * 5)
    facts = ood.fit(both(400, 0), groups)
    assert share_flagged(facts, {**both(50, 2), "head": drawn(50, 3) + 30}) == 1


def test_the_threshold_follows_unseen_images_and_is_never_lowered():
    facts = ood.fit(both(400, 0), NO_GROUPS)
    far = ood.with_raised_threshold(facts, np.linspace(0, 2, 1001))
    assert far["threshold"] == pytest.approx(1.98 * facts["threshold"], rel=0.01)
    assert ood.with_raised_threshold(facts, np.linspace(0, 0.5, 1001))["threshold"] == facts["threshold"]
    assert ood.with_raised_threshold(facts, np.zeros(0)) == facts
    assert ood.with_raised_threshold({}, np.ones(3)) == {}


def test_too_few_images_give_no_threshold():
    assert ood.fit(both(7, 0), np.full(7, "")) == {}
    assert ood.fit(both(8, 0), np.full(8, ""))["threshold"] > 0


def test_a_feature_that_never_fires_in_training_does_not_decide_all():
    known, new = drawn(400, 0), drawn(400, 1)
    known[:, 3], new[:, 3] = 0, 1e-4
    assert share_flagged(ood.fit({"head": known}, NO_GROUPS), {"head": new}) < 0.05


def test_what_is_stored_in_json_gives_the_same_scores_and_stays_small():
    facts = ood.fit({**both(400, 0), "head": drawn(400, 0, 512)}, NO_GROUPS)
    text = json.dumps(facts, indent=2)
    assert len(text) < 150_000
    seen = {**both(20, 1), "head": drawn(20, 1, 512)}
    np.testing.assert_array_equal(ood.score(json.loads(text), seen), ood.score(facts, seen))
    again = ood.fit({**both(400, 0), "head": drawn(400, 0, 512)}, NO_GROUPS)
    assert json.dumps(again) == json.dumps(facts)


def test_a_very_wide_head_takes_fewer_axes():
    facts = ood.fit({"head": drawn(60, 0, 800)}, np.full(60, ""))
    assert len(facts["spaces"]["head"]["axes"]) <= ood.ROOM // 800 < ood.AXES["head"]


@pytest.mark.parametrize("size", [32, 33])
def test_appearance_tells_noise_blank_stain_and_blur_apart(size):
    rng = np.random.default_rng(0)
    base = np.clip(rng.normal(150, 30, (60, size, size, 3)), 0, 255).astype(np.uint8)
    found = ood.appearance(base)
    assert found.shape == (60, ood.AXES["appearance"])
    many = ood.appearance(np.concatenate([base, base]))
    np.testing.assert_array_equal(many, np.concatenate([found, found]))
    assert ood.appearance(base[:0]).shape == (0, ood.AXES["appearance"])
    facts = ood.fit({"appearance": found}, np.full(60, ""))
    blur = (base.astype(float) + np.roll(base, 1, 1) + np.roll(base, 1, 2)) / 3
    others = {
        "noise": rng.integers(0, 256, base.shape),
        "blank": np.full(base.shape, 150),
        "stain": base * np.array([1.0, 0.8, 1.0]),
        "blur": blur,
    }
    for name, images in others.items():
        seen = {"appearance": ood.appearance(images.astype(np.uint8))}
        assert share_flagged(facts, seen) > 0.95, name


def test_flags_come_with_the_features_and_only_then():
    facts = {"ood": ood.fit(both(400, 0), NO_GROUPS)}
    logits, strange = np.zeros((30, 2)), {**both(30, 2), "head": drawn(30, 3) + 30}
    assert (calibration.apply(facts, logits, ("a", "b"), strange).ood == 1).all()
    assert calibration.apply(facts, logits, ("a", "b"), both(30, 4)).ood.mean() < 0.2
    assert (calibration.apply(facts, logits, ("a", "b")).ood == -1).all()


@pytest.mark.parametrize(
    "wrong", [{"threshold": "x"}, {"spaces": {"colour": {}}}, {"spaces": {"head": {"mean": "1 2"}}}]
)
def test_statistics_that_do_not_fit_are_refused(wrong):
    facts = {"ood": {**ood.fit(both(400, 0), NO_GROUPS), **wrong}}
    with pytest.raises(UserError, match=r"calibration\.json"):
        calibration.apply(facts, np.zeros((3, 2)), ("a", "b"), both(3, 1))
