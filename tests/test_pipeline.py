"""Files through the training pipeline: the pixels that Pillow gives, whoever decodes them, and broken ones as by Pillow."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from distgan.config import DataConfig, TrainConfig
from distgan.data import pipeline, pixels, source
from distgan.data.folder import Folder
from distgan.errors import UserError

SIDE, BATCH = 24, 16
RANDOM = np.random.default_rng(0)


def encoded(kind, mode="RGB", **more):
    image = Image.fromarray(RANDOM.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((SIDE, SIDE)).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def write(folder, files):
    folder.mkdir()
    for number, data in enumerate(files):
        (folder / f"{number:04}.{'png' if data.startswith(bytes([0x89])) else 'jpg'}").write_bytes(data)
    return folder


def reader_of(folder, **more):
    data = DataConfig(path=str(folder), cache_dir=str(folder.parent / "cache"), **more)
    return pipeline.Reader(Folder().open(data), data, 0)


def served(reader, count):
    """The pixels, labels and image numbers of the first batches."""
    shares = pipeline.batches(reader, 0, TrainConfig(global_batch=BATCH), 1, range(1)).take(count)
    found = list(shares.as_numpy_iterator())
    assert [int(batch.first[0]) for batch in found] == [BATCH * number for number in range(count)]
    return np.concatenate([batch.images[0] for batch in found])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("JPEG", "L"), ("PNG", "L"), ("PNG", "RGBA")]
)
def test_plain_images_are_decoded_by_tensorflow(tmp_path, monkeypatch, kind, mode, flip, threads):
    folder = write(tmp_path / "images", [encoded(kind, mode) for _ in range(40)])
    reader = reader_of(folder, flip=flip, threads=threads, channels=len(mode))
    expected, _ = reader(np.arange(3 * BATCH))
    monkeypatch.setattr(source, "decode", None)  # From here on Pillow's way would fail.
    assert np.array_equal(served(reader, 3), expected)


def mixed():
    """One of each kind among many plain ones, so that some calls go one way and some the other."""
    turned = Image.Exif()
    turned[0x0112] = 6
    odd = [
        encoded("PNG", "P"),
        encoded("PNG", "RGBA"),
        encoded("PNG", "I;16"),
        encoded("JPEG", "CMYK"),
        encoded("JPEG", exif=turned),
        encoded("JPEG", progressive=True),
    ]
    return [encoded(kind, mode) for kind in ("JPEG", "PNG") for mode in ("L", "RGB") for _ in range(20)] + odd


@pytest.mark.parametrize("flip", [False, True])
def test_mixed_images(tmp_path, flip):
    reader = reader_of(write(tmp_path / "images", mixed()), channels=3, flip=flip, threads=2)
    expected, _ = reader(np.arange(10 * BATCH))
    ways = []
    monitored = reader.encoded
    reader.encoded = lambda numbers: ways.append(monitored(numbers)) or ways[-1]
    assert np.array_equal(served(reader, 10), expected)
    assert any(way is None for way in ways)
    assert any(way is not None for way in ways)


def test_images_that_are_resized_are_not_tried(tmp_path):
    reader = reader_of(write(tmp_path / "images", [encoded("PNG") for _ in range(20)]), resolution=8, threads=2)
    expected, _ = reader(np.arange(2 * BATCH))
    reader.encoded = None
    assert np.array_equal(served(reader, 2), expected)


def broken(data):
    """With a header as it should be, and after it what no decoder takes."""
    if data.startswith(bytes([0x89])):
        place = data.index(b"IDAT") + 8
        return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
    place = data.index(bytes([0xFF, 0xC4])) + 5  # The counts of codes of each length.
    return data[:place] + bytes([255] * 16) + data[place + 16 :]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_broken_images_that_look_plain(tmp_path, kind):
    files = [encoded(kind) for _ in range(200)]
    files[7] = broken(files[7])
    assert pixels.plain(files[7], (SIDE, SIDE, 3))
    folder = write(tmp_path / "images", files)
    reader = reader_of(folder, on_error="fail", threads=2)
    with pytest.raises(tf.errors.OpError):
        served(reader, 13)
    assert isinstance(reader.error, UserError)
    assert "0007." in str(reader.error)
    assert "\n" not in str(reader.error)
    reader = reader_of(folder, on_error="skip", threads=2)
    found = served(reader, 13)
    assert reader.unreadable == {7}
    assert np.array_equal(found, reader(np.arange(13 * BATCH))[0])
