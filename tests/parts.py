"""A part of a user's own, named by dotted path: a model without batch norm or dropout."""

import dataclasses

import numpy as np

from distgan.config import option
from distgan.models.layers import Chain


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
