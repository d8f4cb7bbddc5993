"""Parts of a user's own, named by dotted path: a model without batch norm or dropout, slow images, an extractor."""

import dataclasses
import json
import os
import time

import numpy as np

from distgan.data.arrays import Digits
from distgan.data.source import InMemory
from distgan.evaluation.features import Features
from distgan.models.layers import Chain
from distgan.schema import option


@dataclasses.dataclass(frozen=True)
class Plain:
    """Dense layers, so that a micro-batch's gradients are the sum of its images'."""

    latent_size: int = option(8, "dimensions of the latent", minimum=1)
    units: int = option(16, "of the hidden layers", minimum=1)

    def fits(self, image_shape):
        return ()

    def generator(self, image_shape, num_classes, name):
        from keras import layers

        return Chain(
            [
                layers.Dense(self.units, "tanh", name="hidden"),
                layers.Dense(int(np.prod(image_shape)), "tanh", name="pixels"),
                layers.Reshape(image_shape, name="image"),
            ],
            name,
        )

    def discriminator(self, image_shape, num_classes, name):
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
class Headed(Plain):
    """Plain, with an auxiliary head that names classes, or said to have a norm that mixes images or scales kernels."""

    head: str = option("auxiliary", "what the discriminator gives", choices=("logit", "auxiliary"))
    discriminator_norm: str = option("none", "said of the discriminator", choices=("none", "batch", "spectral"))

    @property
    def batch_dependent(self):
        return self.discriminator_norm == "batch"

    def discriminator(self, image_shape, num_classes, name):
        from keras import layers

        return Chain(
            [
                layers.Flatten(name="flatten"),
                layers.Dense(self.units, "tanh", name="hidden"),
                layers.Dense(1 + num_classes if self.head == "auxiliary" else 1, name="logit"),
            ],
            name,
        )


@dataclasses.dataclass(frozen=True)
class SlowOnOne:
    """Digits that the second of several workers reads slowly."""

    def open(self, data):
        images = Digits().open(data)
        second = '"index": 1' in os.environ.get("TF_CONFIG", "")
        return _Slow(**vars(images)) if second else images


class _Slow(InMemory):
    images_per_call = 8

    def read(self, indices):
        time.sleep(0.5)
        return super().read(indices)


@dataclasses.dataclass(frozen=True)
class Gated:
    """Digits that are read slowly until the file DISTGAN_TEST_GATE is there."""

    def open(self, data):
        return _Gated(**vars(Digits().open(data)))


class _Gated(InMemory):
    images_per_call = 4

    def read(self, indices):
        if not os.path.exists(os.environ["DISTGAN_TEST_GATE"]):
            time.sleep(0.2)
        return super().read(indices)


@dataclasses.dataclass(frozen=True)
class Averages:
    """An extractor: the mean colour of each of some bands of an image."""

    bands: int = option(2, "from top to bottom", minimum=1)

    def open(self, images, cache_dir):
        def chunk(pixels):
            bands = np.array_split(pixels.astype(np.float32), self.bands, axis=1)
            return np.concatenate([band.mean((1, 2)) for band in bands], axis=1), None

        return Features("averages", "", 3 * self.bands, 0, "none", chunk)


@dataclasses.dataclass(frozen=True)
class Told:
    """Digits, which note in the folder DISTGAN_TEST_OUT what this process has in its environment."""

    def open(self, data):
        note = os.path.join(os.environ["DISTGAN_TEST_OUT"], f"rank{os.environ.get('HOROVOD_RANK', '')}.json")
        with open(note, "w") as file:
            json.dump(dict(os.environ), file)
        return Digits().open(data)
