"""Every random number of a run starts here: stateless, keyed by (run seed, purpose, image number).

A draw is a pure function of its key and its counter, so a replica draws exactly the values that belong to its images, on
any number of replicas, and a restart needs no generator state. Two families: integers for the data order (numpy) and
Philox draws for what happens on the device (TensorFlow; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

_VALUES_PER_COUNTER = 4  # One Philox4x32 counter gives four float32 values.
_PHILOX = 1


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers of some images for one purpose, as a forward pass or an augmentation asks for them by name."""

    make: Callable[[str, str, tuple[int, ...]], Any]
    """("uniform" or "normal", name, per-image shape) -> float32 [N, *shape]."""

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Any:
        """Uniform [0, 1) float32 [N, *shape]."""
        return self.make("uniform", name, shape)

    def normal(self, name: str, shape: tuple[int, ...] = ()) -> Any:
        """Standard normal float32 [N, *shape]."""
        return self.make("normal", name, shape)

    def within(self, prefix: str) -> Draws:
        """The same, for names that begin with `prefix/`."""
        return Draws(lambda kind, name, shape: self.make(kind, f"{prefix}/{name}", shape))


def key(seed: int, purpose: str) -> int:
    """The 64-bit key of one purpose of one run, as `key(0, "latents")`."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little")


def integer(seed: int, purpose: str) -> int:
    """A seed in [0, 2^31) for a library that wants one."""
    return key(seed, purpose) >> 33


def bits(key: int, counters: np.ndarray) -> np.ndarray:
    """64 random bits for each counter (uint64 [N] -> uint64 [N]): the finalizer of SplitMix64 (Steele et al. 2014)."""
    z = counters.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def normal(key: Any, first: Any, count: int, shape: tuple[int, ...]) -> Any:
    """Standard normal float32 [count, *shape] for image numbers first .. first+count-1.

    `key` is an int or a uint64 scalar, `first` an int64 scalar.
    """
    return _draw("StatelessRandomNormalV2", key, first, count, shape)


def uniform(key: Any, first: Any, count: int, shape: tuple[int, ...]) -> Any:
    """Uniform [0, 1) float32 [count, *shape] for image numbers first .. first+count-1.

    `key` is an int or a uint64 scalar, `first` an int64 scalar.
    """
    return _draw("StatelessRandomUniformV2", key, first, count, shape)


def classes(drawn: Any, weights: np.ndarray) -> Any:
    """Classes int32 [N] from uniform numbers float32 [N], each as often as its weight says (float64 [K])."""
    import tensorflow as tf

    upper = (np.cumsum(weights) / weights.sum()).astype(np.float32)
    # In 64 bits first: a GPU leaves the shape of numbers of 32 to the host.
    return tf.cast(tf.searchsorted(tf.constant(upper), drawn, side="right", out_type=tf.int64), tf.int32)


def _draw(op: str, key: Any, first: Any, count: int, shape: tuple[int, ...]) -> Any:
    import tensorflow as tf

    size = math.prod(shape)
    counters_per_image = -(-size // _VALUES_PER_COUNTER)
    padded = counters_per_image * _VALUES_PER_COUNTER
    if isinstance(key, int):
        key = tf.constant(key, tf.uint64)
    counter = tf.stack([tf.cast(first * counters_per_image, tf.uint64), tf.constant(0, tf.uint64)])
    values = getattr(tf.raw_ops, op)(
        shape=[count, padded], key=tf.reshape(key, [1]), counter=counter, alg=_PHILOX, dtype=tf.float32
    )
    return tf.reshape(values if padded == size else values[:, :size], [count, *shape])
