"""What one phase sees of a micro-batch: images, fakes and logits, each worked out when a loss first asks for it, and once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from distgan import seeds
from distgan.config import Config
from distgan.errors import UserError
from distgan.models.layers import Pass, Update, call_with
from distgan.objectives.contract import find_loss
from distgan.schedules import Schedule
from distgan.training.phases import NETWORKS, Phase, regularizers

if TYPE_CHECKING:
    from distgan.training.state import TrainState


def _once(method: Callable[[Any], Any]) -> Any:
    """A property that is worked out once.

    Python 3.11's own holds a lock that all instances share, and a replica that sums within would wait for one that waits for it.
    """

    def get(self: Any) -> Any:
        if method.__name__ not in self.found:
            self.found[method.__name__] = method(self)
        return self.found[method.__name__]

    return property(get)


class MicroBatch:
    """`objectives.regularizers.Seen`, by a run's networks. Within a function that is compiled, once per trace."""

    def __init__(
        self,
        phase: Phase,
        config: Config,
        state: TrainState,
        images: tf.Tensor,
        labels: tf.Tensor,
        place: tf.Tensor,
        draws: seeds.Draws,
        sum_over_replicas: Callable[[tf.Tensor, str], tf.Tensor],
    ):
        """Takes a micro-batch.

        Args:
          phase: which loss is to be taken.
          config: the run's.
          state: its networks and what its regularizers keep.
          images: uint8 [N, H, W, C].
          labels: int32 [N].
          place: int64 scalar, of the first image in the global batch.
          draws: random numbers of these images.
          sum_over_replicas: (tensor, name) -> its sum.
        """
        self.phase, self.config, self.state = phase, config, state
        self.real_labels, self.place, self.draws = labels, place, draws
        self.sum_over_replicas = sum_over_replicas
        self.dtype = state.discriminator.variable_dtype
        self.real_images = tf.cast(images, self.dtype) / 127.5 - 1
        self.images_seen = state.images_seen.read_value()
        self.found: dict[str, Any] = {}
        self.updates: dict[str, list[Update]] = {name: [] for name in NETWORKS}
        self.memos: dict[str, dict[str, Any]] = {name: {} for name in NETWORKS}
        self.precise_memo: dict[str, Any] = {}
        parts = regularizers(config)
        self.differentiated = {kind for name in phase.regularizers for kind in parts[name].differentiates}

    @_once
    def fake_labels(self) -> tf.Tensor:
        """int32 [N]."""
        if not self.config.model.conditional:
            return tf.zeros_like(self.real_labels)
        if self.config.train.fake_labels == "paired":
            return self.real_labels
        weights = np.array(self.state.description.label_counts, np.float64)
        if self.config.train.fake_labels == "uniform":
            weights = np.ones_like(weights)
        return seeds.classes(self.draws.uniform("labels", (1,))[:, 0], weights)

    @_once
    def fake_images(self) -> tf.Tensor:
        """Of latents keyed by the images' numbers."""
        latents = self.draws.normal("latents", (self.config.model.name.options.latent_size,))
        context = self._pass("generator", "generator")
        return self.state.generator(tf.cast(latents, self.dtype), labels=self.fake_labels, context=context)

    @_once
    def _real(self) -> _Look:
        return self._look("real", self.real_images, self.real_labels)

    @_once
    def _fake(self) -> _Look:
        return self._look("fake", self.fake_images, self.fake_labels)

    @_once
    def compared(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Real and fake logits as the loss takes them: as they are, or less the other kind's mean over the global batch."""
        reals, fakes = self.real_logits, self.fake_logits
        if not find_loss(self.config.objective.loss.name).opposed:
            return reals, fakes
        sums = self.sum_over_replicas(tf.stack([tf.reduce_sum(reals), tf.reduce_sum(fakes)]), "logits")
        real_mean, fake_mean = tf.unstack(sums / self.config.train.global_batch)
        return reals - fake_mean, fakes - real_mean

    # What `Seen` promises, in its words.
    real_augmented = property(lambda self: self._real.augmented)
    fake_augmented = property(lambda self: self._fake.augmented)
    real_outputs = property(lambda self: self._real.outputs)
    fake_outputs = property(lambda self: self._fake.outputs)
    real_logits = property(lambda self: self._real.logits)
    fake_logits = property(lambda self: self._fake.logits)

    def judge(self, images: tf.Tensor, labels: tf.Tensor, name: str) -> tf.Tensor:
        return self.state.discriminator(images, labels=labels, context=self._pass("discriminator", name))

    def gradients_at(self, images: tf.Tensor, labels: tf.Tensor, name: str) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            logits = self._judge_precisely(self._augment(images, name), labels, name)[:, 0]
        return tape.gradient(logits, images)

    def gradients_of_logits(self, kind: str) -> tf.Tensor:
        images, labels, look = {
            "real": (self.real_images, self.real_labels, lambda: self._real),
            "fake": (self.fake_images, self.fake_labels, lambda: self._fake),
        }[kind]
        if self.state.precise_discriminator is not None:
            return self.gradients_at(images, labels, kind)
        return look().tape.gradient(look().logits, images)

    def kept(self, name: str) -> Mapping[str, tf.Tensor]:
        return {key: variable.read_value() for key, variable in self.state.kept[name].items()}

    def kernels(self, network: str) -> list[tf.Tensor]:
        built = self.state.network(network)
        shared = getattr(built, "embedding", None)
        left_out = {variable.path for variable in shared.trainable_variables} if shared else set()
        trained = [v for v in built.trainable_variables if v.path.endswith("kernel") and v.path not in left_out]
        return [tf.convert_to_tensor(variable.value) for variable in trained]

    def everywhere(self, values: tf.Tensor, name: str) -> tf.Tensor:
        places = self.place + tf.range(values.shape[0], dtype=tf.int64)
        mine = tf.one_hot(places, self.config.train.global_batch, axis=0, dtype=values.dtype)  # [B, N]
        return self.sum_over_replicas(tf.linalg.matvec(mine, tf.stop_gradient(values)), name)

    def value_of(self, schedule: Schedule) -> tf.Tensor:
        return schedule.at(self.images_seen, self.config.train.total_kimg)

    def _look(self, kind: str, images: tf.Tensor, labels: tf.Tensor) -> _Look:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            if kind in self.differentiated and self.state.precise_discriminator is None:
                tape.watch(images)
            augmented = self._augment(images, kind)
            outputs = self.judge(augmented, labels, kind)
            logits = outputs[:, 0]
        return _Look(augmented, outputs, logits, tape)

    def _augment(self, images: tf.Tensor, name: str) -> tf.Tensor:
        part = self.config.objective.augmentation.options
        p = part.probability(self.kept("augmentation"), self.images_seen, self.config.train.total_kimg)
        augmented = part.augment(images, self.draws.within(f"augmentation/{name}"), p)
        if augmented.shape != images.shape or augmented.dtype != images.dtype:
            raise UserError(
                f"--objective.augmentation={self.config.objective.augmentation.name}: it makes {augmented.dtype.name} "
                f"{list(augmented.shape)} of images {images.dtype.name} {list(images.shape)}, which must stay the same"
            )
        return augmented

    def _judge_precisely(self, images: tf.Tensor, labels: tf.Tensor, name: str) -> tf.Tensor:
        """In float32, by a twin of the discriminator that computes in it, where the discriminator does not."""
        twin, network = self.state.precise_discriminator, self.state.discriminator
        if twin is None:
            return self.judge(images, labels, name)
        trained, others = (
            [tf.convert_to_tensor(variable.value) for variable in variables]
            for variables in (network.trainable_variables, network.non_trainable_variables)
        )
        # Kernels that the other passes share are in 16 bits.
        context = dataclasses.replace(self._pass("discriminator", name), memo=self.precise_memo)
        return call_with(twin, trained, others, images, labels=labels, context=context)

    def _pass(self, network: str, name: str) -> Pass:
        def total(tensor: tf.Tensor, layer: str) -> tf.Tensor:
            return self.sum_over_replicas(tensor, f"{name}/{layer}")

        return Pass(self.draws.within(name), total, self.updates[network], self.memos[network])


class _Look(NamedTuple):
    """The discriminator's look at images."""

    augmented: tf.Tensor
    outputs: tf.Tensor
    logits: tf.Tensor
    tape: tf.GradientTape
    """Has seen how the logits follow from the images, where that is asked for."""
