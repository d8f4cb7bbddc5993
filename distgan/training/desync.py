"""Whether all replicas still hold the same state, bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from distgan.errors import Desynced
from distgan.runtime.base import Runtime
from distgan.training.state import TrainState

_ODD = 0x9E3779B97F4A7C15 - 2**64


def build_check(state: TrainState, runtime: Runtime) -> Callable[[], None]:
    """A function that all workers call at the same image count; it raises `Desynced` where a copy differs.

    A copy's checksum is the sum of its bits, each number weighted by an odd factor of its place, modulo 2^64: integer
    sums do not depend on their order, so it is worked out on the device.
    """
    variables = state.variables()
    copies = list(zip(*(runtime.local(variable) for variable in variables.values()), strict=True))

    @tf.function
    def checksums() -> list[tf.Tensor]:
        return [tf.stack([_checksum(variable) for variable in copy]) for copy in copies]

    def check() -> None:
        everywhere = [
            each for worker in runtime.control.gather([c.numpy().tolist() for c in checksums()]) for each in worker
        ]
        table = np.array(everywhere, np.int64)
        for name, column in zip(variables, table.T, strict=True):
            if len(set(column)) > 1:
                values, counts = np.unique(column, return_counts=True)
                other = [replica for replica, value in enumerate(column) if value != values[counts.argmax()]]
                raise Desynced(
                    f"{name} is not the same everywhere at {int(state.images_seen.numpy())} images: replicas {other} of "
                    f"{len(column)} ({len(copies)} a worker) hold other bits than the rest; the last checkpoint is from before "
                    "the last report, start again to go on from it"
                )

    return check


def _checksum(variable: tf.Variable) -> tf.Tensor:
    value = tf.reshape(tf.convert_to_tensor(variable), [-1])
    integers = {2: tf.int16, 4: tf.int32, 8: tf.int64}[value.dtype.size]
    bits = tf.cast(tf.bitcast(value, integers), tf.int64)
    places = 2 * tf.range(tf.size(bits, tf.int64), dtype=tf.int64) + 1
    return tf.reduce_sum(bits * (places * _ODD))
