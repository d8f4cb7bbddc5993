"""The runtime contract, and the runtime of a single device.

The training step is written as if for one replica; whatever crosses replicas goes through these few verbs. `step`
functions run once per replica, inside a compiled function.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from distgan.runtime.topology import Topology

Step = Callable[[Any], tuple[tf.Tensor, tf.Tensor]]
"""One training step of one replica: its batches -> (whether it was finite, evidence), both equal on all replicas."""


class Runtime:
    """One replica on one device: sums are what they sum."""

    def __init__(self, topology: Topology):
        self.topology = topology

    @property
    def local_replicas(self) -> range:
        """The replicas of this worker."""
        return range(self.topology.num_replicas)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Variables are made in it."""
        return contextlib.nullcontext()

    def distribute(self, dataset: tf.data.Dataset) -> Any:
        """An iterator over the shares of the local replicas, fetched to their devices ahead of time."""
        gpus = tf.config.list_logical_devices("GPU")
        if gpus:
            dataset = dataset.apply(tf.data.experimental.prefetch_to_device(gpus[0].name))
        return iter(dataset)

    def run(self, step: Step, batches: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs a step on every replica; the first one's results stand for all."""
        return step(batches)

    def sum(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """In a step: each tensor's sum over all replicas, in one collective; differentiable."""
        return list(tensors)

    def assign(self, variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> None:
        """In a step: every replica sets its copies to values that are equal on all replicas."""
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def apply(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
        ok: tf.Tensor,
    ) -> None:
        """In a step: one update of every replica's copies by gradients that are equal on all replicas, if `ok`.

        It calls Keras' `update_step` for each variable and not `apply`, which would sum over replicas once more.
        """

        def update() -> None:
            for variable, gradient in zip(variables, gradients, strict=True):
                optimizer.update_step(gradient, variable, optimizer.learning_rate)
            optimizer.iterations.assign_add(1)

        tf.cond(ok, update, lambda: None)

    def compile(
        self, step: Step, batches_per_step: int, evidence_size: int
    ) -> Callable[[Any, int], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
        """Several steps a call.

        Args:
          step: run on every replica with a tuple of `batches_per_step` batches.
          batches_per_step: batches that a step takes from the iterator.
          evidence_size: length of a step's evidence, float64.

        Returns:
          (iterator, number of steps) -> (whether all were finite, the last step's evidence, seconds waited for data).
          A step that was not finite is the last.
        """

        def now() -> tf.Tensor:
            # tf.timestamp is refused where --deterministic holds.
            return tf.ensure_shape(tf.numpy_function(time.perf_counter, [], tf.float64), [])

        def one_step(iterator: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            start = now()
            with tf.control_dependencies([start]):
                batches = tuple(next(iterator) for _ in range(batches_per_step))
            with tf.control_dependencies([part for batch in batches for part in self.local(batch.first)]):
                waited = now() - start
            return *self.run(step, batches), waited

        @tf.function(reduce_retracing=True)
        def steps(iterator: Any, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            ok, evidence, waited = (
                tf.constant(True),
                tf.zeros([evidence_size], tf.float64),
                tf.constant(0.0, tf.float64),
            )
            done = tf.constant(0, tf.int64)
            while ok & (done < count):
                ok, evidence, seconds = one_step(iterator)
                waited += seconds
                done += 1
            return ok, evidence, waited

        return lambda iterator, count: steps(iterator, tf.constant(count, tf.int64))

    def local(self, value: Any) -> Sequence[Any]:
        """The values that this worker's replicas hold."""
        return (value,)

    def close(self) -> None:
        """Lets go of what the runtime holds."""
