"""A generator as a Keras file: `import distgan.models.saved` lets `keras.models.load_model` read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from distgan import schema
from distgan.config import Config
from distgan.models import contract


@keras.saving.register_keras_serializable("distgan")
class SavedGenerator(keras.Model):
    """A run's generator, which is built anew from the run's config: its layers need no configs of their own."""

    def __init__(self, config: Mapping[str, Any], image_shape: tuple[int, int, int], num_classes: int):
        """Builds the network, with fresh weights.

        Args:
          config: the flat config's model and precision.
          image_shape: (H, W, C).
          num_classes: 0 is unconditional.
        """
        # The network casts by its own precision: Keras' would round latents to what the loading process computes in.
        super().__init__(name="generator", autocast=False)
        height, width, channels = image_shape  # A list, from a file.
        self.flat, self.image_shape, self.num_classes = dict(config), (height, width, channels), num_classes
        run = schema.build(Config, config)
        self.latent_size = run.model.name.options.latent_size
        model, policy = run.model.name.options, keras.config.dtype_policy()
        keras.config.set_dtype_policy(run.precision)
        try:
            self.network = contract.build(model, "generator", self.image_shape, num_classes, "generator")
        finally:
            keras.config.set_dtype_policy(policy)
        self.built = True

    def call(self, latents: tf.Tensor, labels: tf.Tensor | None = None) -> tf.Tensor:
        """Latents float32 [N, Z], classes int32 [N] where there are any -> images float32 [N, H, W, C] in [-1, 1]."""
        return self.network(tf.cast(latents, self.network.variable_dtype), labels=labels)

    def get_config(self) -> dict[str, Any]:
        return {"config": self.flat, "image_shape": list(self.image_shape), "num_classes": self.num_classes}
