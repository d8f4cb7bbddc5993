"""The main job: the default preset, started as a newcomer does, learns to write digits, and copies none.

Quality: a calibrated SVC trained on the real 8x8 digits looks at 1,000 samples of the averaged generator, reduced to 8x8.
Copies: no sample may be nearer to a training image (root mean square of pixel differences) than the two most similar
training images are to each other.
"""

import subprocess
import time

import numpy as np
from conftest import REPOSITORY, environment
from scores import reduced
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from distgan.config import DataConfig
from distgan.data.arrays import Digits


def launch(*words):
    command = ["bash", str(REPOSITORY / "launch" / "local.sh"), *map(str, words)]
    return subprocess.run(command, check=True, env=environment(), capture_output=True, text=True)


def nearest(images, others, apart_from_itself=False):
    """Root mean square difference of each image to the nearest of the others, [N], for pixels in [0, 1]."""
    one, two = (pixels.reshape(len(pixels), -1) / 255.0 for pixels in (images, others))
    squares = (one**2).mean(1)[:, None] + (two**2).mean(1) - 2 * one @ two.T / one.shape[1]
    if apart_from_itself:
        np.fill_diagonal(squares, np.inf)
    return np.sqrt(np.maximum(squares.min(1), 0))


def test_default_preset_learns_digits(tmp_path):
    start = time.monotonic()
    launch("train", f"--run_dir={tmp_path / 'run'}", "--tracking.wandb=offline")
    # The promise is six minutes; a busy machine gets three times that.
    assert time.monotonic() - start < 18 * 60
    launch(
        "sample",
        f"--run_dir={tmp_path / 'run'}",
        "--sample.count=1000",
        "--sample.seed=1",
        f"--out={tmp_path / 'x.npz'}",
    )
    fakes = np.load(tmp_path / "x.npz")["images"]
    assert fakes.shape == (1000, 16, 16, 1)

    pixels, labels = load_digits(return_X_y=True)
    classifier = CalibratedClassifierCV(SVC(gamma=0.001)).fit(pixels, labels)
    probabilities = classifier.predict_proba(reduced(fakes)[:, 0])
    shares = np.bincount(probabilities.argmax(1), minlength=10) / len(fakes)
    assert shares.min() >= 0.03
    assert probabilities.max(1).mean() >= 0.75

    reals = Digits().open(DataConfig(resolution=16)).images
    assert nearest(fakes, reals).min() > nearest(reals, reals, apart_from_itself=True).min()
