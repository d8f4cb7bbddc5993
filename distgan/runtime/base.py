"""The runtime contract, and the runtime of a single device.

The training step is written as if for one replica; whatever crosses replicas goes through these few verbs. `step`
functions run once per replica, inside a compiled function.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled

from distgan.runtime.control import Control
from distgan.runtime.topology import Topology

Step = Callable[[Any], tuple[tf.Tensor, tf.Tensor]]
"""One training step of one replica: its batches -> (whether it was finite, evidence), both equal on all replicas."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """Several steps a call, compiled: see `Runtime.compile`."""

    function: Any
    """A tf.function of the iterator and the number of steps, an int64 scalar."""

    def __call__(self, iterator: Any, count: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return self.function(iterator, tf.constant(count, tf.int64))

    def trace(self, iterator: Any) -> Any:
        """The ConcreteFunction of a call with this iterator; nothing is run, no batch is taken."""
        return self.function.get_concrete_function(iterator, tf.constant(0, tf.int64))


class Runtime:
    """One replica on one device: sums are what they sum."""

    def __init__(self, topology: Topology, control: Control):
        self.topology = topology
        self.control = control
        self._waiting = _Stopwatch()

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

    def sum(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """In a step: each tensor's sum over all replicas, in one collective; differentiable.

        The name is the collective's own within a step.
        """
        return list(tensors)

    def sum_gradients(self, gradients: Sequence[tf.Tensor], measured: tf.Tensor, name: str) -> list[tf.Tensor]:
        """In a step: the sums over all replicas of a phase's gradients, and of what it measured behind them."""
        return self.sum([*gradients, measured], name)

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

    def compile(self, step: Step, batches_per_step: int, evidence_size: int) -> Steps:
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
            # The kernel, ten times as cheap, is refused where --deterministic holds.
            if is_op_determinism_enabled():
                return tf.ensure_shape(tf.numpy_function(time.perf_counter, [], tf.float64), [])
            return tf.timestamp()

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

        return Steps(steps)

    def each(self, function: Callable[[tf.Tensor], tf.Tensor]) -> list[tf.Tensor]:
        """Runs a function of the replica's number (int64 scalar) on every replica; the results of the local ones, in order."""
        return [function(tf.constant(self.topology.rank, tf.int64))]

    def total(self, arrays: Sequence[np.ndarray], name: str) -> list[np.ndarray]:
        """The sums of host arrays over all workers; all call it at the same places, with arrays of the same shapes."""
        return list(arrays)

    def devices(self) -> Sequence[str]:
        """TensorFlow's names of the local replicas' devices; an empty one is where TensorFlow puts things by itself."""
        return ("",)

    def local(self, value: Any) -> Sequence[Any]:
        """The values that this worker's replicas hold."""
        return (value,)

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Sets every worker's variables to those of the primary."""

    def wire_bytes(self, gradients: Sequence[tf.Tensor]) -> int:
        """The bytes of a phase's gradients as one replica hands them to the reduction."""
        return sum(gradient.shape.num_elements() * gradient.dtype.size for gradient in gradients)

    @contextlib.contextmanager
    def timing(self, tensors: Sequence[tf.Tensor]) -> Iterator[Callable[[list[tf.Tensor]], list[tf.Tensor]]]:
        """In a step: notes how long the collective of `tensors` in the block takes; its result goes through what is yielded."""

        def start(_: np.ndarray) -> np.ndarray:
            self._waiting.start()
            return np.zeros([], np.float32)

        def stop() -> np.ndarray:
            self._waiting.stop()
            return np.zeros([], np.float32)

        def timed(results: list[tf.Tensor]) -> list[tf.Tensor]:
            with tf.control_dependencies(results):
                tf.numpy_function(stop, [], tf.float32)
            return results

        # A number of the last tensor goes to the host, so that on a GPU too the clock starts when the tensors are there.
        with tf.control_dependencies(tensors):
            sample = tf.stop_gradient(tf.reshape(tensors[-1], [-1])[:1])
            begun = tf.numpy_function(start, [sample], tf.float32)
        with tf.control_dependencies([begun]):
            yield timed

    def take_waited(self) -> float:
        """Seconds that this worker spent in timed collectives, for itself and for others, since the last call."""
        return self._waiting.take()

    def close(self) -> None:
        """Leaves the other workers in peace, once all are here."""
        self.control.gather(None)
        self.control.close()


class _Stopwatch:
    """The seconds in which at least one of several things that overlap was going on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running, self.since, self.seconds = 0, 0.0, 0.0

    def start(self) -> None:
        with self.lock:
            if not self.running:
                self.since = time.perf_counter()
            self.running += 1

    def stop(self) -> None:
        with self.lock:
            self.running -= 1
            if not self.running:
                self.seconds += time.perf_counter() - self.since

    def take(self) -> float:
        """What was counted since the last call."""
        with self.lock:
            seconds, self.seconds = self.seconds, 0.0
            return seconds
