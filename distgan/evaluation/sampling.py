"""Pictures from a generator: image i of a seed is the same image from the same weights, whatever the count and strategy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from distgan import seeds
from distgan.config import Config
from distgan.data.source import Description
from distgan.models.layers import Pass

_CHUNK = 64  # Every batch has this size, so that the count does not change a rounding.
_STANDING_IMAGES = 16 * _CHUNK  # Whose moments, batch by batch, are averaged to standing statistics.
_GRID_SIDE = 8
_SEPARATOR = 64  # The gray of the line between two pictures.
_CAPTION_PIXELS = 12
_GRID_PIXELS = 512  # Small pictures are enlarged to about this, pixel by pixel.


class Sampler:
    """Draws from a run's generator (latents float32 [N, Z] -> [N, H, W, C] in [-1, 1]) as it is for inference."""

    def __init__(self, config: Config, generator: Any, description: Description):
        self.description = description
        self.generator = generator
        self.num_classes = len(description.label_counts) if config.model.conditional else 0
        self.standing = config.ema.statistics == "standing"
        latent_size = config.model.name.options.latent_size

        def latents(key: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
            return tf.cast(seeds.normal(key, first, _CHUNK, (latent_size,)), generator.variable_dtype)

        @tf.function(reduce_retracing=True)
        def chunk(key: tf.Tensor, first: tf.Tensor, labels: tf.Tensor, statistics: list[tf.Tensor]) -> tf.Tensor:
            trained = [tf.convert_to_tensor(variable.value) for variable in generator.trainable_variables]
            images, _ = generator.stateless_call(trained, statistics, latents(key, first), labels=labels)
            return to_uint8(images)

        @tf.function(reduce_retracing=True)
        def observe(key: tf.Tensor, first: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
            context = Pass.alone(lambda kind, name, shape: tf.zeros([_CHUNK, *shape]))
            generator(latents(key, first), labels=labels, context=context)
            return {update.variable.path: update.value for update in context.updates if update.momentum}

        self._chunk, self._observe = chunk, observe

    def _statistics(self) -> list[tf.Tensor]:
        """The generator's variables that are not trained, as images shall be drawn with."""
        found = {v.path: tf.convert_to_tensor(v.value) for v in self.generator.non_trainable_variables}
        if self.standing:
            key, batches = tf.constant(seeds.key(0, "standing/latents"), tf.uint64), []
            for first in range(0, _STANDING_IMAGES, _CHUNK):
                labels = tf.constant(self.labels(range(first, first + _CHUNK)))
                batches.append(self._observe(key, tf.constant(first, tf.int64), labels))
            found |= {path: tf.add_n([each[path] for each in batches]) / len(batches) for path in batches[0]}
        return list(found.values())

    def __call__(self, seed: int, numbers: range, label: int | None = None) -> np.ndarray:
        """uint8 [N, H, W, C]: the images of sample numbers `numbers` (contiguous, from 0 on) of a seed.

        Of a conditional generator they are of class `label`, or of `labels(numbers)`.
        """
        key, statistics = tf.constant(seeds.key(seed, "sample/latents"), tf.uint64), self._statistics()
        start = numbers.start // _CHUNK * _CHUNK
        chunks = []
        for first in range(start, numbers.stop, _CHUNK):
            labels = self.labels(range(first, first + _CHUNK), label)
            chunks.append(self._chunk(key, tf.constant(first, tf.int64), tf.constant(labels), statistics).numpy())
        return np.concatenate(chunks)[numbers.start - start : numbers.stop - start]

    def labels(self, numbers: range, label: int | None = None) -> np.ndarray:
        """int32 [N]: the classes of samples, each in turn where none is chosen; zeros of an unconditional generator."""
        each = np.arange(numbers.start, numbers.stop) % max(1, self.num_classes)
        return np.full_like(each, label, np.int32) if label is not None else each.astype(np.int32)

    def captions(self, labels: np.ndarray) -> list[str]:
        """The classes' names, for a grid; none for an unconditional generator."""
        return [self.description.label_name(label) for label in labels.tolist()] if self.num_classes else []


def to_uint8(images: tf.Tensor) -> tf.Tensor:
    """Images in [-1, 1] -> uint8, rounded to the nearest of 256 levels."""
    return tf.cast(tf.clip_by_value(tf.floor((tf.cast(images, tf.float32) + 1) * 127.5 + 0.5), 0, 255), tf.uint8)


def save_grid(images: np.ndarray, path: Path, captions: Sequence[str] = ()) -> None:
    """Writes uint8 [N, H, W, C] as a PNG, eight a row; 2 and 4 channels are shown as gray and RGB with alpha.

    `captions` are written below the images, as far as there is room.
    """
    count, height, width, channels = images.shape
    columns, rows = _GRID_SIDE, -(-count // _GRID_SIDE)
    scale = max(1, _GRID_PIXELS // (columns * (width + 1)))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    below = _CAPTION_PIXELS if captions else 0
    cells = np.full(
        (rows * columns, height * scale + below + scale, (width + 1) * scale, channels), _SEPARATOR, np.uint8
    )
    cells[:count, : height * scale, : width * scale] = images
    for cell, caption in zip(cells, captions, strict=False):
        cell[height * scale : height * scale + below] = _write(caption, below, cell.shape[1])
    grid = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    grid = grid.reshape(rows * cells.shape[1], columns * cells.shape[2], channels)[:-scale, :-scale]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    Image.fromarray(grid[..., 0] if channels == 1 else grid).save(temporary, format="PNG")
    temporary.rename(path)


def _write(words: str, height: int, width: int) -> np.ndarray:
    """Words in white on black: uint8 [H, W, 1]."""
    strip = Image.new("L", (width, height))
    ImageDraw.Draw(strip).text((1, 0), words, fill=255)
    return np.asarray(strip)[..., None]
