"""Update rules, as options and the Keras optimizer that they build; each network has one of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from distgan.config import Config
from distgan.registry import Table
from distgan.schedules import Schedule, schedule
from distgan.schema import option
from distgan.training.phases import NETWORKS, phases, update_share

if TYPE_CHECKING:
    from distgan.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Adam:
    """Kingma and Ba 2015; two time scales where the discriminator has its own numbers (Heusel et al. 2017)."""

    learning_rate: Schedule = option(schedule(1e-4), "step size", minimum=0)
    beta_1: float = option(0.9, "decay of the mean gradient", minimum=0, maximum=0.9999)
    beta_2: Schedule = option(schedule(0.999), "decay of the mean squared gradient", minimum=0, maximum=0.999999)
    epsilon: float = option(1e-8, "added to the root of the second moment", above=0)
    discriminator_learning_rate: Schedule | None = option(None, "of the discriminator, where it is another", minimum=0)
    discriminator_beta_1: float | None = option(
        None, "of the discriminator, where it is another", minimum=0, maximum=0.9999
    )
    discriminator_beta_2: Schedule | None = option(
        None, "of the discriminator, where it is another", minimum=0, maximum=0.999999
    )

    def rates(self, network: str) -> dict[str, Schedule]:
        """The numbers of a network that a schedule may move."""
        own = network == "discriminator"
        beta_1 = self.discriminator_beta_1 if own and self.discriminator_beta_1 is not None else self.beta_1
        return {
            "learning_rate": (own and self.discriminator_learning_rate) or self.learning_rate,
            "beta_1": Schedule.constant(beta_1),
            "beta_2": (own and self.discriminator_beta_2) or self.beta_2,
        }

    def build(self, name: str, learning_rate: float, beta_1: float, beta_2: float) -> Any:
        """A fresh Keras optimizer."""
        from distgan.training.adam import Adam

        return Adam(learning_rate, beta_1, beta_2, self.epsilon, name=name)


@dataclasses.dataclass(frozen=True)
class Sgd:
    """Gradient descent, with momentum where asked for."""

    learning_rate: Schedule = option(schedule(1e-2), "step size", minimum=0)
    momentum: float = option(0.0, "share of the last step that is kept", minimum=0, maximum=1)
    discriminator_learning_rate: Schedule | None = option(None, "of the discriminator, where it is another", minimum=0)

    def rates(self, network: str) -> dict[str, Schedule]:
        """The numbers of a network that a schedule may move."""
        own = network == "discriminator" and self.discriminator_learning_rate
        return {"learning_rate": own or self.learning_rate}

    def build(self, name: str, learning_rate: float) -> Any:
        """A fresh Keras optimizer."""
        from keras.optimizers import SGD

        return SGD(learning_rate, self.momentum, name=name)


OPTIMIZERS = Table(
    "optimizer",
    {"adam": "distgan.training.optimizers:Adam", "sgd": "distgan.training.optimizers:Sgd"},
    offers=("rates", "build"),
)


def build(config: Config, network: str) -> Any:
    """A network's optimizer; what a schedule moves along the run is a variable of it."""
    part = config.optimizer.name.options
    share = update_share(phases(config), network)
    rates = part.rates(network)
    optimizer = part.build(network, **{name: _shared(name, rate.start, share) for name, rate in rates.items()})
    for name, rate in rates.items():
        if name != "learning_rate" and not rate.is_constant:
            setattr(optimizer, name, optimizer.add_variable((), initializer=_constant(rate.start), name=name))
    return optimizer


def _constant(value: float) -> Any:
    from keras.initializers import Constant

    return Constant(value)


def _shared(name: str, value: Any, share: float) -> Any:
    """A rate where lazy phases add updates of their own (Karras et al. 2020b, appendix B): lr c, beta^c."""
    return value * share if name == "learning_rate" else value**share


def scheduled(config: Config, state: TrainState) -> list[tuple[Any, Any]]:
    """In a step: the optimizers' variables that schedules move, and their values in this step."""
    import tensorflow as tf

    def moved() -> Iterator[tuple[Any, Any]]:
        plan = phases(config)
        for network in NETWORKS:
            for name, rate in config.optimizer.name.options.rates(network).items():
                if not rate.is_constant:
                    value = rate.at(state.images_seen.read_value(), config.train.total_kimg)
                    variable = getattr(state.optimizers[network], name).value
                    yield variable, tf.cast(_shared(name, value, update_share(plan, network)), variable.dtype)

    return list(moved())
