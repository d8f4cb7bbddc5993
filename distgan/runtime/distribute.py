"""Replicas on all devices of one machine or of several workers, by tf.distribute."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.data.ops import multi_device_iterator_ops

from distgan.runtime.base import Runtime, Step, move, prepare, untuned, update
from distgan.runtime.control import Control
from distgan.runtime.hub import Limits
from distgan.runtime.topology import Topology


def multi_worker_strategy(topology: Topology, num_gpus: int, limits: Limits) -> tf.distribute.Strategy:
    """MultiWorkerMirroredStrategy with the replicas of a topology; waits for the other workers."""
    _limit_coordination(topology, limits)
    try:
        return _strategy(topology, num_gpus)
    finally:
        # TensorFlow's server answers SIGTERM from now on, and tells nobody: Python answers it again.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _strategy(topology: Topology, num_gpus: int) -> tf.distribute.Strategy:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(topology.addresses)}),
        task_type="worker",
        task_id=topology.rank,
        rpc_layer="grpc",
        num_accelerators={"GPU": num_gpus},
    )
    if num_gpus or len(topology.local_replicas) == 1:
        options = tf.distribute.experimental.CommunicationOptions()
        if num_gpus:
            # Left to choose, TensorFlow sums over the GPUs of several workers in a ring through the hosts' memory.
            nccl = tf.distribute.experimental.CommunicationImplementation.NCCL
            options = tf.distribute.experimental.CommunicationOptions(implementation=nccl)
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver, communication_options=options)
    return _several_cpus(resolver, len(topology.local_replicas))


def _limit_coordination(topology: Topology, limits: Limits) -> None:
    """Gives TensorFlow's own coordination the limits of a run, where it would wait an hour and bear 10 s of silence."""
    from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
    from tensorflow.python.eager import context

    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        coordinated_jobs=[CoordinatedJob(name="worker", num_tasks=topology.world_size)],
        cluster_register_timeout_in_ms=int(limits.join_seconds * 1000),
        # Later than our own line, which says in words who is gone.
        heartbeat_timeout_in_ms=int(2 * limits.hang_seconds * 1000),
    )


def _several_cpus(resolver: Any, count: int) -> tf.distribute.Strategy:
    """The strategy over several logical CPUs a worker, where TensorFlow's own takes one. For trials and tests."""
    from tensorflow.python.distribute import collective_all_reduce_strategy as collective

    class Extended(collective.CollectiveAllReduceExtended):
        def _initialize_local_devices(self, cluster_resolver: Any, worker_device: str) -> tuple[tuple[str, ...], str]:
            return tuple(f"{worker_device}/device:CPU:{number}" for number in range(count)), "CPU"

    class Strategy(collective.CollectiveAllReduceStrategy):
        def __init__(self) -> None:
            options = tf.distribute.experimental.CommunicationOptions()
            extended = Extended(self, cluster_resolver=resolver, communication_options=options)
            tf.distribute.Strategy.__init__(self, extended)

    return Strategy()


@contextlib.contextmanager
def _untuned_buffers() -> Iterator[None]:
    """Turns tuning off in the part of an iterator that lies on each of several devices, which takes no options from anybody."""
    create = multi_device_iterator_ops._create_device_dataset
    multi_device_iterator_ops._create_device_dataset = lambda *words: create(*words).with_options(untuned())
    try:
        yield
    finally:
        multi_device_iterator_ops._create_device_dataset = create


class DistributedRuntime(Runtime):
    """One replica per device of a tf.distribute strategy."""

    def __init__(self, topology: Topology, control: Control, strategy: tf.distribute.Strategy):
        super().__init__(topology, control)
        self.strategy = strategy

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return self.strategy.scope()

    def distribute(self, dataset: tf.data.Dataset) -> Any:
        with _untuned_buffers():
            return iter(self.strategy.distribute_datasets_from_function(lambda _: dataset))

    def run(self, step: Step, batches: Any, ok: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        ok, evidence = self.strategy.run(step, args=(batches, ok))
        return self.local(ok)[0], self.local(evidence)[0]

    def sum(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        with contextlib.ExitStack() as stack:
            timed: Callable[[list[tf.Tensor]], list[tf.Tensor]] = list
            replica = tf.get_static_value(context.replica_id_in_sync_group)
            if self.topology.world_size > 1 and replica == self.topology.local_replicas.start:
                timed = stack.enter_context(self.timing(tensors))
            return timed(list(context.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors))))

    def each(self, function: Callable[[tf.Tensor], tf.Tensor]) -> list[tf.Tensor]:
        def of_replica() -> tf.Tensor:
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            return function(tf.cast(number, tf.int64))

        return list(self.local(self.strategy.run(of_replica)))

    def total(self, arrays: Sequence[np.ndarray], name: str) -> list[np.ndarray]:
        if self.topology.world_size == 1:
            return list(arrays)

        def of_replica(*tensors: tf.Tensor) -> list[tf.Tensor]:
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            first = tf.equal(number, self.topology.local_replicas.start)
            return self.sum([tf.where(first, tensor, tf.zeros_like(tensor)) for tensor in tensors], name)

        summed = tf.function(lambda *tensors: self.strategy.run(of_replica, args=tensors), autograph=False)(
            *map(tf.constant, arrays)
        )
        return [self.local(tensor)[0].numpy() for tensor in summed]

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        def of_the_first() -> None:
            first = tf.equal(tf.distribute.get_replica_context().replica_id_in_sync_group, 0)
            for dtype in sorted({variable.dtype.name for variable in variables}):
                those = [variable for variable in variables if variable.dtype.name == dtype]
                values = [tf.where(first, variable, tf.zeros_like(variable)) for variable in those]
                self.assign(those, self.sum(values, f"broadcast/{dtype}"))

        if self.topology.world_size > 1:
            tf.function(lambda: self.strategy.run(of_the_first), autograph=False)()

    def assign(self, variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> None:
        def on_all(strategy: tf.distribute.Strategy, values: Sequence[Any]) -> None:
            for variable, value in zip(variables, values, strict=True):
                strategy.extended.update(variable, lambda copy, value: copy.assign(value), args=(value,), group=False)

        tf.distribute.get_replica_context().merge_call(on_all, args=(list(values),))

    def move(self, variables: Sequence[tf.Variable], targets: Sequence[tf.Tensor], share: tf.Tensor) -> None:
        def on_all(strategy: tf.distribute.Strategy, targets: Any, share: Any) -> None:
            for variable, target in zip(variables, targets, strict=True):
                strategy.extended.update(variable, move, args=(target, share), group=False)

        tf.distribute.get_replica_context().merge_call(on_all, args=(list(targets), share))

    def apply(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
        ok: tf.Tensor,
    ) -> None:
        rates, held = prepare(optimizer, variables, ok)

        def on_all(strategy: tf.distribute.Strategy, gradients: Any, ok: Any, rates: Any, values: Any) -> None:
            def on_copies(variable: tf.Variable, change: Callable[..., Any], *arguments: Any) -> None:
                strategy.extended.update(variable, change, args=arguments, group=False)

            for variable, gradient in zip(variables, gradients, strict=True):
                on_copies(variable, lambda copy, rates, value: update(optimizer, rates, value, copy), rates, gradient)
            for (variable, _), value in zip(held, values, strict=True):
                on_copies(variable, lambda copy, ok, value: copy.assign(tf.where(ok, copy, value)), ok, value)
            on_copies(optimizer.iterations.value, lambda copy, ok: copy.assign_add(tf.cast(ok, copy.dtype)), ok)

        values = [value for _, value in held]
        tf.distribute.get_replica_context().merge_call(on_all, args=(list(gradients), ok, rates, values))

    def devices(self) -> Sequence[str]:
        return self.strategy.extended.worker_devices

    def local(self, value: Any) -> Sequence[Any]:
        return self.strategy.experimental_local_results(value)
