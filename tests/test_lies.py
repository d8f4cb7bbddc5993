"""Files that lie: arrays, shards, lists and caches that are not what they say cost one line, and neither memory nor time."""

import hashlib
import io
import json
import os
import resource
import socket
import struct
import zipfile
import zlib

import fake_run
import numpy as np
import pytest
from conftest import SMALL
from PIL import Image

from distgan import cli, files
from distgan.config import DataConfig
from distgan.data.arrays import Npz
from distgan.data.folder import Folder, Zip
from distgan.data.tfrecord import TfRecord
from distgan.errors import UserError
from distgan.training import checkpoint

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
LABELS = np.arange(40) % 3


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def npy(array=None, header=None, content=b""):
    """An .npy file: an array's, or a header that may lie and what lies behind it."""
    if array is not None:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        return file.getvalue()
    text = (header + "\n").encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def bundle(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def flipped(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    return path


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"
NPZS = {
    "objects": lambda path: npz(path, images=IMAGES, labels=np.array(list("ab") * 20, dtype=object)),
    "objects as images": lambda path: npz(path, images=np.array([None] * 3, dtype=object)),
    "more than there is": lambda path: bundle(
        path, {"images.npy": npy(header=HEADER.format("|u1", (1000, 16, 16, 3)), content=b"0" * 100)}
    ),
    "less than there is": lambda path: bundle(
        path, {"images.npy": npy(header=HEADER.format("|u1", (1, 2, 2, 3)), content=b"0" * 100)}
    ),
    "more than any memory": lambda path: bundle(
        path, {"images.npy": npy(header=HEADER.format("|u1", (2**60, 2**60, 2**60)), content=b"0" * 100)}
    ),
    "sides below zero": lambda path: bundle(
        path, {"images.npy": npy(header=HEADER.format("|u1", (-4, -4, 1)), content=b"0" * 16)}
    ),
    "a header of code": lambda path: bundle(path, {"images.npy": npy(header="__import__('os').abort()")}),
    "a header of brackets": lambda path: bundle(path, {"images.npy": npy(header="(" * 9000)}),
    "a longer header than it has": lambda path: bundle(path, {"images.npy": b"\x93NUMPY\x01\x00\xff\xff{}"}),
    "another version": lambda path: bundle(path, {"images.npy": b"\x93NUMPY\x09\x00" + b"0" * 100}),
    "no array": lambda path: bundle(path, {"images.npy": b"images"}),
    "nothing": lambda path: bundle(path, {"images.npy": b""}),
    "a flipped bit": lambda path: flipped(npz(path, images=IMAGES), 3000),
    "a flipped bit, packed": lambda path: np.savez_compressed(path, images=IMAGES) or flipped(path, 3000),
    "cut in half": lambda path: npz(path, images=IMAGES) and os.truncate(path, path.stat().st_size // 2) or path,
    "no zip": lambda path: path.write_bytes(b"PK\x03\x04 no zip") and path,
    "a pipe": lambda path: os.mkfifo(path) or path,
    "a device": lambda path: path.symlink_to("/dev/zero") or path,
    "a folder": lambda path: path.mkdir() or path,
    "no images": lambda path: npz(path, pictures=IMAGES),
    "words": lambda path: npz(path, images=np.array(["a", "b"])),
    "a table": lambda path: npz(path, images=np.zeros(3, [("a", "u1"), ("b", "u1")])),
}


def refused_in_one_line(open_it):
    """What a user is told, in bounded memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as raised:
        open_it()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    text = str(raised.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", NPZS)
def test_arrays(tmp_path, kind):
    path = NPZS[kind](tmp_path / "x.npz")
    assert str(path) in refused_in_one_line(lambda: Npz().open(DataConfig(path=str(path))))


def test_what_is_unpacked_is_limited(tmp_path, monkeypatch):
    """Zeros take a thousandth of their room in a zip."""
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((1000, 64, 64, 3), np.uint8))
    assert (tmp_path / "x.npz").stat().st_size < 30_000
    data = DataConfig(path=str(tmp_path / "x.npz"))
    assert Npz().open(data).num_images == 1000
    monkeypatch.setattr(files, "free_memory", lambda: 10**7)
    assert "images takes 0.0 GiB, and 0.0 GiB of memory are free" in refused_in_one_line(lambda: Npz().open(data))


def test_good_arrays_are_as_numpy_reads_them(tmp_path):
    arrays = {
        "plain": IMAGES,
        "columns": np.asfortranarray(LABELS.reshape(8, 5)),
        "big": LABELS.astype(">i4"),
        "scalar": np.array(7),
        "none": np.zeros((0, 3)),
        "words": np.array(["ä", "b"]),
        "bits": np.array([True, False]),
        "a/b": np.float64(1.5),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        with files.open_regular(tmp_path / "x.npz") as file:
            found, names = files.read_npz(file, [*arrays, "missing"])
        assert names == list(arrays) == list(found)
        for name, array in arrays.items():
            assert np.array_equal(found[name], array)
            assert found[name].dtype == np.asarray(array).dtype
            found[name].reshape(-1)[:1] = found[name].reshape(-1)[:1]  # It can be written to.


def png(seed, side=16):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    for number in range(10):
        (path / f"{number}.png").write_bytes(png(number))
    return path


def test_what_is_no_file_among_images(folder, tmp_path, said):
    data = DataConfig(path=str(folder), cache_dir=str(tmp_path / "cache"))
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.png"))
    images = Folder().open(data)
    assert images.num_images == 10
    assert any("2 pipes, sockets and devices" in line for line in said)
    (folder / "9.png").unlink()
    (folder / "9.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    (folder / "8.png").unlink()
    (folder / "8.png").symlink_to(tmp_path / "pipe")
    images = Folder().open(data)
    for index in (8, 9):
        with pytest.raises(Exception, match="not a regular file"):
            images.read(np.array([index]))
    images.read(np.arange(8))


LISTS = {
    "a pipe": lambda path: os.mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "brackets": lambda path: path.write_text("[" * 100_000),
    "a bomb": lambda path: path.write_bytes(b" " * 20_000_000),
    "a number": lambda path: path.write_text("7"),
    "no pairs": lambda path: path.write_text('{"labels": [[1], [2]]}'),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_labels(folder, tmp_path, kind):
    LISTS[kind](folder / "dataset.json")
    data = DataConfig(path=str(folder), cache_dir=str(tmp_path / "cache"))
    assert "dataset.json" in refused_in_one_line(lambda: Folder().open(data))


ZIPS = {
    "a bomb of labels": {"0.png": png(0), "dataset.json": b" " * 50_000_000},
    "labels of brackets": {"0.png": png(0), "dataset.json": b"[" * 100_000},
    "labels that are a number": {"0.png": png(0), "dataset.json": b"7"},
}


@pytest.mark.parametrize("kind", ZIPS)
def test_zips(tmp_path, kind):
    path = bundle(tmp_path / "x.zip", ZIPS[kind], zipfile.ZIP_DEFLATED)
    assert "dataset.json" in refused_in_one_line(lambda: Zip().open(DataConfig(path=str(path))))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
def test_a_zip_that_is_no_file(tmp_path, make):
    make(tmp_path / "x.zip")
    text = refused_in_one_line(lambda: Zip().open(DataConfig(path=str(tmp_path / "x.zip"))))
    assert "is not a readable zip file" in text


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """What `distgan prepare` writes."""
    out = tmp_path_factory.mktemp("shards")
    npz(out / "x.npz", images=IMAGES, labels=LABELS)
    words = ["prepare", "--data.source=npz", f"--data.path={out / 'x.npz'}", "--images_per_shard=20"]
    assert cli.main([*words, f"--out={out / 'shards'}"]) == 0
    return out / "shards"


def with_index(folder, **changes):
    """Puts other arrays into the index, and its new SHA-256 into the manifest."""
    with np.load(folder / "index.npz") as kept:
        arrays = {name: kept[name] for name in kept.files}
    arrays = {name: change(arrays[name]) for name, change in changes.items()} | {
        name: array for name, array in arrays.items() if name not in changes
    }
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez(folder / "index.npz", **arrays)
    sha256 = hashlib.sha256((folder / "index.npz").read_bytes()).hexdigest()
    with_manifest(folder, index_sha256=sha256)


def with_manifest(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if v is not ...}))


def first_shard(**changes):
    def change(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["shards"][0] |= changes
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


def moved(array, row, column, value):
    array = array.copy()
    array[row, column] = value
    return array


SHARDS = {
    **{
        f"{name} is {value}": lambda folder, n=name, v=value: with_manifest(folder, **{n: v})
        for name in ("shape", "num_classes", "label_names", "index_sha256", "shards")
        for value in (None, "x", [], {}, [1], -1)
        if (name, value) not in [("label_names", []), ("index_sha256", "x")]
    },
    "no manifest's": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "a manifest of brackets": lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
    "a shard elsewhere": first_shard(file="../../../etc/passwd"),
    "a shard of no name": first_shard(file=""),
    "a shard that is the folder": first_shard(file="."),
    "a shard of another size": first_shard(bytes=7),
    "a shard of size x": first_shard(bytes="x"),
    "a shard that is not there": first_shard(file="other.tfrecord"),
    "another index": lambda folder: flipped(folder / "index.npz", 200),
    "an index of objects": lambda folder: with_index(folder, labels=lambda a: np.array([None] * len(a), object)),
    "no table": lambda folder: with_index(folder, table=lambda _: None),
    "no labels": lambda folder: with_index(folder, labels=lambda _: None),
    "a table of fractions": lambda folder: with_index(folder, table=lambda a: a.astype(float)),
    "a table of two columns": lambda folder: with_index(folder, table=lambda a: a[:, :2]),
    "an empty table": lambda folder: with_index(folder, table=lambda a: a[:0], labels=lambda a: a[:0]),
    "a place behind the end": lambda folder: with_index(folder, table=lambda a: moved(a, 3, 1, 2**40)),
    "a place before the start": lambda folder: with_index(folder, table=lambda a: moved(a, 3, 1, -1)),
    "a length that is a lie": lambda folder: with_index(folder, table=lambda a: moved(a, 3, 2, 2**62)),
    "a shard that is none": lambda folder: with_index(folder, table=lambda a: moved(a, 3, 0, 2)),
    "fewer labels": lambda folder: with_index(folder, labels=lambda a: a[:-1]),
    "labels of more classes": lambda folder: with_index(folder, labels=lambda a: a + 1),
    "labels below zero": lambda folder: with_index(folder, labels=lambda a: a - 1),
    "labels of fractions": lambda folder: with_index(folder, labels=lambda a: a / 2),
}


@pytest.mark.parametrize("kind", SHARDS)
def test_shards(shards, tmp_path, kind):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in shards.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    data = DataConfig(path=str(folder), cache_dir=str(tmp_path / "cache"))
    assert TfRecord().open(data).num_images == 40
    SHARDS[kind](folder)
    text = refused_in_one_line(lambda: TfRecord().open(data))
    assert str(folder) in text


@pytest.mark.parametrize("name", ["00000-of-00002.tfrecord", "manifest.json", "index.npz"])
def test_shards_that_are_no_files(shards, tmp_path, name):
    for path in shards.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    os.mkfifo(tmp_path / name)
    text = refused_in_one_line(lambda: TfRecord().open(DataConfig(path=str(tmp_path), cache_dir=str(tmp_path / "c"))))
    assert name in text


def test_sealed_files(tmp_path, said):
    path = tmp_path / "kept"
    assert files.read_sealed(path) is None
    for content in (b"", b"x", os.urandom(100)):
        path.write_bytes(files.sealed(content))
        assert files.read_sealed(path) == content
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[1:], whole[:50], whole + b"x", b"", b"\0" * 200, flipped(path, 7).read_bytes()):
        path.write_bytes(damaged)
        assert files.read_sealed(path) is None
    assert len([line for line in said if "it is made anew" in line]) == 7
    path.unlink()
    os.mkfifo(path)
    assert files.read_sealed(path) is None


def damages(path):
    whole = path.read_bytes()
    yield whole[: len(whole) // 2]
    yield b""
    yield bytes(each ^ 0xFF if place == len(whole) // 3 else each for place, each in enumerate(whole))
    yield json.dumps({"a": 1}).encode()


def test_caches_are_made_anew(folder, tmp_path):
    """The list of files, the look at them, and the index of others' shards."""
    cache = tmp_path / "cache"
    data = DataConfig(path=str(folder), cache_dir=str(cache))
    before = Folder().open(data).fingerprint
    kept = [path for path in cache.iterdir() if path.suffix != ".lock"]
    assert {path.name.partition("-")[0] for path in kept} == {"files", "survey"}
    for path in kept:
        for content in damages(path):
            path.write_bytes(content)
            assert Folder().open(data).fingerprint == before
            assert files.read_sealed(path) is not None


KEY_FILES = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a large file": lambda path: path.write_bytes(b"0" * 10**7),
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),
    "a folder": os.mkdir,
}


@pytest.mark.parametrize("kind", KEY_FILES)
def test_key_files(tmp_path, refused, kind):
    path = tmp_path / "key"
    KEY_FILES[kind](path)
    words = [word for word in SMALL if "wandb" not in word] + ["--tracking.wandb=online"]
    line = refused("train", *words, f"--tracking.wandb_key_file={path}", f"--run_dir={tmp_path / 'run'}")
    assert f"--tracking.wandb_key_file={path} cannot be read" in line


def odd_manifest(name):
    def change(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        (file,) = [each for each in manifest["files"].items() if each[0].startswith("generator")]
        manifest["files"] = {name: file[1]}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


def replaced(name, make):
    def change(folder):
        (folder / name).unlink()
        make(folder / name)

    return change


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**42)


CHECKPOINTS = {
    "a file elsewhere": odd_manifest("../../../../../../dev/zero"),
    "a file of another checkpoint": odd_manifest("../best.json"),
    "a manifest that is a pipe": replaced("manifest.json", os.mkfifo),
    "a manifest of brackets": lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
    "weights that are a pipe": replaced("generator.safetensors", os.mkfifo),
    "weights that are a device": replaced("generator.safetensors", lambda path: path.symlink_to("/dev/zero")),
    "weights of 4 TiB": replaced("generator.safetensors", sparse),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(tmp_path, kind):
    saved = checkpoint.Checkpoint({"generator/w": np.zeros(9, np.float32)}, {"images_seen": 1000})
    checkpoint.write(tmp_path, saved, keep=1)
    CHECKPOINTS[kind](tmp_path / "000000001000")
    assert "none of 1 checkpoints is whole" in refused_in_one_line(lambda: checkpoint.newest(tmp_path))
    assert checkpoint.damage(tmp_path / "000000001000")


def test_a_page_of_odd_pictures(tmp_path):
    """A report of a stranger's run waits for nothing, and unpacks no picture of any size."""
    fake_run.make(tmp_path / "run", 20, grids=3)
    first, second, third = sorted((tmp_path / "run" / "samples").glob("0*.png"))
    for path in (first, second, third):
        path.unlink()
    os.mkfifo(first)
    second.symlink_to("/dev/zero")
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    third.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)))
    assert cli.main(["report", f"--run_dir={tmp_path / 'run'}", f"--out={tmp_path / 'page.html'}"]) == 0
    assert '"samples":[]' in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "evaluations.jsonl"])
def test_a_run_directory_of_pipes(tmp_path, refused, name):
    fake_run.make(tmp_path / "run", 20)
    (tmp_path / "run" / name).unlink()
    os.mkfifo(tmp_path / "run" / name)
    words = ["report", f"--run_dir={tmp_path / 'run'}", f"--out={tmp_path / 'page.html'}"]
    if name == "evaluations.jsonl":
        assert cli.main(words) == 0  # The page lacks the scores, and the log says why.
    else:
        assert "run" in refused(*words)
