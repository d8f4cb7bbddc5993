"""The self-test of `distgan doctor --equivalence`: the replicas of this very machine and strategy against one replica."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from distgan import schema
from distgan.config import Config
from distgan.data import pipeline
from distgan.data.contract import open_source
from distgan.data.source import Description
from distgan.models import MODELS
from distgan.objectives import LOSSES
from distgan.objectives.contract import find_loss
from distgan.runtime.base import Runtime
from distgan.runtime.control import Control
from distgan.runtime.topology import Topology
from distgan.training.state import TrainState, build_state
from distgan.training.step import compile_steps

LIMIT = 1e-8
"""Largest relative difference of a change that rounding may explain in float64; a wrong factor makes it 1 or so."""
_STEPS = 5
_IMAGES_PER_REPLICA = 4
# Of whichever model has such an option; 12 splits into the chunks of all that split it.
_SMALL = {
    "model.width": 8,
    "model.generator_width": 4,
    "model.discriminator_width": 4,
    "model.latent_size": 12,
    "model.attention": 8,
}


def base_config(values: dict[str, Any]) -> Config:
    """The config of the test: float64 shows mistakes that float32 rounding hides, and SGD wrong factors that Adam hides."""
    fixed = {
        "precision": "float64",
        "data.source": "synthetic",
        "data.resolution": 16,
        "data.synthetic.num_images": 1024,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.05,
        "tracking.wandb": "disabled",
    }
    return schema.build(Config, {**fixed, **values})


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest |da - db| / |da| over all variables, where d is the change since the start.

    A variable that moved less than a millionth of the one that moved most counts as one that moved so far.
    """

    gradients: float
    """After one step of SGD, whose change is the gradient times the learning rate."""
    weights: float
    """After five steps."""
    variable: str
    """Where the latter is."""


def differences(config: Config, runtime: Runtime) -> dict[str, Difference]:
    """Trains every model, also conditional, and every loss that sums over replicas, on these replicas and on one.

    Returns:
      `model loss` -> what differs; empty but on the primary.
    """
    found = {}
    crossing = [loss for loss in LOSSES.parts if find_loss(loss).opposed]
    cases = [(model, "non_saturating", conditional) for model in MODELS.parts for conditional in (False, True)]
    for model, loss, conditional in [*cases, *(("dcgan", loss, False) for loss in crossing)]:
        head = "projection" if conditional else "none"
        changes = {"model.name": model, "objective.loss": loss, "model.conditional": conditional, "model.head": head}
        changes |= _SMALL
        changes["train.global_batch"] = _IMAGES_PER_REPLICA * runtime.topology.num_replicas
        case = schema.build(Config, {**schema.flatten(config), **changes})
        many = _train(case, runtime)
        if runtime.topology.is_primary:
            runtime.control.at("training on one replica", 0, patient=True)
            name = f"{'conditional ' if conditional else ''}{model} {loss}"
            found[name] = difference(_train(case, Runtime(Topology("single", "", 1), Control())), many)
    return found


def _train(config: Config, runtime: Runtime) -> list[dict[str, np.ndarray]]:
    """The state at the start, after one step and after five."""
    runtime.control.at("training", 0, patient=True)
    state, advance = opened(config, runtime)
    arrays = [state.arrays()]
    for steps in (1, _STEPS - 1):
        advance(steps)
        arrays.append(state.arrays())
    return arrays


def opened(config: Config, runtime: Runtime) -> tuple[TrainState, Callable[[int], Any]]:
    """A run's fresh state, equal on all replicas, and the function that trains it for a number of steps."""
    images = open_source(config.data)
    state = build_state(config, Description.of(images), runtime)
    state.share(None, runtime)
    advance = compile_steps(config, state, runtime)
    place = runtime.topology
    reader = pipeline.Reader(images, config.data, config.seed)
    iterator = runtime.distribute(pipeline.batches(reader, 0, config.train, place.num_replicas, place.local_replicas))
    return state, lambda steps: advance(iterator, steps)


def difference(one: list[dict[str, np.ndarray]], many: list[dict[str, np.ndarray]]) -> Difference:
    """What differs between two runs, by their states at the start, after one step, and at the end."""
    names = [name for name in one[0] if name.startswith(("generator/", "discriminator/", "generator_ema/"))]

    def worst(moment: int) -> tuple[float, str]:
        changes = {name: (one[moment][name] - one[0][name], many[moment][name] - many[0][name]) for name in names}
        # What hardly moves, as a bias that falls out of the loss, moves by rounding alone.
        least = 1e-6 * max(np.linalg.norm(a) for a, _ in changes.values())
        ratios = {
            name: float(np.linalg.norm(a - b) / max(np.linalg.norm(a), least)) for name, (a, b) in changes.items()
        }
        return max((ratio, name) for name, ratio in ratios.items())

    weights, variable = worst(2)
    return Difference(worst(1)[0], weights, variable)
