"""Images as files, in folders and zips: the same run as from an array, and one clear line for what is wrong."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, distgan, finish, numbers, rows, start
from PIL import Image

from distgan.config import DataConfig, TrainConfig
from distgan.data import pipeline
from distgan.data.arrays import Digits
from distgan.data.folder import Folder, Zip

IMAGES = 300


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The same images as a folder by class, as a zip, as a zip with dataset.json, and as an array."""
    folder = tmp_path_factory.mktemp("digits")
    source = Digits().open(DataConfig(resolution=16))
    names, order = [], np.argsort(source.labels[:IMAGES], kind="stable")
    for index in order:
        name = f"{source.labels[index]}/{index:05}.png"
        (folder / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.images[index, ..., 0]).save(folder / "folder" / name)
        names.append(name)
    labels = source.labels[order]
    np.savez(folder / "array.npz", images=source.images[order], labels=labels)
    with zipfile.ZipFile(folder / "classes.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in reversed(names):
            archive.write(folder / "folder" / name, name)
    with zipfile.ZipFile(folder / "listed.zip", "w") as archive:
        for number, name in enumerate(names):
            archive.write(folder / "folder" / name, f"00000/img{number:08}.png")
        listed = [[f"00000/img{number:08}.png", int(label)] for number, label in enumerate(labels)]
        archive.writestr("dataset.json", json.dumps({"labels": listed}))
    return folder


def opened(path, **more):
    source = Folder() if path.is_dir() else Zip()
    return source.open(DataConfig(path=str(path), cache_dir=str(path.parent / "cache"), **more))


@pytest.mark.parametrize("name", ["folder", "classes.zip", "listed.zip"])
def test_same_images_and_labels(digits, name):
    found, array = opened(digits / name), np.load(digits / "array.npz")
    pixels, labels = found.read(np.arange(IMAGES))
    assert np.array_equal(pixels, array["images"])
    assert np.array_equal(labels, array["labels"])
    assert found.num_classes == 10
    assert list(found.label_names) == ([] if name == "listed.zip" else [str(digit) for digit in range(10)])


def test_same_losses_and_samples(digits, tmp_path):
    words = [*SMALL, "--train.total_kimg=0.32", "--train.report_kimg=0.016", "--data.flip"]
    found = {}
    for source, path in (("npz", "array.npz"), ("folder", "folder"), ("zip", "listed.zip")):
        run_dir = tmp_path / source
        flags = [f"--data.source={source}", f"--data.path={digits / path}", f"--data.cache_dir={tmp_path / 'cache'}"]
        distgan("train", f"--run_dir={run_dir}", *words, *flags)
        found[source] = ([numbers(row) for row in rows(run_dir)], (run_dir / "samples" / "000000.320.png").read_bytes())
    assert len(found["npz"][0]) == 20
    assert found["folder"] == found["npz"]
    assert found["zip"] == found["npz"]


@pytest.mark.parametrize("name", ["folder", "listed.zip"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_an_epoch_shows_every_image_once(digits, name, workers):
    images = opened(digits / name, threads=2)
    expected = {int(index): hashlib.sha256(images.read(np.array([index]))[0]).digest() for index in range(IMAGES)}
    train, epoch = TrainConfig(global_batch=12), 3
    shown, checksums = {}, []
    for worker in range(workers):  # Each with a pipeline of its own, as in processes of their own.
        counting = Counting(images)
        reader = pipeline.Reader(counting, DataConfig(threads=2), 0)
        shares = pipeline.batches(reader, epoch * IMAGES // 12, train, workers, range(worker, worker + 1))
        for batch in shares.take(IMAGES // 12).as_numpy_iterator():
            first = int(batch.first[0])
            for number, image in enumerate(batch.images[0], start=first):
                assert number not in shown
                shown[number] = worker
                checksums.append(hashlib.sha256(image[None]).digest())
        # It read its own images, and a bounded number that wait.
        own = IMAGES // workers
        assert own <= len(counting.read_indices) <= own + 4 * 12 // workers + 3 * images.images_per_call
    assert sorted(shown) == list(range(epoch * IMAGES, (epoch + 1) * IMAGES))
    assert sorted(checksums) == sorted(expected.values())


def test_fingerprint_is_of_the_data(digits, tmp_path):
    copy = shutil.copytree(digits / "folder", tmp_path / "elsewhere")
    assert (
        opened(copy).fingerprint == opened(digits / "folder").fingerprint == opened(digits / "classes.zip").fingerprint
    )
    (copy / "0" / "more.png").write_bytes((copy / "0" / os.listdir(copy / "0")[0]).read_bytes())
    assert opened(copy).fingerprint != opened(digits / "folder").fingerprint


def test_folder_is_listed_once(digits, tmp_path, monkeypatch):
    copy = shutil.copytree(digits / "folder", tmp_path / "folder")
    first = opened(copy)
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    again = opened(copy)
    assert not listed
    assert again.fingerprint == first.fingerprint
    (copy / "3" / "new.png").write_bytes((copy / "0" / os.listdir(copy / "0")[0]).read_bytes())
    listed.clear()
    assert opened(copy).num_images == IMAGES + 1
    assert listed


class Counting:
    """Counts what is read of an open source."""

    def __init__(self, images):
        self.images, self.read_indices = images, []

    def __getattr__(self, name):
        return getattr(self.images, name)

    def read(self, indices):
        self.read_indices += indices.tolist()
        return self.images.read(indices)

    def encoded(self, indices):
        self.read_indices += indices.tolist()
        return self.images.encoded(indices)


def test_a_late_start_reads_no_more(digits):
    counts = []
    for first_batch in (0, 10**9 // 16):
        images = Counting(opened(digits / "folder", threads=2))
        reader = pipeline.Reader(images, DataConfig(threads=2), 0)
        next(iter(pipeline.batches(reader, first_batch, TrainConfig(global_batch=16), 1, range(1))))
        counts.append(len(images.read_indices))
    # The first batch, two that wait, and what the threads have begun.
    assert all(16 <= count <= 16 * 4 + 3 * images.images_per_call for count in counts), counts


@pytest.fixture
def damaged(digits, tmp_path):
    """A copy of the folder in which some images are broken."""

    def make(count):
        copy = shutil.copytree(digits / "folder", tmp_path / f"damaged{count}")
        broken = sorted(copy.rglob("*.png"))[5 : 5 + 40 * count : 40]
        for path in broken:
            path.write_bytes(path.read_bytes()[:60])
        return copy, broken

    return make


def flags(path, *more):
    cache = Path(path).parent / "cache"
    return [*SMALL, "--data.source=folder", f"--data.path={path}", f"--data.cache_dir={cache}", *more]


def test_unreadable_images(damaged, tmp_path):
    folder, broken = damaged(2)
    words = ["train", f"--run_dir={tmp_path / 'run'}", *flags(folder, "--train.total_kimg=0.608")]
    _, err = distgan(*words, code=2)
    [line] = [line for line in err.splitlines() if line.startswith("distgan: ")]
    assert any(str(path) in line for path in broken)
    assert "(--data.on_error=skip takes the next image in its place)" in line
    assert "Traceback" not in err
    skip = ["--data.on_error=skip", f"--run_dir={tmp_path / 'skip'}"]
    _, err = distgan(*words, *skip)
    assert all(f"left out: {path}" in err for path in broken)
    assert rows(tmp_path / "skip")[-1]["data/unreadable_images"] == 2
    # On two replicas the same images take their places.
    _, err = distgan(*words, *skip, f"--run_dir={tmp_path / 'two'}", "--runtime.logical_cpus=2")
    one, two = (rows(tmp_path / name)[-1] for name in ("skip", "two"))
    assert two["loss/discriminator"] == pytest.approx(one["loss/discriminator"], rel=1e-3)
    folder, _ = damaged(4)
    words = ["train", f"--run_dir={tmp_path / 'many'}", *flags(folder, "--train.total_kimg=0.608"), skip[0]]
    _, err = distgan(*words, code=2)
    assert "4 of 300 images" in err
    assert "cannot be read, the last: " in err


def test_a_folder_that_changes_during_the_run(digits, tmp_path):
    copy = shutil.copytree(digits / "folder", tmp_path / "folder")
    process = start("train", f"--run_dir={tmp_path / 'run'}", *flags(copy, "--train.total_kimg=1000"))
    while not (tmp_path / "run" / "samples" / "reals.png").exists():
        assert process.poll() is None
    for path in (copy / "7").iterdir():
        path.unlink()
    _, err = finish(process, 2)
    assert "No such file or directory; it was there when the folder was listed" in err
    assert "Traceback" not in err


def write_zip(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)


def bad_inputs(folder, png):
    """Folders and zips with something wrong -> what is said of them."""
    for name in ("empty", "text", "mixed", "loop", "sizes", "labels", "unlisted", "shape"):
        (folder / name).mkdir()
    yield "missing", "missing: No such file or directory"
    yield "empty", "empty holds no image (.jpg, "
    (folder / "text" / "a.png").write_text("no image")
    yield "text", "text holds no readable image: "
    for path in ("a.png", "class/b.png"):
        (folder / "mixed" / path).parent.mkdir(exist_ok=True)
        (folder / "mixed" / path).write_bytes(png)
    yield "mixed", "holds images beside folders of images (a.png)"
    (folder / "loop" / "down").symlink_to(folder / "loop", target_is_directory=True)
    yield "loop", "down is a link to a folder that holds it"
    for name in ("labels", "unlisted"):
        (folder / name / "a.png").write_bytes(png)
    (folder / "labels" / "dataset.json").write_text('{"labels": [["a.png", "cat"]]}')
    yield "labels", "the label of a.png is cat, not a whole number from 0"
    (folder / "unlisted" / "dataset.json").write_text('{"labels": []}')
    yield "unlisted", "has no label for 1 of 1 images, as a.png"
    (folder / "shape" / "a.png").write_bytes(png)
    (folder / "shape" / "dataset.json").write_text("[]")
    yield "shape", 'is not {"labels": [["name", class], ...]}'
    (folder / "plain.zip").write_bytes(png)
    yield "plain.zip", "is not a readable zip file: File is not a zip file"
    write_zip(folder / "up.zip", [("../a.png", png)])
    yield "up.zip", "../a.png in --data.path="
    write_zip(folder / "none.zip", [("a.txt", b"")])
    yield "none.zip", "none.zip holds no image"


def test_bad_inputs(tmp_path, refused):
    import io

    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    for name, message in bad_inputs(tmp_path, file.getvalue()):
        source = "zip" if name.endswith(".zip") else "folder"
        line = refused("train", f"--run_dir={tmp_path / 'run'}", *flags(tmp_path / name, f"--data.source={source}"))
        assert message in line, name
    assert not (tmp_path / "run").exists()


def test_mixed_sizes_are_named(tmp_path):
    from distgan.errors import UserError

    for side in (16, 20):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    with pytest.raises(UserError, match="20.png is 20x20 and others are 16x16: choose one size by --data.resolution"):
        opened(tmp_path).read(np.arange(2))
    assert opened(tmp_path, resolution=16).read(np.arange(2))[0].shape == (2, 16, 16, 3)
