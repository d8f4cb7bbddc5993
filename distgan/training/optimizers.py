"""Update rules, as options and the Keras optimizer that they build."""

from __future__ import annotations

import dataclasses
from typing import Any

from distgan.config import option
from distgan.registry import Table


@dataclasses.dataclass(frozen=True)
class Adam:
    """Kingma and Ba 2015."""

    learning_rate: float = option(1e-4, "step size", above=0)
    beta_1: float = option(0.9, "decay of the mean gradient", minimum=0, maximum=0.9999)
    beta_2: float = option(0.999, "decay of the mean squared gradient", minimum=0, maximum=0.999999)
    epsilon: float = option(1e-8, "added to the root of the second moment", above=0)

    def build(self, name: str) -> Any:
        """A fresh Keras optimizer."""
        from distgan.training.adam import Adam

        return Adam(self.learning_rate, self.beta_1, self.beta_2, self.epsilon, name=name)


@dataclasses.dataclass(frozen=True)
class Sgd:
    """Gradient descent, with momentum where asked for."""

    learning_rate: float = option(1e-2, "step size", above=0)
    momentum: float = option(0.0, "share of the last step that is kept", minimum=0, maximum=1)

    def build(self, name: str) -> Any:
        """A fresh Keras optimizer."""
        from keras.optimizers import SGD

        return SGD(self.learning_rate, self.momentum, name=name)


OPTIMIZERS = Table("optimizer", {"adam": "distgan.training.optimizers:Adam", "sgd": "distgan.training.optimizers:Sgd"})
