"""Runs the cells of a table on N replicas, one after the other: `table.py N CELLS.json RESULTS.json`.

A cell is a config by flag names. It trains two steps, saves and goes on, draws, evaluates and exports, all in this one process.
Its result is an empty text, or what it was refused with, or a traceback.
"""

import json
import sys
import tempfile
import traceback
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from replicas import runtime_of

from distgan import config as configs
from distgan import schema
from distgan.commands import trained
from distgan.config import Config
from distgan.data import pipeline
from distgan.data.source import Description
from distgan.errors import UserError
from distgan.evaluation import evaluator, export
from distgan.evaluation.sampling import Sampler
from distgan.runtime import devices
from distgan.training import checkpoint, phases, scores
from distgan.training.state import build_state
from distgan.training.step import compile_steps


class Run:
    """A run's state and steps, without what is around them: saving, rows, signals."""

    def __init__(self, config, runtime):
        self.config, self.runtime = config, runtime
        devices.set_precision(config.precision)
        images = self.images = config.data.source.options.open(config.data)
        problems = [*configs.problems(config), *config.model.name.options.fits(images.shape)]
        problems += config.objective.augmentation.options.fits(images.shape)
        problems += phases.problems(config, runtime.topology.num_replicas)
        if problems:
            raise UserError("; ".join(problems))
        self.state = build_state(config, Description.of(images), runtime)
        self.advance = compile_steps(config, self.state, runtime)

    def train(self, steps):
        """From where the clock stands; every number of the state must be one."""
        place, train = self.runtime.topology, self.config.train
        reader = pipeline.Reader(self.images, self.config.data, self.config.seed)
        first = int(self.state.images_seen.numpy()) // train.global_batch
        shares = pipeline.batches(reader, first, train, place.num_replicas, place.local_replicas)
        ok, _ = self.advance(self.runtime.distribute(shares), steps)
        assert ok.numpy(), "diverged"
        arrays = self.state.arrays()
        for name, array in arrays.items():
            assert np.isfinite(array).all(), name
        return arrays


def work(values, runtime, folder):
    """All that a run comes to."""
    config = schema.build(Config, {**values, "data.cache_dir": str(folder)})
    run = Run(config, runtime)
    start = run.state.arrays()
    first = run.train(1)
    info = {"images_seen": int(first["images_seen"]), **json.loads(json.dumps(vars(run.state.description)))}
    checkpoint.write(folder / "checkpoints", checkpoint.Checkpoint(first, info), keep=1)
    second = run.train(1)
    for network in ("generator/", "discriminator/", "generator_ema/"):
        names = [name for name in start if name.startswith(network)]
        assert any((start[name] != second[name]).any() for name in names), f"{network} did not move"

    saved = checkpoint.newest(folder / "checkpoints")
    run.state.share(saved.arrays, runtime)
    for name, array in run.train(1).items():
        np.testing.assert_allclose(array, second[name], rtol=1e-2, atol=1e-3, err_msg=f"resumed: {name}")

    description = Description.from_json(saved.info)
    generator = trained.build_generator("", config, description, "ema", saved.arrays)
    sampler = Sampler(config, generator, description)
    images = sampler(0, range(2))
    assert images.dtype == np.uint8
    assert images.std() > 0
    extractor = scores.open_extractor(config, run.images, runtime)
    reals = evaluator.of_images(run.images, runtime, "fail")
    fakes = evaluator.of_generator(sampler, runtime, config.evaluation, description.label_counts)
    result = evaluator.evaluate(config.evaluation.metrics, reals, fakes, extractor, runtime, folder, {})
    assert result.scores["fid"] > 0

    export.save_graph(sampler, folder / "saved_model")
    drawn = tf.saved_model.load(str(folder / "saved_model")).signatures["latents"]
    labels = {"labels": tf.constant(sampler.labels(range(2)))} if sampler.num_classes else {}
    exported = drawn(latents=tf.constant(sampler.latents_of(0, range(64))[:2]), **labels)["images"].numpy()
    assert np.abs(exported.astype(int) - images).max() <= 1
    export.save_keras(sampler, folder / "generator.keras")


def main(replicas, cells, results):
    devices.silence(0)
    found = {}
    for name, values in json.loads(Path(cells).read_text()).items():
        values["runtime.logical_cpus"] = replicas
        with tempfile.TemporaryDirectory() as folder:
            try:
                work(values, runtime_of(schema.build(Config, values)), Path(folder))
                found[name] = ""
            except UserError as error:
                found[name] = f"refused: {error}"
            except Exception:
                found[name] = traceback.format_exc()
        # Else the graphs of all cells stay, and slow the next ones down.
        keras.utils.clear_session()
        Path(results).write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
