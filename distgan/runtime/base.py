"""The runtime contract, and the runtime of a single device.

The training step is written as if for one replica; whatever crosses replicas goes through these few verbs. `step`
functions run once per replica, inside a compiled function.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from distgan.runtime.control import Control, waiting_for
from distgan.runtime.topology import Topology

Step = Callable[[Any, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""One training step of one replica: (its batches, whether all steps before were finite) -> (whether all are, evidence).

The results are equal on all replicas. Where a step before was not finite, it changes no variable.
"""


_DEVICE_BATCHES = 2  # That a device is given ahead of time.


def untuned() -> tf.data.Options:
    """Options of a dataset that says itself how many calls run side by side and how much is buffered.

    TensorFlow's tuning has nothing to choose there, and the end of its thread may hold up that of the iterator for a minute.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


class Progress(NamedTuple):
    """What several steps come to."""

    ok: tf.Tensor
    """Whether all of them were finite: bool scalar, on the device until somebody reads it."""
    evidence: tf.Tensor
    """What the last step measured, or the first one that was not finite: float64 [evidence_size]."""


class Waits(NamedTuple):
    """What measured steps waited for, in seconds."""

    data: float
    others: float
    """In sums over replicas: for their own time, and for workers that come to them later."""


class Runtime:
    """One replica on one device: sums are what they sum."""

    def __init__(self, topology: Topology, control: Control):
        self.topology = topology
        self.control = control
        self._waiting = _Stopwatch()
        self._measures = False

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Variables are made in it."""
        return contextlib.nullcontext()

    def distribute(self, dataset: tf.data.Dataset) -> Any:
        """An iterator over the shares of the local replicas, fetched to their devices ahead of time."""
        gpus = tf.config.list_logical_devices("GPU")
        if gpus:
            dataset = dataset.apply(tf.data.experimental.prefetch_to_device(gpus[0].name, _DEVICE_BATCHES))
        with tf.device(gpus[0].name if gpus else None):  # Where its last part lies: a dataset cannot be copied.
            dataset = dataset.with_options(untuned())
        return iter(dataset)

    def run(self, step: Step, batches: Any, ok: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs a step on every replica; the first one's results stand for all."""
        return step(batches, ok)

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

    def move(self, variables: Sequence[tf.Variable], targets: Sequence[tf.Tensor], share: tf.Tensor) -> None:
        """In a step: every replica's copies go a share (scalar) of the way to targets that are equal on all replicas."""
        for variable, target in zip(variables, targets, strict=True):
            move(variable, target, share)

    def apply(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
        ok: tf.Tensor,
    ) -> None:
        """In a step: one update of every replica's copies by gradients that are equal on all replicas, if `ok`.

        Without `ok` nothing changes, the optimizer's own variables neither; the gradients are finite all the same. No branch
        asks for `ok`, since a device would have to finish its work before the host could take one. Keras' `update_step` is
        called for each variable, and not `apply`, which would sum over replicas once more.
        """
        rates, held = prepare(optimizer, variables, ok)
        for variable, gradient in zip(variables, gradients, strict=True):
            update(optimizer, rates, gradient, variable)
        for variable, value in held:
            variable.assign(tf.where(ok, variable, value))
        optimizer.iterations.assign_add(tf.cast(ok, optimizer.iterations.dtype))

    def compile(self, step: Step, batches_per_step: int, evidence_size: int) -> Steps:
        """Compiles a step that takes `batches_per_step` batches from the iterator; `evidence_size` is its evidence's length."""
        return Steps(self, step, batches_per_step, evidence_size)

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
    def measuring(self, on: bool) -> Iterator[None]:
        """While a step is traced in the block, whether its sums over replicas are timed."""
        before, self._measures = self._measures, on
        try:
            yield
        finally:
            self._measures = before

    @contextlib.contextmanager
    def timing(self, tensors: Sequence[tf.Tensor]) -> Iterator[Callable[[list[tf.Tensor]], list[tf.Tensor]]]:
        """In a step that is measured: notes how long the collective of `tensors` in the block takes.

        The collective's results go through the function that is yielded. In other steps the block is left alone.
        """
        if not self._measures:
            yield list
            return

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
        """Seconds that measured steps of this worker spent in sums over replicas since the last call."""
        return self._waiting.take()

    def close(self) -> None:
        """Leaves the other workers in peace, once all are here."""
        with waiting_for("the other workers to end"):
            self.control.gather(None)
        self.control.close()


class Steps:
    """Compiled steps of one kind. In ordinary ones nothing waits for the host: they run on while it prepares the next."""

    def __init__(self, runtime: Runtime, step: Step, batches_per_step: int, evidence_size: int):
        """Takes what `Runtime.compile` takes."""
        self.runtime, self.batches_per_step, self.evidence_size = runtime, batches_per_step, evidence_size

        def compiled(measured: bool) -> Any:
            def one(batches: Any, before: Progress) -> Progress:
                with runtime.measuring(measured):
                    ok, evidence = runtime.run(step, batches, before.ok)
                return Progress(ok, tf.where(before.ok, evidence, before.evidence))

            return tf.function(one, autograph=False)

        self._one = compiled(measured=False)
        # Where there is nobody to wait for, the same function serves.
        self._measured = compiled(measured=True) if runtime.topology.world_size > 1 else self._one

        def several(iterator: Any, count: tf.Tensor, before: Progress) -> Progress:
            # The counter is of 32 bits, which TensorFlow keeps in the host's memory: the loop's condition waits for no device.
            done, progress = tf.constant(0, tf.int32), before
            while done < count:
                progress = self._one(self._next(iterator), progress)
                done += 1
            return progress

        self.function = tf.function(several, reduce_retracing=True)

    def __call__(self, iterator: Any, count: int, before: Progress | None = None) -> Progress:
        """Runs `count` steps. One that is not finite changes nothing, and those behind it neither."""
        return self.function(iterator, tf.constant(count, tf.int32), before or self.start())

    def measure(self, iterator: Any, count: int, before: Progress | None = None) -> tuple[Progress, Waits]:
        """Runs the same steps one by one, and says what they waited for."""
        progress, data = before or self.start(), 0.0
        self.runtime.take_waited()
        for _ in range(count):
            started = time.perf_counter()
            batches = self._next(iterator)
            data += time.perf_counter() - started
            progress = self._measured(batches, progress)
            progress.ok.numpy()
        return progress, Waits(data, self.runtime.take_waited())

    def trace(self, iterator: Any) -> Any:
        """The ConcreteFunction of a call with this iterator; nothing is run, and no batch taken."""
        return self.function.get_concrete_function(iterator, tf.constant(0, tf.int32), self.start())

    def start(self) -> Progress:
        """Before the first step."""
        return Progress(tf.constant(True), tf.zeros([self.evidence_size], tf.float64))

    def _next(self, iterator: Any) -> Any:
        return tuple(next(iterator) for _ in range(self.batches_per_step))


def move(variable: tf.Variable, target: tf.Tensor, share: tf.Tensor) -> None:
    """Moves a variable a share of the way to a target, by two kernels where the plain formula takes four."""
    tf.raw_ops.ResourceApplyGradientDescent(
        var=variable.handle, alpha=tf.cast(share, variable.dtype), delta=variable - target
    )


def prepare(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[tf.Variable], ok: tf.Tensor
) -> tuple[tuple[tf.Tensor, ...], list[tuple[tf.Variable, tf.Tensor]]]:
    """Before an update on one replica.

    Returns:
      What all variables share of it (`distgan.training.adam.Adam.rates`), of an optimizer that heeds `ok`. Of any other: every
      variable that its update may change, with the value to go back to without `ok`.
    """
    if hasattr(optimizer, "rates"):
        return optimizer.rates(ok), []
    own = [variable.value for variable in optimizer.variables if variable is not optimizer.iterations]
    return (), [(variable, variable.read_value()) for variable in (*variables, *own)]


def update(
    optimizer: keras.optimizers.Optimizer, rates: tuple[tf.Tensor, ...], gradient: tf.Tensor, variable: tf.Variable
) -> None:
    """One optimizer's update of one variable, with what `prepare` gave."""
    if rates:
        optimizer.update_by(rates, gradient, variable)
    else:
        optimizer.update_step(gradient, variable, optimizer.learning_rate)


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
