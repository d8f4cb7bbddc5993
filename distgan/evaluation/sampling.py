"""Pictures from a generator: image i of a seed is the same image from the same weights, whatever the count and strategy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from distgan import seeds
from distgan.config import Config
from distgan.data.source import Description
from distgan.models.layers import Pass, call_with

CHUNK = 64
"""Images that a generator makes at once, always, so that the count does not change a rounding."""
_STANDING_IMAGES = 16 * CHUNK  # Whose moments, batch by batch, are averaged to standing statistics.
_PARALLEL = 1e-6  # Sine of the angle below which two latents count as parallel.
_GRID_SIDE = 8
_SEPARATOR = 64  # The gray of the line between two pictures.
_CAPTION_PIXELS = 12
_GRID_PIXELS = 512  # Small pictures are enlarged to about this, pixel by pixel.


class Sampler:
    """Draws from a run's generator (latents float32 [N, Z] -> [N, H, W, C] in [-1, 1]) as it is for inference."""

    def __init__(self, config: Config, generator: Any, description: Description):
        self.config = config
        self.description = description
        self.generator = generator
        self.num_classes = len(description.label_counts) if config.model.conditional else 0
        self.standing = config.ema.statistics == "standing"
        self.latent_size = config.model.name.options.latent_size
        self._chunk = tf.function(self.images, reduce_retracing=True)
        self._observe = tf.function(self._observed, reduce_retracing=True)

    def __call__(self, seed: int, numbers: range, label: int | None = None, truncation: float = 0.0) -> np.ndarray:
        """uint8 [N, H, W, C]: the images of sample numbers `numbers` (contiguous, from 0 on) of a seed.

        Of a conditional generator they are of class `label`, or of `labels(numbers)`.
        """
        start = numbers.start // CHUNK * CHUNK
        whole = range(start, start - (start - numbers.stop) // CHUNK * CHUNK)
        images = self.draw(self.latents_of(seed, whole, truncation), self.labels(whole, label))
        return images[numbers.start - start : numbers.stop - start]

    def latents_of(self, seed: int, numbers: range, truncation: float = 0.0) -> np.ndarray:
        """float32 [N, Z]: the latents of sample numbers `numbers` (contiguous) of a seed, `truncated`."""
        key, firsts = latents_key(seed), range(numbers.start, numbers.stop, CHUNK)
        chunks = [self.latents(key, tf.constant(first, tf.int64), truncation).numpy() for first in firsts]
        return np.concatenate(chunks)[: len(numbers)]

    def draw(self, latents: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C]: the images of latents float32 [N, Z] and classes int32 [N]."""
        statistics, rest = self.statistics(), -len(latents) % CHUNK
        padded = np.pad(latents, ((0, rest), (0, 0))), np.pad(labels, (0, rest))
        chunks = [
            self._chunk(*(tf.constant(each[first : first + CHUNK]) for each in padded), statistics).numpy()
            for first in range(0, len(latents), CHUNK)
        ]
        return np.concatenate(chunks)[: len(latents)]

    def latents(self, key: tf.Tensor, first: tf.Tensor, truncation: float = 0.0) -> tf.Tensor:
        """float32 [CHUNK, Z]: the latents of sample numbers first, first + 1, ..., `truncated`."""
        latents = seeds.normal(key, first, CHUNK, (self.latent_size,))
        return truncated(latents, tf.constant(truncation)) if truncation else latents

    def latents_of_seeds(self, each: tf.Tensor) -> tf.Tensor:
        """float32 [N, Z]: the one latent of each seed int64 [N].

        A seed is the number of an image under one key, not a key: keys are hashes, which a graph that is exported cannot make.
        """
        key = tf.constant(seeds.key(0, "sample/seeds"), tf.uint64)
        return tf.map_fn(
            lambda seed: seeds.normal(key, seed, 1, (self.latent_size,))[0], each, fn_output_signature=tf.float32
        )

    def images(
        self,
        latents: tf.Tensor,
        labels: tf.Tensor,
        statistics: Sequence[tf.Tensor],
        trained: Sequence[tf.Tensor] | None = None,
    ) -> tf.Tensor:
        """uint8 [N, H, W, C] of latents float32 [N, Z] and classes int32 [N].

        `statistics` are `statistics()`, `trained` the trainable weights, by default the generator's own.
        """
        generator = self.generator
        if trained is None:
            trained = [tf.convert_to_tensor(variable.value) for variable in generator.trainable_variables]
        latents = tf.cast(latents, generator.variable_dtype)
        return to_uint8(call_with(generator, trained, statistics, latents, labels=labels))

    def statistics(self) -> list[tf.Tensor]:
        """The generator's variables that are not trained, as images shall be drawn with."""
        found = {v.path: tf.convert_to_tensor(v.value) for v in self.generator.non_trainable_variables}
        if self.standing:
            key, batches = tf.constant(seeds.key(0, "standing/latents"), tf.uint64), []
            for first in range(0, _STANDING_IMAGES, CHUNK):
                labels = tf.constant(self.labels(range(first, first + CHUNK)))
                batches.append(self._observe(self.latents(key, tf.constant(first, tf.int64)), labels))
            found |= {path: tf.add_n([each[path] for each in batches]) / len(batches) for path in batches[0]}
        return list(found.values())

    def _observed(self, latents: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        """What the generator's batch norms see of these, by their variables' paths."""
        context = Pass.alone(lambda kind, name, shape: tf.zeros([CHUNK, *shape]))
        self.generator(tf.cast(latents, self.generator.variable_dtype), labels=labels, context=context)
        return {update.variable.path: update.value for update in context.updates if update.momentum}

    def labels(self, numbers: range, label: int | None = None) -> np.ndarray:
        """int32 [N]: the classes of samples, each in turn where none is chosen; zeros of an unconditional generator."""
        each = np.arange(numbers.start, numbers.stop) % max(1, self.num_classes)
        return np.full_like(each, label, np.int32) if label is not None else each.astype(np.int32)

    def captions(self, labels: np.ndarray) -> list[str]:
        """The classes' names, for a grid; none for an unconditional generator."""
        return [self.description.label_name(label) for label in labels.tolist()] if self.num_classes else []


def latents_key(seed: int) -> tf.Tensor:
    """The key of a seed's latents, uint64."""
    return tf.constant(seeds.key(seed, "sample/latents"), tf.uint64)


def truncated(latents: tf.Tensor, truncation: tf.Tensor) -> tf.Tensor:
    """Latents as of the normal distribution cut to [-t, t], t the `truncation` (float32 scalar); 0 leaves them as they are.

    Each number is taken at the same quantile (Brock et al. 2019, section 3.1, draw anew what lies outside: the same
    distribution), so that images change smoothly with t.
    """
    # Products alone: TensorFlow would turn a division by a constant into a product, or not, by its settings.
    mass = tf.cast(tf.math.erf(tf.cast(truncation, tf.float64) * math.sqrt(0.5)), tf.float32)
    cut = tf.math.erfinv(mass * tf.math.erf(latents * math.sqrt(0.5))) * math.sqrt(2)
    return tf.where(truncation > 0, cut, latents)


def slerp(start: np.ndarray, end: np.ndarray, steps: int) -> np.ndarray:
    """float32 [steps, Z]: from one latent to another (float32 [Z]) along the arc between them (White 2016, section 2).

    At t = i / (steps - 1) it is sin((1 - t) a) / sin(a) * start + sin(t a) / sin(a) * end, where a is the angle between the two:
    cos(a) = start . end / (|start| |end|). Of parallel latents, for which that is 0 / 0, it is (1 - t) * start + t * end.
    """
    start, end = start.astype(np.float64), end.astype(np.float64)
    cosine = start @ end / (np.linalg.norm(start) * np.linalg.norm(end))
    angle = np.arccos(np.clip(cosine, -1, 1))
    t = np.linspace(0, 1, steps)[:, None]
    if np.sin(angle) < _PARALLEL:
        return ((1 - t) * start + t * end).astype(np.float32)
    return ((np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)).astype(np.float32)


def to_uint8(images: tf.Tensor) -> tf.Tensor:
    """Images in [-1, 1] -> uint8, rounded to the nearest of 256 levels."""
    return tf.cast(tf.clip_by_value(tf.floor((tf.cast(images, tf.float32) + 1) * 127.5 + 0.5), 0, 255), tf.uint8)


def save_grid(images: np.ndarray, path: Path, captions: Sequence[str] = (), columns: int = _GRID_SIDE) -> None:
    """Writes uint8 [N, H, W, C] as a PNG, `columns` a row; 2 and 4 channels are shown as gray and RGB with alpha.

    `captions` are written below the images, as far as there is room.
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
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
