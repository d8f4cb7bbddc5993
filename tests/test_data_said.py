"""What is decided about a user's images is what they would expect, and is said once, with the flag that changes it."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
import tensorflow as tf
from conftest import SMALL
from PIL import Image

from distgan import cli
from distgan.config import DataConfig
from distgan.data.arrays import Npz
from distgan.data.folder import Folder, Zip
from distgan.data.pixels import BadImage
from distgan.data.tfrecord import TfRecord
from distgan.errors import UserError

RESOURCE_FORK = b"\0\5\26\7" + bytes(60)


def noise(number, side=32, mode="RGB"):
    """An image of its own for each number."""
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, channels), np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def write(folder, images, suffix=".png"):
    """Writes images as 000.png, 001.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number:03}{suffix}")
    return folder


def deep_png(values):
    """A 16-bit PNG of uint16 [H, W] or [H, W, 3], chunk by chunk: Pillow writes none of RGB."""
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def zipped(folder):
    """The same as a zip."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def opened(path, **more):
    """Images at a path; what is worked out of them is kept beside it."""
    source = {".zip": Zip(), ".npz": Npz()}.get(
        path.suffix, TfRecord() if (path / "manifest.json").exists() else Folder()
    )
    return source.open(DataConfig(path=str(path), cache_dir=str(path.parent / "cache"), **more))


# ---- What is no image, and no class.

LEFT_BEHIND = (
    *(
        "robin/._000.png",
        "._robin/000.png",
        ".ipynb_checkpoints/000.png",
        "__MACOSX/robin/000.png",
        "lost+found/000.png",
    ),
    *("@eaDir/000.png", "$RECYCLE.BIN/000.png", ".Trash-1000/files/000.png", ".cache/000.png", ".thumbnails/000.png"),
    *("robin/Thumbs.db", "robin/desktop.ini", "crow/.DS_Store", "crow/.hidden.png"),
)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_systems_leave_behind_is_no_image_and_no_class(tmp_path, said, kind):
    for bird in ("robin", "crow"):
        write(tmp_path / "d" / bird, [noise(number) for number in range(3)])
    clean = opened(tmp_path / "d").fingerprint
    for name in LEFT_BEHIND:
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(RESOURCE_FORK)
    (tmp_path / "d" / "crow" / "notes.txt").write_text("seen in May")
    path = tmp_path / "d" if kind == "folder" else zipped(tmp_path / "d")
    said.clear()
    for _ in range(2):  # Listed, and from the list that is kept.
        images = opened(path)
        assert (images.num_images, images.num_classes, list(images.label_names)) == (6, 2, ["crow", "robin"])
        assert images.fingerprint == clean
        assert said == [
            f"{path}: passed over, as no images: {len(LEFT_BEHIND)} hidden or of the system, 1 .txt",
            f"{path}: its 2 folders are the classes: crow, robin",
        ]
        said.clear()


def test_a_folder_without_an_image_says_what_it_holds(tmp_path):
    (tmp_path / "d" / ".cache").mkdir(parents=True)
    for name in ("a.tif", "b.tif", ".cache/a.png"):
        (tmp_path / "d" / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no image \(.*\); what it holds: 2 .tif, 1 hidden or of the system"):
        opened(tmp_path / "d")


def test_hidden_shards_are_none(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(example(noise(0), None))
    (tmp_path / "._a.tfrecord").write_bytes(RESOURCE_FORK)
    assert TfRecord().open(DataConfig(path=str(tmp_path), cache_dir=str(tmp_path))).num_images == 1


# ---- Shapes, depths and what becomes of images.


def frames(count):
    file = io.BytesIO()
    first, *others = [noise(number, mode="L") for number in range(count)]
    first.save(file, "GIF", save_all=True, append_images=others)
    file.seek(0)
    return file.getvalue()


COLOUR, GRAY, CLEAR = noise(1), noise(2, mode="L"), noise(3, mode="RGBA")
GRAY_LINE = "1 of 40 images are gray and become RGB (--data.channels=1 makes all gray)"
CLEAR_LINE = "2 of 3 images have transparency, which is laid on --data.background=white (--data.channels=4 keeps it)"
WIDE = COLOUR.crop((0, 0, 32, 20))
CROP_LINE = (
    "1 of 2 images are not square, and their middle is taken (--data.fit=pad or --data.fit=stretch keeps all of it)"
)
SAID = {
    "colour": ([COLOUR] * 3, {}, 3, []),
    "gray": ([GRAY] * 3, {}, 1, []),
    "gray first": ([GRAY, *[COLOUR] * 39], {}, 3, [GRAY_LINE]),
    "gray last": ([*[COLOUR] * 39, GRAY], {}, 3, [GRAY_LINE]),
    "gray wanted": (
        [GRAY, COLOUR],
        {"channels": 1},
        1,
        ["1 of 2 images have colour and become gray (--data.channels=3 keeps colour)"],
    ),
    "transparent": ([COLOUR, CLEAR, CLEAR], {}, 3, [CLEAR_LINE]),
    "alpha wanted": ([COLOUR, CLEAR, CLEAR], {"channels": 4}, 4, []),
    "not square": (
        [COLOUR, WIDE],
        {"resolution": 20},
        3,
        [CROP_LINE, "images of 20x32 to 32x32 are resized to 20x20 (--data.resolution=20)"],
    ),
    "padded": ([WIDE, WIDE], {"fit": "pad"}, 3, []),
    "photos at 16": (
        [noise(4, 256)] * 2,
        {"resolution": 16},
        3,
        ["images of 256x256 are resized to 16x16 (--data.resolution=16)"],
    ),
    "enlarged": (
        *([noise(4, 16), noise(5, 64)], {"resolution": 32}, 3),
        ["images of 16x16 to 64x64 are resized to 32x32 (--data.resolution=32); 1 of 2 images are smaller"],
    ),
    "their own size": ([COLOUR], {"resolution": 32}, 3, []),
}


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_is_done_to_images_is_said_once(tmp_path, said, name, kind):
    images, flags, channels, lines = SAID[name]
    path = write(tmp_path / "d", images)
    path = zipped(path) if kind == "zip" else path
    for _ in range(2):  # Looked at, and from the survey that is kept.
        found = opened(path, **flags)
        assert found.shape[2] == channels
        assert said == [f"{path}: {line}" for line in lines]
        said.clear()


def test_what_is_done_to_arrays_is_said_once(tmp_path, said):
    path = tmp_path / "x.npz"
    np.savez(path, images=np.stack([np.asarray(WIDE.convert("RGBA"))] * 5))
    found = opened(path, channels=1, resolution=16)
    assert found.shape == (16, 16, 1)
    assert [line.removeprefix(f"{path}: ") for line in said] == [
        "5 of 5 images have colour and become gray (--data.channels=3 keeps colour)",
        CLEAR_LINE.replace("2 of 3", "5 of 5"),
        CROP_LINE.replace("1 of 2", "5 of 5"),
        "images of 20x32 are resized to 16x16 (--data.resolution=16)",
    ]
    shown = opened(write(tmp_path / "d", [WIDE.convert("RGBA")] * 5), channels=1, resolution=16)
    assert np.array_equal(found.read(np.arange(5))[0], shown.read(np.arange(5))[0])


def test_of_moving_pictures_the_first_is_taken(tmp_path, said):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.gif").write_bytes(frames(3))
    opened(tmp_path / "d")
    assert f"{tmp_path / 'd'}: 1 of 1 images have several frames, of which the first is taken" in said


@pytest.mark.parametrize("planes", [(), (3,)], ids=["gray", "RGB"])
@pytest.mark.parametrize(("largest", "bits"), [(255, 8), (1023, 10), (4095, 12), (4096, 14), (65535, 16)])
def test_fewer_bits_in_sixteen(tmp_path, said, planes, largest, bits):
    (tmp_path / "d").mkdir()
    values = np.random.default_rng(0).integers(0, largest + 1, (5, 16, 16, *planes)).astype(np.uint16)
    values[3].flat[0] = largest
    for number, each in enumerate(values):
        (tmp_path / "d" / f"{number}.png").write_bytes(deep_png(each))
    expected = (values >> (bits - 8)).astype(np.uint8).reshape(5, 16, 16, -1)
    said_of = f"5 of 5 images have 16 bits, with values up to {largest}: the upper 8 of {bits} are taken (--data.bits)"
    for path in (tmp_path / "d", zipped(tmp_path / "d")):
        said.clear()
        found = opened(path)
        assert np.array_equal(found.read(np.arange(5))[0], expected)
        assert said == [f"{path}: {said_of}"]
    by_flag = opened(tmp_path / "d", bits=16)
    assert np.array_equal(by_flag.read(np.arange(5))[0], (values >> 8).astype(np.uint8).reshape(5, 16, 16, -1))
    assert (by_flag.fingerprint == found.fingerprint) == (bits == 16)


def test_a_value_beyond_the_bits_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("distgan.data.survey.SAMPLE", 10)
    folder = write(tmp_path / "d", [Image.fromarray(np.full((8, 8), 4000, np.uint16)) for _ in range(100)])
    images = opened(folder)
    from distgan.data import survey

    [other, *_] = set(range(100)) - set(survey.sample(100).tolist())
    Image.fromarray(np.full((8, 8), 5000, np.uint16)).save(folder / f"{other:03}.png")
    with pytest.raises(BadImage, match=r"has values up to 5000, and 12 bits hold 4095: choose --data.bits=16"):
        images.read(np.array([other]))


# ---- Labels.


def example(image, label):
    file = io.BytesIO()
    image.save(file, "PNG")
    feature = {"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[file.getvalue()]))}
    if label is not None:
        feature["label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def labelled(folder, kind, labels):
    """16x16 images with labels, and the flags that open them."""
    images = [noise(number, 16) for number in range(len(labels))]
    if kind == "npz":
        path = folder / "x.npz"
        np.savez(
            path,
            images=np.stack([np.asarray(image) for image in images]),
            labels=np.array(labels, np.uint64 if max(labels) >= 2**63 else np.int64),
        )
    elif kind == "tfrecord":
        path = folder / "shards"
        path.mkdir()
        with tf.io.TFRecordWriter(str(path / "a.tfrecord")) as writer:
            for image, label in zip(images, labels, strict=True):
                writer.write(example(image, label))
        return ["--data.source=tfrecord", f"--data.path={path}", "--data.tfrecord.label_feature=label"]
    else:
        path = write(folder / "d", images)
        listed = [[f"{number:03}.png", label] for number, label in enumerate(labels)]
        (path / "dataset.json").write_text(json.dumps({"labels": listed}))
        path = zipped(path) if kind == "zip" else path
    return [f"--data.source={kind}", f"--data.path={path}"]


def parsed(*words):
    from distgan import cli
    from distgan.commands import train

    return cli.parse(train, [*SMALL, "--data.resolution=16", *map(str, words)])[0].run_config()


SOURCES = ["npz", "folder", "zip", "tfrecord"]


@pytest.mark.parametrize("label", [-1, 2**31, 2**32 + 5, 2**63])
@pytest.mark.parametrize("kind", SOURCES)
def test_labels_that_are_none_are_refused(tmp_path, refused, kind, label):
    if kind == "tfrecord" and label == 2**63:
        label = -(2**63)  # It has no larger ones.
    flags = labelled(tmp_path, kind, [0, 1] * 16 + [label])
    line = refused("train", *SMALL, *flags, f"--run_dir={tmp_path / 'run'}", f"--data.cache_dir={tmp_path / 'cache'}")
    assert f"the label is {label}, not a whole number from 0 to 2147483647" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("labels", [20240101 + np.arange(20), [0] * 19 + [2**31 - 1]], ids=["dates", "the largest"])
@pytest.mark.parametrize("kind", SOURCES)
def test_labels_that_are_ids(tmp_path, said, kind, labels):
    from distgan.commands.train import open_images

    flags = [*labelled(tmp_path, kind, [int(label) for label in labels]), f"--data.cache_dir={tmp_path / 'cache'}"]
    images = open_images(parsed(*flags))
    assert (images.num_images, images.num_classes, len(images.label_counts)) == (20, 0, 0)
    assert not images.read(np.arange(20))[1].any()
    line = said[-1]
    different = len(set(map(int, labels)))
    assert (
        f": it has no classes: its labels are {different} different numbers up to {max(labels)}, which look like ids"
        in line
    )
    with pytest.raises(
        UserError, match=r"--model.conditional needs classes, .*np.unique\(labels, return_inverse=True\)"
    ):
        open_images(parsed(*flags, "--model.conditional"))


@pytest.mark.parametrize("kind", SOURCES)
def test_labels_that_are_some_of_many_classes(tmp_path, said, kind):
    flags = [*labelled(tmp_path, kind, list(range(990, 1000)) * 2), f"--data.cache_dir={tmp_path / 'cache'}"]
    from distgan.commands.train import open_images

    assert open_images(parsed(*flags, "--model.conditional")).num_classes == 1000
    assert not [line for line in said if "look like ids" in line]


def test_labels_that_are_not_read_are_said(tmp_path, said):
    flags = [*labelled(tmp_path, "tfrecord", [0, 1]), f"--data.cache_dir={tmp_path / 'cache'}"]
    config = parsed(*[flag for flag in flags if "label_feature" not in flag])
    assert config.data.source.options.open(config.data).num_classes == 0
    index, hint = said
    assert "reads all records once, for an index that is kept in " in index
    assert hint.endswith("no labels are read; --data.tfrecord.label_feature chooses one of the integers: label")
    said.clear()
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 8, 8), np.uint8), label=np.zeros(3, int))
    assert opened(tmp_path / "x.npz").num_classes == 0
    assert said == [f"{tmp_path / 'x.npz'}: passed over, beside images and labels: label"]
    said.clear()
    for labels, line in (
        (None, "says that there are no labels"),
        ([["000.png", 0], ["a.png", 1], ["b.png", 1]], "has labels of 2 files that are not there"),
    ):
        (write(tmp_path / "d", [COLOUR]) / "dataset.json").write_text(json.dumps({"labels": labels}))
        opened(tmp_path / "d")
        assert said.pop(0) == f"dataset.json of --data.path={tmp_path / 'd'} {line}"


def test_what_commands_decide_is_said(tmp_path, capsys):
    """`prepare` leaves mirroring to the training; `evaluate` names images that are not the run's, and kept statistics."""
    for name, start in (("d", 0), ("e", 100)):
        write(tmp_path / name, [noise(number) for number in range(start, start + 32)])
    source = ["--data.source=folder", f"--data.path={tmp_path / 'd'}", "--data.resolution=16"]
    cache = f"--data.cache_dir={tmp_path / 'cache'}"
    assert cli.main(["prepare", *source, cache, "--data.flip", f"--out={tmp_path / 'shards'}"]) == 0
    assert "--data.flip has no part in shards: it mirrors while training" in capsys.readouterr().err

    run = ["--model.width=4", "--train.global_batch=16", "--train.total_kimg=0.016", "--tracking.wandb=disabled"]
    assert cli.main(["train", *source, cache, *run, f"--run_dir={tmp_path / 'run'}"]) == 0
    words = ["evaluate", f"--run_dir={tmp_path / 'run'}", "--evaluation.extractor=parts:Averages", cache]
    words += ["--evaluation.metrics=fid", "--evaluation.fid.count=16"]
    for path, other in (("d", False), ("e", True), ("e", True)):
        capsys.readouterr()
        assert cli.main([*words, f"--data.path={tmp_path / path}"]) == 0
        lines = capsys.readouterr().err
        assert ("other images than the run was trained on" in lines) == other
    assert "statistics of the reals are those of an earlier evaluation, kept in" in lines
