"""Who data are: their number, labels and fitted pixels, wherever they lie; by which scores and runs are told apart."""

import functools
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from conftest import SMALL, clusters, distgan, finish_all, local_addresses, start
from parts import Averages
from test_data_said import noise, opened, parsed, write, zipped

from distgan import cli, presets, schema
from distgan.config import Config
from distgan.data import survey
from distgan.data.source import earlier_fingerprint
from distgan.errors import UserError
from distgan.evaluation import evaluator, protocols
from distgan.runtime.base import Runtime
from distgan.runtime.control import Control
from distgan.runtime.topology import Topology
from distgan.training import scores
from distgan.training.run_dir import RunDir

COUNT = 60


@pytest.fixture(params=[10**4, 16], ids=["all", "a sample"])
def sampled(request, monkeypatch):
    """How many images are looked at."""
    monkeypatch.setattr(survey, "SAMPLE", request.param)


def birds(root, seed, suffix=".png", count=COUNT):
    """Two classes of images."""
    for offset, bird in ((0, "crow"), (count // 2, "robin")):
        write(root / bird, [noise(seed + offset + number, 16) for number in range(count // 2)], suffix)
    return root


def prepared(path, out, *flags):
    words = ["prepare", "--data.source=folder", f"--data.path={path}", f"--data.cache_dir={path.parent / 'cache'}"]
    assert cli.main([*words, f"--out={out}", *flags]) == 0
    return out


def test_the_same_images_are_the_same_data(tmp_path, sampled):
    folder = birds(tmp_path / "d", 0)
    first = opened(folder)
    pixels, labels = first.read(np.arange(COUNT))
    np.savez(tmp_path / "x.npz", images=pixels, labels=labels)
    shutil.copytree(folder, tmp_path / "copy")
    others = [tmp_path / "copy", zipped(folder), tmp_path / "x.npz", birds(tmp_path / "bmp", 0, ".bmp")]
    others += [prepared(folder, tmp_path / "shards")]
    assert {opened(path).fingerprint for path in others} == {first.fingerprint}
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text())["fingerprint"] == first.fingerprint
    small = opened(folder, resolution=8).fingerprint
    assert {opened(path, resolution=8).fingerprint for path in others} == {small}
    assert small != first.fingerprint


def test_what_makes_other_data(tmp_path, sampled):
    """Other pixels in files of equal names and sizes, other labels, fewer images, another order."""
    folder, other = birds(tmp_path / "d", 0, ".bmp"), birds(tmp_path / "other", 1000, ".bmp")
    pixels, labels = opened(folder).read(np.arange(COUNT))
    np.savez(tmp_path / "labels.npz", images=pixels, labels=labels[::-1])
    np.savez(tmp_path / "none.npz", images=pixels)
    np.savez(tmp_path / "fewer.npz", images=pixels[:-1], labels=labels[:-1])
    np.savez(tmp_path / "order.npz", images=pixels[::-1], labels=labels)
    found = [folder, other, *tmp_path.glob("*.npz")]
    assert len({opened(path).fingerprint for path in found}) == len(found)


@pytest.mark.parametrize("kind", ["folder", "zip", "shards"])
def test_files_are_read_again_only_when_they_changed(tmp_path, monkeypatch, kind):
    folder = birds(tmp_path / "d", 0, ".bmp")
    path = {
        "folder": lambda: folder,
        "zip": lambda: zipped(folder),
        "shards": lambda: prepared(folder, tmp_path / "s"),
    }[kind]()
    first = opened(path).fingerprint
    reads = []
    monkeypatch.setattr(survey, "_look", lambda *words, look=survey._look: reads.append(words) or look(*words))
    assert opened(path).fingerprint == first
    assert not reads
    times = [path.stat().st_atime_ns, path.stat().st_mtime_ns]
    other = birds(tmp_path / "other" / "d", 1000, ".bmp")
    if kind == "folder":  # In place: no folder is written to, and sizes and times stay.
        times = {file: file.stat() for file in folder.rglob("*.bmp")}
        for file, state in times.items():
            file.write_bytes((other / file.relative_to(folder)).read_bytes())
            os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif kind == "zip":
        shutil.copy(zipped(other), path)
        os.utime(path, ns=tuple(times))
    else:
        shutil.rmtree(path)
        prepared(other, path)
    reads.clear()
    assert opened(path).fingerprint == opened(other).fingerprint != first
    assert reads


def test_a_million_files_are_told_by_a_sample():
    places = survey.sample(10**6)
    assert len(np.unique(places)) == survey.SAMPLE == 1024
    assert places.min() >= 0
    assert places.max() < 10**6
    # Spread: each tenth of them has its share, within four standard deviations.
    assert np.abs(np.histogram(places, 10, (0, 10**6))[0] - 102.4).max() < 4 * np.sqrt(102.4)
    assert np.array_equal(survey.sample(1024), np.arange(1024))


def test_images_resized_in_place_are_gone_on_with(tmp_path):
    """The list of files is kept, and holds no sizes."""
    folder = write(tmp_path / "d", [noise(number) for number in range(5)])
    assert opened(folder).shape == (32, 32, 3)
    for file in folder.iterdir():
        noise(7, 16).save(file)
    found = opened(folder)
    assert found.read(np.arange(5))[0].shape == (5, 16, 16, 3)


def test_scores_of_other_images_are_not_from_the_cache(tmp_path, said):
    """The distance of B to A from A's statistics, by the mean colours of halves, and worked out here."""
    sides = {name: opened(birds(tmp_path / name, seed, ".bmp")) for name, seed in (("a", 0), ("b", 1000))}
    said.clear()
    metrics = (schema.choose(protocols.METRICS, "fid"),)
    runtime = Runtime(Topology("single", "", 1), Control())

    def distance(real, fake):
        pair = (evaluator.of_images(sides[name], runtime, "fail") for name in (real, fake))
        extractor = Averages().open(None, tmp_path)
        return evaluator.evaluate(metrics, *pair, extractor, runtime, tmp_path / "statistics", {}).scores["fid"]

    def expected(real, fake):
        from scipy.linalg import sqrtm

        gaussians = []
        for name in (real, fake):
            pixels = sides[name].read(np.arange(COUNT))[0].astype(np.float64)
            features = np.concatenate([half.mean((1, 2)) for half in np.split(pixels, 2, axis=1)], axis=1)
            gaussians.append((features.mean(0), np.cov(features, rowvar=False)))
        (mean, spread), (other_mean, other_spread) = gaussians
        return ((mean - other_mean) ** 2).sum() + np.trace(
            spread + other_spread - 2 * sqrtm(spread @ other_spread).real
        )

    assert distance("a", "a") == pytest.approx(0, abs=1e-3)
    assert said == []
    assert distance("a", "b") == pytest.approx(expected("a", "b"), rel=1e-3)
    [line] = said
    assert line.startswith(
        f"statistics of the reals are those of an earlier evaluation, kept in {tmp_path / 'statistics'}"
    )
    found = distance("b", "a")
    assert found == pytest.approx(expected("b", "a"), rel=1e-3)
    assert found > 0.1


# ---- What earlier versions wrote.


def earlier_of_files(names, sizes, labels):
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0")
    digest.update(np.array(sizes, np.int64).tobytes())
    digest.update(np.array(labels, np.int32).tobytes())
    return digest.hexdigest()[:16]


def earlier_fingerprints(tmp_path):
    """Paths of images, and the fingerprints that version 0.1.0 of November 2026 wrote of them."""
    folder = birds(tmp_path / "d", 0)
    files = sorted(folder.rglob("*.png"))
    labels = [file.parent.name == "robin" for file in files]
    by_names = earlier_of_files(
        [str(file.relative_to(folder)) for file in files], [file.stat().st_size for file in files], labels
    )
    yield folder, by_names
    yield zipped(folder), by_names
    pixels, _ = opened(folder).read(np.arange(COUNT))
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.array(labels, np.int32))
    array = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes() + np.array(labels, np.int32).tobytes())
    yield tmp_path / "x.npz", array.hexdigest()[:16]
    shards = prepared(folder, tmp_path / "shards", "--images_per_shard=25")
    sums = "".join(hashlib.sha256(shard.read_bytes()).hexdigest() for shard in sorted(shards.glob("*.tfrecord")))
    yield shards, hashlib.sha256(sums.encode()).hexdigest()[:16]


def test_a_run_of_an_earlier_version_goes_on_and_is_brought_up_to_date(tmp_path):
    config = schema.build(Config, presets.preset("digits-dcgan"))
    other = opened(birds(tmp_path / "other" / "d", 1000, count=COUNT - 2))
    for path, earlier in earlier_fingerprints(tmp_path):
        images, run_dir = opened(path), tmp_path / f"run-{path.name}"
        RunDir(run_dir, config, earlier).close()
        with pytest.raises(UserError, match="holds a run on other data than --data.source and --data.path give"):
            RunDir(
                run_dir, config, other.fingerprint, earlier_fingerprint=functools.partial(earlier_fingerprint, other)
            )
        RunDir(
            run_dir, config, images.fingerprint, earlier_fingerprint=functools.partial(earlier_fingerprint, images)
        ).close()
        recorded = json.loads((run_dir / "config.json").read_text())["data_fingerprint"]
        assert recorded == images.fingerprint != earlier
        # From then on it is the pixels that count.
        with pytest.raises(UserError, match="other data"):
            RunDir(run_dir, config, "another", earlier_fingerprint=functools.partial(str, earlier))
        card = {"trained_on": earlier, "real": f"{path}, fingerprint {earlier}", "checkpoint": 1}
        line = {"images_seen": 1, "scores": {"fid": 1.0}, "cards": {"fid": card}, "costs": {}}
        real = f"{path}, fingerprint {images.fingerprint}"
        assert scores._of_now(line, images)["cards"]["fid"] == card | {"trained_on": images.fingerprint, "real": real}


def test_pixels_that_earlier_versions_made_otherwise_are_other_data(tmp_path):
    """A run on what was gray by its first image goes on with --data.channels=1 alone."""
    images = [noise(0, mode="L"), *(noise(number) for number in range(1, 5))]
    folder = write(tmp_path / "d", images)
    files = sorted(folder.iterdir())
    digest = hashlib.sha256("".join(f"{file.name}\0" for file in files).encode())
    digest.update(np.array([file.stat().st_size for file in files], np.int64).tobytes())
    assert earlier_fingerprint(opened(folder)) == ""
    assert earlier_fingerprint(opened(folder, channels=1)) == digest.hexdigest()[:16]


def test_shards_of_an_earlier_version_are_prepared(tmp_path, capsys):
    folder = birds(tmp_path / "d", 0)
    out = prepared(folder, tmp_path / "shards")
    manifest = json.loads((out / "manifest.json").read_text())
    old = json.loads(json.dumps(manifest))
    del old["settings"]["data.bits"]
    [_, (_, old["settings"]["input"]), *_] = earlier_fingerprints(tmp_path / "again")
    (out / "manifest.json").write_text(json.dumps(old))
    capsys.readouterr()
    prepared(folder, out)
    assert capsys.readouterr().out == f"{out} is prepared\n"
    assert json.loads((out / "manifest.json").read_text()) == manifest
    words = ["prepare", "--data.source=folder", f"--out={out}", f"--data.cache_dir={tmp_path / 'cache'}"]
    assert cli.main([*words, f"--data.path={birds(tmp_path / 'other' / 'd', 1000, count=COUNT - 2)}"]) == 2
    assert "was prepared otherwise: input=" in capsys.readouterr().err


def test_an_earlier_run_directory_is_taken_by_the_command_line(tmp_path):
    folder = birds(tmp_path / "d", 0)
    words = [
        *SMALL,
        "--data.source=folder",
        "--data.resolution=16",
        f"--data.path={folder}",
        "--train.total_kimg=0.016",
    ]
    words += [f"--data.cache_dir={tmp_path / 'cache'}", f"--run_dir={tmp_path / 'run'}"]
    earlier = next(earlier_fingerprints(tmp_path / "again"))[1]
    RunDir(tmp_path / "run", parsed(*words), earlier).close()
    distgan("train", *words)
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["data_fingerprint"] == opened(folder).fingerprint
    assert len(recorded["starts"]) == 2


def test_workers_with_other_images_are_refused(tmp_path):
    """Of equal names and sizes, as each worker may have its own copy."""
    paths = [birds(tmp_path / name, seed, ".bmp") for name, seed in (("a", 0), ("b", 1000))]
    words = ["train", *SMALL, "--strategy=multiworker", "--data.source=folder", "--data.resolution=16"]
    words += [f"--run_dir={tmp_path / 'run'}", f"--data.cache_dir={tmp_path / 'cache'}"]
    environments = [os.environ | {"TF_CONFIG": each} for each in clusters(local_addresses(2))]
    processes = [start(*words, f"--data.path={path}", env=each) for path, each in zip(paths, environments, strict=True)]
    assert any("data fingerprint is" in err for err in finish_all(processes, 2))
