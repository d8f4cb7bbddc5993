"""What the residual networks share: blocks, self-attention, and the discriminator's head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from distgan.models.ladder import Ladder
from distgan.models.layers import Pass, run
from distgan.models.spectral import Kernels


class Upsample(keras.layers.Layer):
    """Each pixel becomes four: [N, H, W, C] -> [N, 2H, 2W, C]."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return _enlarge(inputs)


@tf.custom_gradient
def _enlarge(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    _, height, width, channels = x.shape
    apart = tf.broadcast_to(x[:, :, None, :, None, :], [tf.shape(x)[0], height, 2, width, 2, channels])
    # TensorFlow's own gradient, a sum over two of six axes, takes three times as long without XLA.
    return tf.reshape(apart, [-1, 2 * height, 2 * width, channels]), lambda gradient: 4 * _shrink(gradient)


class AveragePool(keras.layers.Layer):
    """Four pixels become one: [N, H, W, C] -> [N, H/2, W/2, C]."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return _shrink(inputs)


def _shrink(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.avg_pool2d(x, 2, 2, "VALID")


class Residual(keras.layers.Layer):
    """The sum of two ways through (He et al. 2016); no layers on the second is the input itself."""

    def __init__(self, main: Sequence[keras.layers.Layer], skip: Sequence[keras.layers.Layer], name: str):
        super().__init__(name=name)
        self.main = list(main)
        self.skip = list(skip)

    def call(self, inputs: tf.Tensor, labels: tf.Tensor | None = None, context: Pass | None = None) -> tf.Tensor:
        return run(self.main, inputs, labels, context) + run(self.skip, inputs, labels, context)


def up_block(
    channels: int, kernels: Kernels, norm: Callable[[str], Any], name: str, *, double: bool = True
) -> Residual:
    """Norm, ReLU, nearest x2, 3x3, norm, ReLU, 3x3 beside 1x1, nearest x2; or the same without x2, beside the input itself.

    The papers enlarge the skip before its convolution: for one of 1x1 that is the same numbers, at four times the cost.

    Args:
      channels: of the output.
      kernels: makes the convolutions.
      norm: makes a normalization of this name.
      name: the block's.
      double: whether the side is doubled.
    """
    return Residual(
        [
            norm("norm1"),
            keras.layers.ReLU(),
            *([Upsample()] if double else []),
            kernels.conv(channels, 3, "conv1", gain=math.sqrt(2)),
            norm("norm2"),
            keras.layers.ReLU(),
            kernels.conv(channels, 3, "conv2", gain=math.sqrt(2)),
        ],
        [kernels.conv(channels, 1, "skip"), Upsample()] if double else [],
        name,
    )


def down_block(
    inputs: int,
    hidden: int,
    channels: int,
    kernels: Kernels,
    name: str,
    *,
    norm: Callable[[str], Any] | None = None,
    first: bool = False,
    halve: bool = False,
) -> Residual:
    """[norm], ReLU, 3x3, [norm], ReLU, 3x3, [average] beside [average, 1x1].

    The papers average the skip after its convolution, but for the first block's: for one of 1x1 that is the same numbers, at
    four times the cost.

    Args:
      inputs: channels of the input.
      hidden: channels between the two convolutions.
      channels: of the output.
      kernels: makes the convolutions.
      name: the block's.
      norm: makes a normalization of this name, if there is any.
      first: whether it takes the images themselves, which no ReLU may cut.
      halve: whether the side is halved.
    """

    def active(number: int) -> list[Any]:
        return [*([norm(f"norm{number}")] if norm else []), keras.layers.ReLU()]

    main = [
        *([] if first else active(1)),
        kernels.conv(hidden, 3, "conv1", gain=math.sqrt(2)),
        *active(2),
        kernels.conv(channels, 3, "conv2", gain=math.sqrt(2)),
    ]
    skip = [kernels.conv(channels, 1, "skip")] if halve or inputs != channels else []
    return Residual([*main, AveragePool()], [AveragePool(), *skip], name) if halve else Residual(main, skip, name)


def first_map(side: int, channels: int, kernels: Kernels) -> list[Any]:
    """Latents [N, Z] -> [N, side, side, channels]."""
    return [
        kernels.dense(side * side * channels, "project"),
        keras.layers.Reshape((side, side, channels), name="reshape"),
    ]


def up_stages(
    ladder: Ladder, widths: Sequence[int], kernels: Kernels, norm: Callable[[str], Any], attention: int, depth: int
) -> list[list[Any]]:
    """A generator's stages of `depth` blocks of these widths, with self-attention behind if the maps have the side for it."""
    return [
        [
            up_block(channels, kernels, norm, f"block{number}"),
            *(up_block(channels, kernels, norm, f"block{number}_{more}", double=False) for more in range(2, depth + 1)),
            *([SelfAttention(kernels)] if side == attention else []),
        ]
        for number, (channels, side) in enumerate(zip(widths, ladder.generator_sides, strict=True), 1)
    ]


def to_image(channels: int, kernels: Kernels, norm: Callable[[str], Any]) -> list[Any]:
    """Maps [N, H, W, C] -> images [N, H, W, channels] in [-1, 1]."""
    return [
        norm("norm"),
        keras.layers.ReLU(name="relu"),
        kernels.conv(channels, 3, "image"),
        keras.layers.Activation("tanh", name="tanh"),
    ]


def down_stages(
    ladder: Ladder,
    widths: Sequence[int],
    channels: int,
    kernels: Kernels,
    attention: int,
    depth: int,
    *,
    norm: Callable[[str], Any] | None = None,
    wide: bool = False,
) -> list[Any]:
    """A discriminator's blocks, and self-attention after the first ones whose maps have the side for it.

    Args:
      ladder: of the images' resolution.
      widths: channels of each block.
      channels: of the images.
      kernels: makes the convolutions.
      attention: the side; 0 is none.
      depth: blocks of each width, of which the first may halve the side.
      norm: makes a normalization of this name, if there is any.
      wide: whether a block's first convolution has its output's channels, or (but for the first block) its input's.
    """
    layers: list[Any] = []
    inputs = channels
    for number, (outputs, side) in enumerate(zip(widths, ladder.discriminator_sides, strict=True)):
        first = number == 0
        hidden = outputs if wide or first else inputs
        block = f"block{number + 1}"
        halve = number < ladder.halvings
        layers.append(down_block(inputs, hidden, outputs, kernels, block, norm=norm, first=first, halve=halve))
        for more in range(2, depth + 1):
            layers.append(down_block(outputs, outputs, outputs, kernels, f"{block}_{more}", norm=norm))
        if side == attention and halve:
            layers.append(SelfAttention(kernels))
        inputs = outputs
    return layers


class SelfAttention(keras.layers.Layer):
    """Every place looks at every other: x + gain * o, the gain 0 at first (Zhang et al. 2019, SAGAN).

    o = 1x1(softmax over keys of theta(x) phi(x)^T, times g(x)), with theta and phi of C/8 channels, g of C/2. As in the
    authors' code, and not in the paper's equations, phi and g are max-pooled 2x2: a quarter of the keys. No biases.
    """

    def __init__(self, kernels: Kernels, name: str = "attention"):
        super().__init__(name=name)
        self.kernels = kernels

    def build(self, input_shape: Sequence[int]) -> None:
        channels = input_shape[-1]
        narrow, half = max(1, channels // 8), max(1, channels // 2)
        self.theta = self.kernels.conv(narrow, 1, "theta", bias=False)
        self.phi = self.kernels.conv(narrow, 1, "phi", bias=False)
        self.g = self.kernels.conv(half, 1, "g", bias=False)
        self.out = self.kernels.conv(channels, 1, "out", bias=False)
        self.gain = self.add_weight(shape=(), initializer="zeros", name="gain", autocast=False)

    def call(self, inputs: tf.Tensor, context: Pass | None = None) -> tf.Tensor:
        _, height, width, _ = inputs.shape

        def flat(x: tf.Tensor) -> tf.Tensor:
            return tf.reshape(x, [-1, x.shape[1] * x.shape[2], x.shape[3]])

        queries = flat(self.theta(inputs, context=context))  # [N, HW, C/8]
        keys = flat(_largest(self.phi(inputs, context=context)))  # [N, HW/4, C/8]
        values = flat(_largest(self.g(inputs, context=context)))  # [N, HW/4, C/2]
        scores = tf.matmul(queries, keys, transpose_b=True)  # [N, HW, HW/4]
        weights = tf.cast(tf.nn.softmax(tf.cast(scores, self.variable_dtype)), scores.dtype)
        found = tf.reshape(tf.matmul(weights, values), [-1, height, width, values.shape[-1]])
        return inputs + tf.cast(self.gain.value, inputs.dtype) * self.out(found, context=context)


def _largest(x: tf.Tensor) -> tf.Tensor:
    """The largest of four pixels: [N, H, W, C] -> [N, H/2, W/2, C]."""
    # Max pooling as an op of its own has no second gradient under XLA in float64.
    _, height, width, channels = x.shape
    rows = tf.maximum(*tf.unstack(tf.reshape(x, [-1, height // 2, 2, width, channels]), axis=2))
    return tf.maximum(*tf.unstack(tf.reshape(rows, [-1, height // 2, width // 2, 2, channels]), axis=3))


class Head(keras.layers.Layer):
    """Maps [N, H, W, C] -> logits, float32 (float64 for float64 networks) from the pooling on.

    Kinds: `none` gives [N, 1]; `projection` adds <embedding of the class, pooled map> to it (Miyato and Koyama 2018); `auxiliary`
    gives [N, 1 + K], the logit and a classifier's K, and doesn't look at the labels (AC-GAN; Odena et al. 2017).
    """

    def __init__(self, kind: str, num_classes: int, kernels: Kernels, pool: str = "sum"):
        super().__init__(name="head", dtype=keras.config.dtype_policy().variable_dtype)
        self.kind = kind
        self.num_classes = num_classes
        self.kernels = kernels
        self.pool = {"sum": tf.reduce_sum, "mean": tf.reduce_mean}[pool]

    def build(self, input_shape: Sequence[int]) -> None:
        self.logit = self.kernels.dense(1, "logit", dtype=self.dtype)
        if self.kind == "projection":
            channels = input_shape[-1]
            self.embedding = self.kernels.embedding(self.num_classes, channels, "embedding", dtype=self.dtype)
        if self.kind == "auxiliary":
            self.classifier = self.kernels.dense(self.num_classes, "classifier", dtype=self.dtype)

    def call(self, inputs: tf.Tensor, labels: tf.Tensor | None = None, context: Pass | None = None) -> tf.Tensor:
        features = self.pool(tf.nn.relu(inputs), axis=(1, 2))  # [N, C]
        logits = self.logit(features, context=context)
        if self.kind == "projection":
            embedded = self.embedding(labels, context=context)
            return logits + tf.reduce_sum(embedded * features, axis=-1, keepdims=True)
        if self.kind == "auxiliary":
            return tf.concat([logits, self.classifier(features, context=context)], axis=-1)
        return logits


class SplitLatent(keras.Model):
    """A generator that the latent enters chunk by chunk (Brock et al. 2019, BigGAN, appendix B).

    The first chunk goes to the layers `first`; each stage is given one more as its condition, with the class' embedding, if there
    is one, beside it.
    """

    def __init__(
        self,
        embedding: keras.layers.Layer | None,
        first: Sequence[keras.layers.Layer],
        stages: Sequence[Sequence[keras.layers.Layer]],
        last: Sequence[keras.layers.Layer],
        name: str,
    ):
        super().__init__(name=name)
        self.embedding = embedding
        self.first = list(first)
        self.stages = [list(stage) for stage in stages]
        self.last = list(last)

    def call(self, latents: tf.Tensor, labels: tf.Tensor | None = None, context: Pass | None = None) -> tf.Tensor:
        latents = tf.cast(latents, self.compute_dtype)  # As the embedding comes, however the call came about.
        chunk, *chunks = tf.split(latents, 1 + len(self.stages), axis=-1)  # [N, Z / (1 + stages)] each
        shared = [self.embedding(labels, context=context)] if self.embedding else []
        x = run(self.first, chunk, None, context)
        for stage, chunk in zip(self.stages, chunks, strict=True):
            x = run(stage, x, tf.concat([chunk, *shared], axis=-1), context)
        return tf.cast(run(self.last, x, None, context), self.variable_dtype)
