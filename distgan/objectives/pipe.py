"""What ADA does to images (Karras et al. 2020, "Training generative adversarial networks with limited data", appendix B).

Each function takes p, the probability of its transforms (a scalar in the images' dtype), and draws in that dtype. All are linear
or affine in the images: gradients of any order are finite. Filters work as constant matrices along an axis, which are
fast, differentiable and of fixed shape (for XLA); borders are reflected, the border pixel itself not repeated.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import tensorflow as tf

from distgan.seeds import Draws

# Scaling filters, whose squares sum to 1 (Daubechies 1992, "Ten lectures on wavelets", tables 6.1 and 6.3).
SYM2 = np.array([1 + math.sqrt(3), 3 + math.sqrt(3), 3 - math.sqrt(3), 1 - math.sqrt(3)]) / (4 * math.sqrt(2))
SYM6 = np.array(
    [
        0.015404109327027373,
        0.0034907120842174702,
        -0.11799011114819057,
        -0.048311742585633,
        0.4910559419267466,
        0.787641141030194,
        0.3379294217276218,
        -0.07263752278646252,
        -0.021060292512300564,
        0.04472490177066578,
        0.0017677118642428036,
        -0.007800708325034148,
    ]
)
_CENTRE = 5  # The tap of SYM6 that stands at its pixel.
_BAND_POWER = np.array([10, 1, 1, 1]) / 13  # of natural images, about 1/f, from low to high frequencies.


def geometry(draws: Draws, blit: tf.Tensor, geom: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """The affine maps [N, 3, 3] from places (x, y, 1) in the output to places in the input.

    Places are in pixels from the centre of the image (x right, y down). `size` is the height and width, `blit` the probability
    of flip, quarter turn and whole shift, `geom` that of the rest.
    """
    sides = tf.constant([size[1], size[0]], blit.dtype)
    # Two rotations, each with this probability, leave an image unrotated with probability 1 - p.
    rotated = 1 - tf.sqrt(1 - geom)

    def exp2(name: str) -> tf.Tensor:
        return _some(draws, name, geom, 2 ** (0.2 * draws.normal(name)), 1)

    def angle(name: str) -> tf.Tensor:
        return _some(draws, name, rotated, math.pi * (2 * draws.uniform(name) - 1), 0)

    flip = _some(draws, "flip", blit, tf.floor(2 * draws.uniform("flip")), 0)
    quarters = _some(draws, "quarters", blit, tf.floor(4 * draws.uniform("quarters")), 0)
    whole = tf.round(0.125 * sides * (2 * draws.uniform("whole_shift", (2,)) - 1))
    scale, stretch = exp2("scale"), exp2("stretch")
    return functools.reduce(
        tf.matmul,
        [
            _scaling(1 - 2 * flip, tf.ones_like(flip)),
            _rotation(math.pi / 2 * quarters),
            _shift(_some(draws, "whole_shift", blit, whole, 0)),
            _scaling(1 / scale, 1 / scale),
            _rotation(angle("first_rotation")),
            _scaling(1 / stretch, stretch),
            _rotation(angle("second_rotation")),
            _shift(_some(draws, "shift", geom, 0.125 * sides * draws.normal("shift", (2,)), 0)),
        ],
    )


def warp(images: tf.Tensor, inverse: tf.Tensor) -> tf.Tensor:
    """Images [N, H, W, C] under affine maps of the plane, given as `geometry` does, without aliasing.

    The image is brought to twice its resolution with the low-pass filter of the sym6 wavelet, sampled there bilinearly, and
    brought back with the same filter reversed. As the filter is orthogonal to itself shifted by 2, the identity and
    whole-pixel shifts are exact. A flip is not: sym6 is not quite symmetric, and moves the image by a tenth of a pixel.

    The paper's code pads by as much as the batch's transforms need, at most by one reflection, and has zeros beyond. Here
    the reflected image goes on forever, and one period of it, 2 (H - 1) by 2 (W - 1) pixels, is brought to twice its resolution:
    the same values where the padding reaches, a fixed shape, and no image that depends on the others of its batch.
    """
    height, width, channels = images.shape[1:]
    x = tf.transpose(images, [0, 3, 1, 2])
    x = _along_both(x, _doubling(height), _doubling(width))  # [N, C, 4 (H-1), 4 (W-1)]
    rows, columns = x.shape[2:]

    def places(size: int) -> tf.Tensor:
        """Of the samples that `_halving` takes, in pixels from the centre."""
        return tf.constant((np.arange(2 * size + 10) - _CENTRE - (size - 1)) / 2, images.dtype)

    across, down = places(width), places(height)[:, None]
    to_x, to_y = (
        inverse[:, i, 0, None, None] * across + inverse[:, i, 1, None, None] * down + inverse[:, i, 2, None, None]
        for i in (0, 1)
    )  # [N, 2H+10, 2W+10]
    left, right, part_x = _neighbours(2 * to_x + (width - 1), columns)
    upper, lower, part_y = _neighbours(2 * to_y + (height - 1), rows)
    flat = tf.reshape(x, [-1, channels, rows * columns])

    def at(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        index = tf.reshape(row * columns + column, [-1, (2 * height + 10) * (2 * width + 10)])
        taken = tf.gather(flat, index, axis=2, batch_dims=1)
        return tf.reshape(taken, [-1, channels, 2 * height + 10, 2 * width + 10])

    def between(first: tf.Tensor, second: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
        return first + part[:, None] * (second - first)

    above = between(at(upper, left), at(upper, right), part_x)
    below = between(at(lower, left), at(lower, right), part_x)
    x = _along_both(between(above, below, part_y), _halving(height), _halving(width))
    return tf.transpose(x, [0, 2, 3, 1])


def recolor(images: tf.Tensor, draws: Draws, p: tf.Tensor) -> tf.Tensor:
    """Brightness, contrast, luma flip, hue and saturation, in this order, of images [N, H, W, 1 or 3].

    All of them act either along the luma axis v = (1, 1, 1) / sqrt 3 or in the plane across it. With P = v v^T (the mean of
    the channels) and K the cross product with v, their product is
    x -> c (f P (x + b) + s (cos h (I - P) + sin h K) x), where f is 1 or -1. A gray pixel has nothing across the axis.
    """
    brightness = _some(draws, "brightness", p, 0.2 * draws.normal("brightness"), 0)
    contrast = _some(draws, "contrast", p, 2 ** (0.5 * draws.normal("contrast")), 1)
    flip = 1 - 2 * _some(draws, "luma_flip", p, tf.floor(2 * draws.uniform("luma_flip")), 0)
    along, added = (each[:, None, None, None] for each in (contrast * flip, contrast * flip * brightness))
    if images.shape[-1] == 1:
        return along * images + added
    hue = _some(draws, "hue", p, math.pi * (2 * draws.uniform("hue") - 1), 0)
    saturation = _some(draws, "saturation", p, 2 ** draws.normal("saturation"), 1)
    dtype = images.dtype
    mean = tf.constant(np.full((3, 3), 1 / 3), dtype)
    cross = tf.constant(np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3), dtype)
    turned, crossed = contrast * saturation * tf.cos(hue), contrast * saturation * tf.sin(hue)
    matrices = (
        along[..., 0] * mean + turned[:, None, None] * (tf.eye(3, dtype=dtype) - mean) + crossed[:, None, None] * cross
    )
    return tf.einsum("nhwc,ndc->nhwd", images, matrices) + added


def equalize(images: tf.Tensor, draws: Draws, p: tf.Tensor) -> tf.Tensor:
    """Gains of four octaves of frequencies, of images [N, H, W, C].

    Each of the bands has probability p of a gain 2^N(0, 1), after which all gains are divided so that an image with the
    expected power keeps it. Reflection without end lets 43 taps work on images of any size.
    """
    power = tf.constant(_BAND_POWER, images.dtype)
    gains = tf.ones_like(power)
    drawn, gates = 2 ** draws.normal("bands", (4,)), draws.uniform("bands/gate", (4,)) < p
    for band in range(4):
        gain = tf.where(gates & tf.constant(np.arange(4) == band), drawn, 1)  # [N, 4]
        gains *= gain / tf.sqrt(tf.reduce_sum(power * gain**2, 1, keepdims=True))
    down, across = (
        tf.einsum("nb,bij->nij", gains, tf.constant(_band_matrices(size), images.dtype)) for size in images.shape[1:3]
    )
    x = tf.transpose(images, [0, 3, 1, 2])
    x = tf.matmul(tf.matmul(down[:, None], x), across[:, None], transpose_b=True)
    return tf.transpose(x, [0, 2, 3, 1])


def add_noise(images: tf.Tensor, draws: Draws, p: tf.Tensor) -> tf.Tensor:
    """Normal noise, whose strength |N(0, 0.1)| is the image's own."""
    strength = _some(draws, "noise", p, 0.1 * tf.abs(draws.normal("noise_strength")), 0)
    return images + strength[:, None, None, None] * draws.normal("noise", tuple(images.shape[1:]))


def cut_out(images: tf.Tensor, draws: Draws, p: tf.Tensor) -> tf.Tensor:
    """A rectangle of half the height and width, centred anywhere, becomes 0."""
    height, width = images.shape[1:3]
    side = _some(draws, "cutout", p, 0.5, 0)[:, None, None]
    centre = draws.uniform("cutout", (2, 1, 1))
    across = tf.constant((np.arange(width) + 0.5) / width, images.dtype)
    down = tf.constant((np.arange(height) + 0.5) / height, images.dtype)[:, None]
    kept = (tf.abs(across - centre[:, 0]) >= side / 2) | (tf.abs(down - centre[:, 1]) >= side / 2)
    return tf.where(kept[..., None], images, tf.zeros([], images.dtype))


def band_filters() -> np.ndarray:
    """Four symmetric filters of 43 taps, float64 [4, 43], one an octave from low to high, which sum to the unit impulse.

    With H the low-pass filter of sym2, P(z) = H(z) H(1/z) / 2 and Q(z) = P(-z) = 1 - P(z), the bands are P(z) P(z^2) P(z^4),
    P(z) P(z^2) Q(z^4), P(z) Q(z^2) and Q(z).
    """
    low = np.convolve(SYM2, SYM2[::-1]) / 2
    high = np.eye(7)[3] - low

    def spread(taps: np.ndarray, step: int) -> np.ndarray:
        between = np.zeros(step * (len(taps) - 1) + 1)
        between[::step] = taps
        return between

    half = np.convolve(low, spread(low, 2))
    bands = [
        np.convolve(half, spread(low, 4)),
        np.convolve(half, spread(high, 4)),
        np.convolve(low, spread(high, 2)),
        high,
    ]
    return np.stack([np.pad(band, (43 - len(band)) // 2) for band in bands])


def _some(draws: Draws, name: str, p: tf.Tensor, drawn: tf.Tensor | float, otherwise: float) -> tf.Tensor:
    """What was drawn [N, ...] for the images that a gate of probability p lets through, `otherwise` for the rest."""
    drawn = tf.convert_to_tensor(drawn, p.dtype)
    gate = draws.uniform(f"{name}/gate", (1,) * (len(drawn.shape) - 1) if drawn.shape else ()) < p
    return tf.where(gate, drawn, tf.constant(otherwise, p.dtype))


def _scaling(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    zero = tf.zeros_like(x)
    return _matrices(x, zero, zero, zero, y, zero)


def _rotation(angle: tf.Tensor) -> tf.Tensor:
    cos, sin, zero = tf.cos(angle), tf.sin(angle), tf.zeros_like(angle)
    return _matrices(cos, -sin, zero, sin, cos, zero)


def _shift(by: tf.Tensor) -> tf.Tensor:
    """Of the content, by [N, 2] pixels."""
    zero, one = tf.zeros_like(by[:, 0]), tf.ones_like(by[:, 0])
    return _matrices(one, zero, -by[:, 0], zero, one, -by[:, 1])


def _matrices(*entries: tf.Tensor) -> tf.Tensor:
    """[N, 3, 3] from the six entries [N] of the upper rows."""
    zero, one = tf.zeros_like(entries[0]), tf.ones_like(entries[0])
    return tf.reshape(tf.stack([*entries, zero, zero, one], -1), [-1, 3, 3])


def _neighbours(place: tf.Tensor, period: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Indices int64 of the samples before and after a place, and how far it is from the first to the second."""
    before = tf.floor(place)
    # A GPU leaves arithmetic on 32-bit integers to the host.
    first = tf.math.floormod(tf.cast(before, tf.int64), period)
    return first, tf.math.floormod(first + 1, period), place - before


def _along_both(x: tf.Tensor, down: np.ndarray, across: np.ndarray) -> tf.Tensor:
    """Images [N, C, H, W] times a matrix [H', H] down and a matrix [W', W] across: [N, C, H', W']."""
    _, channels, height, width = x.shape
    # One large product for the rows of all images, as the constant is shared.
    x = tf.matmul(tf.reshape(x, [-1, width]), tf.constant(across.T, x.dtype))
    return _down(tf.reshape(x, [-1, channels, height, len(across)]), down)


def _down(x: tf.Tensor, matrix: np.ndarray) -> tf.Tensor:
    """Images [N, C, H, W] times a matrix [H', H] down: [N, C, H', W].

    TensorFlow's gradient of a product whose number of images it does not know asks the host for its shape; this one does not.
    """

    @tf.custom_gradient
    def product(x: tf.Tensor) -> Any:
        return tf.matmul(tf.constant(matrix, x.dtype), x), lambda upstream: _down(upstream, matrix.T)

    return product(x)


@functools.cache
def _doubling(size: int) -> np.ndarray:
    """[4 (size - 1), size]: one period of the reflected pixels at twice the resolution, pixel i at sample 2i."""
    sample, tap = np.arange(4 * (size - 1))[:, None], np.arange(len(SYM6))
    twice = _CENTRE + sample - tap  # The zeros between the pixels are the odd ones.
    return _reflecting(twice // 2, np.where(twice % 2, 0, math.sqrt(2) * SYM6), size)


@functools.cache
def _halving(size: int) -> np.ndarray:
    """[size, 2 size + 10]: pixel i from the samples 2i - 5 to 2i + 6, of which the first is sample -5."""
    taken = 2 * np.arange(size)[:, None] + np.arange(len(SYM6))
    return _reflecting(taken, np.broadcast_to(SYM6 / math.sqrt(2), taken.shape), 2 * size + 10)


@functools.cache
def _band_matrices(size: int) -> np.ndarray:
    """[4, size, size]: the bands' filters along an axis."""
    taken = np.arange(size)[:, None] + np.arange(-21, 22)
    return np.stack([_reflecting(taken, np.broadcast_to(taps, taken.shape), size) for taps in band_filters()])


def _reflecting(taken: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """The matrix [R, size] whose rows weigh (float64 [R, T]) the taken pixels (int [R, T]), reflected into [0, size)."""
    index = np.abs((taken + size - 1) % (2 * size - 2) - (size - 1))
    matrix = np.zeros((len(taken), size))
    np.add.at(matrix, (np.arange(len(taken))[:, None], index), weights)
    return matrix
