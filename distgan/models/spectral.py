"""Layers with one kernel, which may be divided by its largest singular value (spectral norm; Miyato et al. 2018).

The singular value comes from power iteration: a vector u is part of a layer's state, each training pass takes one more
iteration from it, and the next u goes to `Pass.updates`. It depends on kernel and u alone, so that every replica, which holds
the same of both, divides by the same number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from distgan.models.layers import Pass, Update

EPSILON = 1e-12
"""The least squared length that a vector is divided by the root of."""


def divide_by_norm(kernel: tf.Tensor, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A kernel over its largest singular value, as one power iteration from u estimates it, and the next u.

    With W the kernel as a matrix [I, O]: v = W u / |W u|, u' = W^T v / |W^T v|, sigma = v^T W u'. The gradient takes u' and v
    for constants (Miyato et al. 2018, equation 12).

    Args:
      kernel: [..., O].
      u: [O], of any length but 0: an average of unit vectors does.
    """
    matrix = tf.reshape(kernel, [-1, kernel.shape[-1]])  # [I, O]
    v = tf.linalg.matvec(matrix, _unit(u))
    product = tf.linalg.matvec(matrix, tf.stop_gradient(_unit(v)), transpose_a=True)
    following = tf.stop_gradient(_unit(product))
    return kernel / tf.reduce_sum(product * following), following


def _unit(vector: tf.Tensor) -> tf.Tensor:
    return tf.math.l2_normalize(vector, epsilon=EPSILON)


class _Kernel(keras.layers.Layer):
    """What the layers share: a kernel [..., O], its u if it is `spectral`, and a bias if it has one."""

    def __init__(self, units: int, initializer: Any, spectral: bool = False, bias: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units
        self.initializer = initializer
        self.spectral = spectral
        self.has_bias = bias

    def _add_kernel(self, shape: Sequence[int]) -> None:
        self.kernel = self.add_weight(shape=shape, initializer=self.initializer, name="kernel", autocast=False)
        if self.has_bias:
            self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias", autocast=False)
        if self.spectral:
            normal = keras.initializers.RandomNormal(stddev=1.0)
            self.u = self.add_weight(shape=(self.units,), initializer=normal, name="u", trainable=False, autocast=False)

    def _weight(self, context: Pass | None) -> tf.Tensor:
        """The kernel in the layer's compute dtype, normalized (once for all passes that share a memo) if it is spectral."""
        if not self.spectral:
            return tf.cast(self.kernel.value, self.compute_dtype)
        if context is not None and self.u.path in context.memo:
            return context.memo[self.u.path]
        normalized, following = divide_by_norm(tf.convert_to_tensor(self.kernel.value), self.u.value)
        normalized = tf.cast(normalized, self.compute_dtype)
        if context is not None:
            context.updates.append(Update(self.u, following, momentum=0))
            context.memo[self.u.path] = normalized
        return normalized

    def _shifted(self, outputs: tf.Tensor) -> tf.Tensor:
        return tf.nn.bias_add(outputs, tf.cast(self.bias.value, outputs.dtype)) if self.has_bias else outputs


class Conv(_Kernel):
    """Convolution of stride 1 that keeps height and width: [N, H, W, C] -> [N, H, W, units]."""

    def __init__(self, units: int, size: int, **kwargs: Any):
        super().__init__(units, **kwargs)
        self.size = size

    def build(self, input_shape: Sequence[int]) -> None:
        self._add_kernel((self.size, self.size, input_shape[-1], self.units))

    def call(self, inputs: tf.Tensor, context: Pass | None = None) -> tf.Tensor:
        return self._shifted(tf.nn.conv2d(inputs, self._weight(context), 1, "SAME"))


class Dense(_Kernel):
    """[N, C] -> [N, units]."""

    def build(self, input_shape: Sequence[int]) -> None:
        self._add_kernel((input_shape[-1], self.units))

    def call(self, inputs: tf.Tensor, context: Pass | None = None) -> tf.Tensor:
        return self._shifted(tf.matmul(inputs, self._weight(context)))


class Embedding(_Kernel):
    """Classes int32 [N] -> vectors [N, units]."""

    def __init__(self, num_classes: int, units: int, **kwargs: Any):
        super().__init__(units, **kwargs)
        self.num_classes = num_classes

    def build(self, input_shape: Sequence[int]) -> None:
        self._add_kernel((self.num_classes, self.units))

    def call(self, inputs: tf.Tensor, context: Pass | None = None) -> tf.Tensor:
        # Not a gather: this one's gradient is dense, and the same bits each time on a GPU.
        return tf.matmul(tf.one_hot(inputs, self.num_classes, dtype=self.compute_dtype), self._weight(context))


@dataclasses.dataclass(frozen=True)
class Kernels:
    """How the kernels of a network begin, and whether they are spectral: makes its layers."""

    spectral: bool
    orthogonal: bool = False
    """Orthogonal (Saxe et al. 2014), or else Xavier's uniform distribution (Glorot and Bengio 2010) times a layer's gain."""

    def conv(self, units: int, size: int, name: str, gain: float = 1.0, bias: bool = True) -> Conv:
        """A convolution of size x size."""
        return Conv(units, size, initializer=self._begin(gain), spectral=self.spectral, bias=bias, name=name)

    def dense(self, units: int, name: str, bias: bool = True, dtype: Any = None) -> Dense:
        """A dense layer."""
        return Dense(units, initializer=self._begin(), spectral=self.spectral, bias=bias, name=name, dtype=dtype)

    def embedding(self, num_classes: int, units: int, name: str, dtype: Any = None) -> Embedding:
        """A vector for each class."""
        begin = self._begin()
        return Embedding(num_classes, units, initializer=begin, spectral=self.spectral, name=name, dtype=dtype)

    def _begin(self, gain: float = 1.0) -> keras.initializers.Initializer:
        if self.orthogonal:
            return keras.initializers.Orthogonal()
        # Xavier's variance is gain^2 * 2 / (fan_in + fan_out), Keras' is scale / mean of the fans: the scale is gain^2.
        return keras.initializers.VarianceScaling(gain**2, "fan_avg", "uniform")
