"""A generator as a Keras file: `import distgan.models.saved` lets `keras.models.load_model` read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
from keras.src.saving.serialization_lib import in_safe_mode  # Which has no public name.

from distgan import schema, trust
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

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SavedGenerator:
        """Keras' way to make one from a file; in Keras' safe mode only of distgan's own networks.

        Raises:
          ValueError: the file names a user's network, whose code would be run.
        """
        fields = (entry.name for entry in schema.entries(Config()) if entry.table)
        named = trust.named_code(config["config"], fields)
        if named and in_safe_mode() is not False:
            told = ", ".join(f"{field}={','.join(names)}" for field, names in named.items())
            raise ValueError(
                f"the file names code that is not distgan's, {told}, which would be run: if you trust it, load it by "
                "keras.models.load_model(..., safe_mode=False)"
            )
        return cls(**config)

    def get_config(self) -> dict[str, Any]:
        return {"config": self.flat, "image_shape": list(self.image_shape), "num_classes": self.num_classes}
