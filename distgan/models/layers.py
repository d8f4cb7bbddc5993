"""Layers that know more than their input: dropout keyed by image number, batch norm over the global batch.

Everything here is single-device code. What a layer may know beyond its input comes with the call, in a `Pass`: how to draw
a number that belongs to an image, how to sum over replicas, where to leave what it observed.
Letters in shapes: N images, H, W, C; Z latent size; K classes.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgan.seeds import Draws


class Update(NamedTuple):
    """What a pass observed for a variable that is not trained."""

    variable: keras.Variable
    value: tf.Tensor
    momentum: float
    """The variable's next value is momentum times its present one, and the rest the observed one."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """One forward pass in training."""

    draws: Draws
    """Random numbers keyed by the pass, their name (a layer's) and the images."""
    sum_over_replicas: Callable[[tf.Tensor, str], tf.Tensor]
    """(tensor, layer path) -> the tensor's sum over all replicas; differentiable."""
    updates: list[Update]
    """Layers append what they observed; the step decides what becomes of it, so that a pass itself changes nothing. Where
    several passes of a step observe something for one variable, their mean counts."""
    memo: dict[str, Any]
    """What does not depend on the pass' inputs, as a normalized kernel, is worked out by the first of a network's passes and
    taken from here, by the variable's path, by the others."""

    @classmethod
    def alone(cls, make: Callable[[str, str, tuple[int, ...]], tf.Tensor]) -> Pass:
        """On one replica, with numbers made by `make` (see `Draws`)."""
        return cls(Draws(make), lambda tensor, layer: tensor, [], {})


def call_with(
    network: Any, trained: Sequence[tf.Tensor], others: Sequence[tf.Tensor], inputs: tf.Tensor, **known: Any
) -> tf.Tensor:
    """A network's outputs with other weights than its own.

    Keras' `stateless_call` does not cast the inputs to the network's compute dtype, as a call does: 16 bits would meet 32.

    Args:
      network: built.
      trained: in the order of its trainable variables.
      others: in the order of its other variables.
      inputs: as a call takes them.
      **known: `labels` and `context`, as a call takes them.
    """
    pairs = [*zip(network.trainable_variables, trained, strict=True)]
    pairs += zip(network.non_trainable_variables, others, strict=True)
    with keras.StatelessScope(state_mapping=pairs):
        return network(inputs, **known)


class BatchNorm(keras.layers.Layer):
    """Batch normalization over the global batch, however many replicas share it (Ioffe and Szegedy 2015).

    Moments are taken per channel in float32 (float64 for float64 inputs), with one sum over replicas a pass.
    """

    def __init__(self, momentum: float = 0.99, epsilon: float = 1e-3, **kwargs: Any):
        super().__init__(**kwargs)
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape: Sequence[int]) -> None:
        channels = (input_shape[-1],)
        self.gamma = self.add_weight(shape=channels, initializer="ones", name="gamma", autocast=False)
        self.beta = self.add_weight(shape=channels, initializer="zeros", name="beta", autocast=False)
        self._add_statistics(channels)

    def call(self, inputs: tf.Tensor, context: Pass | None = None) -> tf.Tensor:
        return self._normalize(inputs, self.gamma.value, self.beta.value, context)

    def _add_statistics(self, channels: tuple[int]) -> None:
        self.moving_mean = self.add_weight(
            shape=channels, initializer="zeros", name="moving_mean", trainable=False, autocast=False
        )
        self.moving_variance = self.add_weight(
            shape=channels, initializer="ones", name="moving_variance", trainable=False, autocast=False
        )

    def _normalize(self, inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, context: Pass | None) -> tf.Tensor:
        x = tf.cast(inputs, self.variable_dtype)
        mean, variance = self.moving_mean.value, self.moving_variance.value
        if context is not None:
            mean, variance = self._global_moments(x, context)
            for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                context.updates.append(Update(moving, value, self.momentum))
        normalized = tf.nn.batch_normalization(x, mean, variance, beta, gamma, self.epsilon)
        return tf.cast(normalized, inputs.dtype)

    def _global_moments(self, x: tf.Tensor, context: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        axes = list(range(x.shape.rank - 1))
        mean, variance = tf.nn.moments(x, axes)
        # Local moments are merged as deviations from the moving mean, which all replicas share: E[x^2] - E[x]^2 of the
        # values themselves would cancel where the mean is large against the deviation.
        shift = tf.stop_gradient(self.moving_mean.value)
        count = tf.cast(tf.size(x) / x.shape[-1], x.dtype)
        deviation = mean - shift
        local = tf.stack([deviation, variance + tf.square(deviation), tf.ones_like(mean)]) * count
        total = context.sum_over_replicas(local, self.path)
        deviation, square, _ = tf.unstack(total / total[2])
        return shift + deviation, tf.maximum(square - tf.square(deviation), 0)


class ConditionalBatchNorm(BatchNorm):
    """Batch normalization whose gain and bias follow from the class (de Vries et al. 2017), or from any condition.

    The gain is 1 + gain(condition) and the bias bias(condition), where `make(C, name)` makes these two layers.
    """

    def __init__(self, make: Callable[[int, str], keras.layers.Layer], **kwargs: Any):
        super().__init__(**kwargs)
        self.make = make

    def build(self, input_shape: Sequence[int]) -> None:
        channels = input_shape[-1]
        self.gain = self.make(channels, "gain")
        self.bias = self.make(channels, "bias")
        self._add_statistics((channels,))

    def call(self, inputs: tf.Tensor, context: Pass | None = None, labels: tf.Tensor | None = None) -> tf.Tensor:
        """Maps [N, H, W, C] -> [N, H, W, C]; `labels` is what the two layers take: classes int32 [N], or vectors [N, S]."""
        gain, bias = (
            tf.cast(layer(labels, context=context), self.variable_dtype)[:, None, None, :]  # [N, 1, 1, C]
            for layer in (self.gain, self.bias)
        )
        return self._normalize(inputs, 1 + gain, bias, context)


class Dropout(keras.layers.Layer):
    """Dropout whose mask belongs to the image: image number k meets the same mask on any replica (Srivastava et al. 2014).

    Keras' own layer draws the same mask on every replica.
    """

    def __init__(self, rate: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, inputs: tf.Tensor, context: Pass | None = None) -> tf.Tensor:
        if context is None or not self.rate:
            return inputs
        kept = context.draws.uniform(self.name, tuple(inputs.shape[1:])) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros_like(inputs))


class ConcatLabel(keras.layers.Layer):
    """Appends the class as a one-hot vector, in every place: [N, ..., C] -> [N, ..., C + K] (Mirza and Osindero 2014)."""

    def __init__(self, num_classes: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_classes = num_classes

    def call(self, inputs: tf.Tensor, labels: tf.Tensor | None = None) -> tf.Tensor:
        one_hot = tf.one_hot(labels, self.num_classes, dtype=inputs.dtype)
        places = [1] * (inputs.shape.rank - 2)
        everywhere = tf.reshape(one_hot, [-1, *places, self.num_classes]) * tf.ones_like(inputs[..., :1])
        return tf.concat([inputs, everywhere], axis=-1)


class Chain(keras.Model):
    """Layers one after the other, as `run` has it; the result in float32 (or float64)."""

    def __init__(self, layers: Sequence[keras.layers.Layer], name: str):
        super().__init__(name=name)
        self.chain = list(layers)

    def call(self, inputs: tf.Tensor, labels: tf.Tensor | None = None, context: Pass | None = None) -> tf.Tensor:
        return tf.cast(run(self.chain, inputs, labels, context), self.variable_dtype)


def run(
    layers: Sequence[keras.layers.Layer], inputs: tf.Tensor, labels: tf.Tensor | None, context: Pass | None
) -> tf.Tensor:
    """The outcome of layers one after the other, each given the labels and the pass if it takes them."""
    x = inputs
    known = {"labels": labels, "context": context}
    for layer in layers:
        taken = inspect.signature(layer.call).parameters.keys() & known.keys()
        x = layer(x, **{name: known[name] for name in taken})
    return x
