"""TFRecords: ours are what TensorFlow reads, others' are found their way in, and broken ones are named."""

import io
import json
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import SMALL, distgan, finish, numbers, rows, start
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distgan.config import DataConfig
from distgan.data import tfrecord
from distgan.data.arrays import Digits
from distgan.data.pixels import BadImage
from distgan.data.tfrecord import TfRecord
from distgan.errors import UserError

PREPARE = ("prepare", "--data.source=digits", "--data.resolution=16", "--images_per_shard=400")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The digits as our shards."""
    out = tmp_path_factory.mktemp("prepared") / "shards"
    text, _ = distgan(*PREPARE, f"--out={out}")
    assert text == f"1797 images in 5 shards in {out}\n"
    return out


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """The first 50 digits as somebody else's shards."""
    folder = tmp_path_factory.mktemp("foreign")
    digits = Digits().open(DataConfig(resolution=16))
    for shard in range(2):
        with tf.io.TFRecordWriter(str(folder / f"train.tfrecord-{shard}-of-2")) as writer:
            for index in range(25 * shard, 25 * shard + 25):
                file = io.BytesIO()
                Image.fromarray(digits.images[index, ..., 0]).save(file, "PNG")
                feature = {
                    "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[file.getvalue()])),
                    "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[digits.labels[index]])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return folder


def test_tensorflow_reads_ours(prepared):
    digits = Digits().open(DataConfig(resolution=16))
    shards = sorted(str(path) for path in prepared.glob("*.tfrecord"))
    features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
    found = [tf.io.parse_single_example(record, features) for record in tf.data.TFRecordDataset(shards)]
    images = np.stack([tf.io.decode_png(each["image"]).numpy() for each in found])
    assert np.array_equal(images, digits.images)
    assert np.array_equal([each["label"].numpy() for each in found], digits.labels)


def test_we_read_ours_and_others(prepared, foreign):
    digits = Digits().open(DataConfig(resolution=16))
    ours = TfRecord().open(DataConfig(path=str(prepared)))
    pixels, labels = ours.read(np.array([1796, 3, 400]))
    assert np.array_equal(pixels, digits.images[[1796, 3, 400]])
    assert np.array_equal(labels, digits.labels[[1796, 3, 400]])
    assert (ours.num_classes, ours.num_images, ours.shape) == (10, 1797, (16, 16, 1))
    source = TfRecord(label_feature="image/class/label")
    for _ in range(2):  # By scanning, and by the index that this left.
        theirs = source.open(DataConfig(path=str(foreign)))
        pixels, labels = theirs.read(np.array([49, 0, 25]))
        assert np.array_equal(pixels, digits.images[[49, 0, 25]])
        assert np.array_equal(labels, digits.labels[[49, 0, 25]])
        assert len(list(foreign.glob("distgan-index-*.npz"))) == 1
    assert TfRecord().open(DataConfig(path=str(foreign))).num_classes == 0


def test_same_losses(prepared, tmp_path):
    words = [*SMALL, "--train.total_kimg=0.32", "--train.report_kimg=0.016"]
    for source in (
        ["--data.source=digits", "--data.resolution=16"],
        ["--data.source=tfrecord", f"--data.path={prepared}"],
    ):
        distgan("train", f"--run_dir={tmp_path / source[0][14:]}", *words, *source)
    one, other = ([numbers(row) for row in rows(tmp_path / name)] for name in ("digits", "tfrecord"))
    assert len(one) == 20
    assert one == other


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_prepare_is_stopped_and_goes_on(prepared, tmp_path, sent, code):
    words = (*PREPARE, f"--out={tmp_path}")
    process = start(*words)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("*.tfrecord")):
        assert process.poll() is None
        assert time.monotonic() < end
    process.send_signal(sent)
    _, err = finish(process, code)
    assert err.endswith("start it again to go on\n") == (code == 75)
    assert not (tmp_path / "manifest.json").exists()
    first = next(tmp_path.glob("*.tfrecord"))
    written = first.stat().st_mtime_ns
    distgan(*words)
    assert first.stat().st_mtime_ns == written
    files = {path.name: path.read_bytes() for path in prepared.iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert distgan(*words)[0] == f"{tmp_path} is prepared\n"
    _, err = distgan(*words, "--data.resolution=8", code=2)
    assert "was prepared otherwise: data.resolution=16 (now 8)" in err


def test_two_that_prepare_one_folder(prepared, tmp_path):
    """One writes; the other says so, or comes late enough to find all prepared."""
    words = (*PREPARE, f"--out={tmp_path}")
    with FileLock(tmp_path / ".lock"):
        _, err = distgan(*words, code=2)
    assert err == f"distgan: --out={tmp_path} is in use: another distgan prepare writes there\n"
    processes = [start(*words) for _ in range(2)]
    errors = [process.communicate(timeout=100)[1] for process in processes]
    assert sorted(process.returncode for process in processes) in ([0, 0], [0, 2]), errors
    assert not any("Traceback" in err for err in errors)
    files = {path.name: path.read_bytes() for path in prepared.iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.fixture
def copied(prepared, tmp_path):
    for path in prepared.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_check(copied, tmp_path_factory):
    words = ("prepare", "--check", "--data.source=tfrecord", f"--data.path={copied}")
    assert distgan(*words)[0] == "1797 images, 0 bad\n"
    shard = copied / "00002-of-00005.tfrecord"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    out, _ = distgan(*words, code=2)
    assert f"{shard}: its SHA-256 is not the manifest's" in out
    assert f"of {shard}: its checksum is another one" in out
    assert out.endswith("1797 images, 2 bad\n")
    folder = tmp_path_factory.mktemp("folder")
    for number in range(5):
        Image.new("RGB", (16, 16)).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"")
    (folder / "3.png").write_text("text")
    cache = f"--data.cache_dir={tmp_path_factory.mktemp('cache')}"
    out, _ = distgan("prepare", "--check", "--data.source=folder", f"--data.path={folder}", cache, code=2)
    assert [line.partition(":")[0] for line in out.splitlines()[:2]] == [
        str(folder / name) for name in ("1.png", "3.png")
    ]
    assert out.endswith("5 images, 2 bad\n")
    words = ("prepare", "--data.source=folder", f"--data.path={folder}", cache, "--data.on_error=skip")
    out, _ = distgan(*words, f"--out={folder / 'out'}")
    assert out == f"3 images in 1 shards in {folder / 'out'}, 2 left out\n"
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert manifest["left_out"] == 2
    assert str(folder / "1.png") in manifest["left_out_first"][0]


def test_bad_inputs(copied, foreign, tmp_path_factory, refused):
    def line(path, *more):
        run_dir = tmp_path_factory.mktemp("run") / "run"
        return refused("train", f"--run_dir={run_dir}", *SMALL, "--data.source=tfrecord", f"--data.path={path}", *more)

    assert "is not a folder of TFRecords" in line(copied / "missing")
    empty = tmp_path_factory.mktemp("empty")
    assert "holds no manifest.json and no file with .tfrecord" in line(empty)
    (empty / "a.tfrecord").write_bytes(b"\x1f\x8b compressed")
    assert "is no TFRecord, or cut short, or compressed" in line(empty)
    assert "has no one value in 'jpeg'; its features are" in line(foreign, "--data.tfrecord.image_feature=jpeg")
    (copied / "index.npz").write_bytes(b"")
    assert "is damaged: its SHA-256 is not the manifest's" in line(copied)
    shard = copied / "00001-of-00005.tfrecord"
    shard.write_bytes(shard.read_bytes()[:1000])
    (copied / "manifest.json").write_text("{")
    assert "manifest.json cannot be read" in line(copied)


def test_truncated_shard(copied, refused, tmp_path_factory):
    shard = copied / "00001-of-00005.tfrecord"
    shard.write_bytes(shard.read_bytes()[:1000])
    run_dir = tmp_path_factory.mktemp("run") / "run"
    words = ["train", f"--run_dir={run_dir}", *SMALL, "--data.source=tfrecord", f"--data.path={copied}"]
    assert "00001-of-00005.tfrecord has 1000 bytes, and the manifest says " in refused(*words)


WHOLE = b"".join(tfrecord.frame(tfrecord.example(bytes([number] * 20), number)) for number in range(3))


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_mutated_records(tmp_path_factory, data):
    broken = bytearray(WHOLE)
    place = data.draw(st.integers(0, len(broken) - 1))
    if data.draw(st.booleans()):
        broken[place] ^= data.draw(st.integers(1, 255))
    else:
        del broken[place:]
    path = tmp_path_factory.getbasetemp() / "mutated.tfrecord"
    path.write_bytes(broken)
    try:
        found = [record for _, record in tfrecord.scan(path)]
    except UserError as error:
        found = None
        said = str(error)
    if found is None:
        assert str(path) in said
        assert "\n" not in said
    else:  # Cut between two records.
        assert len(found) < 3
        assert all(tfrecord.parse(record, "it") for record in found)


def test_a_record_that_changed_is_bad(copied):
    ours = TfRecord().open(DataConfig(path=str(copied)))
    shard = copied / "00000-of-00005.tfrecord"
    data = bytearray(shard.read_bytes())
    data[60] ^= 1
    shard.write_bytes(data)
    with pytest.raises(BadImage, match="record at 0 of .*00000-of-00005.tfrecord: its checksum is another one"):
        ours.read(np.array([0]))
