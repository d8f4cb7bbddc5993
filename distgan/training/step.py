"""One training step, as every replica runs it: for each phase, gradients of its micro-batches, one sum, one update.

The order within a phase carries the promises: losses are sums over examples divided by the global batch, so that one sum
over replicas is the mean over the global batch whatever the shares are; what is checked for finiteness, measured, clipped
and applied is that reduced gradient, the same on every replica.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from distgan import seeds
from distgan.config import Config
from distgan.errors import UserError
from distgan.models.layers import BatchNorm, Update
from distgan.objectives.contract import find_loss
from distgan.runtime.base import Progress, Runtime, Step, Steps, Waits
from distgan.training import ema, optimizers, precision
from distgan.training.phases import (
    Phase,
    batches_per_step,
    cycle,
    due,
    keys,
    measured_keys,
    network_keys,
    phases,
    regularizers,
    term_key,
)
from distgan.training.seen import MicroBatch

if TYPE_CHECKING:
    from distgan.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a micro-batch gives, or the sum of several; every number already divided by the global batch."""

    gradients: dict[str, list[tf.Tensor]]
    """For each trained network, in the order of its trainable variables."""
    measured: tf.Tensor
    """Sums over the micro-batch of the phase's measured values, [M]."""
    statistics: dict[str, tf.Tensor]
    """The next value of each moving statistic of the trained networks, by its path."""


def build_step(config: Config, state: TrainState, runtime: Runtime, passes: Sequence[PhaseStep]) -> Step:
    """The function of a step with the given ones of a run's phases."""
    images_per_step = config.train.global_batch * batches_per_step(config)
    layers_by = {phase.name: len(layer_paths(state, phase)) for phase in phases(config)}
    measured_by = {phase.name: len(keys(config, phase)) for phase in phases(config)}

    @tf.autograph.experimental.do_not_convert
    def step(batches: Sequence[Any], ok: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if rates := optimizers.scheduled(config, state):
            runtime.assign(*zip(*rates, strict=True))
        evidence = {name: tf.zeros([2 * size], tf.float64) for name, size in measured_by.items()}
        layers = {name: tf.zeros([size], tf.float64) for name, size in layers_by.items()}
        taken = iter(batches)
        batch = None
        for phase in passes:
            batch = next(taken) if phase.phase.takes_batch else batch
            ok, measured, counts, norms = phase.run(batch, ok)
            evidence[phase.phase.name] = tf.cast(tf.concat([measured, counts], axis=0), tf.float64)
            layers[phase.phase.name] = tf.cast(norms, tf.float64)
        halves = [tf.split(each, 2) for each in evidence.values()]
        measured, counts = (tf.concat(each, axis=0) for each in zip(*halves, strict=True))

        images_seen = state.images_seen + images_per_step
        share = tf.where(ok, ema.amount(config, images_seen, images_per_step), 0)
        averages = [variable.value for variable in state.generator_ema.variables]
        current = [variable.value.read_value() for variable in state.generator.variables]
        runtime.move(averages, current, share)
        gate = tf.cast(ok, tf.int64)
        runtime.assign(
            [state.step, state.images_seen, state.report_totals, state.report_counts],
            [
                state.step + gate,
                state.images_seen + gate * images_per_step,
                state.report_totals + tf.where(ok & (counts > 0), measured, 0),
                state.report_counts + tf.where(ok, counts, 0),
            ],
        )
        return ok, tf.concat([measured, *layers.values()], axis=0)

    return step


def evidence_size(config: Config, state: TrainState) -> int:
    """Length of a step's evidence: all that is measured (`measured_keys`), then each phase's `layer_paths`."""
    return len(measured_keys(config)) + sum(len(layer_paths(state, phase)) for phase in phases(config))


def is_limited(key: str) -> bool:
    """Whether --train.loss_limit holds for a measured value."""
    return key.startswith(("loss/", "d_logits/"))


def layer_paths(state: TrainState, phase: Phase) -> list[str]:
    """The weights whose gradients' norms stand in a phase's evidence, in their order."""
    return [variable.path for name in phase.trains for variable in state.network(name).trainable_variables]


def compile_steps(config: Config, state: TrainState, runtime: Runtime) -> Advance:
    """The compiled steps of a run; steps with other phases due are functions of their own.

    Raises:
      UserError: XLA is asked to compile a sum over replicas.
    """
    if config.jit_compile and runtime.topology.num_replicas > 1:
        _refuse_compiled_batch_norm(state, runtime)
    plan = phases(config)
    passes = {phase.name: PhaseStep(phase, config, state, runtime) for phase in plan}

    def compiled(those: Sequence[Phase]) -> Any:
        step = build_step(config, state, runtime, [passes[phase.name] for phase in those])
        return runtime.compile(step, batches_per_step(config), evidence_size(config, state))

    return Advance(state, plan, {those: compiled(those) for those in {due(plan, step) for step in range(cycle(plan))}})


class Advance:
    """Runs the next steps of a run, each with the phases that are due in it."""

    def __init__(self, state: TrainState, plan: Sequence[Phase], variants: Mapping[tuple[Phase, ...], Steps]):
        self.state, self.plan, self.variants = state, plan, variants
        self.ran: set[tuple[Steps, bool]] = set()

    def __call__(self, iterator: Any, count: int) -> Progress:
        """See `Steps.__call__`."""
        progress = self._start()
        for steps, length in self._stretches(count):
            self.ran.add((steps, False))
            progress = steps(iterator, length, progress)
        return progress

    def measure(self, iterator: Any, count: int) -> tuple[Progress, Waits]:
        """See `Steps.measure`."""
        progress, waits = self._start(), []
        for steps, length in self._stretches(count):
            self.ran.add((steps, True))
            progress, waited = steps.measure(iterator, length, progress)
            waits.append(waited)
        return progress, Waits(*map(sum, zip(*waits, strict=True)))

    def ready(self, count: int, measured: bool) -> int:
        """How many of the next `count` steps are compiled; 0 where the next one is not, as nothing compiles ahead of time."""
        stretches = itertools.takewhile(lambda each: (each[0], measured) in self.ran, self._stretches(count))
        return sum(length for _, length in stretches)

    def _start(self) -> Progress:
        return next(iter(self.variants.values())).start()

    def _stretches(self, count: int) -> Iterator[tuple[Steps, int]]:
        """The next steps in stretches of the same phases, by the state's clock: the compiled steps, and how many of them."""
        first = int(self.state.step.numpy())
        for phases_due, steps in itertools.groupby(range(first, first + count), lambda step: due(self.plan, step)):
            yield self.variants[phases_due], len(list(steps))


class PhaseStep:
    """A phase with what it works on."""

    def __init__(self, phase: Phase, config: Config, state: TrainState, runtime: Runtime):
        self.phase = phase
        self.config = config
        self.state = state
        self.runtime = runtime
        self.loss = find_loss(config.objective.loss.name)
        self.regularizers = {name: regularizers(config)[name] for name in phase.regularizers}
        self.scaled = config.precision == "mixed_float16"
        self.variables = {name: [v.value for v in state.network(name).trainable_variables] for name in phase.trains}
        self.statistics = {
            v.path: v.value for name in phase.trains for v in state.network(name).non_trainable_variables
        }
        self.share = 1 / (config.train.global_batch * phase.fake_batches)
        self.draws = self._find_draws()
        self.gradients = tf.function(self._gradients, jit_compile=True) if config.jit_compile else self._gradients

    def run(self, batch: Any, ok: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Updates the trained networks if all is well so far: finite, and within the run's limit.

        Returns:
          Whether it still is; what was measured (`keys`); a 1 for each of it that counts: where the loss is scaled, the norm
          of a gradient that overflowed does not, and its update is left out; the norms of the gradients of `layer_paths`.
        """
        outcome = self._accumulate(batch)
        gradients = tf.nest.flatten(outcome.gradients)
        *gradients, measured = self.runtime.sum_gradients(gradients, outcome.measured, self.phase.name)
        reduced = tf.nest.pack_sequence_as(outcome.gradients, gradients)
        if self.scaled:
            reduced = {name: precision.unscale(reduced[name], self.state.kept[_scale(name)]) for name in reduced}
        # As tf.linalg.global_norm works it out, by the way of each weight's share.
        halves = {name: tf.stack([tf.nn.l2_loss(each) for each in reduced[name]]) for name in self.phase.trains}
        norms = {name: tf.sqrt(2 * tf.reduce_sum(half)) for name, half in halves.items()}
        finite = {name: tf.math.is_finite(norm) for name, norm in norms.items()}
        counts = [tf.ones_like(measured), *(tf.cast(each, measured.dtype)[None] for each in finite.values())]
        ok = ok & tf.reduce_all(tf.math.is_finite(measured)) & self._is_within_limit(measured)
        for name in self.phase.trains:
            ok = self._rescale(name, finite[name], ok) if self.scaled else ok & finite[name]
        for name in self.phase.trains:
            applied = ok & finite[name]
            # What is not finite becomes 0 where it is not applied, and nothing else does.
            factor = tf.where(applied, _clip_factor(norms[name], self.config.train.clip_norm), 0)
            gradients = [tf.math.multiply_no_nan(gradient, factor) for gradient in reduced[name]]
            self.runtime.apply(self.state.optimizers[name], gradients, self.variables[name], applied)
        self._observe(outcome, measured, ok)
        layers = tf.concat([tf.sqrt(2 * half) for half in halves.values()], axis=0)
        return ok, tf.concat([measured, tf.stack(list(norms.values()))], axis=0), tf.concat(counts, axis=0), layers

    def _is_within_limit(self, measured: tf.Tensor) -> tf.Tensor:
        limit = self.config.train.loss_limit
        if not limit:
            return tf.constant(True)
        limited = [is_limited(key) for key in keys(self.config, self.phase)][: measured.shape[0]]
        return tf.reduce_all((tf.abs(measured) <= limit) | tf.logical_not(limited))

    def _rescale(self, name: str, finite: tf.Tensor, ok: tf.Tensor) -> tf.Tensor:
        """Moves a network's loss scale; returns whether all is well: what is not finite may be so by the scale."""
        kept = self.state.kept[_scale(name)]
        values, possible = precision.rescaled(kept, finite)
        ok = ok & possible
        self.runtime.assign(list(kept.values()), [tf.where(ok, values[key], old) for key, old in kept.items()])
        return ok

    def _observe(self, outcome: Outcome, measured: tf.Tensor, ok: tf.Tensor) -> None:
        """What follows from an update: moving statistics, cut weights, and what regularizers and augmentation keep."""
        variables = [self.statistics[path] for path in outcome.statistics]
        values = list(outcome.statistics.values())
        if "discriminator" in self.phase.trains:
            for part in regularizers(self.config).values():
                projected = [(v, part.project(v)) for v in self.variables["discriminator"]]
                variables += [variable for variable, value in projected if value is not None]
                values += [value for _, value in projected if value is not None]
            if self.phase.adversarial:
                by_key = dict(
                    zip(keys(self.config, self.phase), tf.unstack(tf.cast(measured, tf.float64)), strict=False)
                )
                for name, following in self._keep(by_key).items():
                    kept = self.state.kept[name]
                    variables += [kept[key] for key in following]
                    values += list(following.values())
        gated = [tf.where(ok, value, old) for value, old in zip(values, variables, strict=True)]
        self.runtime.assign(variables, gated)

    def _keep(self, measured: dict[str, tf.Tensor]) -> dict[str, dict[str, tf.Tensor]]:
        """The next values of what the augmentation and every regularizer keep."""
        images_seen, batch = self.state.images_seen.read_value(), self.config.train.global_batch

        def read(name: str) -> dict[str, tf.Tensor]:
            return {key: variable.read_value() for key, variable in self.state.kept[name].items()}

        following = {
            "augmentation": self.config.objective.augmentation.options.update(read("augmentation"), measured, batch)
        }
        for name, part in regularizers(self.config).items():
            following[name] = part.update(read(name), measured, images_seen)
        return following

    def _accumulate(self, batch: Any) -> Outcome:
        """The sum over the share's micro-batches, one after the other so that only one is in memory."""
        steps = batch.images.shape[0]
        labels = tf.cast(batch.labels, tf.int64)  # A GPU leaves slices of 32-bit integers to the host.
        total: Any = None
        for fakes in range(self.phase.fake_batches):
            for index in range(steps):
                with tf.control_dependencies(tf.nest.flatten(total) if total is not None else []):
                    # The identity holds the micro-batch back until the one before is done.
                    images = tf.identity(batch.images[index])
                    first = batch.first[index]
                    place = tf.math.floormod(first, self.config.train.global_batch)
                    draws = self._draw(first, images.shape[0], fakes)
                    outcome = self.gradients(images, tf.cast(labels[index], tf.int32), place, draws)
                total = outcome if total is None else tf.nest.map_structure(tf.add, total, outcome)
        gradients, measured, statistics = total
        passes = steps * self.phase.fake_batches
        return Outcome(
            gradients, measured, {path: value / passes if passes > 1 else value for path, value in statistics.items()}
        )

    def _find_draws(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> kind and per-image shape of every draw of the phase, as a trace of it asks for them."""
        found: dict[str, tuple[str, tuple[int, ...]]] = {}

        def make(kind: str, name: str, shape: tuple[int, ...]) -> tf.Tensor:
            found[name] = kind, shape
            return tf.zeros([1, *shape])

        def trace() -> None:
            images = tf.zeros([1, *self.state.description.image_shape], tf.uint8)
            seen = self._see(images, tf.zeros([1], tf.int32), tf.constant(0, tf.int64), seeds.Draws(make), alone=True)
            for name in self.phase.trains:
                self._terms(name, seen)

        tf.function(trace, autograph=False).get_concrete_function()
        return found

    def _draw(self, first: tf.Tensor, count: int, fakes: int) -> dict[str, tf.Tensor]:
        """The phase's random numbers of a micro-batch; every batch of fakes beyond the first has its own.

        They are drawn outside of what XLA compiles: its Philox gives other values than TensorFlow's kernel.
        """
        prefix = self.phase.name + (f"/{fakes}" if fakes else "")
        drawn = {}
        for name, (kind, shape) in self.draws.items():
            key = seeds.key(self.config.seed, f"{prefix}/{name}")
            drawn[name] = {"normal": seeds.normal, "uniform": seeds.uniform}[kind](key, first, count, shape)
        return drawn

    def _gradients(self, images: tf.Tensor, labels: tf.Tensor, place: tf.Tensor, drawn: dict[str, tf.Tensor]) -> Any:
        """Forward and backward pass of one micro-batch; returns the fields of an Outcome."""
        seen = self._see(images, labels, place, seeds.Draws(lambda kind, name, shape: drawn[name]))
        with contextlib.ExitStack() as stack:
            tapes, losses, measured = {}, {}, []
            for name in self.phase.trains:
                tapes[name] = stack.enter_context(tf.GradientTape(watch_accessed_variables=False))
                tapes[name].watch(self.variables[name])
            for name in self.phase.trains:
                losses[name], sums = self._terms(name, seen)
                measured += sums
                if self.scaled:
                    losses[name] *= tf.cast(self.state.kept[_scale(name)]["scale"], losses[name].dtype)
        gradients = {
            name: tapes[name].gradient(losses[name], self.variables[name], unconnected_gradients="zero")
            for name in self.phase.trains
        }
        updates = [update for name in self.phase.trains for update in seen.updates[name]]
        return gradients, tf.stack(measured), self._next_statistics(updates)

    def _see(self, images: Any, labels: Any, place: Any, draws: seeds.Draws, alone: bool = False) -> MicroBatch:
        def total(tensor: tf.Tensor, name: str) -> tf.Tensor:
            return tensor if alone else self.runtime.sum([tensor], f"{self.phase.name}/{name}")[0]

        return MicroBatch(self.phase, self.config, self.state, images, labels, place, draws, total)

    def _terms(self, network: str, seen: MicroBatch) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """A network's loss on a micro-batch, and the sums that are measured of it (`network_keys`), as shares of the batch."""
        found: dict[str, tf.Tensor] = {}
        losses = []
        if self.phase.adversarial:
            found |= self._adversarial(network, seen)
            losses.append(tf.reduce_sum(found[f"loss/{network}"]))
        for name, part in self.regularizers.items():
            if network in part.networks:
                penalty = _penalty(name, part, seen, network)
                weight = tf.cast(seen.value_of(part.weight), penalty.dtype)
                # A scalar is every image's own, so that the sum over all of them is its mean.
                value = weight * penalty * tf.ones_like(seen.real_images[:, 0, 0, 0])
                found[term_key(name, part, network)] = value
                losses.append(part.interval * tf.reduce_sum(value))
        sums = [tf.reduce_sum(found[key]) * self.share for key in network_keys(self.config, self.phase, network)]
        return tf.add_n(losses) * self.share, sums

    def _adversarial(self, network: str, seen: MicroBatch) -> dict[str, tf.Tensor]:
        """The adversarial loss per example, and what else is measured with it."""
        if network == "generator":
            value = self.loss.generator(*(seen.compared if self.loss.pairs else (None, seen.fake_logits)))
            for part in self.regularizers.values():
                weights = part.weigh_fakes(seen)
                value = value if weights is None else weights * value
            return {"loss/generator": value}
        return {
            "loss/discriminator": self.loss.discriminator(*seen.compared),
            "d_logits/real_mean": seen.real_logits,
            "d_logits/fake_mean": seen.fake_logits,
            "d_logits/real_square": tf.square(seen.real_logits),
            "d_logits/fake_square": tf.square(seen.fake_logits),
            "d_sign/real": tf.sign(seen.real_logits),
            "d_sign/fake": tf.sign(seen.fake_logits),
        }

    def _next_statistics(self, updates: Sequence[Update]) -> dict[str, tf.Tensor]:
        """By path, what moving statistics become after what the passes observed."""
        observed: dict[str, list[Update]] = {}
        for update in updates:
            observed.setdefault(update.variable.path, []).append(update)
        following = {}
        for path, those in observed.items():
            values, momentum = [each.value for each in those], those[0].momentum
            mean = tf.add_n(values) / len(values) if len(values) > 1 else values[0]
            old = self.statistics[path]
            following[path] = old + (mean - old) * (1 - momentum) if momentum else mean
        return following


def _penalty(name: str, part: Any, seen: MicroBatch, network: str) -> tf.Tensor:
    """A regularizer's penalty.

    Raises:
      UserError: it is no number per example, nor one for all alike.
    """
    penalty = part.penalty(seen, network)
    if not tf.is_tensor(penalty) or penalty.shape not in ([], seen.real_labels.shape):
        found = list(penalty.shape) if tf.is_tensor(penalty) else type(penalty).__name__
        raise UserError(
            f"--objective.regularizers={name}: its penalty of {seen.real_labels.shape[0]} images is {found}, not a tensor with "
            "a number for each, or one for all"
        )
    return penalty


def _scale(network: str) -> str:
    """Under which name a network's loss scale is kept."""
    return f"loss_scale/{network}"


def _clip_factor(norm: tf.Tensor, limit: float) -> tf.Tensor:
    """What gradients are multiplied by, so that their global norm is at most `limit`; 0 is no limit."""
    return limit / tf.maximum(norm, limit) if limit else tf.ones_like(norm)


def _refuse_compiled_batch_norm(state: TrainState, runtime: Runtime) -> None:
    for network in (state.generator, state.discriminator):
        for layer in network._flatten_layers():
            if isinstance(layer, BatchNorm):
                raise UserError(
                    f"--jit_compile does not go with {runtime.topology.num_replicas} replicas here: {layer.path} sums over "
                    "replicas within the compiled pass; drop --jit_compile, or use --strategy=single"
                )
