"""Pictures from a generator: image i of a seed is the same image from the same weights, whatever the count and strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from distgan import seeds

_CHUNK = 64  # Every batch has this size, so that the count does not change a rounding.
_GRID_SIDE = 8
_SEPARATOR = 64  # The gray of the line between two pictures.
_GRID_PIXELS = 512  # Small pictures are enlarged to about this, pixel by pixel.


class Sampler:
    """Draws from a generator (float32 [N, Z] -> [N, H, W, C] in [-1, 1]) as it is for inference."""

    def __init__(self, generator: Any, latent_size: int):
        @tf.function(reduce_retracing=True)
        def chunk(key: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
            latents = seeds.normal(key, first, _CHUNK, (latent_size,))
            return to_uint8(generator(tf.cast(latents, generator.variable_dtype)))

        self._chunk = chunk

    def __call__(self, seed: int, numbers: range) -> np.ndarray:
        """uint8 [N, H, W, C]: the images of sample numbers `numbers` (contiguous, from 0 on) of a seed."""
        key = tf.constant(seeds.key(seed, "sample/latents"), tf.uint64)
        start = numbers.start // _CHUNK * _CHUNK
        firsts = range(start, numbers.stop, _CHUNK)
        chunks = [self._chunk(key, tf.constant(first, tf.int64)).numpy() for first in firsts]
        return np.concatenate(chunks)[numbers.start - start : numbers.stop - start]


def to_uint8(images: tf.Tensor) -> tf.Tensor:
    """Images in [-1, 1] -> uint8, rounded to the nearest of 256 levels."""
    return tf.cast(tf.clip_by_value(tf.floor((tf.cast(images, tf.float32) + 1) * 127.5 + 0.5), 0, 255), tf.uint8)


def save_grid(images: np.ndarray, path: Path, columns: int = _GRID_SIDE) -> None:
    """Writes uint8 [N, H, W, C] as a PNG with `columns` images a row; 2 and 4 channels are shown as gray and RGB with alpha."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, height + 1, width + 1, channels), _SEPARATOR, np.uint8)
    cells[:count, :height, :width] = images
    grid = cells.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    scale = max(1, _GRID_PIXELS // grid.shape[1])
    grid = grid.repeat(scale, axis=0).repeat(scale, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    Image.fromarray(grid[..., 0] if channels == 1 else grid).save(temporary, format="PNG")
    temporary.rename(path)
