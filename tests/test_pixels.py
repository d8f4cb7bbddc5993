"""From bytes to pixels: every format and mode against what it was made from, and broken bytes without surprises."""

import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distgan.config import DataConfig
from distgan.data import pixels
from distgan.data.pipeline import decoded
from distgan.data.pixels import BadImage, decode, plain

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (6, 6, 3), dtype=np.uint8)
GRAY = COLOUR[..., 0]
ALPHA = RANDOM.integers(0, 256, (6, 6, 1), dtype=np.uint8)


def encoded(image, kind="PNG", **more):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def over(colour, alpha, ground):
    """Colour on a ground, by alpha in 0..255."""
    share = alpha / 255
    return colour * share + ground * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF"])
def test_lossless_formats(kind):
    few = COLOUR // 64 * 64  # GIF has 256 colours.
    found = decode(encoded(few, kind, **({"lossless": True} if kind == "WEBP" else {})), DataConfig(), 0)
    assert np.array_equal(found, few)


def test_gray_and_sixteen_bits():
    assert np.array_equal(decode(encoded(GRAY), DataConfig(), 0), GRAY[..., None])
    assert np.array_equal(decode(encoded(GRAY), DataConfig(), 3), np.repeat(GRAY[..., None], 3, axis=2))
    deep = GRAY.astype(np.uint16) * 256 + 77
    assert np.array_equal(decode(encoded(deep), DataConfig(), 0), GRAY[..., None])
    bits = Image.fromarray(GRAY > 127)
    assert set(decode(encoded(bits), DataConfig(), 0).ravel()) == {0, 255}


def test_transparency():
    clear = np.concatenate([COLOUR, ALPHA], axis=2)
    red = DataConfig(background="#ff0000")
    assert np.abs(decode(encoded(clear), red, 0) - over(COLOUR, ALPHA, np.array([255, 0, 0]))).max() <= 1
    assert np.array_equal(decode(encoded(clear), red, 4), clear)
    both = Image.fromarray(np.concatenate([GRAY[..., None], ALPHA], axis=2), "LA")
    assert np.abs(decode(encoded(both), DataConfig(), 1) - over(GRAY[..., None], ALPHA, 255)).max() <= 1
    palette = Image.fromarray(GRAY // 128).convert("P")
    palette.putpalette([0, 0, 255, 0, 255, 0])
    found = decode(encoded(palette, transparency=0), DataConfig(background="white"), 0)
    assert {tuple(colour) for colour in found.reshape(-1, 3)} == {(255, 255, 255), (0, 255, 0)}


def test_cmyk_and_orientation():
    flat = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decode(encoded(flat, "JPEG", quality=100), DataConfig(), 0).astype(int) - [255, 0, 0]).max() <= 4
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was held upright: turn by 90 degrees clockwise.
    turned = decode(encoded(COLOUR, exif=exif), DataConfig(), 0)
    assert np.array_equal(turned, np.rot90(COLOUR, -1))


def test_fit():
    wide = RANDOM.integers(0, 256, (4, 8, 3), dtype=np.uint8)
    data = encoded(wide)
    assert np.array_equal(decode(data, DataConfig(fit="crop"), 0), wide[:, 2:6])
    padded = decode(data, DataConfig(fit="pad", background="blue"), 0)
    assert np.array_equal(padded[2:6], wide)
    assert (padded[[0, 1, 6, 7]] == [0, 0, 255]).all()
    assert decode(data, DataConfig(fit="stretch"), 0).shape == (8, 8, 3)
    # A box of two by two is their mean, rounded once by rows and once by columns.
    small = decode(data, DataConfig(fit="crop", resolution=2, resample="box"), 0)
    mean = wide[:, 2:6].reshape(2, 2, 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - mean).max() <= 1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resize_is_pillows(channels):
    image = RANDOM.integers(0, 256, (16, 16, channels), dtype=np.uint8)
    found = pixels.resize(image, 8)
    for plane in range(channels):
        expected = Image.fromarray(image[..., plane]).resize((8, 8), Image.Resampling.LANCZOS)
        assert np.array_equal(found[..., plane], np.asarray(expected))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot identify image file"),
        (b"no image", "cannot identify image file"),
        (encoded(COLOUR)[:-30], "."),
        (encoded(Image.new("1", (8200, 8200))), "8200x8200 is more than 67108864 pixels"),
    ],
    ids=["empty", "text", "cut", "bomb"],
)
def test_bad_images(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode(data, DataConfig(), 0)


WHOLE = {
    "png": encoded(COLOUR),
    "palette": encoded(Image.fromarray(COLOUR).convert("P")),
    "jpeg": encoded(np.repeat(np.repeat(COLOUR, 4, 0), 4, 1), "JPEG"),
    "webp": encoded(COLOUR, "WEBP"),
    "bmp": encoded(COLOUR, "BMP"),
    "gif": encoded(Image.fromarray(COLOUR).convert("P"), "GIF"),
}


LARGE = np.asarray(Image.fromarray(COLOUR).resize((64, 64)))
CLEAR = np.concatenate([COLOUR, ALPHA], axis=2)
UPRIGHT, TURNED = Image.Exif(), Image.Exif()
UPRIGHT[0x0112], TURNED[0x0112] = 1, 3
PLAIN = {
    "png": encoded(COLOUR),
    "png of gray": encoded(GRAY),
    "png with a resolution": encoded(COLOUR, dpi=(72, 72)),
    "jpeg of gray": encoded(LARGE[..., 0], "JPEG"),
    "jpeg with a profile": encoded(LARGE, "JPEG", icc_profile=b"profile", comment="comment"),
    "jpeg with restarts": encoded(LARGE, "JPEG", restart_marker_blocks=2),
    "jpeg upright": encoded(LARGE, "JPEG", exif=UPRIGHT),
    **{
        f"jpeg {quality} {sampling}": encoded(LARGE, "JPEG", quality=quality, subsampling=sampling)
        for quality in (20, 75, 100)
        for sampling in ("4:4:4", "4:2:2", "4:2:0")
    },
    "jpeg of odd size": encoded(LARGE[:61, :61], "JPEG"),
    "jpeg of rgb": encoded(LARGE, "JPEG", keep_rgb=True),
}
OTHER = {
    "png with alpha": encoded(CLEAR),
    "png with transparency": encoded(COLOUR, transparency=(0, 0, 0)),
    "palette": encoded(Image.fromarray(COLOUR).convert("P")),
    "two colours": encoded(Image.fromarray(GRAY > 127)),
    "16 bits": encoded(GRAY.astype(np.uint16) * 256 + 77),
    "png turned": encoded(COLOUR, exif=TURNED),
    "jpeg turned": encoded(LARGE, "JPEG", exif=TURNED),
    "progressive": encoded(LARGE, "JPEG", progressive=True),
    "cmyk": encoded(Image.fromarray(LARGE).convert("CMYK"), "JPEG"),
    "webp": encoded(COLOUR, "WEBP"),
    "cut jpeg": encoded(LARGE, "JPEG")[:-9],
    "cut png": encoded(COLOUR)[:-9],
    "header": encoded(LARGE, "JPEG")[:30],
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_images_are_decoded_alike(name):
    data = PLAIN[name]
    expected = decode(data, DataConfig(), 3)
    assert plain(data, expected.shape)
    assert np.array_equal(decoded(data, 3).numpy(), expected)
    side = len(expected)
    assert not plain(data, (side, side + 1, 3))
    assert not plain(data, (side - 1, side, 3))
    assert plain(data, (side, side, 1)) == ("gray" in name)
    if "gray" in name:
        assert np.array_equal(decoded(data, 1).numpy(), decode(data, DataConfig(), 1))


def test_plain_images_with_alpha():
    data = encoded(CLEAR)
    assert plain(data, CLEAR.shape)
    assert np.array_equal(decoded(data, 4).numpy(), decode(data, DataConfig(), 4))


@pytest.mark.parametrize("name", OTHER)
def test_other_images_are_not_plain(name):
    assert not any(plain(OTHER[name], (side, side, channels)) for side in (6, 64) for channels in (1, 3))


def test_a_damaged_chunk_is_not_plain():
    data = bytearray(PLAIN["png with a resolution"])
    data[data.index(b"pHYs") + 5] ^= 1
    assert not plain(bytes(data), COLOUR.shape)


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_mutated_images(kind, data):
    """Whatever happens to the bytes, an image comes of the right kind, or a clear refusal."""
    broken = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(len(broken) - 1, 0)))
        action = data.draw(st.sampled_from(["set", "cut", "insert", "delete"]))
        if action == "set" and broken:
            broken[place] = data.draw(st.integers(0, 255))
        elif action == "cut":
            del broken[place:]
        elif action == "insert":
            broken[place:place] = data.draw(st.binary(max_size=8))
        else:
            del broken[place : place + 4]
    reason = None
    try:
        found = decode(bytes(broken), DataConfig(resolution=4), 3)
    except BadImage as error:
        reason = str(error)
    shape = (24, 24, 3) if kind == "jpeg" else COLOUR.shape
    if plain(bytes(broken), shape):
        try:
            quick = decoded(bytes(broken), 3).numpy()
        except tf.errors.InvalidArgumentError:
            quick = None
        assert quick is None or np.array_equal(quick, decode(bytes(broken), DataConfig(), 3))
    if reason is None:
        assert found.shape == (4, 4, 3)
        assert found.dtype == np.uint8
    else:
        assert reason
        assert "\n" not in reason
