"""What README's tables of digits say of a run's samples: `python tests/scores.py RUN_DIR`.

A support vector machine that was trained on scikit-learn's digits reads the samples of the averaged generator, reduced to 8x8:
  agreement  share of samples that it reads as the class that was asked for (conditional runs)
  rarest     share of the rarest digit
  modes      of the 1,000 numbers that three stacked digits make, how many are there among 26,000 samples
  kl         Kullback-Leibler divergence of the samples' numbers from the uniform ones, in nats
  distance   Frechet distance of the samples' 8x8 pixels in [0, 1] (10,000 of them) to all 1,797 real digits'
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC


def sample(run_dir, count, seed=1):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "samples.npz"
        words = [f"--run_dir={run_dir}", f"--sample.count={count}", f"--sample.seed={seed}", f"--out={out}"]
        subprocess.run([sys.executable, "-m", "distgan", "sample", *words], check=True, capture_output=True)
        return dict(np.load(out))


def reduced(images):
    """uint8 [N, 16, 16, C] -> pixels as load_digits has them, [N, C, 64] in [0, 16]."""
    count, _, _, channels = images.shape
    small = images.reshape(count, 8, 2, 8, 2, channels).mean((2, 4)) * (16 / 255)
    return np.moveaxis(small, -1, 1).reshape(count, channels, 64)


def classifier():
    return SVC(gamma=0.001).fit(*load_digits(return_X_y=True))


def modes(images):
    """How many of the 1,000 numbers there are, and the divergence from all being alike."""
    pixels = reduced(images)
    digits = classifier().predict(pixels.reshape(-1, 64)).reshape(len(images), 3)
    counts = np.bincount(digits @ [100, 10, 1], minlength=1000)
    shares = counts[counts > 0] / len(images)
    return int((counts > 0).sum()), float((shares * np.log(shares * 1000)).sum())


def frechet(one, other):
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of [N, D] and [M, D]."""
    moments = [(each.mean(0), np.cov(each, rowvar=False)) for each in (one, other)]
    (mean, cov), (other_mean, other_cov) = moments
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other_cov @ root), 0)).sum()
    return float(((mean - other_mean) ** 2).sum() + np.trace(cov) + np.trace(other_cov) - 2 * cross)


def scores(run_dir):
    config = json.loads((Path(run_dir) / "config.json").read_text())["config"]
    if config["data.source"] == "stacked_digits":
        found, divergence = modes(sample(run_dir, 26_000)["images"])
        return {"modes": found, "kl": round(divergence, 3)}
    drawn = sample(run_dir, 10_000)
    pixels = reduced(drawn["images"])[:, 0]
    read = classifier().predict(pixels)
    result = {"rarest": float(np.bincount(read, minlength=10).min() / len(read))}
    result["distance"] = round(frechet(pixels / 16, load_digits().data / 16), 3)
    if config["model.conditional"]:
        result["agreement"] = float((read == drawn["labels"]).mean())
    return result


if __name__ == "__main__":
    print(json.dumps(scores(sys.argv[1])))
