"""The functions of the regularizers: per-example numbers from logits, images and gradients. Single-device code.

Letters in shapes: N images of [H, W, C], B images of the global batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distgan.seeds import Draws

_EPSILON = 1e-12  # Under the root of a squared norm, whose derivative at 0 is infinite.


def half_squared_norm(gradients: tf.Tensor) -> tf.Tensor:
    """||g||^2 / 2 of each image: [N, H, W, C] -> [N].

    >>> half_squared_norm(tf.constant([[[[3.0]], [[4.0]]]])).numpy().tolist()
    [12.5]
    """
    return 0.5 * _squared_norm(gradients)


def norm_penalty(gradients: tf.Tensor, target: float, one_sided: bool) -> tf.Tensor:
    """(||g|| - target)^2 of each image, of longer ones only if `one_sided`: [N, H, W, C] -> [N].

    >>> norm_penalty(tf.constant([[[[3.0]], [[4.0]]]]), 1.0, False).numpy().tolist()
    [16.0]
    """
    excess = tf.sqrt(_squared_norm(gradients) + _EPSILON) - target
    return tf.nn.relu(excess) ** 2 if one_sided else excess**2


def _squared_norm(gradients: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(gradients**2, axis=list(range(1, gradients.shape.rank)))


def per_image(values: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Numbers of images [N, ...] in the images' dtype, with axes of length 1 behind them."""
    missing = images.shape.rank - values.shape.rank
    return tf.cast(tf.reshape(values, [*values.shape, *[1] * missing]), images.dtype)


def deviation(images: tf.Tensor, sum_over_replicas: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """The standard deviation (of N - 1) of all pixels of the global batch, a scalar without gradients."""
    moments = tf.stack([tf.cast(tf.size(images), images.dtype), tf.reduce_sum(images), tf.reduce_sum(images**2)])
    count, total, squares = tf.unstack(sum_over_replicas(tf.stop_gradient(moments)))
    return tf.sqrt(tf.maximum(squares - total**2 / count, 0) / (count - 1))


def lecam(real_logits: tf.Tensor, fake_logits: tf.Tensor, real_mean: tf.Tensor, fake_mean: tf.Tensor) -> tf.Tensor:
    """relu(r - m_f)^2 + relu(m_r - f)^2: [N].

    >>> lecam(tf.constant([2.0]), tf.constant([-1.0]), 1.0, -1.0).numpy().tolist()
    [13.0]
    """
    above = real_logits - tf.cast(fake_mean, real_logits.dtype)
    below = tf.cast(real_mean, fake_logits.dtype) - fake_logits
    return tf.nn.relu(above) ** 2 + tf.nn.relu(below) ** 2


def from_image(value: Any, images_seen: tf.Tensor, start: float) -> tf.Tensor:
    """The value (a number becomes float64) once `start` images were seen, and 0 before."""
    value = tf.constant(value, tf.float64) if isinstance(value, float) else value
    return value * tf.cast(tf.cast(images_seen, tf.float64) >= start, value.dtype)


def mirror_and_shift(images: tf.Tensor, share: float, draws: Draws) -> tf.Tensor:
    """Each image mirrored or not, and shifted by whole pixels of up to `share` of its side, with its border reflected."""
    _, height, width, _ = images.shape
    mirrored = per_image(draws.uniform("mirrored"), images) < 0.5
    images = tf.where(mirrored, images[:, :, ::-1], images)
    for axis, side in ((1, height), (2, width)):
        most = int(share * side)
        # In 64 bits: a GPU leaves numbers of 32 to the host.
        shift = tf.cast(draws.uniform(f"shift{axis}") * (2 * most + 1), tf.int64) - most
        places = tf.abs(tf.range(side, dtype=tf.int64)[None] + shift[:, None])  # [N, side]
        places = (side - 1) - tf.abs((side - 1) - places)
        images = tf.gather(images, places, axis=axis, batch_dims=1)
    return images


def orthogonal(kernels: Sequence[tf.Tensor]) -> tf.Tensor:
    """||W^T W - diag(W^T W)||^2 summed over kernels [..., outputs]: a scalar, the same for every image.

    >>> float(orthogonal([tf.constant([[1.0, 1.0], [0.0, 2.0]])]))
    2.0
    """
    total = 0.0
    for kernel in kernels:
        flat = tf.reshape(kernel, [-1, kernel.shape[-1]])
        products = tf.matmul(flat, flat, transpose_a=True)
        total += tf.reduce_sum(products**2) - tf.reduce_sum(tf.linalg.diag_part(products) ** 2)
    return tf.convert_to_tensor(total)


def cross_entropy(class_logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """-log P(label): [N, K], int32 [N] -> [N].

    >>> round(float(cross_entropy(tf.zeros([1, 4]), tf.constant([2]))[0]), 3)
    1.386
    """
    # In 64 bits: where operations are deterministic, TensorFlow compares labels, and a GPU leaves 32 to the host.
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int64), class_logits)


def clip(values: tf.Tensor, limit: float) -> tf.Tensor:
    """Numbers cut to [-limit, limit]."""
    return tf.clip_by_value(values, -limit, limit)


def top_k_weights(logits: tf.Tensor, everywhere: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """B / k for the k largest of all B logits, 0 for the others: the weights of one's own N of them.

    Where several are as large as the k-th, all of them count, and share its weight.

    >>> top_k_weights(tf.constant([1.0, 4.0]), tf.constant([1.0, 4.0, 3.0, 2.0]), tf.constant(2.0)).numpy().tolist()
    [0.0, 2.0]
    """
    places = tf.cast(tf.round(k), tf.int64)
    smallest = tf.gather(tf.sort(everywhere, direction="DESCENDING"), places - 1)
    chosen = tf.cast(everywhere >= smallest, logits.dtype)
    mine = tf.cast(tf.stop_gradient(logits) >= smallest, logits.dtype)
    return mine * (tf.cast(tf.size(everywhere), logits.dtype) / tf.reduce_sum(chosen))
