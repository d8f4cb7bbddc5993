"""Everything that a run's future depends on, in one place: what a checkpoint holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distgan import seeds
from distgan.config import Config
from distgan.data.source import Description
from distgan.errors import UserError
from distgan.models import contract
from distgan.runtime.base import Runtime
from distgan.training import optimizers, precision
from distgan.training.phases import NETWORKS, measured_keys, regularizers


@dataclasses.dataclass(frozen=True)
class TrainState:
    """The networks, their optimizers, the clock and the report in the making."""

    description: Description
    """Of the images that the networks were built for."""
    generator: Any
    discriminator: Any
    generator_ema: Any
    """The average of `generator`, moving statistics among it; what samples come from."""
    optimizers: Mapping[str, keras.optimizers.Optimizer]
    """One for each of NETWORKS."""
    precise_discriminator: Any
    """A network of the same layers that computes in float32, for penalties, where the discriminator does not; else None. Its
    own weights are never used."""
    kept: Mapping[str, Mapping[str, tf.Variable]]
    """float64 scalars that the augmentation (`augmentation`), regularizers and loss scales keep from step to step."""
    step: tf.Variable
    """int64: passes over the phases so far."""
    images_seen: tf.Variable
    """int64: real images shown to the discriminator so far, by all replicas."""
    report_totals: tf.Variable
    """float64 [K]: sums over the steps since the last row, in the order of `measured_keys`."""
    report_counts: tf.Variable
    """float64 [K]: how many steps each is the sum of."""

    def network(self, name: str) -> Any:
        """The network called `name`, one of NETWORKS."""
        return {"generator": self.generator, "discriminator": self.discriminator}[name]

    def variables(self) -> dict[str, tf.Variable]:
        """Every variable by a name that does not depend on strategy or version."""
        named: dict[str, tf.Variable] = {}
        for network in (self.generator, self.discriminator, self.generator_ema):
            named |= {variable.path: variable.value for variable in network.variables}
        for optimizer in self.optimizers.values():
            named |= {f"optimizer/{variable.path}": variable.value for variable in optimizer.variables}
        for part, variables in self.kept.items():
            named |= {f"kept/{part}/{name}": variable for name, variable in variables.items()}
        for name in ("step", "images_seen", "report_totals", "report_counts"):
            named[name] = getattr(self, name)
        return named

    def arrays(self) -> dict[str, np.ndarray]:
        """A copy of every variable in host memory."""
        return {name: np.array(variable.numpy()) for name, variable in self.variables().items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Sets every variable, on every replica.

        Raises:
          ValueError: the names or shapes are not this state's.
        """
        assign(self.variables(), arrays)

    def load_networks(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Sets the variables of the networks and the average alone, from those of another state.

        Raises:
          ValueError: the names or shapes are not these networks'.
        """
        names = ("generator/", "discriminator/", "generator_ema/")
        others = {name: array for name, array in arrays.items() if name.startswith(names)}
        assign({name: v for name, v in self.variables().items() if name.startswith(names)}, others)

    def share(self, arrays: Mapping[str, np.ndarray] | None, runtime: Runtime) -> None:
        """Sets every worker's state to the primary's, which takes it from a checkpoint's arrays if there are any."""
        if arrays:
            self.load(arrays)
        runtime.broadcast(list(self.variables().values()))

    def trained(self) -> list[Any]:
        """The trainable variables of all networks that are trained."""
        return [variable for name in NETWORKS for variable in self.network(name).trainable_variables]

    def parameter_counts(self) -> dict[str, int]:
        """Trainable numbers of each network."""
        return {name: sum(int(np.prod(v.shape)) for v in self.network(name).trainable_variables) for name in NETWORKS}


def assign(variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Sets variables by name, all or none.

    Raises:
      ValueError: the names or shapes are not these variables'.
    """
    if variables.keys() != arrays.keys():
        raise ValueError(f"other variables: {', '.join(sorted(variables.keys() ^ arrays.keys())[:4])}")
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise ValueError(f"{name} is {list(variable.shape)} here and {list(arrays[name].shape)} there")
    for name, variable in variables.items():
        variable.assign(arrays[name])


def build_network(config: Config, description: Description, kind: str, name: str) -> Any:
    """A network with fresh weights: `kind` is one of NETWORKS, equal seeds give equal weights.

    Raises:
      UserError: a user's model gives what is no network (`models.contract`).
    """
    keras.utils.set_random_seed(seeds.integer(config.seed, f"weights/{kind}"))
    num_classes = len(description.label_counts) if config.model.conditional else 0
    return contract.build(config.model.name.options, kind, description.image_shape, num_classes, name)


def build_state(config: Config, description: Description, runtime: Runtime) -> TrainState:
    """The state of a run before its first step.

    Raises:
      UserError: --train.freeze_discriminator leaves nothing to train.
    """
    with runtime.scope():
        networks = {name: build_network(config, description, name, name) for name in NETWORKS}
        generator_ema = build_network(config, description, "generator", "generator_ema")
        _freeze(networks["discriminator"], config.train.freeze_discriminator)
        built = {}
        for name, network in networks.items():
            built[name] = optimizers.build(config, name)
            built[name].build(network.trainable_variables)
        size = len(measured_keys(config))
        return TrainState(
            description=description,
            generator=networks["generator"],
            discriminator=networks["discriminator"],
            generator_ema=generator_ema,
            optimizers=built,
            precise_discriminator=_twin(config, description) if _needs_twin(config) else None,
            kept={
                part: {name: tf.Variable(value, dtype=tf.float64, trainable=False) for name, value in values.items()}
                for part, values in _kept(config).items()
            },
            step=tf.Variable(0, dtype=tf.int64, trainable=False),
            images_seen=tf.Variable(0, dtype=tf.int64, trainable=False),
            report_totals=tf.Variable(tf.zeros([size], tf.float64), trainable=False),
            report_counts=tf.Variable(tf.zeros([size], tf.float64), trainable=False),
        )


def _kept(config: Config) -> dict[str, dict[str, float]]:
    """What is kept from step to step besides weights, as it is at the start."""
    kept = {"augmentation": config.objective.augmentation.options.initial()}
    kept |= {name: part.initial() for name, part in regularizers(config).items()}
    if config.precision == "mixed_float16":
        kept |= {f"loss_scale/{name}": precision.initial() for name in NETWORKS}
    return kept


def _freeze(discriminator: Any, count: int) -> None:
    weighted = [layer for layer in discriminator.layers if layer.trainable_variables]
    if count >= len(weighted) and count:
        raise UserError(
            f"--train.freeze_discriminator={count}: it has {len(weighted)} layers, {len(weighted) - 1} at most"
        )
    for layer in weighted[:count]:
        layer.trainable = False


def _needs_twin(config: Config) -> bool:
    penalized = any(part.takes_gradients for part in regularizers(config).values())
    return config.precision.startswith("mixed") and penalized


def _twin(config: Config, description: Description) -> Any:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        twin = build_network(config, description, "discriminator", "discriminator")
        _freeze(twin, config.train.freeze_discriminator)
        return twin
    finally:
        keras.config.set_dtype_policy(policy)
