"""From image numbers to batches: an endless tf.data pipeline that can start at any batch at once."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from distgan import seeds
from distgan.config import DataConfig, TrainConfig
from distgan.data import index
from distgan.data.pixels import BadImage
from distgan.data.source import Images
from distgan.errors import UserError
from distgan.runtime.base import untuned

log = logging.getLogger("distgan")

MOST_UNREADABLE = 0.01
"""The share of images that may be left out."""


class Batch(NamedTuple):
    """One replica's share of a global batch, as A micro-batches of M images."""

    images: Any
    """uint8 [A, M, H, W, C]."""
    labels: Any
    """int32 [A, M]."""
    first: Any
    """int64 [A]: the image number of each micro-batch's first image; the others follow on."""


class Reader:
    """Reads the images of the run by their numbers; safe to call from several threads."""

    def __init__(self, images: Images, data: DataConfig, seed: int):
        """Makes a reader.

        Args:
          images: the open source.
          data: says whether images are mirrored, and what an unreadable one comes to.
          seed: the run's seed, for order and flips.
        """
        self.images, self.data, self.seed = images, data, seed
        self.unreadable: set[int] = set()
        """Indices of images that gave way to others."""
        self.error: Exception | None = None
        """The first error, which tf.data wraps in one of its own."""

    def __call__(self, image_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pixels (uint8 [N, H, W, C]) and labels (int32 [N]) of image numbers of the run (int64 [N]).

        Raises:
          UserError: an image cannot be read; or more than 1 % of them, where --data.on_error=skip.
        """
        indices = index.dataset_indices(image_numbers, self.images.num_images, self.seed)
        try:
            pixels, labels = self._read(image_numbers, indices)
        except Exception as error:
            self.error = self.error or error
            raise
        if self.data.flip:
            mirrored = self._mirrored(image_numbers)
            pixels[mirrored] = pixels[mirrored][:, :, ::-1]
        return pixels, labels

    def encoded(self, image_numbers: np.ndarray) -> tuple[list[bytes], np.ndarray, np.ndarray] | None:
        """The same, for `decoded`: encoded images, which to mirror (bool [N]), and labels; None if one is not plain."""
        images: Any = self.images  # Ones that look plain.
        found = images.encoded(index.dataset_indices(image_numbers, self.images.num_images, self.seed))
        return found and (found[0], self._mirrored(image_numbers), found[1])

    def _mirrored(self, image_numbers: np.ndarray) -> np.ndarray:
        if not self.data.flip:
            return np.zeros(len(image_numbers), bool)
        return seeds.bits(seeds.key(self.seed, "flip"), image_numbers) >> np.uint64(63) == 1

    def _read(self, image_numbers: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self.images.read(indices)
        except BadImage as bad:
            if self.data.on_error == "fail":
                raise UserError(f"{bad} (--data.on_error=skip takes the next image in its place)") from None
        pixels, labels = zip(*(self._first_readable(number) for number in image_numbers.tolist()), strict=True)
        return np.concatenate(pixels), np.concatenate(labels)

    def _first_readable(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The image of a number, or of the next one that has a readable one."""
        while True:
            found = index.dataset_indices(np.array([number]), self.images.num_images, self.seed)
            try:
                return self.images.read(found)
            except BadImage as bad:
                self._note(int(found[0]), bad)
            number += 1

    def _note(self, bad_index: int, bad: BadImage) -> None:
        if bad_index not in self.unreadable:
            self.unreadable.add(bad_index)
            log.warning("left out: %s", bad)
        if len(self.unreadable) > MOST_UNREADABLE * self.images.num_images:
            raise UserError(
                f"{len(self.unreadable)} of {self.images.num_images} images of {self.images.name} cannot be read, the last: {bad}"
            )


def decoded(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """uint8 [H, W, channels] of one `plain` image, the same as Pillow's.

    Raises:
      InvalidArgumentError: it is broken.
    """
    if channels == 4:
        return tf.io.decode_png(encoded, channels)
    # It takes PNGs, too. Pillow's DCT is the accurate one; TensorFlow's default is not.
    return tf.io.decode_jpeg(encoded, channels, dct_method="INTEGER_ACCURATE")


def batches(
    reader: Reader, first_batch: int, train: TrainConfig, num_replicas: int, replicas: range
) -> tf.data.Dataset:
    """Shares of the batches first_batch, first_batch + 1, ... for the given replicas, in turn.

    Args:
      reader: of the run's images.
      first_batch: the batch number to start at.
      train: global batch and accumulation steps.
      num_replicas: replicas over all workers.
      replicas: the replicas that this pipeline feeds.

    Returns:
      An endless dataset of `Batch`.
    """
    steps = train.accumulation_steps
    images = train.global_batch // steps
    # Where shares differ, as they may among elastic workers, a worker has one replica.
    [size] = {len(index.share(images, num_replicas, replica)) for replica in replicas}
    per_call, shape = reader.images.images_per_call, reader.images.shape
    start = first_batch * steps * size * len(replicas)

    def numbers_of(call: np.ndarray) -> np.ndarray:
        places = np.arange(per_call, dtype=np.int64) + (start + int(call) * per_call)
        return index.dealt(places, train.global_batch, steps, num_replicas, replicas)

    def to_batch(pixels: tf.Tensor, labels: tf.Tensor, numbers: tf.Tensor) -> Batch:
        each = [steps, size]
        return Batch(tf.reshape(pixels, [*each, *shape]), tf.reshape(labels, each), tf.reshape(numbers, each)[:, 0])

    threads = reader.data.threads or (os.cpu_count() or 1)
    single = _images(reader, numbers_of, threads)
    options = untuned()
    options.threading.private_threadpool_size = threads
    options.experimental_optimization.inject_prefetch = False
    shares = single.rebatch(steps * size, drop_remainder=True).map(to_batch)
    # Said again after rebatch: where an end may come, tf.distribute expects a last batch of any size.
    shares = shares.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    return shares.prefetch(2 * len(replicas)).with_options(options)


def _images(reader: Reader, numbers_of: Callable[[np.ndarray], np.ndarray], threads: int) -> tf.data.Dataset:
    """Endless calls, in order: pixels (uint8 [N, H, W, C]), labels (int32 [N]) and image numbers (int64 [N]) of each."""
    per_call, shape = reader.images.images_per_call, reader.images.shape

    def read(call: np.ndarray) -> tuple[np.ndarray, ...]:
        numbers = numbers_of(call)
        return *reader(numbers), numbers

    def of_known_shape(*found: tf.Tensor) -> tuple[tf.Tensor, ...]:
        known = ([per_call, *shape], [per_call], [per_call])
        return tuple(tf.ensure_shape(each, its) for each, its in zip(found, known, strict=True))

    def by_pillow(call: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return of_known_shape(*tf.numpy_function(read, [call], [tf.uint8, tf.int32, tf.int64], stateful=False))

    def fetch_or_read(call: np.ndarray) -> tuple[np.ndarray, ...]:
        """Encoded images and which are mirrored; or the call's pixels, where an image is not plain. The others are empty."""
        numbers = numbers_of(call)
        if found := reader.encoded(numbers):
            encoded, mirrored, labels = found
            return np.array(encoded, object), mirrored, np.empty((0, *shape), np.uint8), labels, numbers
        return np.empty(0, object), np.empty(0, bool), *reader(numbers), numbers

    def decode(encoded: tf.Tensor, mirrored: tf.Tensor, pixels: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, ...]:
        def image(place: int) -> tf.Tensor:
            found = decoded(encoded[place], shape[2])
            return (
                tf.cond(mirrored[place], lambda: tf.reverse(found, [1]), lambda: found) if reader.data.flip else found
            )

        def quick() -> tf.Tensor:
            return tf.stack([image(place) for place in range(per_call)])

        return of_known_shape(tf.cond(tf.size(encoded) > 0, quick, lambda: pixels), *rest)

    def by_tensorflow(call: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # One function for both, because each waits for Python's lock anew.
        kinds = [tf.string, tf.bool, tf.uint8, tf.int32, tf.int64]
        row = tuple(tf.numpy_function(fetch_or_read, [call], kinds, stateful=False))
        # The error of an operation can be caught in a dataset only; then Pillow reads the call, or says what is wrong.
        quick = tf.data.Dataset.from_tensors(row).map(decode).ignore_errors()
        found = quick.concatenate(tf.data.Dataset.from_tensors(call).map(by_pillow)).take(1)
        return found.with_options(untuned()).get_single_element()

    to_images = by_tensorflow if getattr(reader.images, "looks_plain", False) else by_pillow
    return tf.data.Dataset.counter().map(to_images, num_parallel_calls=threads, deterministic=True)
