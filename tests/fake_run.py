"""A run directory as a long training leaves it, without the training."""

import json
import math

import numpy as np
from PIL import Image

from distgan import schema
from distgan.config import Config
from distgan.training import checkpoint

IMAGES_PER_ROW = 640


def make(
    path, num_rows, grids=0, restarts=(), not_finite=(), spike=None, evaluations=0, seed=0, checkpoints=0, **config
):
    """Writes a run with `num_rows` rows.

    Args:
      path: the run directory, which must not exist.
      num_rows: rows of metrics.jsonl, at 640, 1280, ... images.
      grids: pictures of samples, evenly over the run, each of another gray.
      restarts: numbers of the rows that are the first after a restart.
      not_finite: numbers of the rows whose `loss/generator` is not finite.
      spike: (number of a row, value) of `loss/discriminator`.
      evaluations: how many, evenly over the run.
      seed: of the noise.
      checkpoints: how many, of the last rows.
      config: values that are not the defaults, with `__` for the dots.
    """
    path.mkdir(parents=True)
    values = schema.flatten(Config()) | {name.replace("__", "."): value for name, value in config.items()}
    values["train.total_kimg"] = num_rows * IMAGES_PER_ROW / 1000
    start = {"time": "2026-01-01T12:00:00+0000", "command": ["distgan", "train"], "versions": {}, "git_revision": None}
    content = {"config": values, "data_fingerprint": "0", "starts": [start] * (1 + len(restarts))}
    (path / "config.json").write_text(json.dumps(content))
    rows = [row(number, num_rows, sum(each <= number for each in restarts), seed) for number in range(num_rows)]
    for number in not_finite:
        rows[number]["loss/generator"] = None
    if spike:
        rows[spike[0]]["loss/discriminator"] = spike[1]
    (path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    with (path / "evaluations.jsonl").open("w") as file:
        for number in range(evaluations):
            seen = IMAGES_PER_ROW * (num_rows * (number + 1) // evaluations)
            file.write(json.dumps(evaluation(seen, 300 / (number + 1) + seed)) + "\n")
    (path / "samples").mkdir()
    Image.new("L", (64, 64), 255).save(path / "samples" / "reals.png")
    for number in range(grids):
        seen = IMAGES_PER_ROW * num_rows * number // max(grids - 1, 1)
        Image.new("L", (64, 64), 250 * number // max(grids - 1, 1)).save(path / "samples" / f"{seen // 1000:06d}.png")
    for number in range(checkpoints):
        seen = IMAGES_PER_ROW * (num_rows - number)
        info = {"images_seen": seen, "data_fingerprint": "0"}
        saved = checkpoint.Checkpoint({"w": np.zeros(1000, np.float32)}, info)
        checkpoint.write(path / "checkpoints", saved, keep=99, best=number == 0)
    return rows


def evaluation(images_seen, fid, count=10_000):
    """A line of evaluations.jsonl."""
    card = {"count": count, "metric": "fid", "extractor": "classifier", "checkpoint": images_seen, "trained_on": "0"}
    return {
        "images_seen": images_seen,
        "kimg": images_seen / 1000,
        "scores": {"fid": fid, "precision": 0.5, "recall": 0.25},
        "cards": {"fid": card, "pr": {**card, "metric": "pr"}},
        "costs": {},
    }


def row(number, num_rows, restarts, seed):
    """A row of metrics.jsonl."""
    random = np.random.default_rng([seed, number])
    share = (number + 1) / num_rows

    def noise():
        return float(random.normal())

    seen = IMAGES_PER_ROW * (number + 1)
    rate = 1500 + 100 * noise() - 600 * (0.4 < share < 0.45)
    return {
        "progress/images_seen": seen,
        "progress/kimg": seen / 1000,
        "progress/step": 10 * (number + 1),
        "progress/restarts": restarts,
        "loss/discriminator": 1.3 - 0.4 * share + 0.05 * noise(),
        "loss/generator": 0.7 + 0.8 * share + 0.1 * noise() + 0.1 * math.sin(30 * share),
        "loss/r1": 0.02 + 0.05 * (1 - share) + 0.005 * abs(noise()),
        "loss/lecam": 0.001 * abs(noise()),
        "d_logits/real_mean": 0.2 + share + 0.1 * noise(),
        "d_logits/fake_mean": -0.2 - share + 0.1 * noise(),
        "d_logits/real_std": 1 + share + 0.05 * noise(),
        "d_logits/fake_std": 0.8 + share + 0.05 * noise(),
        "d_sign/real": 0.2 + 0.5 * share + 0.02 * noise(),
        "d_sign/fake": -0.3 - 0.4 * share + 0.02 * noise(),
        "grad_norm/discriminator": math.exp(1 + 2 * share + 0.2 * noise()),
        "grad_norm/generator": math.exp(0.3 * noise() - share),
        "lr/discriminator": 2e-4,
        "lr/generator": 2e-4 * (1 - share),
        "augmentation/p": min(0.4, share),
        "throughput/images_per_second": rate,
        "throughput/images_per_second_per_replica": rate / 8,
        "time/step_ms": 64000 / rate,
        "time/data_wait_ms": 0.5 + 0.1 * abs(noise()),
        "time/reduction_wait_ms": 2 + 0.4 * abs(noise()),
        "workers/step_ms_fastest": 60000 / rate,
        "workers/step_ms_mean": 62000 / rate,
        "workers/step_ms_slowest": 64000 / rate,
        "workers/slowest_rank": int(random.integers(8)),
        "node/0/gpu_utilization": 90 + 2 * noise(),
        "node/1/gpu_utilization": 85 + 4 * noise(),
        "node/0/gpu_memory_gb": 31 + share,
        "node/1/gpu_memory_gb": 30 + share,
        "memory/host_peak_gb": 4 + share,
        "memory/device_peak_gb": 33.0,
    }
