"""The shortcut classifier: it sees only signals, learns from training rows alone, and finds what marks a class."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rcmnet_jax.data.shortcut import fit_predict, usefulness
from rcmnet_jax.evaluation.shortcut_warning import shortcut_warning

NAMES = ("height", "width", "aspect", "file_bytes", "format", "border_red", "mean_red", "std_red")


def examples(label, signals, group=None):
    n = len(label)
    return SimpleNamespace(
        path=np.array([f"{i}.png" for i in range(n)]),
        label=np.array(label, np.int32),
        group=np.array(group if group is not None else [""] * n, str),
        pixel_sha256=np.array([f"h{i}" for i in range(n)]),
        signals=np.array(signals, np.float32),
        signal_names=NAMES,
    )


def noise(n, seed=0):
    return np.abs(np.random.default_rng(seed).normal(100, 10, (n, len(NAMES))))


def test_probabilities_are_float64_rows_that_sum_to_one_and_repeat():
    label = np.arange(60) % 3
    data = examples(label, noise(60))
    one, two = (fit_predict(data, np.arange(40), np.arange(40, 60), 3) for _ in range(2))
    assert one.shape == (20, 3)
    assert one.dtype == np.float64
    np.testing.assert_allclose(one.sum(1), 1)
    np.testing.assert_array_equal(one, two)


def test_held_out_rows_and_unlabelled_rows_change_nothing():
    label = np.arange(60) % 2
    signals = noise(60)
    plain = fit_predict(examples(label, signals), np.arange(40), [40], 2)
    label[41:], signals[41:] = 0, 1e6
    np.testing.assert_array_equal(plain, fit_predict(examples(label, signals), np.arange(40), [40], 2))
    label[5] = -1
    left_out = fit_predict(examples(label, signals), np.arange(40), [40], 2)
    np.testing.assert_array_equal(
        left_out, fit_predict(examples(label, signals), np.setdiff1d(np.arange(40), 5), [40], 2)
    )


def test_a_class_that_training_lacks_gets_nothing():
    label = np.arange(40) % 2 * 2
    found = fit_predict(examples(label, noise(40)), np.arange(30), np.arange(30, 40), 3)
    np.testing.assert_array_equal(found[:, 1], 0)
    alone = fit_predict(examples([1] * 40, noise(40)), np.arange(30), np.arange(30, 40), 3)
    np.testing.assert_array_equal(alone, np.tile([0.0, 1, 0], (10, 1)))


def test_constant_and_infinite_signals_do_no_harm():
    signals = np.full((40, len(NAMES)), 64.0)
    signals[3, 0] = np.inf
    found = fit_predict(examples(np.arange(40) % 2, signals), np.arange(30), np.arange(30, 40), 2)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("column", "family"),
    [(0, "image size"), (2, "aspect ratio"), (3, "file size"), (4, "file format"), (5, "border colour"), (6, "colour")],
)
def test_the_signal_that_marks_the_class_is_found_by_its_family_alone(column, family):
    label = np.arange(120) % 3
    signals = noise(120)
    signals[:, 4] = np.arange(120) // 3 % 2
    signals[:, column] = 10 + label * 40
    found = {u.family: u for u in usefulness(examples(label, signals, [f"g{i // 12}" for i in range(120)]), 3)}
    for name, one in found.items():
        marked = (
            name.startswith(family) or name == "all of these" or (column in (0, 6) and name == "size and brightness")
        )
        assert (one.balanced_accuracy > 0.9) == marked, name
        assert one.by == "group"
        assert one.folds == 5


def test_a_signal_that_marks_the_group_and_not_the_class_is_no_use_over_groups():
    # Every patient has a brightness of its own and mostly one class: by image it would look like a strong shortcut.
    group = np.arange(200) // 20
    signals = noise(200)
    signals[:, 6] = np.array([0, 100, 20, 120, 40, 140, 60, 160, 80, 180])[group // 2 * 2 + group % 2]
    label = np.array([0, 0, 1, 1, 0, 1, 1, 0, 0, 1])[group]
    by_group = {u.family: u.balanced_accuracy for u in usefulness(examples(label, signals, group.astype(str)), 2)}
    assert by_group["colour and brightness"] < 0.75


def test_families_that_never_vary_stand_at_chance_and_one_class_gives_nothing():
    signals = noise(60)
    signals[:, :2] = 64
    found = {u.family: u for u in usefulness(examples(np.arange(60) % 2, signals), 2)}
    assert found["image size"].balanced_accuracy == found["image size"].chance == 0.5
    assert found["image size"].by == "image"
    assert usefulness(examples([0] * 60, signals), 2) == []


def test_crop_size_and_brightness_tell_activated_t_cells_from_quiescent_ones():
    root = os.environ.get("RCMNET_TEST_DATA", "")
    if not (Path(root or "/nonexistent") / "tcell").is_dir():
        pytest.skip("RCMNET_TEST_DATA names no folder with tcell/")
    prepare = pytest.importorskip("rcmnet_jax.data.prepare")
    from rcmnet_jax.data.images import ImageRule

    rule = ImageRule(size=32, square="pad", crop=1.0, resample="bilinear")
    data = prepare.prepare(str(Path(root) / "tcell" / "manifest.csv"), rule)
    found = {u.family: u for u in usefulness(data.examples, 2)}
    assert found["size and brightness"].folds == 4
    assert found["size and brightness"].balanced_accuracy == pytest.approx(0.79, abs=0.02)


def metrics(value, low, high, classes=4):
    entry = {"value": value, "low": low, "high": high}
    return {"balanced_accuracy": entry, "per_class": {str(k): {"support": 9} for k in range(classes)}}


@pytest.mark.parametrize(
    ("shortcut", "words"),
    [
        ((0.49, 0.39, 0.59), ""),  # 44% of the gain, and apart
        ((0.54, 0.48, 0.60), "53% of what the network gains over guessing"),
        ((0.90, 0.70, 0.97), "has shown nothing beyond the way the images came"),
        ((0.49, 0.25, 0.76), "the intervals overlap"),
        ((0.20, 0.10, 0.90), ""),  # worse than guessing explains nothing
        ((None, None, None), ""),
    ],
)
def test_a_shortcut_that_explains_most_of_the_accuracy_is_said_in_words(shortcut, words):
    text = shortcut_warning(metrics(0.80, 0.75, 0.85), metrics(*shortcut))
    assert words in text
    assert bool(text) == bool(words)
    if words:
        assert f"{shortcut[0]:.1%}" in text
        assert "80.0% (75.0% to 85.0%), guessing 25.0%" in text
