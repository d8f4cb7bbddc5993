"""One training step, as every replica runs it: for each phase, gradients of its micro-batches, one sum, one update.

The order within a phase carries the promises: losses are sums over examples divided by the global batch, so that one sum
over replicas is the mean over the global batch whatever the shares are; what is checked for finiteness, measured, clipped
and applied is that reduced gradient, the same on every replica.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from distgan import registry, seeds
from distgan.config import Config, TrainConfig
from distgan.errors import UserError
from distgan.models.layers import BatchNorm, Pass
from distgan.objectives import LOSSES
from distgan.runtime.base import Runtime, Step
from distgan.training import ema

if TYPE_CHECKING:
    from distgan.training.state import TrainState

NETWORKS = ("discriminator", "generator")
_MEASURED = {
    "discriminator": ("loss/discriminator", "d_logits/real_mean", "d_logits/fake_mean", "d_sign/real", "d_sign/fake"),
    "generator": ("loss/generator",),
}


@dataclasses.dataclass(frozen=True)
class Phase:
    """One update within a step."""

    name: str
    trains: tuple[str, ...]
    """The networks that are updated, of NETWORKS, from one forward pass."""
    takes_batch: bool
    """Whether it takes fresh real images, or looks at those of the phase before."""


def phases(train: TrainConfig) -> tuple[Phase, ...]:
    """The phases of a step, in order."""
    if train.update_order == "simultaneous":
        return (Phase("both", NETWORKS, takes_batch=True),)
    first = [Phase(f"discriminator{i}", ("discriminator",), True) for i in range(train.discriminator_updates)]
    return (*first, Phase("generator", ("generator",), takes_batch=False))


def batches_per_step(train: TrainConfig) -> int:
    """Global batches of real images that a step shows."""
    return sum(phase.takes_batch for phase in phases(train))


def measured_keys(train: TrainConfig) -> tuple[tuple[str, str], ...]:
    """(phase, key) of everything that a step measures, in the order of its evidence vector."""
    return tuple((phase.name, key) for phase in phases(train) for key in _keys(phase))


def _keys(phase: Phase) -> list[str]:
    measured = [key for name in phase.trains for key in _MEASURED[name]]
    return measured + [f"grad_norm/{name}" for name in phase.trains]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a micro-batch gives, or the sum of several; every number already divided by the global batch."""

    gradients: dict[str, list[tf.Tensor]]
    """For each trained network, in the order of its trainable variables."""
    measured: tf.Tensor
    """Sums over the micro-batch of the phase's measured values, [M]."""
    statistics: dict[str, tf.Tensor]
    """The next value of each moving statistic of the trained networks, by its path."""


def to_signed(images: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """uint8 images in [0, 255] -> [-1, 1]."""
    return tf.cast(images, dtype) / 127.5 - 1


def problems(config: Config, num_replicas: int) -> Iterator[str]:
    """Yields what of the config no step can do with so many replicas."""
    loss, train = config.objective.loss.name, config.train
    if registry.resolve(LOSSES, loss).opposed:
        why = f"--objective.loss={loss}, which takes means over the whole batch"
        if train.accumulation_steps > 1:
            yield f"--train.accumulation_steps={train.accumulation_steps} does not go with {why}: 1 does"
        if config.jit_compile and num_replicas > 1:
            yield f"--jit_compile with {num_replicas} replicas does not go with {why}: use --strategy=single"


def build_step(config: Config, state: TrainState, runtime: Runtime) -> Step:
    """The step function of a run.

    Raises:
      UserError: XLA is asked to compile a sum over replicas.
    """
    if config.jit_compile and runtime.topology.num_replicas > 1:
        _refuse_compiled_batch_norm(state, runtime)
    plan = phases(config.train)
    passes = [_Phase(phase, config, state, runtime) for phase in plan]
    images_per_step = config.train.global_batch * batches_per_step(config.train)

    @tf.autograph.experimental.do_not_convert
    def step(batches: Sequence[Any]) -> tuple[tf.Tensor, tf.Tensor]:
        ok = tf.constant(True)
        evidence = []
        taken = iter(batches)
        batch = None
        for phase in passes:
            batch = next(taken) if phase.phase.takes_batch else batch
            ok, measured = phase.run(batch, ok)
            evidence.append(measured)
        measured = tf.cast(tf.concat(evidence, axis=0), tf.float64)

        images_seen = state.images_seen + images_per_step
        share = tf.where(ok, ema.amount(config.ema, images_seen, images_per_step), 0)
        averages = [variable.value for variable in state.generator_ema.variables]
        current = [variable.value for variable in state.generator.variables]
        moved = [a + (w - a) * tf.cast(share, a.dtype) for a, w in zip(averages, current, strict=True)]
        gate = tf.cast(ok, tf.int64)
        runtime.assign(
            [*averages, state.step, state.images_seen, state.report_totals, state.report_steps],
            [
                *moved,
                state.step + gate,
                state.images_seen + gate * images_per_step,
                state.report_totals + tf.where(ok, measured, 0),
                state.report_steps + tf.cast(gate, tf.float64),
            ],
        )
        return ok, measured

    return step


def compile_steps(config: Config, state: TrainState, runtime: Runtime) -> Any:
    """The compiled steps of a run: see `Runtime.compile`."""
    size = len(measured_keys(config.train))
    return runtime.compile(build_step(config, state, runtime), batches_per_step(config.train), size)


class _Phase:
    """A phase with what it works on."""

    def __init__(self, phase: Phase, config: Config, state: TrainState, runtime: Runtime):
        self.phase = phase
        self.config = config
        self.state = state
        self.runtime = runtime
        self.loss = registry.resolve(LOSSES, config.objective.loss.name)
        self.variables = {name: [v.value for v in state.network(name).trainable_variables] for name in phase.trains}
        self.statistics = {
            v.path: v.value for name in phase.trains for v in state.network(name).non_trainable_variables
        }
        self.noise_shapes = self._find_noise()
        self.gradients = tf.function(self._gradients, jit_compile=True) if config.jit_compile else self._gradients

    def run(self, batch: Any, ok: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Updates the trained networks if all is finite so far; returns whether it still is, and what was measured (`_keys`)."""
        outcome = self._accumulate(batch)
        gradients = tf.nest.flatten(outcome.gradients)
        *gradients, measured = self.runtime.sum_gradients(gradients, outcome.measured, self.phase.name)
        reduced = tf.nest.pack_sequence_as(outcome.gradients, gradients)
        norms = {name: tf.linalg.global_norm(reduced[name]) for name in self.phase.trains}
        measured = tf.concat([measured, tf.stack(list(norms.values()))], axis=0)
        ok = ok & tf.reduce_all(tf.math.is_finite(measured))
        for name in self.phase.trains:
            clipped = _clip(reduced[name], norms[name], self.config.train.clip_norm)
            self.runtime.apply(self.state.optimizers[name], clipped, self.variables[name], ok)
        moving = [self.statistics[path] for path in outcome.statistics]
        following = [tf.where(ok, value, old) for value, old in zip(outcome.statistics.values(), moving, strict=True)]
        self.runtime.assign(moving, following)
        return ok, measured

    def _accumulate(self, batch: Any) -> Outcome:
        """The sum over the share's micro-batches, one after the other so that only one is in memory."""
        steps = batch.images.shape[0]
        total: Any = None
        for index in range(steps):
            with tf.control_dependencies(tf.nest.flatten(total) if total is not None else []):
                # The identity holds the micro-batch back until the one before is done.
                images = tf.identity(batch.images[index])
                outcome = self.gradients(images, batch.labels[index], self._draw(batch.first[index], images.shape[0]))
            total = outcome if total is None else tf.nest.map_structure(tf.add, total, outcome)
        gradients, measured, statistics = total
        return Outcome(gradients, measured, {path: value / steps for path, value in statistics.items()})

    def _find_noise(self) -> dict[str, tuple[int, ...]]:
        """The per-image shape of every draw of the passes, by its purpose, as a trace of them asks for it."""
        shapes: dict[str, tuple[int, ...]] = {}

        def recording(name: str) -> Pass:
            def make(kind: str, layer: str, shape: tuple[int, ...]) -> tf.Tensor:
                shapes[f"{name}/{layer}"] = shape
                return tf.zeros([1, *shape])

            return Pass.alone(make)

        def passes() -> None:
            latents = tf.zeros([1, self.config.model.name.options.latent_size], self.state.generator.variable_dtype)
            labels = tf.zeros([1], tf.int32)
            fakes = self.state.generator(latents, labels, context=recording("generator"))
            for name in ("real", "fake"):
                self.state.discriminator(fakes, labels, context=recording(name))

        tf.function(passes).get_concrete_function()
        return shapes

    def _draw(self, first: tf.Tensor, count: int) -> dict[str, tf.Tensor]:
        """Latents and noise of a micro-batch.

        They are drawn outside of what XLA compiles: its Philox gives other values than TensorFlow's kernel.
        """
        noise = {name: seeds.uniform(self._key(name), first, count, shape) for name, shape in self.noise_shapes.items()}
        latent_size = self.config.model.name.options.latent_size
        latents = seeds.normal(self._key("latents"), first, count, (latent_size,))
        return {"latents": latents, "labels": self._draw_labels(first, count), **noise}

    def _draw_labels(self, first: tf.Tensor, count: int) -> tf.Tensor:
        """Classes of a micro-batch's fakes, int32 [M]."""
        if not self.config.model.conditional:
            return tf.zeros([count], tf.int32)
        weights = np.array(self.state.description.label_counts, np.float64)
        if self.config.train.fake_labels == "uniform":
            weights = np.ones_like(weights)
        return seeds.classes(self._key("labels"), first, count, weights)

    def _gradients(self, images: tf.Tensor, labels: tf.Tensor, draws: dict[str, tf.Tensor]) -> Any:
        """Forward and backward pass of one micro-batch; returns the fields of an Outcome."""
        state, global_batch = self.state, self.config.train.global_batch
        dtype = state.discriminator.variable_dtype
        passes = {name: self._pass(name, draws) for name in ("generator", "real", "fake")}
        reals = to_signed(images, dtype)
        with tf.GradientTape() as generator_tape, tf.GradientTape() as discriminator_tape:
            fakes = state.generator(tf.cast(draws["latents"], dtype), draws["labels"], context=passes["generator"])
            real_logits = state.discriminator(reals, labels, context=passes["real"])[:, 0]
            fake_logits = state.discriminator(fakes, draws["labels"], context=passes["fake"])[:, 0]
            compared = self._oppose(real_logits, fake_logits) if self.loss.opposed else (real_logits, fake_logits)
            losses = {
                "discriminator": self.loss.discriminator(*compared) / global_batch,
                "generator": self.loss.generator(*compared) / global_batch,
            }
        tapes = {"discriminator": discriminator_tape, "generator": generator_tape}
        gradients = {name: tapes[name].gradient(losses[name], self.variables[name]) for name in self.phase.trains}
        measured = {"generator": [losses["generator"]]}
        measured["discriminator"] = [losses["discriminator"]] + [
            values / global_batch for values in (real_logits, fake_logits, tf.sign(real_logits), tf.sign(fake_logits))
        ]
        sums = tf.stack([tf.reduce_sum(values) for name in self.phase.trains for values in measured[name]])
        updates: dict[str, list[tf.Tensor]] = {}
        for variable, value, momentum in (update for made in passes.values() for update in made.updates):
            if variable.path in self.statistics:
                old = self.statistics[variable.path]
                updates.setdefault(variable.path, []).append(old + (value - old) * (1 - momentum))
        return gradients, sums, {path: tf.add_n(values) / len(values) for path, values in updates.items()}

    def _oppose(self, real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Logits less the other kind's mean over all replicas."""
        sums = tf.stack([tf.reduce_sum(real_logits), tf.reduce_sum(fake_logits)])
        real_mean, fake_mean = tf.unstack(
            self.runtime.sum([sums], f"{self.phase.name}/logits")[0] / self.config.train.global_batch
        )
        return real_logits - fake_mean, fake_logits - real_mean

    def _pass(self, name: str, draws: dict[str, tf.Tensor]) -> Pass:
        """A training pass that takes its noise from the draws by its name."""

        def made(kind: str, layer: str, shape: tuple[int, ...]) -> tf.Tensor:
            return draws[f"{name}/{layer}"]

        def sum_over_replicas(tensor: tf.Tensor, layer: str) -> tf.Tensor:
            return self.runtime.sum([tensor], f"{self.phase.name}/{name}/{layer}")[0]

        return Pass(seeds.Draws(made), sum_over_replicas, [], {})

    def _key(self, purpose: str) -> int:
        return seeds.key(self.config.seed, f"{self.phase.name}/{purpose}")


def _clip(gradients: list[tf.Tensor], norm: tf.Tensor, limit: float) -> list[tf.Tensor]:
    """Gradients scaled so that their global norm is at most `limit`; 0 is no limit."""
    return [gradient * (limit / tf.maximum(norm, limit)) for gradient in gradients] if limit else gradients


def _refuse_compiled_batch_norm(state: TrainState, runtime: Runtime) -> None:
    for network in (state.generator, state.discriminator):
        for layer in network.chain:
            if isinstance(layer, BatchNorm):
                raise UserError(
                    f"--jit_compile does not go with {runtime.topology.num_replicas} replicas here: {layer.path} sums over "
                    "replicas within the compiled pass; drop --jit_compile, or use --strategy=single"
                )
