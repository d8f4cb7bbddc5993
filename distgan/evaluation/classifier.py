"""A small classifier of the run's own classes, for scores of small images without any download."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distgan import files, seeds
from distgan.data.pixels import resize
from distgan.data.source import Images, readable
from distgan.errors import UserError
from distgan.evaluation.features import Features, locked, to_rgb, write_whole
from distgan.schema import option
from distgan.tracking.console import log

if TYPE_CHECKING:
    import tensorflow as tf

_RECIPE = 1  # Another number for another recipe: cached networks of the old one are no longer taken.
_LARGEST_SIDE = 32
_MOST_IMAGES = 50_000  # To learn from.
_LEAST_VISITS, _VISITS_PER_IMAGE = 30_000, 5
_BATCH = 64
_RATE, _BETA1, _BETA2, _EPSILON = 2e-3, 0.9, 0.99, 1e-8
_CONVOLUTIONS = {"first": (1, 32), "second": (2, 64), "third": (2, 64)}  # Stride, channels; all of 3x3.
_READ_IMAGES = 256


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A network of three convolutions and two dense layers, trained once on the run's labelled images and kept in the cache.

    Images above 32x32 are made smaller. The features are those before the last layer. All is fixed: the first weights, the
    order of up to 50,000 images, float32, on the CPU; so a machine with as many threads always trains the same network,
    whatever else its process does. Others' differ in rounding, which `sha256` tells.
    """

    classifier_size: int = option(64, "features of an image", minimum=2)
    classifier_kimg: float = option(
        0.0, "images to learn from; 0 is 30, or each image five times if that is more", minimum=0
    )

    def open(self, images: Images | None, cache_dir: Path) -> Features:
        if images is None or images.num_classes < 2:
            name = images.name if images else "what there is"
            raise UserError(
                f"extractor classifier learns from labels of two classes or more, and {name} has none: use inception"
            )
        side = min(max(images.shape[:2]), _LARGEST_SIDE)
        shapes = _shapes(side, self.classifier_size, images.num_classes)
        identity = f"{_RECIPE} {images.fingerprint} {images.shape} {images.num_classes} {self}"
        path = cache_dir / f"classifier-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"
        weights = _load(path, shapes)
        if weights is None:
            with locked(path):
                weights = _load(path, shapes)  # Another process may have made it by now.
                if weights is None:
                    weights = _train(images, side, shapes, round(self.classifier_kimg * 1000))
                    write_whole(path, files.sealed(_bytes(weights)))
        return Features(
            "classifier",
            hashlib.sha256(_bytes(weights)).hexdigest(),
            self.classifier_size,
            images.num_classes,
            f"lanczos to {side}x{side}",
            _network(weights, side),
        )


def _shapes(side: int, size: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Of the weights, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for name, (stride, channels) in _CONVOLUTIONS.items():
        shapes[f"{name}/kernel"], shapes[f"{name}/bias"] = (3, 3, inputs, channels), (channels,)
        inputs, side = channels, math.ceil(side / stride)
    shapes["features/kernel"], shapes["features/bias"] = (side * side * inputs, size), (size,)
    shapes["logits/kernel"], shapes["logits/bias"] = (size, num_classes), (num_classes,)
    return shapes


def _forward(weights: Mapping[str, tf.Tensor], pixels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """uint8 [N, S, S, 3] -> features float32 [N, D], logits float32 [N, K]."""
    import tensorflow as tf

    x = tf.cast(pixels, tf.float32) / 127.5 - 1
    for name, (stride, _) in _CONVOLUTIONS.items():
        x = tf.nn.leaky_relu(tf.nn.conv2d(x, weights[f"{name}/kernel"], stride, "SAME") + weights[f"{name}/bias"])
    x = tf.reshape(x, [len(pixels), -1])
    features = tf.nn.leaky_relu(x @ weights["features/kernel"] + weights["features/bias"])
    return features, features @ weights["logits/kernel"] + weights["logits/bias"]


def _network(weights: Mapping[str, np.ndarray], side: int) -> Any:
    """Chunks of images to features and probabilities, as `Features` wants it."""
    import tensorflow as tf

    constants = {name: tf.constant(value) for name, value in weights.items()}

    @tf.function
    def run(pixels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features, logits = _forward(constants, pixels)
        return features, tf.nn.softmax(logits)

    return lambda images: run(tf.constant(_fit(images, side)))


def _fit(images: np.ndarray, side: int) -> np.ndarray:
    if images.shape[1:3] == (side, side):
        return images
    return np.stack([resize(image, side) for image in images])


def _train(images: Images, side: int, shapes: Mapping[str, tuple[int, ...]], visits: int) -> dict[str, np.ndarray]:
    """The weights, learnt by Adam from all images but a tenth, on which it is told how good they are.

    Weights go in and out of the compiled step as tensors: no Keras, no variable, no generator's state is touched.
    """
    import tensorflow as tf

    pixels, labels = _read(images, side)
    held = len(pixels) // 10
    count = len(pixels) - held
    visits = visits or max(_LEAST_VISITS, _VISITS_PER_IMAGE * count)
    steps = math.ceil(visits / _BATCH)
    order = held + _permutations("classifier/batches", count, steps * _BATCH).reshape(steps, _BATCH)

    @tf.function
    def step(weights: dict, first: dict, second: dict, pixels: tf.Tensor, labels: tf.Tensor, number: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, _forward(weights, pixels)[1])
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, weights)
        first = {name: _BETA1 * first[name] + (1 - _BETA1) * gradients[name] for name in weights}
        second = {name: _BETA2 * second[name] + (1 - _BETA2) * gradients[name] ** 2 for name in weights}
        rate = _RATE * (1 + tf.cos(math.pi * number / steps)) / 2
        rate *= tf.sqrt(1 - _BETA2 ** (number + 1)) / (1 - _BETA1 ** (number + 1))
        updates = {name: rate * first[name] / (tf.sqrt(second[name]) + _EPSILON) for name in weights}
        return {name: weights[name] - updates[name] for name in weights}, first, second

    # A GPU may sum a convolution's gradient in any order.
    with tf.device("/CPU:0"):
        weights = {name: _initial(name, shape) for name, shape in shapes.items()}
        first = second = {name: tf.zeros(shape) for name, shape in shapes.items()}
        for number, chosen in enumerate(order):
            batch = tf.constant(pixels[chosen]), tf.constant(labels[chosen])
            weights, first, second = step(weights, first, second, *batch, tf.constant(number, tf.float32))
    learnt = {name: value.numpy() for name, value in weights.items()}
    if held:
        found = Features("", "", shapes["logits/kernel"][0], images.num_classes, "", _network(learnt, side))(
            pixels[:held]
        )[1]
        right = np.mean(np.argmax(found, 1) == labels[:held])  # type: ignore[arg-type]
        log.info("classifier: trained on %s, %.1f %% of %s others right", f"{count:,}", 100 * right, f"{held:,}")
    return learnt


def _initial(name: str, shape: tuple[int, ...]) -> tf.Tensor:
    """He et al. 2015; biases are 0."""
    import tensorflow as tf

    if len(shape) == 1:
        return tf.zeros(shape)
    draws = seeds.normal(seeds.key(0, f"classifier/{name}"), tf.constant(0, tf.int64), 1, shape)[0]
    return draws * math.sqrt(2 / math.prod(shape[:-1]))


def _permutations(purpose: str, count: int, length: int) -> np.ndarray:
    """int64 [length]: the numbers below `count` in one order after the other."""
    rounds = math.ceil(length / count)
    draws = seeds.bits(seeds.key(0, purpose), np.arange(rounds * count)).reshape(rounds, count)
    return np.argsort(draws, axis=1).ravel()[:length]


def _read(images: Images, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Some images, all that can be read, in an order of their own: uint8 [N, S, S, 3], int32 [N]."""
    chosen = _permutations("classifier/images", images.num_images, min(images.num_images, _MOST_IMAGES))
    pixels, labels = [], []
    for first in range(0, len(chosen), _READ_IMAGES):
        found, those, _ = readable(images, chosen[first : first + _READ_IMAGES])
        pixels.append(_fit(to_rgb(found), side))
        labels.append(those)
    return np.concatenate(pixels), np.concatenate(labels)


def _bytes(weights: Mapping[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return save(dict(weights))


def _load(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray] | None:
    """The weights in a file; None where it is not there, or damaged."""
    from safetensors.numpy import load

    if (content := files.read_sealed(path)) is None:
        return None
    weights = load(content)
    return weights if {name: value.shape for name, value in weights.items()} == shapes else None
