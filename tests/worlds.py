"""Saves a run at N replicas, and goes on at N from what 1, 2, 3 and 4 have saved: `worlds.py N FOLDER`, all four side by side."""

import sys
import time
from pathlib import Path

import numpy as np
from replicas import runtime_of

from distgan import schema
from distgan.config import Config
from distgan.runtime import devices
from distgan.training import checkpoint
from distgan.training.checkpoint import Checkpoint

SIZES = (1, 2, 3, 4)
STEPS = 3  # Before the save, and behind it.
WAIT_SECONDS = 500  # For the others' saves.
VALUES = {
    "model.width": 4,
    "train.global_batch": 12,
    "precision": "float64",
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.05,
}


def main(size, folder):
    devices.silence(0)
    config = schema.build(Config, VALUES | {"runtime.logical_cpus": size})
    runtime = runtime_of(config)
    from distgan.data import pipeline
    from distgan.data.source import Description
    from distgan.training.state import build_state
    from distgan.training.step import compile_steps

    images = config.data.source.options.open(config.data)
    state = build_state(config, Description.of(images), runtime)
    advance, place = compile_steps(config, state, runtime), runtime.topology
    assert place.num_replicas == size
    reader = pipeline.Reader(images, config.data, config.seed)

    def go_on(arrays):
        """The arrays some steps after those of a checkpoint."""
        state.share(arrays, runtime)
        first_batch = int(state.images_seen.numpy()) // config.train.global_batch
        data = pipeline.batches(reader, first_batch, config.train, place.num_replicas, place.local_replicas)
        ok, _ = advance(runtime.distribute(data), STEPS)
        assert ok.numpy()
        return state.arrays()

    middle = go_on(state.arrays())
    info = {"images_seen": int(middle["images_seen"])}
    checkpoint.write(folder / f"saved.{size}", Checkpoint(middle, info), keep=1)
    if size == 1:
        np.savez(folder / "undisturbed.npz", **{name.replace("/", ":"): array for name, array in go_on(middle).items()})
    end = time.monotonic() + WAIT_SECONDS
    for saved_at in SIZES:
        while (found := checkpoint.newest(folder / f"saved.{saved_at}")) is None:
            assert time.monotonic() < end, f"nothing was saved at {saved_at} replicas"
            time.sleep(0.1)
        arrays = {name.replace("/", ":"): array for name, array in go_on(found.arrays).items()}
        np.savez(folder / f"{saved_at}-{size}.npz", **arrays)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
