"""Parts of a user's own, named by dotted path: a model without batch norm or dropout, a source, a loss."""

import dataclasses

import numpy as np
import tensorflow as tf

from distgan.config import option
from distgan.data.source import InMemory
from distgan.models.layers import Chain
from distgan.objectives.losses import Loss


@dataclasses.dataclass(frozen=True)
class Plain:
    """Dense layers, so that a micro-batch's gradients are the sum of its images'."""

    latent_size: int = option(8, "dimensions of the latent", minimum=1)
    units: int = option(16, "of the hidden layers", minimum=1)

    def requires(self, image_shape):
        return ()

    def generator(self, image_shape, name):
        from keras import layers

        return Chain(
            [
                layers.Dense(self.units, "tanh", name="hidden"),
                layers.Dense(int(np.prod(image_shape)), "tanh", name="pixels"),
                layers.Reshape(image_shape, name="image"),
            ],
            name,
        )

    def discriminator(self, image_shape, name):
        from keras import layers

        return Chain(
            [
                layers.Flatten(name="flatten"),
                layers.Dense(self.units, "tanh", name="hidden"),
                layers.Dense(1, name="logit"),
            ],
            name,
        )


@dataclasses.dataclass(frozen=True)
class Poisoned:
    """Black images; with them `EXPLODING` gives an infinity at one image number."""

    def open(self, path, resolution):
        images = np.zeros((64, 8, 8, 1), np.uint8)
        return InMemory.of("poisoned", images, None, resolution)


def _explode(real_logits, fake_logits):
    # The logits grow without bound, and their exponential overflows within a few steps.
    return tf.exp(1e3 * (real_logits - fake_logits) ** 2) * tf.cast(
        tf.range(tf.size(real_logits)) == 3, real_logits.dtype
    )


EXPLODING = Loss(discriminator=_explode, generator=lambda real_logits, fake_logits: fake_logits)
