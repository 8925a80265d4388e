"""Every fast form equals the plain one, in value and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmnet_jax.models import conv as forms
from rcmnet_jax.models import kernel_gradient, reduce
from rcmnet_jax.models.norm import batch_norm, layer_norm
from rcmnet_jax.models.winograd import winograd_conv


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def alike(fast, plain, *args):
    """Compares values, and gradients under a random cotangent."""
    ours, pull = jax.vjp(fast, *args)
    theirs, other = jax.vjp(plain, *args)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
    cotangent = draw(*ours.shape, seed=1)
    for a, b in zip(pull(cotangent), other(cotangent), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [((2, 2), 3, 1, 1), ((4, 4), 3, 2, 1), ((1, 1), 3, 1, 1), ((3, 2), 3, 1, 1), ((5, 4), 3, 2, 1), ((2, 2), 1, 1, 0),
     ((4, 4), 7, 1, 3), ((2, 3), 5, 2, 2), ((7, 7), 3, 1, 1), ((8, 14), 3, 2, 1), ((1, 5), 3, 2, 0), ((3, 3), 3, 1, 4)],
)  # fmt: skip
def test_taps_and_patches_equal_the_convolution(size, kernel, stride, padding):
    x, w = draw(3, *size, 5), draw(kernel, kernel, 5, 6, seed=2)
    for form in (forms.taps_conv, forms.patches_conv):
        alike(
            lambda x, w, form=form: form(x, w, stride, padding),
            lambda x, w: forms.plain_conv(x, w, stride, padding),
            x,
            w,
        )
    np.testing.assert_allclose(
        forms.conv(x, w, stride=stride, padding=padding), forms.plain_conv(x, w, stride, padding), rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize(("side", "stride"), [(4, 1), (7, 1), (8, 2)])
def test_small_images_with_many_channels_are_given_to_taps(side, stride):
    x, w = draw(8, side, side, 32), draw(3, 3, 32, 48, seed=2)

    def ours(x, w):
        return forms.conv(x, w, stride=stride, padding=1)

    assert "conv_general_dilated" not in str(jax.make_jaxpr(ours)(x, w))
    alike(ours, lambda x, w: forms.plain_conv(x, w, stride, 1), x, w)


@pytest.mark.parametrize(("images", "side", "products"), [(1, 4, 1), (2, 4, 0), (5, 4, 9), (1, 7, 0), (2, 7, 9)])
def test_a_few_dozen_pixels_are_left_to_xla(images, side, products):
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((images, side, side, 128), (3, 3, 128, 256)))
    made = str(jax.make_jaxpr(lambda x, w: forms.conv(x, w, padding=1))(x, w))
    assert made.count("dot_general[") == products
    assert ("conv_general_dilated" in made) is (products == 0)


@pytest.mark.parametrize(("side", "stride"), [(2, 1), (4, 1), (4, 2), (8, 2)])
def test_the_patches_of_one_small_image_are_one_product(side, stride):
    x, w = draw(1, side, side, 128), draw(3, 3, 128, 256, seed=2)

    def ours(x, w):
        return forms.conv(x, w, stride=stride, padding=1)

    made = str(jax.make_jaxpr(ours)(x, w))
    assert made.count("dot_general[") == 1
    assert "conv_general_dilated" not in made
    alike(ours, lambda x, w: forms.plain_conv(x, w, stride, 1), x, w)


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "channels"),
    [((16, 16), 7, 3, (2, 1)), ((9, 14), 7, 3, (2, 1)), ((5, 4), 3, 1, (1, 3)), ((6, 6), 3, 0, (2, 2)),
     ((3, 2), 7, 3, (1, 1)), ((4, 5), 5, 4, (1, 2))],
)  # fmt: skip
def test_a_band_equals_the_convolution(size, kernel, padding, channels):
    x, w = draw(3, *size, channels[0]), draw(kernel, kernel, *channels, seed=2)
    alike(lambda x, w: forms.banded_conv(x, w, padding), lambda x, w: forms.plain_conv(x, w, 1, padding), x, w)


@pytest.mark.parametrize("size", [(16, 16), (8, 56)])
def test_the_spatial_gates_convolution_is_a_product(size):
    x, w = draw(32, *size, 2), draw(7, 7, 2, 1, seed=2)

    def ours(x, w):
        return forms.conv(x, w, padding=3)

    assert "conv_general_dilated" not in str(jax.make_jaxpr(ours)(x, w))
    alike(ours, lambda x, w: forms.plain_conv(x, w, 1, 3), x, w)


def test_a_bands_sums_of_bfloat16_are_rounded_once():
    x, w = draw(8, 16, 16, 2).astype(jnp.bfloat16), draw(7, 7, 2, 1, seed=2).astype(jnp.bfloat16)
    exact = forms.plain_conv(x.astype(jnp.float32), w.astype(jnp.float32), 1, 3)
    found = forms.banded_conv(x, w, 3)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("form", [forms.taps_conv, forms.patches_conv])
def test_sums_over_taps_of_bfloat16_are_rounded_once(form):
    x, w = draw(8, 4, 4, 32).astype(jnp.bfloat16), draw(3, 3, 32, 16, seed=2).astype(jnp.bfloat16)
    exact = forms.plain_conv(x.astype(jnp.float32), w.astype(jnp.float32), 1, 1)
    found = form(x, w, 1, 1)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (16, 5), (1, 1), (2, 3)])
def test_the_sliced_maximum_equals_the_windowed_one(size):
    alike(forms.sliced_max_pool, forms.plain_max_pool, draw(3, *size, 4))


def test_summaries_equal_their_definitions():
    x = draw(3, 4, 5, 6)
    alike(lambda x: jnp.stack(reduce.summarise_space(x)), lambda x: jnp.stack([x.mean((1, 2)), x.max((1, 2))]), x)
    alike(reduce.summarise_channels, lambda x: jnp.stack([x.max(-1), x.mean(-1)], -1), x)


def test_a_bias_and_a_layers_norm_equal_their_definitions():
    x, scale, bias = draw(3, 5, 24), 1 + draw(24, seed=2), draw(24, seed=3)

    def plain(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6) * scale + bias

    alike(reduce.biased, lambda x, bias: x + bias, x, bias)
    alike(layer_norm, plain, x, scale, bias)
    alike(forms.by_rows, lambda x, kernel: x @ kernel, x, draw(24, 7, seed=4))
    narrow = layer_norm(x.astype(jnp.bfloat16), scale, bias)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), plain(x, scale, bias), atol=0.05)


@pytest.mark.parametrize("shape", [(4, 3, 5, 24), (1, 1, 2, 3), (6, 8)])
def test_normalising_by_the_batch_equals_its_definition(shape):
    x, scale, bias = 3 + draw(*shape), 1 + draw(shape[-1], seed=2), draw(shape[-1], seed=3)

    def plain(x, scale, bias):
        axes = tuple(range(x.ndim - 1))
        mean, var = x.mean(axes), x.var(axes)
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    alike(lambda *args: batch_norm(*args)[0], plain, x, scale, bias)
    axes = tuple(range(x.ndim - 1))
    for ours, theirs in zip(batch_norm(x, scale, bias)[1:], (x.mean(axes), x.var(axes)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_equal_maxima_share_the_gradient():
    flat = jnp.full((1, 2, 2, 3), 0.7)
    over_space = jax.grad(lambda x: reduce.summarise_space(x)[1].sum())(flat)
    over_channels = jax.grad(lambda x: reduce.summarise_channels(x)[..., 0].sum())(flat)
    np.testing.assert_allclose(over_space, 1 / 4, rtol=1e-6)
    np.testing.assert_allclose(over_channels, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("gate", [(3, 1, 1, 6), (3, 4, 5, 1)])
def test_a_gate_is_a_broadcast_product(gate):
    alike(reduce.gated, jnp.multiply, draw(3, 4, 5, 6), draw(*gate, seed=3))


def test_sums_of_float64_and_maxima_of_prime_sides_are_exact_to_rounding():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 17, 1, 19)))
        np.testing.assert_allclose(reduce.sum_rows(x), np.asarray(x).sum((0, 1, 2)), rtol=1e-12)
        np.testing.assert_array_equal(reduce.max_space(x), np.asarray(x).max((1, 2)))
        np.testing.assert_array_equal(reduce.max_channels(x), np.asarray(x).max(-1))


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (1, 1), (2, 6), (3, 8)])
def test_winograds_form_equals_the_convolution(size, tile):
    x, w = draw(3, *size, 5), draw(3, 3, 5, 6, seed=2)
    alike(lambda x, w: winograd_conv(x, w, tile), lambda x, w: forms.plain_conv(x, w, 1, 1), x, w)


@pytest.mark.parametrize(("tile", "times"), [(2, 2), (4, 6)])
def test_winograds_form_rounds_a_few_times_as_much_as_xlas(tile, times):
    x, w, dy = draw(8, 16, 16, 128), draw(3, 3, 128, 128, seed=2), draw(8, 16, 16, 128, seed=3)

    def all_of(form, *args):
        value, pull = jax.vjp(form, *args[:2])
        return value, *pull(args[2])

    with jax.enable_x64(True):
        wide = (jnp.asarray(a, jnp.float64) for a in (x, w, dy))
        exact = [np.asarray(a) for a in all_of(lambda x, w: forms.plain_conv(x, w, 1, 1), *wide)]
    ours = all_of(lambda x, w: winograd_conv(x, w, tile), x, w, dy)
    theirs = all_of(lambda x, w: forms.plain_conv(x, w, 1, 1), x, w, dy)
    for a, b, c in zip(ours, theirs, exact, strict=True):
        error, usual = (np.linalg.norm(np.asarray(y) - c) / np.linalg.norm(c) for y in (a, b))
        assert error < times * usual < 3e-6


@pytest.mark.parametrize(
    ("shape", "outputs", "tile"),
    [
        ((32, 56, 56, 64), 64, 4),
        ((32, 14, 14, 256), 256, 2),  # four do not divide 14
        ((32, 8, 8, 128), 128, 4),
        ((32, 4, 4, 256), 256, 2),  # too few tiles of four for so many channels
        ((32, 7, 7, 512), 512, 2),  # the last row and column of tiles are half empty
        ((32, 5, 5, 512), 512, 0),
        ((1, 56, 56, 64), 64, 4),
        ((1, 32, 32, 64), 64, 0),  # too little to compile for
        ((32, 2, 2, 512), 512, 0),
    ],
)
def test_winograds_form_is_for_large_convolutions(shape, outputs, tile):
    x, w = (jax.ShapeDtypeStruct(size, jnp.float32) for size in (shape, (3, 3, shape[-1], outputs)))
    assert forms.winograd_tile(x, w, 1, 1) == tile
    assert forms.winograd_tile(x, w, 2, 1) == 0
    assert forms.winograd_tile(jax.ShapeDtypeStruct(shape, jnp.bfloat16), w, 1, 1) == 0


@pytest.mark.slow
def test_a_large_convolution_by_tiles_of_four_equals_xlas():
    x, w = draw(20, 32, 32, 64), draw(3, 3, 64, 64, seed=2) / 24
    assert forms.winograd_tile(x, w, 1, 1) == 4
    alike(lambda x, w: forms.conv(x, w, padding=1), lambda x, w: forms.plain_conv(x, w, 1, 1), x, w)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pointwise_convolution_is_a_product(stride):
    alike(
        lambda x, w: forms.pointwise_conv(x, w, stride),
        lambda x, w: forms.plain_conv(x, w, stride, 0),
        draw(3, 5, 4, 6),
        draw(1, 1, 6, 7, seed=2),
    )


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [((8, 8), 3, 1, 1), ((9, 4), 3, 2, 1), ((16, 15), 7, 2, 3), ((11, 6), 3, 1, 1), ((5, 5), 1, 2, 0)],
)
@pytest.mark.parametrize("devices", [1, 8])  # with several there is no loop
def test_turned_images_give_the_kernel_the_same_gradient(size, kernel, stride, padding, devices, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    x, w = draw(3, *size, 5), draw(kernel, kernel, 5, 6, seed=2)
    alike(
        lambda x, w: kernel_gradient.turned_conv(x, w, stride, padding),
        lambda x, w: forms.plain_conv(x, w, stride, padding),
        x,
        w,
    )


@pytest.mark.parametrize(("rows", "devices", "loops"), [(8, 1, True), (11, 1, False), (8, 8, False)])
def test_images_are_turned_in_a_loop_where_rows_divide_one_device_has_them_and_they_are_small(
    rows, devices, loops, monkeypatch
):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    x, w, dy = draw(2, rows, 8, 4), draw(3, 3, 4, 4, seed=2), draw(2, rows, 8, 4, seed=3)

    def gradient(x, dy):
        return kernel_gradient.kernel_gradient(x, dy, w, 1, 1)

    assert ("scan" in str(jax.make_jaxpr(gradient)(x, dy))) is loops
    monkeypatch.setattr(kernel_gradient, "LARGEST", x.nbytes - 1)
    assert "scan" not in str(jax.make_jaxpr(lambda x, dy: kernel_gradient.kernel_gradient(x, dy, w, 1, 1))(x, dy))
