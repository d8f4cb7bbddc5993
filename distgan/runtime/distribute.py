"""Replicas on all devices of one machine, by tf.distribute.MirroredStrategy."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from distgan.runtime.base import Runtime, Step
from distgan.runtime.topology import Topology


class DistributedRuntime(Runtime):
    """One replica per device of a tf.distribute strategy."""

    def __init__(self, topology: Topology, strategy: tf.distribute.Strategy):
        super().__init__(topology)
        self.strategy = strategy

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return self.strategy.scope()

    def distribute(self, dataset: tf.data.Dataset) -> Any:
        return iter(self.strategy.distribute_datasets_from_function(lambda _: dataset))

    def run(self, step: Step, batches: Any) -> tuple[tf.Tensor, tf.Tensor]:
        ok, evidence = self.strategy.run(step, args=(batches,))
        return self.local(ok)[0], self.local(evidence)[0]

    def sum(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return list(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, list(tensors)))

    def assign(self, variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> None:
        def on_all(strategy: tf.distribute.Strategy, values: Sequence[Any]) -> None:
            for variable, value in zip(variables, values, strict=True):
                strategy.extended.update(variable, lambda copy, value: copy.assign(value), args=(value,), group=False)

        tf.distribute.get_replica_context().merge_call(on_all, args=(list(values),))

    def apply(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
        ok: tf.Tensor,
    ) -> None:
        def on_all(strategy: tf.distribute.Strategy, gradients: Sequence[Any], ok: Any) -> None:
            def update() -> None:
                for variable, gradient in zip(variables, gradients, strict=True):
                    strategy.extended.update(
                        variable,
                        lambda copy, gradient: optimizer.update_step(gradient, copy, optimizer.learning_rate),
                        args=(gradient,),
                        group=False,
                    )
                strategy.extended.update(optimizer.iterations.value, lambda copy: copy.assign_add(1), group=False)

            # The branch stands outside the replicas and around no collective, so no replica can wait for another in it.
            tf.cond(self.local(ok)[0], update, lambda: None)

        tf.distribute.get_replica_context().merge_call(on_all, args=(list(gradients), ok))

    def local(self, value: Any) -> Sequence[Any]:
        return self.strategy.experimental_local_results(value)
