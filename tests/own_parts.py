"""Parts as users write them, each `own_parts:NAME`: those that train as they should, and those that must be refused.

tests/test_parts.py says for each of the latter what the refusal names.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from distgan.models.layers import BatchNorm, ConcatLabel, Dropout
from distgan.objectives.losses import Loss
from distgan.objectives.regularizers import Regularizer


def drawn(shape, units=4):
    """Stock layers without names, latents to images."""
    height, width, channels = shape
    return [layers.Dense(height * width * channels, activation="tanh"), layers.Reshape(shape)]


def judged(units=8):
    """Stock layers without names, images to logits."""
    return [layers.Flatten(), layers.Dense(units), layers.LeakyReLU(), layers.Dense(1)]


@dataclasses.dataclass(frozen=True)
class Stock:
    """Stock models, whose layers have no names."""

    latent_size: int = 8
    units: int = 8

    def generator(self, image_shape, num_classes, name):
        return keras.Sequential([layers.Input((self.latent_size,)), *drawn(image_shape)])

    def discriminator(self, image_shape, num_classes, name):
        return keras.Sequential(judged(self.units))


class Mixed(Stock):
    """Stock models with distgan's layers within."""

    def generator(self, image_shape, num_classes, name):
        label = [ConcatLabel(num_classes)] if num_classes else []
        return keras.Sequential(
            [*label, layers.Dense(16, use_bias=False), BatchNorm(0.5), layers.ReLU(), *drawn(image_shape)]
        )

    def discriminator(self, image_shape, num_classes, name):
        label = [ConcatLabel(num_classes)] if num_classes else []
        return keras.Sequential([*label, Dropout(0.3), *judged(self.units)])


class Functional(Stock):
    """Functional models."""

    def generator(self, image_shape, num_classes, name):
        latents = layers.Input((self.latent_size,))
        x = latents
        for layer in drawn(image_shape):
            x = layer(x)
        return keras.Model(latents, x)

    def discriminator(self, image_shape, num_classes, name):
        images = layers.Input(image_shape)
        flat = layers.Flatten()(images)
        return keras.Model(images, layers.Dense(1)(layers.Concatenate()([flat, layers.Dense(4)(flat)])))


class Body(keras.Model):
    """A subclass without a name, with distgan's layers, told labels and passes."""

    def __init__(self, num_classes, chain):
        super().__init__()
        self.label = ConcatLabel(num_classes) if num_classes else None
        self.norm, self.first = BatchNorm(0.5), layers.Dense(16, use_bias=False)
        self.chain = chain

    def call(self, inputs, labels=None, context=None):
        x = self.label(inputs, labels) if self.label else inputs
        x = tf.nn.relu(self.norm(self.first(layers.Flatten()(x)), context=context))
        for layer in self.chain:
            x = layer(x)
        return x


class Subclassed(Stock):
    """Subclasses of keras.Model."""

    def generator(self, image_shape, num_classes, name):
        return Body(num_classes, drawn(image_shape))

    def discriminator(self, image_shape, num_classes, name):
        return Body(num_classes, [layers.Dense(1)])


GOOD = (Stock, Mixed, Functional, Subclassed)


def judging(make):
    """A model like `Stock`, with another discriminator: `make(self)`."""

    class Model(Stock):
        def discriminator(self, image_shape, num_classes, name):
            return make(self)

    return Model


def generating(make):
    """A model like `Stock`, with another generator: `make(image_shape)`."""

    class Model(Stock):
        def generator(self, image_shape, num_classes, name):
            return make(image_shape)

    return Model


class Calls(keras.Model):
    """A model of some layers whose call is any function of them and of what a call is given."""

    def __init__(self, function, *own):
        super().__init__()
        self.function, self.own = function, list(own)

    def call(self, inputs, labels=None, context=None):
        return self.function(self.own, inputs, context)


class Statistics(layers.Layer):
    """Counts its calls in training."""

    def build(self, input_shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, inputs, training=False):
        if training:
            self.count.assign_add(1)
        return inputs


StockDropout = judging(lambda self: keras.Sequential([layers.Dropout(0.5, name="drop"), *judged()]))
NestedDropout = judging(
    lambda self: keras.Sequential([keras.Sequential([layers.Dropout(0.5, name="drop")]), *judged()])
)
Noise = judging(lambda self: keras.Sequential([layers.GaussianNoise(0.1, name="noise"), *judged()]))
StockBatchNorm = judging(lambda self: keras.Sequential([layers.BatchNormalization(name="bn"), *judged()]))
StockSpectral = judging(
    lambda self: keras.Sequential([layers.Flatten(), layers.SpectralNormalization(layers.Dense(1, name="sn"))])
)
Counting = judging(lambda self: keras.Sequential([Statistics(name="counting"), *judged()]))
Nested = judging(lambda self: keras.Sequential([keras.Sequential([Dropout(0.5, name="inner")]), *judged()]))


def chained(own, first=lambda x: x):
    """A model whose call runs layers one after the other, and hands nothing on to them."""

    def call(layers_of, x, context):
        x = first(x)
        for layer in layers_of:
            x = layer(x)
        return x

    return judging(lambda self: Calls(call, *own()))


Drawing = chained(lambda: judged(), first=lambda x: x + tf.random.normal(tf.shape(x)))
Forgotten = chained(lambda: [Dropout(0.5, name="inner"), *judged()])
Twice = chained(lambda: [layers.Flatten(), layers.Dense(4, name="same"), layers.Dense(1, name="same")])
Averaged = chained(lambda: judged(), first=lambda x: x - tf.reduce_mean(x, 0))
Weightless = chained(lambda: [layers.Flatten()], first=lambda x: x[:, :1, :1])
Probabilities = judging(lambda self: keras.Sequential([*judged()[:-1], layers.Dense(1, activation="sigmoid")]))
Wide = judging(lambda self: keras.Sequential([layers.Flatten(), layers.Dense(3)]))
Function = judging(lambda self: lambda x: x)
Failing = judging(lambda self: keras.Sequential([layers.Dense(1), layers.Reshape((7,))]))
ZeroToOne = generating(
    lambda shape: keras.Sequential(
        [layers.Dense(shape[0] * shape[1] * shape[2], activation="sigmoid"), layers.Reshape(shape)]
    )
)
Small = generating(lambda shape: keras.Sequential([layers.Dense(4), layers.Reshape((2, 2, 1))]))
ELSEWHERE = layers.Dense(8, name="elsewhere")
Elsewhere = generating(lambda shape: keras.Sequential([ELSEWHERE, *drawn(shape)]))
HIDDEN = []


def _hiding(self):
    HIDDEN.append(layers.Dense(1, name="hidden"))
    return Calls(lambda own, x, context: HIDDEN[-1](own[1](own[0](x))), layers.Flatten(), layers.Dense(4))


Hiding = judging(_hiding)


class NoDataclass:
    latent_size = 8


@dataclasses.dataclass(frozen=True)
class NoGenerator:
    latent_size: int = 8


@dataclasses.dataclass(frozen=True)
class NoDefault:
    latent_size: int


@dataclasses.dataclass(frozen=True)
class OddOption(Stock):
    sizes: tuple = (1, 2)


# Losses: the README's pair of functions, and others.
def judge_hinge(real_logits, fake_logits):
    return tf.nn.relu(1 - real_logits) + tf.nn.relu(1 + fake_logits)


HINGE = (judge_hinge, lambda real_logits, fake_logits: -fake_logits)
PAIRED = (lambda r, f: tf.nn.softplus(f - r), lambda r, f: tf.nn.softplus(r - f))
MEAN = (lambda r, f: tf.reduce_mean(f - r), lambda r, f: -f)
COUPLED = (lambda r, f: f - tf.reduce_mean(r), lambda r, f: -f)
BROKEN = (lambda r, f: r + undefined, lambda r, f: -f)  # noqa: F821
ALONE = judge_hinge
NEEDS_REALS = Loss(judge_hinge, lambda r, f: r - f)


@dataclasses.dataclass(frozen=True)
class Norm(Regularizer):
    """The images' mean square, with a plain option."""

    gain: float = 1.0

    def penalty(self, seen, network):
        return self.gain * tf.reduce_mean(seen.fake_logits[:, None] ** 2, axis=1)


@dataclasses.dataclass(frozen=True)
class Column(Norm):
    def penalty(self, seen, network):
        return seen.fake_logits[:, None]


@dataclasses.dataclass(frozen=True)
class Silent(Norm):
    def penalty(self, seen, network):
        pass


@dataclasses.dataclass(frozen=True)
class Bare:
    weight: float = 1.0


# Sources.
class Ramp:
    """64 images, each of one gray."""

    name, num_images, shape, num_classes = "ramp", 64, (16, 16, 1), 2
    label_names, label_counts, fingerprint, images_per_call = (), np.array([32, 32]), "ramp", 8

    def read(self, indices):
        images = np.broadcast_to(indices[:, None, None, None].astype(np.uint8), (len(indices), *self.shape))
        return images.copy(), (indices % 2).astype(np.int32)


def source(**changes):
    """A source whose images are `Ramp`, or differ from it."""

    @dataclasses.dataclass(frozen=True)
    class Source:
        def open(self, data):
            return type("Images", (Ramp,), changes)()

    return Source


def _read_floats(self, indices):
    images, labels = Ramp.read(self, indices)
    return images / 255, labels


def _read_flipped(self, indices):
    images, labels = Ramp.read(self, indices)
    return images + np.random.default_rng().integers(0, 255, images.shape, np.uint8), labels


def _read_sorted(self, indices):
    return Ramp.read(self, np.sort(indices))


SHARED = {}


def _read_shared(self, indices):
    images, labels = Ramp.read(self, indices)
    return SHARED.setdefault(tuple(indices), images), labels


Ramps = source()
Floats = source(read=_read_floats)
Flipped = source(read=_read_flipped)
Sorted = source(read=_read_sorted)
Shared = source(read=_read_shared)
ManyLabels = source(num_classes=1, label_counts=np.array([64]))
Uncounted = source(label_counts=np.array([1, 2]))
Oblong = source(shape=(16, 8, 1))
Nameless = source(fingerprint="")


@dataclasses.dataclass(frozen=True)
class Lacking:
    def open(self, data):
        return object()


@dataclasses.dataclass(frozen=True)
class Halved:
    """An augmentation that halves the images."""

    def initial(self):
        return {}

    def update(self, kept, measured, images_per_step):
        return {}

    def probability(self, kept, images_seen, total_kimg):
        return tf.constant(1.0, tf.float64)

    def augment(self, images, draws, p):
        return images[:, ::2, ::2]
