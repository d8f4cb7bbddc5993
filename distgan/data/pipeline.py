"""From image numbers to batches: an endless tf.data pipeline that can start at any batch at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from distgan import seeds
from distgan.config import DataConfig, TrainConfig
from distgan.data import index
from distgan.data.source import Images


class Batch(NamedTuple):
    """One replica's share of a global batch, as A micro-batches of M images."""

    images: Any
    """uint8 [A, M, H, W, C]."""
    labels: Any
    """int32 [A, M]."""
    first: Any
    """int64 [A]: the image number of each micro-batch's first image; the others follow on."""


def read(images: Images, image_numbers: np.ndarray, seed: int, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixels (uint8 [N, H, W, C]) and labels (int32 [N]) of image numbers of the run (int64 [N])."""
    pixels, labels = images.read(index.dataset_indices(image_numbers, images.num_images, seed))
    if flip:
        mirrored = seeds.bits(seeds.key(seed, "flip"), image_numbers) >> np.uint64(63) == 1
        pixels = np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)
    return pixels, labels


def batches(
    images: Images,
    first_batch: int,
    data: DataConfig,
    train: TrainConfig,
    num_replicas: int,
    replicas: range,
    seed: int,
) -> tf.data.Dataset:
    """Shares of the batches first_batch, first_batch + 1, ... for the given replicas, in turn.

    Args:
      images: the open source.
      first_batch: the batch number to start at.
      data: says whether images are mirrored.
      train: global batch and accumulation steps.
      num_replicas: replicas over all workers.
      replicas: the replicas that this pipeline feeds.
      seed: the run's seed, for order and flips.

    Returns:
      An endless dataset of `Batch`.
    """
    steps = train.accumulation_steps
    size = train.global_batch // (steps * num_replicas)

    def load(element: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        batch, turn = divmod(int(element), len(replicas))
        numbers = index.share(first_batch + batch, train.global_batch, steps, num_replicas, replicas[turn])
        pixels, labels = read(images, numbers.reshape(-1), seed, data.flip)
        return pixels.reshape(steps, size, *images.shape), labels.reshape(steps, size), numbers[:, 0]

    def to_batch(element: tf.Tensor) -> Batch:
        pixels, labels, first = tf.numpy_function(load, [element], [tf.uint8, tf.int32, tf.int64], stateful=False)
        return Batch(
            tf.ensure_shape(pixels, [steps, size, *images.shape]),
            tf.ensure_shape(labels, [steps, size]),
            tf.ensure_shape(first, [steps]),
        )

    elements = tf.data.Dataset.counter()
    return elements.map(to_batch, num_parallel_calls=2, deterministic=True).prefetch(2 * len(replicas))
