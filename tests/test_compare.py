"""Comparisons are paired, by group, corrected for their number, and say in words what can be said."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation.compare import LEVEL, compare, holm, mcnemar
from rcmnet_jax.evaluation.tables import make_table


def model(right, *, groups=0, seed=-1, order=None, classes=("x", "y")):
    """A table of two classes in turn, right where the mask says so."""
    n = len(right)
    truth = np.arange(n) % 2
    said = np.where(right, truth, 1 - truth)
    p = np.where(np.arange(2) == said[:, None], 0.9, 0.1)
    rows = np.arange(n) if order is None else order
    group = [f"g{i * groups // n}" for i in range(n)] if groups else [""] * n
    return make_table(
        [f"{i}.png" for i in rows],
        p[rows],
        classes,
        label=[classes[truth[i]] for i in rows],
        group=[group[i] for i in rows],
        seed=seed,
    )


def masks(n, *rates, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.random(n) < rate for rate in rates]


def test_a_clear_difference_is_found_whatever_the_order_of_rows():
    good, bad = masks(400, 0.95, 0.75)
    found = compare({"good": model(good), "bad": model(bad)})
    turned = compare({"good": model(good), "bad": model(bad, order=np.random.default_rng(1).permutation(400))})
    entry = found["pairs"][0]["top1"]
    assert entry["difference"] == pytest.approx(good.mean() - bad.mean())
    assert entry["low"] > 0
    assert found["pairs"] == turned["pairs"]
    assert "good has" in found["sentences"][0]
    assert "higher balanced accuracy than bad" in found["sentences"][0]


def test_no_difference_is_not_called_equality():
    found = compare(dict(zip("ab", map(model, masks(200, 0.8, 0.8)), strict=True)))
    assert "cannot be told apart" in found["sentences"][0]
    assert "does not show them to be equal" in found["sentences"][0]


def test_groups_make_a_difference_less_sure():
    good, bad = masks(400, 0.9, 0.9)
    bad[:100] = False  # all of it in five of twenty groups
    alone = compare({"good": model(good), "bad": model(bad)})["pairs"][0]["top1"]
    grouped = compare({"good": model(good, groups=20), "bad": model(bad, groups=20)})["pairs"][0]["top1"]
    assert grouped["p"] > 10 * alone["p"]
    assert grouped["high"] - grouped["low"] > 1.5 * (alone["high"] - alone["low"])


def test_one_group_unlike_the_others_does_not_make_the_limits_say_nothing():
    worse = np.array([7, 8, 5, 7, 7, 1, -5, 6, 6, 8])  # of 40 images in each of ten groups
    lost = np.stack([np.maximum(-worse, 0), np.maximum(worse, 0)])
    good, bad = (np.arange(40) < 36 - lost[..., None]).reshape(2, 400)
    pair = compare({"good": model(good, groups=10), "bad": model(bad, groups=10)})["pairs"][0]["top1"]
    shares = good.reshape(10, 40).mean(1) - bad.reshape(10, 40).mean(1)
    np.testing.assert_allclose(shares, worse / 40)
    low, high = stats.t.interval(0.95, 9, shares.mean(), stats.sem(shares))
    assert high - low <= pair["high"] - pair["low"] < 1.6 * (high - low)
    assert stats.ttest_1samp(shares, 0).pvalue <= pair["p"] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("groups", [0, 6, 40])
def test_equal_models_are_told_apart_about_one_time_in_twenty(groups):
    hits = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        level = np.repeat(rng.normal(0, 0.15, (2, groups)), 240 // groups, 1) if groups else 0
        a, b = rng.random((2, 240)) < 0.8 + level
        pair = compare({"a": model(a, groups=groups), "b": model(b, groups=groups)}, seed=seed)["pairs"][0]
        hits += pair["top1"]["p"] < 0.05
    assert hits <= stats.binom.ppf(0.999, 150, 0.05)


def test_mcnemar_is_the_exact_binomial_test():
    first, second = np.array([1] * 15 + [0] * 4 + [1] * 50), np.array([0] * 15 + [1] * 4 + [1] * 50)
    assert mcnemar(first, second)["p"] == pytest.approx(stats.binomtest(15, 19).pvalue)
    assert mcnemar(first, first)["p"] == 1


def test_holm_steps_down_and_never_falls():
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])


def test_identical_tables_differ_by_nothing():
    (mask,) = masks(50, 0.8)
    pair = compare({"a": model(mask), "b": model(mask)})["pairs"][0]
    assert (pair["top1"]["difference"], pair["top1"]["p"]) == (0, 1)


def test_only_common_images_count_and_it_says_so():
    a, b = masks(100, 0.9, 0.8)
    table = model(b)
    found = compare({"a": model(a), "b": table.select(np.arange(60))})
    assert found["images"] == 60
    assert found["warnings"][0].startswith("a: 40 rows left out")


def test_tables_that_disagree_on_groups_or_files_are_warned_of_and_settled_whatever_their_order():
    a, b, c = masks(120, 0.9, 0.85, 0.8)
    tables = {"a": model(a, groups=20), "b": model(b, groups=20), "c": model(c, groups=12)}
    agreed = compare({"a": tables["a"], "b": tables["b"]})
    assert (agreed["groups"], [line for line in agreed["warnings"] if "different" in line]) == (20, [])
    tables["b"].group[:] = [f"g{(int(name[1:]) + 1) % 20}" for name in tables["b"].group]
    tables["c"].group[0] = ""  # so that its groups are not the fullest
    found = [compare(dict(sorted(tables.items(), key=lambda item: order.index(item[0])))) for order in ("abc", "acb")]
    for each in found:
        assert each["groups"] == 20
        assert each["warnings"][0].startswith("120 images have different groups in the tables")
    pairs = [{pair["second"]: pair["top1"]["low"] for pair in each["pairs"]} for each in found]
    assert pairs[0] == pairs[1]
    tables["c"].group[0] = "g0"
    assert {compare({name: tables[name] for name in order})["groups"] for order in ("abc", "cab")} == {12}


def test_groups_that_one_table_lacks_come_from_another_without_a_warning():
    a, b = masks(60, 0.9, 0.8)
    found = compare({"a": model(a), "b": model(b, groups=12)})
    assert found["groups"] == 12
    assert found["warnings"] == []


def test_other_files_under_the_same_path_are_warned_of():
    a, b = masks(30, 0.9, 0.8)
    first, second = model(a, groups=15), model(b, groups=15)
    first = dataclasses.replace(first, sha256=np.array(["AB" * 32] * 30))
    second = dataclasses.replace(second, sha256=np.array(["ab" * 32] * 26 + ["cd" * 32] * 3 + [""]))
    assert compare({"a": first, "b": second})["warnings"] == [
        "3 images have different sha256 in the tables: other files under the same path."
    ]


def test_seeds_are_averaged_before_they_are_compared():
    from rcmnet_jax.evaluation.tables import join

    a, b = masks(200, 0.9, 0.85)
    many = join([model(a, seed=0), model(a, seed=1)])
    pair = compare({"many": many, "b": model(b)})["pairs"][0]
    single = compare({"one": model(a), "b": model(b)})["pairs"][0]
    assert pair["top1"]["low"] == pytest.approx(single["top1"]["low"])
    assert "mcnemar" not in pair


def test_images_that_every_model_calls_alike_and_wrong_are_named():
    first = model([True, False, False, True, False])
    second = model([True, False, True, False, False])
    third = model([False, False, True, True, True])
    shared = compare({"a": first, "b": second})["shared_errors"]
    assert shared["doubtful"] == [
        {"path": "1.png", "label": "y", "said": "x"}, {"path": "4.png", "label": "x", "said": "y"}
    ]  # fmt: skip
    assert shared["sentence"].startswith("Both models are wrong on 2 of 5 images and call 2 of them alike")
    assert compare({"a": first, "b": second, "c": third})["shared_errors"]["images"] == 1


def test_an_image_that_is_right_under_one_seed_is_no_shared_error():
    repeated = make_table(
        ["0.png", "0.png", "1.png", "1.png"], np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.9, 0.1]]), ("x", "y"),
        label=["x", "x", "y", "y"], seed=np.array([0, 1, 0, 1]),
    )  # fmt: skip
    shared = compare({"a": repeated, "b": model([False, False])})["shared_errors"]
    assert [one["path"] for one in shared["doubtful"]] == ["1.png"]
    assert compare({"a": model([True]), "b": model([False])})["shared_errors"]["sentence"] == ""


def test_three_classes_may_share_an_error_without_calling_it_alike():
    tables = {
        name: make_table(["0.png"], np.array([p]), ("x", "y", "z"), label=["x"])
        for name, p in (("a", [0.1, 0.8, 0.1]), ("b", [0.1, 0.1, 0.8]))
    }
    shared = compare(tables)["shared_errors"]
    assert (shared["images"], shared["same_class"]) == (1, 0)
    assert shared["sentence"] == "Both models are wrong on 1 of 1 images."


def test_what_cannot_be_compared_is_refused_with_a_sentence():
    (mask,) = masks(20, 0.8)
    with pytest.raises(UserError, match="at least two"):
        compare({"a": model(mask)})
    with pytest.raises(UserError, match="same classes"):
        compare({"a": model(mask), "b": model(mask, classes=("x", "z"))})
    other = model(mask)
    other.path[:] = "none"
    with pytest.raises(UserError, match="no labelled image in common"):
        compare({"a": model(mask), "b": other})
    other = model(mask)
    other.label[0] = "y"
    with pytest.raises(UserError, match=r"'0\.png' is 'y' here but 'x'"):
        compare({"a": model(mask), "b": other})


def rare(right, groups):
    """30 images of a class in so many groups, right where the mask says so, and 300 of another in ten, all right."""
    truth = np.r_[np.zeros(30, int), np.ones(300, int)]
    p = np.eye(2)[np.r_[np.where(right, 0, 1), np.ones(300, int)]]
    group = [f"a{i % groups}" for i in range(30)] + [f"b{i % 10}" for i in range(300)]
    return make_table([str(i) for i in range(330)], p, ("x", "y"), label=[("x", "y")[k] for k in truth], group=group)


def test_a_class_in_one_group_is_as_unsure_as_its_images_at_least():
    """Its influences sum to nothing within the group: a difference in it would come without any error."""
    first, second = np.arange(30) % 10 < 8, np.arange(30) % 10 < 7
    entry = {n: compare({"a": rare(first, n), "b": rare(second, n)})["pairs"][0]["balanced_accuracy"] for n in (1, 10)}
    assert entry[1]["difference"] == entry[10]["difference"] == pytest.approx(0.05)
    apart = (first.astype(float) - second) / 30 / 2
    error = np.sqrt(((apart - apart.mean()) ** 2).sum())
    wide = stats.t.ppf(0.975, 1) * error
    assert entry[1]["high"] - entry[1]["difference"] == pytest.approx(wide, rel=1e-6)
    assert entry[1]["p"] > 0.05


def test_models_that_are_all_right_or_all_wrong_in_each_class_are_not_said_to_agree():
    many, one_class = model(np.ones(80, bool), groups=40), model(np.arange(80) % 2 == 0, groups=40)
    sure = compare({"many": many, "one_class": one_class})["pairs"][0]["balanced_accuracy"]
    assert (sure["difference"], sure["p"]) == (0.5, stats.binomtest(40, 40).pvalue)
    assert 0 < sure["low"] < 0.5 < sure["high"]
    perfect = model(np.ones(80, bool), groups=8)
    constant = model(np.arange(80) % 2 == 0, groups=8)
    other = model(np.arange(80) % 2 == 1, groups=8)
    entry = compare({"perfect": perfect, "constant": constant})["pairs"][0]["balanced_accuracy"]
    assert (entry["difference"], entry["p"]) == (0.5, LEVEL)  # the sign test alone has less, but the limits hold 0
    assert entry["low"] < 0 < 0.5 < entry["high"]
    even = compare({"constant": constant, "other": other})["pairs"][0]["balanced_accuracy"]
    assert (even["difference"], even["p"]) == (0, 1)
    same = compare({"perfect": perfect, "again": perfect})["pairs"][0]["balanced_accuracy"]
    assert (same["low"], same["high"], same["method"]) == (0, 0, "they agree on every image")
