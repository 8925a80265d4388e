"""Head surgery: each leaf is loaded, resized, new or unused, or the transfer is refused by the leaf's name."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rcmnet_jax.checkpoint.transfer import resize_absolute, resize_relative, transfer
from rcmnet_jax.config import ModelConfig
from rcmnet_jax.errors import UserError
from rcmnet_jax.models import Network


def is_position(path):
    return path[-1] in ("rel_height", "position")


def trees(seed=0, classes=3, rows=5, width=4):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "conv1": {"kernel": draw(3, 3, 3, width)},
        "attention": {"rel_height": draw(rows, 2)},
        "fc": {"kernel": draw(width, classes), "bias": draw(classes)},
    }
    return params, {"bn1": {"mean": draw(width), "var": draw(width)}}


def move(source, target, **options):
    return transfer(*source, *target, **{"head": ("fc",), "position": is_position, **options})


def test_the_body_is_loaded_and_the_head_stays_as_initialised():
    source, target = trees(0, classes=8), trees(1, classes=3)
    params, stats, report = move(source, target)
    np.testing.assert_array_equal(params["conv1"]["kernel"], source[0]["conv1"]["kernel"])
    np.testing.assert_array_equal(params["fc"]["kernel"], target[0]["fc"]["kernel"])
    np.testing.assert_array_equal(stats["bn1"]["var"], source[1]["bn1"]["var"])
    assert [leaf.name for leaf in report.of("new")] == ["params/fc/bias", "params/fc/kernel"]
    assert [leaf.shape for leaf in report.of("unused")] == [(8,), (4, 8)]


def test_the_head_stays_new_even_where_it_would_fit():
    source, target = trees(0), trees(1)
    params, _, _ = move(source, target)
    np.testing.assert_array_equal(params["fc"]["bias"], target[0]["fc"]["bias"])
    whole, _, report = move(source, target, head=())
    np.testing.assert_array_equal(whole["fc"]["bias"], source[0]["fc"]["bias"])
    assert not report.of("new")


def test_each_parameter_of_the_target_is_counted_once():
    source, target = trees(0, classes=8, rows=3), trees(1, classes=3, rows=7)
    params, _, report = move(source, target)
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(report.parameters(kind) for kind in ("loaded", "resized", "new")) == total
    assert report.parameters("unused") == 4 * 8 + 8


def test_a_position_table_of_another_size_is_resized_and_said():
    params, _, report = move(trees(0, rows=3), trees(1, rows=7))
    assert params["attention"]["rel_height"].shape == (7, 2)
    assert any("params/attention/rel_height (3, 2) -> (7, 2)" in line for line in report.lines())


def test_the_account_is_the_same_json_each_time():
    first, second = (move(trees(0, rows=3), trees(1, rows=7))[2].to_dict() for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    assert first["loaded"]["leaves"] == 3


def test_a_shape_that_does_not_fit_is_refused_by_name_with_both_shapes():
    with pytest.raises(UserError, match=r"params/conv1/kernel.*\(3, 3, 3, 8\).*\(3, 3, 3, 4\)"):
        move(trees(0, width=8), trees(1, width=4))


@pytest.mark.parametrize("rows", [4, 6])
def test_a_relative_table_of_even_length_is_refused(rows):
    with pytest.raises(UserError, match=rf"attention/rel_height.*\({rows}, 2\).*\(5, 2\)"):
        move(trees(0, rows=rows), trees(1, rows=5))


def test_a_missing_leaf_is_refused_unless_allowed():
    source, target = trees(0), trees(1)
    del source[1]["bn1"]["mean"]
    with pytest.raises(UserError, match=r"batch_stats/bn1/mean.*\(4,\)"):
        move(source, target)
    _, stats, report = move(source, target, allow_missing=True)
    np.testing.assert_array_equal(stats["bn1"]["mean"], target[1]["bn1"]["mean"])
    assert "batch_stats/bn1/mean" in report.to_dict()["new"]["names"]


def test_weights_that_are_not_finite_are_refused():
    source, target = trees(0), trees(1)
    source[0]["conv1"]["kernel"] = source[0]["conv1"]["kernel"].at[0, 0, 0, 0].set(jnp.nan)
    with pytest.raises(UserError, match=r"params/conv1/kernel.*not finite"):
        move(source, target)


def test_weights_of_another_model_altogether_are_refused():
    with pytest.raises(UserError, match="None of the weights fits"):
        move(({"encoder": {"w": np.zeros(3)}}, {}), trees(1), allow_missing=True)


def test_source_leaves_without_a_place_are_named_as_unused():
    source, target = trees(0), trees(1)
    source[0]["extra"] = {"w": np.zeros((2, 5))}
    report = move(source, target)[2]
    assert "params/extra/w" in report.to_dict()["unused"]["names"]


def test_donating_the_result_leaves_both_arguments_alone():
    source, target = trees(0), trees(1)
    before = jax.tree.map(np.array, (source, target))
    params, stats, _ = move(source, target)
    jax.jit(lambda t: jax.tree.map(lambda x: x * 0, t), donate_argnums=0)((params, stats))
    jax.tree.map(np.testing.assert_array_equal, (source, target), before)


def test_values_take_the_targets_type():
    source, target = trees(0), trees(1)
    source = jax.tree.map(lambda x: np.asarray(x, np.float64), source)
    params, stats, _ = move(source, target)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {jnp.dtype("float32")}


tables = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 8).map(lambda h: 2 * h - 1), st.integers(1, 3)),
    elements=st.floats(-10, 10, width=32),
)


@settings(deadline=None)
@given(tables, st.integers(1, 12))
def test_a_resized_relative_table_keeps_its_centre_its_range_and_its_mirror(table, height):
    resized = resize_relative(table, 2 * height - 1)
    assert resized.shape == (2 * height - 1, table.shape[1])
    np.testing.assert_allclose(resized[height - 1], table[len(table) // 2], atol=1e-6)
    assert (resized.min(0) >= table.min(0) - 1e-6).all()
    assert (resized.max(0) <= table.max(0) + 1e-6).all()
    mirrored = resize_relative(table[::-1], 2 * height - 1)
    np.testing.assert_allclose(mirrored[::-1], resized, atol=1e-5)


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(1, 12))
def test_a_relative_table_linear_in_the_offset_stays_linear_in_the_fraction_of_the_image(old, new):
    offsets = np.arange(-(old - 1), old)
    resized = resize_relative(np.stack([offsets / old, np.full(2 * old - 1, 3.0)], 1), 2 * new - 1)
    wanted = np.arange(-(new - 1), new) / new
    edge = (old - 1) / old
    np.testing.assert_allclose(resized[:, 0], np.clip(wanted, -edge, edge), atol=1e-9)
    np.testing.assert_allclose(resized[:, 1], 3.0)


@settings(deadline=None)
@given(tables)
def test_the_same_size_changes_nothing(table):
    np.testing.assert_array_equal(resize_relative(table, len(table)), table)
    np.testing.assert_array_equal(resize_absolute(table, table.shape), table)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_absolute_tables_are_interpolated_as_jax_image_does_without_antialias(h, w, new_h, new_w):
    table = np.random.default_rng(h * 7 + w).normal(size=(h, w, 2)).astype(np.float32)
    wanted = jax.image.resize(table, (new_h, new_w, 2), "linear", antialias=False)
    np.testing.assert_allclose(resize_absolute(table, (new_h, new_w, 2)), wanted, atol=1e-5)


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_a_network_transfers_to_another_image_size_and_class_count(position):
    config = ModelConfig(name="rcmnet", width=8, position=position)
    source = Network(config, classes=8, image_size=64)
    target = Network(config, classes=3, image_size=96)
    start = target.init(1)
    params, stats, report = transfer(*source.init(0), *start, head=target.head, position=target.is_position_table)
    assert jax.tree.structure((params, stats)) == jax.tree.structure(start)
    assert [leaf.name for leaf in report.of("new")] == ["params/fc/bias", "params/fc/kernel"]
    assert len(report.of("resized")) == 4
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), (params, stats), start)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
def test_any_pair_of_class_counts_and_sizes_is_accounted_for(classes, new_classes, height, new_height):
    source = trees(0, classes=classes, rows=2 * height - 1)
    target = trees(1, classes=new_classes, rows=2 * new_height - 1)
    params, stats, report = move(source, target)
    names = [leaf.name for kind in ("loaded", "resized", "new") for leaf in report.of(kind)]
    assert len(names) == len(set(names)) == len(jax.tree.leaves((params, stats)))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), (params, stats), target)
    assert bool(report.of("resized")) == (height != new_height)
