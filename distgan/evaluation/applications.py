"""Any network of keras.applications, with weights from a file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distgan import registry
from distgan.data.source import Images
from distgan.errors import UserError
from distgan.evaluation.features import CHUNK, Features
from distgan.schema import option

_USUAL_SHAPE = (224, 224, 3)


@dataclasses.dataclass(frozen=True)
class KerasApplication:
    """A network of keras.applications: its last feature maps averaged over their places, and its classes where the file has them.

    Images come to the network's own size by a bilinear filter (with antialias, where they get smaller), and through its own
    `preprocess_input`. Its Inception networks are not the one of FID.
    """

    keras_model: str = option("ResNet50", "name in keras.applications, as ResNet50 or ConvNeXtTiny")
    keras_weights: str = option(
        "", "file of its weights, .keras or .weights.h5, with or without the classification layers", may_change=True
    )

    def requires(self, config: Any = None) -> Iterator[str]:
        """Yields what is missing."""
        if not self.keras_weights:
            yield f"extractor keras needs --evaluation.keras_weights=FILE with the weights of {self.keras_model}"

    def open(self, images: Images | None, cache_dir: Path) -> Features:
        import tensorflow as tf

        for problem in self.requires():
            raise UserError(problem)
        try:
            sha256 = hashlib.sha256(Path(self.keras_weights).read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(
                f"--evaluation.keras_weights={self.keras_weights} cannot be read: {error.strerror}"
            ) from None
        with _aside():
            network, num_classes = self._load()
            height, width = network.input_shape[1:3]
            preprocess = sys.modules[_application(self.keras_model).__module__].preprocess_input

            # Traced here, where Keras computes in float32.
            @tf.function(input_signature=[tf.TensorSpec([CHUNK, height, width, 3], tf.float32)])
            def run(pixels: tf.Tensor) -> list[tf.Tensor]:
                return tf.nest.flatten(network(preprocess(pixels), training=False))

            run = run.get_concrete_function()

        def chunk(pixels: Any) -> tuple[Any, Any]:
            features, *classes = run(tf.image.resize(pixels, [height, width], antialias=True))
            return features, classes[0] if classes else None

        resize = f"bilinear with antialias to {height}x{width}"
        return Features(f"keras {self.keras_model}", sha256, network.outputs[0].shape[1], num_classes, resize, chunk)

    def _load(self) -> tuple[Any, int]:
        """Images [N, H, W, 3] -> [features [N, D]], or [features, probabilities [N, K]]; and K."""
        import keras

        application = _application(self.keras_model)
        network = application(weights=None)
        if None in network.input_shape[1:]:  # MobileNetV3 takes any size.
            network = application(weights=None, input_shape=_USUAL_SHAPE)
        for classes in (True, False):
            if not classes:
                network = application(weights=None, include_top=False, input_shape=network.input_shape[1:])
            try:
                network.load_weights(self.keras_weights)
            except Exception as error:  # Keras and h5py raise nearly anything on a foreign file.
                reason = (str(error) or type(error).__name__).splitlines()[0]
                continue
            # The last maps with more than one place: some classify by convolutions of a single one.
            maps = [each.output for each in network.layers if len(each.output.shape) == 4 and each.output.shape[1] > 1]
            outputs = [keras.layers.GlobalAveragePooling2D(name="average")(maps[-1])]
            if classes:
                outputs.append(network.output)
            return keras.Model(network.inputs, outputs), network.output.shape[-1] if classes else 0
        raise UserError(f"--evaluation.keras_weights={self.keras_weights} does not fit {self.keras_model}: {reason}")


def _application(name: str) -> Any:
    """The function that builds the network; raises UserError where there is none of the name."""
    import keras

    known = [each for each in dir(keras.applications) if each[0].isupper()]
    if name not in known:
        raise UserError(
            f"--evaluation.keras_model={name} is not in keras.applications{registry.suggestion(name, known)}"
        )
    return getattr(keras.applications, name)


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Keras in float32, and afterwards as before, with Python's random numbers, from which it draws seeds of initializers."""
    import keras

    policy, floatx, drawn = keras.config.dtype_policy(), keras.config.floatx(), random.getstate()
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
        random.setstate(drawn)
