"""A generator as TensorFlow's own graph: a SavedModel that draws what `distgan sample` draws, and needs no code of ours."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from distgan import schema
from distgan.evaluation.sampling import CHUNK, Sampler, truncated
from distgan.models.saved import SavedGenerator
from distgan.runtime import credentials

_COUNT = 64
_TRUNCATION = 0.7

# Runs in a process of its own, out of reach of the folder and the variables that make distgan importable.
_DRAW = """
import sys
import numpy as np
import tensorflow as tf
for gpu in tf.config.list_physical_devices("GPU"):
    tf.config.experimental.set_memory_growth(gpu, True)
model, asked, found = sys.argv[1:]
asked, signatures = np.load(asked), tf.saved_model.load(model).signatures
labels = {"labels": tf.constant(asked["labels"])} if "labels" in asked else {}
drawn = {
    "latents": signatures["latents"](latents=tf.constant(asked["latents"]), **labels),
    "seeds": signatures["seeds"](seeds=tf.constant(asked["seeds"]), truncation=tf.constant(asked["truncation"]), **labels),
}
np.savez(found, **{name: each["images"].numpy() for name, each in drawn.items()})
assert not [name for name in sys.modules if name.partition(".")[0] == "distgan"]
"""


class _Drawing(tf.Module):
    """Weights and statistics, and the functions that draw with them."""

    def __init__(self, sampler: Sampler):
        super().__init__()
        generator, self._sampler = sampler.generator, sampler
        self.trained = [_variable(v, v.value) for v in generator.trainable_variables]
        self.statistics = [
            _variable(v, value)
            for v, value in zip(generator.non_trainable_variables, sampler.statistics(), strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Writes the SavedModel."""
        labels = [tf.TensorSpec([None], tf.int32, "labels")] if self._sampler.num_classes else []
        latents = tf.function(self._of_latents).get_concrete_function(
            tf.TensorSpec([None, self._sampler.latent_size], tf.float32, "latents"), *labels
        )
        seeds = tf.function(self._of_seeds).get_concrete_function(
            tf.TensorSpec([None], tf.int64, "seeds"), tf.TensorSpec([], tf.float32, "truncation"), *labels
        )
        signatures = {"serving_default": latents, "latents": latents, "seeds": seeds}
        tf.saved_model.save(self, str(folder), signatures=signatures)

    def _of_latents(self, latents: tf.Tensor, labels: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        return {"images": self._images(latents, labels)}

    def _of_seeds(
        self, seeds: tf.Tensor, truncation: tf.Tensor, labels: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        return {"images": self._images(truncated(self._sampler.latents_of_seeds(seeds), truncation), labels)}

    def _images(self, latents: tf.Tensor, labels: tf.Tensor | None) -> tf.Tensor:
        """uint8 [N, H, W, C], in chunks as the sampler's, so that the number of images changes no rounding."""
        count, classes = tf.shape(latents)[0], self._sampler.num_classes
        labels = tf.zeros([count], tf.int32) if labels is None else labels
        checks = [
            tf.debugging.assert_equal(tf.size(labels), count, "as many labels as images are needed"),
            tf.debugging.assert_non_negative(labels, f"labels must be from 0 to {classes - 1}"),
            tf.debugging.assert_less(labels, max(1, classes), f"labels must be from 0 to {classes - 1}"),
        ]
        with tf.control_dependencies(checks):
            rest = -count % CHUNK
        chunks = (
            tf.reshape(tf.pad(latents, [[0, rest], [0, 0]]), [-1, CHUNK, self._sampler.latent_size]),
            tf.reshape(tf.pad(labels, [[0, rest]]), [-1, CHUNK]),
        )

        def draw(chunk: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            statistics, trained = ([tf.convert_to_tensor(v) for v in each] for each in (self.statistics, self.trained))
            return self._sampler.images(*chunk, statistics, trained)

        shape = self._sampler.description.image_shape
        images = tf.map_fn(
            draw,
            chunks,
            fn_output_signature=tf.TensorSpec([CHUNK, *shape], tf.uint8),
            parallel_iterations=1,
        )
        return tf.reshape(images, [-1, *shape])[:count]


def _variable(like: Any, value: Any) -> tf.Variable:
    return tf.Variable(value, trainable=like.trainable, name=like.path)


def save_graph(sampler: Sampler, folder: Path) -> None:
    """Writes a SavedModel of a sampler's generator, its statistics as `Sampler.statistics` has them.

    Signatures: `latents`, which is `serving_default` too: latents float32 [N, Z], labels int32 [N] -> images uint8 [N, H, W, C].
    `seeds`: seeds int64 [N], truncation float32 scalar (0: none), labels int32 [N] -> the same, the images of
    `distgan sample --sample.seeds`. `labels` are there where the generator is conditional.
    """
    _Drawing(sampler).save(folder)


def save_keras(sampler: Sampler, path: Path) -> None:
    """Writes the generator as a .keras file, its statistics as `Sampler.statistics` has them."""
    flat = schema.flatten(sampler.config)
    network = {name: value for name, value in flat.items() if name.startswith("model.") or name == "precision"}
    model = SavedGenerator(network, sampler.description.image_shape, sampler.num_classes)
    generator = sampler.generator
    for variable, like in zip(model.network.trainable_variables, generator.trainable_variables, strict=True):
        variable.assign(like.value)
    for variable, value in zip(model.network.non_trainable_variables, sampler.statistics(), strict=True):
        variable.assign(value)
    model.save(path)


def check_graph(sampler: Sampler, folder: Path) -> Mapping[str, Difference]:
    """Draws with the SavedModel in `folder`, in a process that has TensorFlow alone, and with the sampler, by each signature.

    Raises:
      RuntimeError: the SavedModel could not be loaded or does not draw.
    """
    numbers, truncation = np.arange(_COUNT, dtype=np.int64), np.float32(_TRUNCATION)
    labels = sampler.labels(range(_COUNT))
    latents = {
        "latents": sampler.latents_of(0, range(_COUNT)),
        "seeds": truncated(sampler.latents_of_seeds(tf.constant(numbers)), tf.constant(truncation)).numpy(),
    }
    asked: dict[str, Any] = {"latents": latents["latents"], "seeds": numbers, "truncation": truncation}
    if sampler.num_classes:
        asked["labels"] = labels
    with tempfile.TemporaryDirectory() as workplace:
        inputs, outputs = Path(workplace) / "asked.npz", Path(workplace) / "found.npz"
        np.savez(inputs, **asked)
        words = [sys.executable, "-I", "-c", _DRAW, str(folder), str(inputs), str(outputs)]
        done = subprocess.run(words, capture_output=True, text=True, env=credentials.for_child())
        if done.returncode:
            raise RuntimeError(f"the SavedModel does not draw:\n{done.stderr}")
        with np.load(outputs) as found:
            return {name: Difference.of(sampler.draw(each, labels), found[name]) for name, each in latents.items()}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How two stacks of images differ."""

    images: int
    """Compared."""
    equal: int
    """Images of them, to the last bit."""
    levels: int
    """The largest difference of a value, of 255."""

    @classmethod
    def of(cls, ours: np.ndarray, theirs: np.ndarray) -> Difference:
        """That of uint8 [N, H, W, C] each."""
        apart = np.abs(ours.astype(int) - theirs).reshape(len(ours), -1).max(1)
        return cls(len(ours), int((apart == 0).sum()), int(apart.max()))
