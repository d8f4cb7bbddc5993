"""What each part of a step costs: steps with more and more of their parts, in turn; a part is the difference of two.

Lazy phases count by how often they come.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distgan import schema
from distgan.config import Config
from distgan.data import pipeline
from distgan.data.source import Description
from distgan.runtime.base import Runtime
from distgan.training.phases import batches_per_step, cycle, due, phases
from distgan.training.state import build_state
from distgan.training.step import PhaseStep, build_step, evidence_size, layer_paths


class _Partial:
    """A runtime whose steps leave out the sum over replicas, or what follows from it."""

    def __init__(self, runtime: Runtime, sums: bool, updates: bool):
        self.runtime, self.sums, self.updates = runtime, sums, updates

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def sum_gradients(self, gradients: Sequence[tf.Tensor], measured: tf.Tensor, name: str) -> list[tf.Tensor]:
        return self.runtime.sum_gradients(gradients, measured, name) if self.sums else [*gradients, measured]

    def apply(self, *arguments: Any) -> None:
        if self.updates:
            self.runtime.apply(*arguments)

    def move(self, *arguments: Any) -> None:
        if self.updates:
            self.runtime.move(*arguments)

    def assign(self, *arguments: Any) -> None:
        if self.updates:
            self.runtime.assign(*arguments)


class _Forward(PhaseStep):
    """A phase that stops at its losses."""

    def _gradients(self, *arguments: Any) -> Any:
        _, measured, _ = super()._gradients(*arguments)
        return {name: [] for name in self.phase.trains}, measured, {}

    def run(self, batch: Any, ok: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        ok, measured, counts, _ = super().run(batch, ok)
        return ok, measured, counts, tf.zeros([len(layer_paths(self.state, self.phase))])


def parts(config: Config, images: Any, runtime: Runtime, blocks: int, block_seconds: float) -> dict[str, Any]:
    """Milliseconds of a step by part, as medians over alternating blocks."""
    plain = _without(config, {"objective.regularizers": "", "objective.augmentation": "none"})
    augmented = _without(config, {"objective.regularizers": ""})
    loops = {
        "forward": _loop(plain, images, runtime, _Partial(runtime, False, False), _Forward),
        "backward": _loop(plain, images, runtime, _Partial(runtime, False, False)),
        "augmentation": _loop(augmented, images, runtime, _Partial(runtime, False, False)),
        "penalties": _loop(config, images, runtime, _Partial(runtime, False, False)),
        "reduction": _loop(config, images, runtime, _Partial(runtime, True, False)),
        "optimizer": _loop(config, images, runtime, _Partial(runtime, True, True)),
    }
    for loop in loops.values():
        loop(1)
    whole = loops["optimizer"](2)
    steps = max(1, round(block_seconds / whole))
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for block in range(blocks):
        for name in list(loops) if block % 2 else reversed(list(loops)):
            seconds[name].append(loops[name](steps))
    medians = [0.0, *(statistics.median(each) for each in seconds.values())]
    costs = {
        name: round(1000 * (after - before), 3)
        for name, before, after in zip(loops, medians, medians[1:], strict=False)
    }
    return {
        "replicas": runtime.topology.num_replicas,
        "milliseconds": costs,
        "whole_step": round(1000 * medians[-1], 3),
        "blocks": blocks,
        "steps_per_block": steps,
        "note": "optimizer: update of weights, averages and clock; a part that costs less than the noise may be below 0",
    }


def _without(config: Config, changes: dict[str, Any]) -> Config:
    return schema.build(Config, {**schema.flatten(config), **changes})


def _loop(
    config: Config, images: Any, runtime: Runtime, partial: Any, kind: type[PhaseStep] = PhaseStep
) -> Callable[[int], float]:
    """(number of steps) -> seconds a step takes on average over the cycle of its phases."""
    state = build_state(config, Description.of(images), runtime)
    plan, place = phases(config), runtime.topology
    passes = {phase.name: kind(phase, config, state, partial) for phase in plan}
    cycles = [due(plan, step) for step in range(cycle(plan))]
    compiled = {}
    for those in dict.fromkeys(cycles):
        step = build_step(config, state, partial, [passes[phase.name] for phase in those])
        compiled[those] = runtime.compile(step, batches_per_step(config), evidence_size(config, state))
    reader = pipeline.Reader(images, config.data, config.seed)
    iterator = runtime.distribute(pipeline.batches(reader, 0, config.train, place.num_replicas, place.local_replicas))

    def run(steps: int) -> float:
        total = 0.0
        for those, advance in compiled.items():
            start = time.perf_counter()
            advance(iterator, steps)[1].numpy()
            total += (time.perf_counter() - start) / steps * cycles.count(those) / len(cycles)
        return total

    return run
