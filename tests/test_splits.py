"""Folds and holdouts: whole units, every row once, every class everywhere it can be, the user's own split untouched."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rcmnet_jax.data.partition import deal, units
from rcmnet_jax.data.split_file import write_splits
from rcmnet_jax.data.splits import contradictions, cross_validation, describe_holdout, holdout, source_folds
from rcmnet_jax.errors import UserError

CLASSES = ("a", "b", "c")


def examples(label, group=None, split=None, pixels=None):
    n = len(label)
    return SimpleNamespace(
        path=np.array([f"{CLASSES[k] if k >= 0 else 'x'}/{i:04}.png" for i, k in enumerate(label)]),
        label=np.array(label, np.int32),
        group=np.array(group if group is not None else [""] * n, str),
        split=np.array(split if split is not None else [""] * n, str),
        pixel_sha256=np.array(pixels if pixels is not None else [f"h{i}" for i in range(n)], str),
        sha256=np.array([f"{i:064x}" for i in range(n)]),
    )


def cut(data, folds="auto", seed=0, inner=0.2):
    return cross_validation(data, CLASSES, folds=folds, seed=seed, inner_fraction=inner)


@st.composite
def sets(draw):
    n = draw(st.integers(6, 80))
    label = draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n))
    groups = draw(st.integers(1, 12))
    group = draw(st.lists(st.integers(0, groups), min_size=n, max_size=n))
    pixels = draw(st.lists(st.integers(0, 3 * n), min_size=n, max_size=n))
    return examples(label, [f"g{g}" if g else "" for g in group], None, [f"h{p}" if p else "" for p in pixels])


def assert_uncut(one, other, column):
    shared = (set(column[one]) & set(column[other])) - {""}
    assert not shared


@settings(max_examples=80, deadline=None)
@given(sets(), st.integers(0, 5))
def test_folds_cut_no_group_nor_duplicate_and_test_every_labelled_row_once(data, seed):
    try:
        folds, said = cut(data, seed=seed)
    except UserError:
        return
    assert "\n" not in said
    tested = np.concatenate([f.test for f in folds])
    np.testing.assert_array_equal(np.sort(tested), np.flatnonzero(data.label >= 0))
    for fold in folds:
        assert len(fold.test)
        np.testing.assert_array_equal(np.sort(np.concatenate([fold.train, fold.test])), np.sort(tested))
        assert set(fold.inner) <= set(fold.train)
        assert len(fold.inner) < len(fold.train)
        rest = np.setdiff1d(fold.train, fold.inner)
        assert set(data.label[rest]) == set(data.label[fold.train])
        assert_uncut(fold.train, fold.test, data.group)
        assert_uncut(fold.train, fold.test, data.pixel_sha256)
        assert_uncut(rest, fold.inner, data.pixel_sha256)
        if "by image" not in said:
            assert_uncut(rest, fold.inner, data.group)


@settings(max_examples=50, deadline=None)
@given(sets(), st.integers(0, 5))
def test_a_holdout_cuts_no_duplicate_and_no_group_that_it_need_not(data, seed):
    try:
        parts = holdout(data, CLASSES, seed=seed, val_fraction=0.2)
    except UserError:
        return
    together = np.sort(np.concatenate(list(parts.values())))
    np.testing.assert_array_equal(together, np.flatnonzero(data.label >= 0))
    assert_uncut(parts["train"], parts["val"], data.pixel_sha256)
    if "too good" not in describe_holdout(data, CLASSES, parts):
        assert_uncut(parts["train"], parts["val"], data.group)


@settings(max_examples=50, deadline=None)
@given(sets(), st.integers(0, 5), st.integers(2, 4))
def test_folds_of_the_source_cut_no_group_nor_duplicate_and_hold_out_every_row_once(data, seed, count):
    rows = np.flatnonzero(data.label >= 0)[::2]
    assume(len(rows))
    try:
        folds, _ = source_folds(data, CLASSES, rows, count=count, seed=seed)
    except UserError:
        return
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.test for fold in folds])), rows)
    for fold in folds:
        np.testing.assert_array_equal(np.sort(np.concatenate([fold.train, fold.test])), rows)
        assert_uncut(fold.train, fold.test, data.group)
        assert_uncut(fold.train, fold.test, data.pixel_sha256)


def test_more_folds_of_the_source_than_patients_are_refused():
    data = examples([0, 1, 0, 1, 2, 2], group=["p", "p", "q", "q", "r", "r"])
    with pytest.raises(UserError, match=r"source\.soft_folds=4: the training part has 3 groups"):
        source_folds(data, CLASSES, np.arange(6), count=4, seed=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2)), min_size=5, max_size=60), st.integers(2, 5))
def test_every_part_gets_a_unit_where_there_are_enough(rows, parts):
    unit, label = np.array(rows).T
    dealt = deal(unit, label, 3, np.full(parts, 1 / parts), 0)
    assert len(set(dealt)) >= min(parts, len(set(unit)))


def test_ungrouped_folds_hold_each_class_to_the_image():
    data = examples(np.repeat([0, 1, 2], [50, 23, 7]))
    folds, said = cut(data, "5")
    for fold in folds:
        np.testing.assert_array_less(np.abs(np.bincount(data.label[fold.test]) - np.array([10, 4.6, 1.4])), 1)
        assert len(fold.test) == 16
        assert set(data.label[fold.inner]) == {0, 1, 2}
    assert "5 folds over 80 distinct images" in said


def test_the_same_seed_gives_the_same_folds_and_another_seed_others():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 20, 200)
    data = examples(rng.integers(0, 3, 200), [f"g{g}" for g in group])
    one, again, other = (cut(data, seed=s)[0] for s in (3, 3, 4))
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a.test, b.test)
        np.testing.assert_array_equal(a.inner, b.inner)
    assert {tuple(f.test) for f in one} != {tuple(f.test) for f in other}
    assert {tuple(f.inner) for f in one} != {tuple(f.inner) for f in other}


def test_grouped_folds_are_balanced_at_least_as_well_as_by_scikit_learn():
    from sklearn.model_selection import StratifiedGroupKFold

    def uneven(parts, label):
        counts = np.zeros((4, 3))
        np.add.at(counts, (parts, label), 1)
        goal = counts.mean(0)
        return ((counts - goal) ** 2 / goal).sum() + 1000 * (counts == 0).sum()

    ours, theirs = 0.0, 0.0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        unit = np.repeat(np.arange(14), rng.geometric(1 / 12, 14))
        label = rng.choice(3, len(unit), p=[0.6, 0.3, 0.1])
        ours += uneven(deal(unit, label, 3, np.full(4, 0.25), seed), label)
        parts = np.empty(len(unit), int)
        cutter = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
        for k, (_, test) in enumerate(cutter.split(unit, label, unit)):
            parts[test] = k
        theirs += uneven(parts, label)
    assert ours < theirs


def test_a_class_with_as_many_groups_as_folds_is_in_each_of_them():
    label = [0] * 60 + [1] * 4
    group = [f"g{i % 12}" for i in range(60)] + ["g0", "g3", "g6", "g9"]
    folds, said = cut(examples(label, group), "4")
    assert all(set(np.array(label)[f.test]) == {0, 1} for f in folds)
    assert "missing" not in said


def test_auto_is_five_or_the_number_of_groups_and_says_so():
    few, said = cut(examples([0, 1] * 20, [f"donor{i % 4}" for i in range(40)][::-1]), "auto")
    assert len(few) == 2 or "over 4 groups" in said
    many, said_many = cut(examples([0, 1] * 30, [f"donor{i // 6}" for i in range(60)]), "auto")
    assert len(many) == 5
    assert "5 folds (auto)" in said_many


def test_four_donors_make_four_folds_of_one_donor_each():
    data = examples([0, 0, 1] * 16, [f"donor_{1 + i // 12}" for i in range(48)])
    folds, said = cut(data)
    assert said.startswith("4 folds (auto: no more than the groups) over 4 groups")
    assert [set(data.group[f.test]) for f in folds] == [{f"donor_{k}"} for k in (1, 2, 3, 4)]
    assert all(len(set(data.group[f.inner])) == 1 for f in folds)


def test_more_folds_than_groups_are_refused():
    with pytest.raises(UserError, match=r"target.folds=5: there are 2 groups.*2 or fewer"):
        cut(examples([0, 1] * 6, ["g", "h"] * 6), "5")


def test_groups_joined_by_identical_images_count_once():
    data = examples([0, 1] * 6, ["g", "g", "h", "h", "i", "i"] * 2, None, ["same", "2", "same", *"456789abc"])
    folds, said = cut(data)
    assert len(folds) == 2
    assert "3 groups are named, but identical images join" in said


@pytest.mark.parametrize(
    ("label", "group", "words"),
    [
        ([-1, -1], None, "None of the 2 images has a label"),
        ([], None, "None of the 0 images"),
        ([1, 1, 1], None, "single class"),
        ([0, 1, 0], ["g"] * 3, "none can be held out"),
        ([0, 0, 1, 1], ["g", "g", "h", "h"], "fold 0's training part has 2 labelled images of a single class"),
    ],
)
def test_what_cannot_be_split_is_refused_in_a_sentence(label, group, words):
    with pytest.raises(UserError, match=rf"(?i){words}"):
        cut(examples(label, group))


def test_a_class_in_too_few_groups_is_said():
    data = examples([0, 1] * 10 + [2, 2], [f"g{i // 4}" for i in range(20)] + ["g0", "g0"])
    _, said = cut(data)
    assert "Class 'c' is all held out in fold" in said
    assert "Class 'c' is missing from the test part of fold" in said


def test_one_group_left_to_train_on_gives_an_inner_split_by_image_and_says_so():
    data = examples([0, 1] * 20, ["g"] * 20 + ["h"] * 20, None, [f"h{i // 4 * 4 + i % 2}" for i in range(40)])
    folds, said = cut(data)
    assert "comes from one group, so its inner split is by image" in said
    for fold in folds:
        assert len(fold.inner)
        assert_uncut(np.setdiff1d(fold.train, fold.inner), fold.inner, data.pixel_sha256)


def test_an_inner_split_of_one_class_is_none_at_all():
    """A network that calls everything by that class would be perfect on it."""
    folds, said = cut(examples([0] * 60 + [1] * 2), "2")
    assert [len(fold.inner) for fold in folds] == [0, 0]
    assert "Fold 0: its training part is too small for an inner split" in said


def test_the_users_test_rows_are_the_only_fold():
    split = ["train", "Train", "val", "test", "validation", "train"] * 2
    data = examples([0, 1, 0, 1, 1, 0] * 2, ["g"] * 12, split)
    (fold,), said = cut(data, "5")
    np.testing.assert_array_equal(fold.test, [3, 9])
    np.testing.assert_array_equal(fold.inner, [2, 4, 8, 10])
    np.testing.assert_array_equal(fold.train, np.setdiff1d(np.arange(12), [3, 9]))
    assert "target.folds=5 is not used" in said


def test_a_split_column_without_test_holds_out_val():
    data = examples([0, 1] * 10, None, ["train"] * 14 + ["val"] * 6)
    (fold,), said = cut(data)
    np.testing.assert_array_equal(fold.test, np.arange(14, 20))
    assert 0 < len(fold.inner) < 14
    assert "'val' held out" in said


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (["train", "", "test", "test"], "1 of 4 labelled images have no split"),
        (["train", "tset", "test", "test"], "split 'tset' is not train, val or test"),
        (["test"] * 4, "no 'train' rows"),
    ],
)
def test_a_split_column_that_cannot_be_followed_is_refused(split, words):
    with pytest.raises(UserError, match=words):
        cut(examples([0, 1, 0, 1], None, split))
    with pytest.raises(UserError, match=words):
        holdout(examples([0, 1, 0, 1], None, split), CLASSES, seed=0, val_fraction=0.2)


def test_the_sources_own_split_is_respected_and_val_is_drawn_from_train_where_missing():
    label = [0, 1] * 20
    own = holdout(
        examples(label, None, ["train"] * 20 + ["val"] * 10 + ["test"] * 10), CLASSES, seed=1, val_fraction=0.3
    )
    assert [list(own[n]) for n in ("train", "val", "test")] == [list(range(20)), [*range(20, 30)], [*range(30, 40)]]
    drawn = holdout(examples(label, None, ["train"] * 20 + ["test"] * 20), CLASSES, seed=1, val_fraction=0.3)
    np.testing.assert_array_equal(drawn["test"], np.arange(20, 40))
    assert len(drawn["val"]) == 6
    assert set(drawn["val"]) | set(drawn["train"]) == set(range(20))


def test_a_drawn_holdout_has_its_fraction_of_every_class():
    data = examples(np.repeat([0, 1, 2], [100, 40, 2]))
    parts = holdout(data, CLASSES, seed=0, val_fraction=0.15)
    np.testing.assert_array_equal(np.bincount(data.label[parts["val"]]), [15, 6, 1])
    assert len(parts["test"]) == 0


def test_a_source_that_can_spare_no_image_is_refused():
    with pytest.raises(UserError, match="leave none to validate on"):
        holdout(examples([0, 1, 2]), CLASSES, seed=0, val_fraction=0.15)
    alone = holdout(examples([0, 1, 0], split=["train", "train", "test"]), CLASSES, seed=0, val_fraction=0.15)
    assert [len(alone[part]) for part in ("train", "val", "test")] == [2, 0, 1]


def test_identical_images_with_two_labels_are_named():
    data = examples([0, 1, 0, 1], None, None, ["same", "same", "x", "y"])
    (said,) = contradictions(data, CLASSES)
    assert "a/0000.png (a), b/0001.png (b)" in said
    assert said in cut(examples([0, 1, 0, 1], None, None, ["same", "same", "x", "y"]), "2")[1]


def test_units_join_through_groups_and_pixels_alike():
    group = np.array(["g", "h", "", "", "h", ""])
    pixels = np.array(["1", "1", "2", "", "2", ""])
    np.testing.assert_array_equal(units(group, pixels), [0, 0, 0, 1, 0, 2])


def test_the_table_of_splits_names_every_role_and_its_bytes_repeat(tmp_path):
    source, target = examples([0, 1] * 10), examples([0, 1] * 10, [f"Ä{i // 2}" for i in range(20)])
    parts = holdout(source, CLASSES, seed=0, val_fraction=0.2)
    folds = {s: cut(target, "2", seed=s)[0] for s in (1, 0)}
    for name in ("one.csv", "two.csv"):
        write_splits(tmp_path / name, source=(source, CLASSES, parts), target=(target, CLASSES, folds))
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    rows = list(csv.DictReader((tmp_path / "one.csv").read_text("utf-8").splitlines()))
    assert list(rows[0]) == ["set", "path", "label", "group", "seed", "fold", "role"]
    assert len(rows) == 20 + 20 * 2 * 2
    chosen = [r["path"] for r in rows if (r["set"], r["seed"], r["fold"], r["role"]) == ("target", "1", "0", "inner")]
    assert chosen == list(target.path[folds[1][0].inner])
    assert {r["role"] for r in rows if r["set"] == "source"} == {"train", "val"}
