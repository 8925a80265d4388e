"""The image rule: each kind of file and each step with the array it must give."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rcmnet_jax.data.images import FORMATS, SIGNALS, ImageError, ImageRule, decode, decode_as, signals, standardise


def packed(image, form="png", **options):
    """The bytes of a Pillow image or an array in a format."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, form, **options)
    return buffer.getvalue()


def picture(height=5, width=7, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height=40, width=48):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 5 % 256, y * 6 % 256, (x + y) * 2 % 256], axis=2).astype(np.uint8)


@pytest.mark.parametrize("form", ["png", "bmp", "tiff", "ppm", "gif", "tga", "pcx", "sgi", "dib", "ico"])
def test_lossless_formats_give_back_their_pixels(form):
    image = picture() // 128 * 255  # few colours, so that GIF's palette holds them
    np.testing.assert_array_equal(decode(packed(image, form)), image)


def test_lossless_webp_gives_back_its_pixels():
    np.testing.assert_array_equal(decode(packed(picture(), "webp", lossless=True)), picture())


def test_lossless_jpeg_2000_gives_back_its_pixels():
    np.testing.assert_array_equal(decode(packed(picture(40, 48), "jpeg2000", irreversible=False)), picture(40, 48))


def test_of_a_multi_picture_jpeg_the_first_is_taken():
    frames = [Image.fromarray(smooth()), Image.fromarray(255 - smooth())]
    data = packed(frames[0], "mpo", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data), decode(packed(smooth(), "jpeg")))


def test_avif_is_read():
    if "AVIF" not in Image.SAVE:
        pytest.skip("this build of Pillow cannot write AVIF")
    data = packed(smooth(), "avif", quality=100, subsampling="4:4:4")
    assert np.abs(decode(data).astype(int) - smooth()).max() <= 4


def test_8_bit_grey_is_repeated_in_three_channels():
    grey = picture()[..., 0]
    np.testing.assert_array_equal(decode(packed(grey)), np.repeat(grey[..., None], 3, 2))


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_16_bit_grey_is_divided_by_257_and_rounded(form):
    grey = np.array([[0, 128, 129, 257], [385, 386, 65406, 65535]], np.uint16)
    expected = np.array([[0, 0, 1, 1], [1, 2, 254, 255]], np.uint8)
    np.testing.assert_array_equal(decode(packed(Image.fromarray(grey), form))[..., 1], expected)


def test_big_endian_16_bit_tiff_is_read_by_its_own_byte_order():
    grey = np.array([[0, 257 * 3, 65535]], ">u2")
    np.testing.assert_array_equal(decode(packed(Image.fromarray(grey), "tiff"))[0, :, 0], [0, 3, 255])


def test_16_bit_colour_keeps_its_upper_byte():
    rows = b"\0" + struct.pack(">6H", 0x1234, 0xFF00, 0x00FF, 0xFFFF, 0x8080, 0x0100)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    np.testing.assert_array_equal(decode(data), [[[0x12, 0xFF, 0x00], [0xFF, 0x80, 0x01]]])


def test_one_bit_images_become_black_and_white():
    image = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode(packed(image))[0, :, 0], [0, 255, 0])


def test_palettes_are_looked_up():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(packed(image)), [[[10, 20, 30], [200, 100, 50]]])


def test_transparency_is_laid_over_white():
    rgba = np.array([[[200, 0, 100, 255], [200, 0, 100, 0], [0, 0, 0, 128]]], np.uint8)
    np.testing.assert_array_equal(decode(packed(rgba)), [[[200, 0, 100], [255, 255, 255], [127, 127, 127]]])


def test_a_palettes_transparent_colour_becomes_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(packed(image, transparency=0)), [[[255, 255, 255], [200, 100, 50]]])


def test_grey_with_alpha_is_laid_over_white():
    la = np.array([[[40, 255], [40, 0]]], np.uint8)
    np.testing.assert_array_equal(decode(packed(Image.fromarray(la, "LA")))[..., 0], [[40, 255]])


def test_cmyk_is_converted():
    cmyk = Image.fromarray(np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8), "CMYK")
    np.testing.assert_array_equal(decode(packed(cmyk, "tiff")), [[[255, 255, 255], [0, 255, 255], [0, 0, 0]]])


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_the_orientation_in_exif_is_applied(form):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise to stand upright
    image = smooth()
    turned = decode(packed(image, form, exif=exif.tobytes()))
    np.testing.assert_array_equal(turned, np.rot90(decode(packed(image, form)), -1))


def test_of_several_frames_the_first_is_taken():
    frames = [Image.fromarray(np.full((3, 4), level, np.uint8)) for level in (10, 200)]
    data = packed(frames[0], "tiff", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data), np.full((3, 4, 3), 10))


@pytest.mark.parametrize("options", [{}, {"quality": 95, "subsampling": 0}, {"progressive": True}, {"quality": 30}])
@pytest.mark.parametrize("grey", [False, True])
def test_the_fast_jpeg_path_gives_pillows_bits(options, grey):
    image = smooth(67, 83)[..., 0] if grey else smooth(67, 83)
    data = packed(image, "jpeg", **options)
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(decode(data), np.asarray(opened.convert("RGB")))


def test_a_tiff_of_16_bits_whose_zero_is_white_is_no_negative():
    grey = np.linspace(0, 65535, 6).astype(np.uint16).reshape(2, 3)
    data = packed(Image.fromarray(grey), "tiff")
    white = struct.pack("<HHI", 262, 3, 1)
    assert data.count(white) == 1
    at = data.index(white) + len(white)
    turned = data[:at] + struct.pack("<H", 0) + data[at + 2 :]
    np.testing.assert_array_equal(decode(turned), 255 - decode(data))


def holed(data):
    """A JPEG with zeros in the middle of its scan, as a broken copy leaves them."""
    half = len(data) // 2
    return data[:half] + bytes(400) + data[half + 400 :]


def test_cmyk_jpeg_takes_pillows_path():
    data = packed(Image.fromarray(smooth()).convert("CMYK"), "jpeg")
    image, form = decode_as(data)
    assert (image.shape, form) == ((40, 48, 3), "JPEG")
    assert np.abs(image.astype(int) - smooth()).mean() < 12


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, this is text", "not an image"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "image"),
        (packed(picture(40, 40))[:-200], "truncated"),
        (packed(smooth(), "jpeg")[:-300], "truncated"),
        (packed(smooth(), "jpeg")[:100], "image"),
        (packed(Image.fromarray(np.ones((2, 2), np.float32)), "tiff"), "floating-point"),
        (packed(Image.fromarray(np.full((2, 2), 70000, np.int32)), "tiff"), "beyond 16 bits"),
        (packed(Image.fromarray(np.full((2, 2), 200, np.int32)), "tiff"), "beyond 16 bits"),
        (holed(packed(smooth(360, 363), "jpeg")), "premature end of data segment"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
    ],
)
def test_what_is_no_whole_image_is_refused_with_a_reason(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode(data)


@pytest.mark.parametrize("sides", [(20000, 20000), (9000, 8000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(sides):
    header = struct.pack(">IIBBBBB", *sides, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    with pytest.raises(ImageError, match="million pixels"):
        decode(data)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200), start=st.sampled_from([packed(smooth(9, 9), f) for f in ("png", "jpeg", "tiff")]))
def test_damage_gives_an_array_or_an_image_error(data, start):
    place = len(data) % len(start)
    for case in (data, start[:place] + data + start[place + len(data) :]):
        try:
            image = decode(case)
        except ImageError:
            continue
        assert image.dtype == np.uint8
        assert image.shape[2] == 3


def test_pad_centres_the_image_on_its_borders_median_colour():
    image = np.full((2, 6, 3), 50, np.uint8)
    image[0, :2] = 250
    made = standardise(image, ImageRule(6, "pad"))
    np.testing.assert_array_equal(made[2:4], image)
    assert (made[[0, 1, 4, 5]] == 50).all()


def test_crop_takes_the_central_square():
    image = picture(4, 10)
    np.testing.assert_array_equal(standardise(image, ImageRule(4, "crop")), image[:, 3:7])


def test_the_central_fraction_is_cut_out_after_squaring():
    image = picture(8, 8)
    np.testing.assert_array_equal(standardise(image, ImageRule(4, "pad", 0.5)), image[2:6, 2:6])
    np.testing.assert_array_equal(standardise(picture(8, 4), ImageRule(4, "pad", 0.5)), picture(8, 4)[2:6])
    wide = picture(4, 8)
    np.testing.assert_array_equal(standardise(wide, ImageRule(2, "crop", 0.5)), wide[1:3, 3:5])


def test_a_frame_shows_images_of_any_size_at_one_scale():
    ground = np.full((4, 2, 3), 50, np.uint8)
    made = standardise(ground, ImageRule(8, frame=8))
    assert (made == 50).all()
    image = np.pad(np.full((2, 2, 3), 200, np.uint8), ((3, 3), (1, 1), (0, 0)), constant_values=50)  # 8 high, 4 wide
    np.testing.assert_array_equal(standardise(image, ImageRule(8, frame=8))[3:5, 3:5], 200)
    np.testing.assert_array_equal(standardise(image, ImageRule(4, frame=4))[1:3, 1:3], 200)
    np.testing.assert_array_equal(standardise(image, ImageRule(4, "pad", 0.5, frame=8))[1:3, 1:3], 200)


def test_stretch_scales_each_side_by_itself():
    image = np.zeros((2, 8, 3), np.uint8)
    image[:, 4:] = 200
    made = standardise(image, ImageRule(2, "stretch", resample="box"))
    np.testing.assert_array_equal(made[..., 0], [[0, 200], [0, 200]])


def test_stretch_cuts_the_central_fraction_of_each_side_by_itself():
    image = picture(4, 8)
    np.testing.assert_array_equal(standardise(image, ImageRule(2, "stretch", 0.5, "box"))[:, 0, 0], [
        round(image[1 + row, 2:4, 0].mean() + 1e-6) for row in (0, 1)
    ])  # fmt: skip


def test_shrinking_averages_all_pixels_instead_of_picking_some():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    image = np.repeat(board[..., None], 3, 2).astype(np.uint8)
    for resample in ("bilinear", "bicubic", "lanczos", "box"):
        made = standardise(image, ImageRule(16, resample=resample))
        assert np.abs(made.astype(int) - 127).max() <= 14, resample


def cubic(x, a=-0.5):
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * a * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


KERNELS = {
    "box": lambda x: ((x > -0.5) & (x <= 0.5)) * 1.0,
    "bilinear": lambda x: np.clip(1 - np.abs(x), 0, None),
    "bicubic": cubic,
    "lanczos": lambda x: np.sinc(x) * np.sinc(x / 3) * (np.abs(x) < 3),
}


def resized(image, size, kernel):
    """Both axes in turn, by the definition: weights by the distance in units of the larger pixel, then rounded."""
    for axis in (1, 0):
        image = np.moveaxis(image, axis, 0)
        scale = len(image) / size
        wide = max(scale, 1.0)
        centre = (np.arange(size)[:, None] + 0.5) * scale
        weights = KERNELS[kernel]((np.arange(len(image)) + 0.5 - centre) / wide)
        weights /= weights.sum(1, keepdims=True)
        image = np.moveaxis(np.tensordot(weights, image.astype(float), 1).round().clip(0, 255), 0, axis)
    return image


@pytest.mark.parametrize("resample", KERNELS)
@pytest.mark.parametrize(("side", "size"), [(60, 16), (16, 40), (33, 32)])
def test_resizing_gives_the_filters_own_sums_widened_where_it_shrinks(resample, side, size):
    made = standardise(picture(side, side), ImageRule(size, resample=resample))
    assert np.abs(made - resized(picture(side, side), size, resample)).max() <= 1


def test_an_image_of_the_right_size_is_not_touched():
    np.testing.assert_array_equal(standardise(picture(9, 9), ImageRule(9)), picture(9, 9))


def test_one_pixel_becomes_a_square():
    assert (standardise(np.full((1, 1, 3), 7, np.uint8), ImageRule(32)) == 7).all()


def test_a_strip_too_long_to_be_padded_is_refused():
    with pytest.raises(ImageError, match="too elongated"):
        standardise(np.zeros((1, 9000, 3), np.uint8), ImageRule(32))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    square=st.sampled_from(["pad", "crop", "stretch"]),
    crop=st.floats(0.01, 1.0),
    size=st.sampled_from([1, 8, 33]),
)
def test_any_image_becomes_the_rules_square(height, width, square, crop, size):
    made = standardise(picture(height, width), ImageRule(size, square, crop))
    assert (made.shape, made.dtype) == ((size, size, 3), np.uint8)


def test_a_rule_survives_its_dict():
    rule = ImageRule(48, "pad", 0.75, "lanczos", 60)
    assert ImageRule.from_dict(rule.to_dict()) == rule


def test_a_rule_from_before_there_was_a_frame_has_none():
    rule = ImageRule(48, "crop", 0.75)
    old = {key: value for key, value in rule.to_dict().items() if key != "frame"}
    assert ImageRule.from_dict(old) == rule


def test_signals_are_those_of_the_original():
    image = picture(6, 9)
    found = dict(zip(SIGNALS, signals(image, 1234, "PNG").tolist(), strict=True))
    assert (found["height"], found["width"], found["aspect"], found["file_bytes"]) == (6, 9, 1.5, 1234)
    assert found["format"] == FORMATS.index("PNG")
    frame = np.ones((6, 9), bool)
    frame[1:-1, 1:-1] = False
    for c, name in enumerate("rgb"):
        assert found[f"mean_{name}"] == pytest.approx(image[..., c].mean())
        assert found[f"std_{name}"] == pytest.approx(image[..., c].std(), abs=1e-3)
        assert found[f"border_{name}"] == pytest.approx(image[frame][:, c].mean())
