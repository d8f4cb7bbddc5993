"""Conditional training: the class asked for is the class drawn, and its name goes along to the grids and the samples."""

import numpy as np
import pytest
from conftest import SMALL, distgan, rows
from PIL import Image
from scores import classifier, reduced


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("conditional") / "run"
    words = ("--preset=digits-conditional", "--train.total_kimg=40", "--tracking.wandb=disabled")
    distgan("train", f"--run_dir={run_dir}", *words)
    return run_dir


def test_the_class_asked_for_is_drawn(finished, tmp_path):
    distgan("sample", f"--run_dir={finished}", "--sample.count=500", f"--out={tmp_path / 'x.npz'}")
    drawn = np.load(tmp_path / "x.npz")
    assert drawn["labels"].tolist() == [number % 10 for number in range(500)]
    assert (classifier().predict(reduced(drawn["images"])[:, 0]) == drawn["labels"]).mean() >= 0.9


def test_biggan_draws_every_class_asked_for(tmp_path):
    words = ("--preset=digits-biggan", "--tracking.wandb=disabled")
    distgan("train", f"--run_dir={tmp_path / 'run'}", *words)
    distgan("sample", f"--run_dir={tmp_path / 'run'}", "--sample.count=1000", f"--out={tmp_path / 'x.npz'}")
    drawn = np.load(tmp_path / "x.npz")
    right = classifier().predict(reduced(drawn["images"])[:, 0]) == drawn["labels"]
    shares = [right[drawn["labels"] == digit].mean() for digit in range(10)]
    assert np.mean(shares) >= 0.9, shares
    assert min(shares) >= 0.8, shares


def test_one_class(finished, refused, tmp_path):
    distgan("sample", f"--run_dir={finished}", "--sample.count=20", "--sample.label=7", f"--out={tmp_path / 'x.npz'}")
    drawn = np.load(tmp_path / "x.npz")
    assert drawn["labels"].tolist() == [7] * 20
    assert len(np.unique(drawn["images"], axis=0)) == 20
    line = refused("sample", f"--run_dir={finished}", "--sample.label=ten")
    assert "--sample.label=ten is none of 0, 1, 2" in line


def test_names_stay_with_the_classes(tmp_path, refused):
    """A folder of folders: names in the picture and the samples, rare classes drawn as often as they are in the data."""
    draw = np.random.default_rng(0)
    for name, count in (("bright", 24), ("dark", 8)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(count):
            level = draw.integers(0, 50, (8, 8, 3)) + 200 * (name == "bright")
            Image.fromarray(level.astype(np.uint8)).save(tmp_path / "data" / name / f"{number}.png")
    run_dir = tmp_path / "run"
    words = [f"--run_dir={run_dir}", *SMALL, "--data.source=folder", f"--data.path={tmp_path / 'data'}"]
    distgan("train", *words, "--model.conditional", "--train.total_kimg=0.064")
    assert rows(run_dir)[-1]["progress/images_seen"] == 64
    # 8 rows of 8 images of 16x16 enlarged 3 times with a line between them, and 12 pixels for the names.
    with Image.open(run_dir / "samples" / "000000.064.png") as grid:
        assert grid.size == (8 * 17 * 3 - 3, 8 * (17 * 3 + 12) - 3)
    distgan("sample", f"--run_dir={run_dir}", "--sample.label=dark", "--sample.count=3", f"--out={tmp_path / 'x.npz'}")
    drawn = np.load(tmp_path / "x.npz")
    assert drawn["label_names"].tolist() == ["bright", "dark"]
    assert drawn["labels"].tolist() == [1, 1, 1]
    line = refused("train", f"--run_dir={run_dir}", "--train.fake_labels=uniform")
    assert "train.fake_labels=data (now uniform)" in line


def test_labels_are_needed(refused, tmp_path):
    np.savez(tmp_path / "data.npz", images=np.zeros((64, 16, 16, 1), np.uint8))
    words = ("--data.source=npz", f"--data.path={tmp_path / 'data.npz'}", "--model.conditional")
    line = refused("train", f"--run_dir={tmp_path / 'run'}", *words)
    assert "--model.conditional needs classes" in line
    assert not (tmp_path / "run").exists()
