"""Layers against Keras' own where they must agree, and where they must not."""

import keras
import numpy as np
import tensorflow as tf

from distgan import seeds
from distgan.models.layers import BatchNorm, ConcatLabel, Dropout, Pass


def make_pass(first=0, count=8, total=lambda tensor, layer: tensor):
    def make(kind, name, shape):
        return getattr(seeds, kind)(seeds.key(0, name), tf.constant(first, tf.int64), count, shape)

    return Pass(seeds.Draws(make), total, [], {})


def test_batch_norm_equals_keras():
    x = tf.constant(np.random.default_rng(0).normal(3, 2, (8, 4, 4, 5)), tf.float32)
    ours, theirs = BatchNorm(momentum=0.9), keras.layers.BatchNormalization(momentum=0.9)
    made = make_pass()
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        outputs = [ours(x, context=made), theirs(x, training=True)]
        values = [tf.reduce_sum(output**3) for output in outputs]
    np.testing.assert_allclose(*outputs, atol=1e-5)
    np.testing.assert_allclose(*[tape.gradient(value, x) for value in values], atol=1e-4)
    assert np.array_equal(ours.moving_mean, np.zeros(5))
    for (moving, value, momentum), theirs_next in zip(
        made.updates, (theirs.moving_mean, theirs.moving_variance), strict=True
    ):
        moving.assign(moving * momentum + value * (1 - momentum))
        np.testing.assert_allclose(moving, theirs_next, rtol=1e-5)
    np.testing.assert_allclose(ours(x), theirs(x, training=False), atol=1e-5)


def test_batch_norm_with_a_mean_far_from_zero():
    # In float32 E[x^2] - E[x]^2 has no correct digit left here.
    x = np.random.default_rng(0).normal(0, 1, (64, 3)).astype(np.float32) + 10_000
    layer = BatchNorm()
    layer.build(x.shape)
    layer.moving_mean.assign([10_000.0] * 3)
    output = layer(x, context=make_pass()).numpy()
    exact = (x - x.mean(0, dtype=np.float64)) / np.sqrt(x.var(0, dtype=np.float64) + 1e-3)
    np.testing.assert_allclose(output, exact, atol=2e-3)


def test_dropout_belongs_to_the_image():
    layer = Dropout(0.3, name="drop")
    x = tf.ones([8, 4, 4, 16])
    whole = layer(x, context=make_pass(16)).numpy()
    halves = [layer(x[:4], context=make_pass(first, 4)).numpy() for first in (16, 20)]
    assert np.array_equal(whole, np.concatenate(halves))
    assert not np.array_equal(halves[0], halves[1])
    kept = whole > 0
    assert abs(kept.mean() - 0.7) < 0.05
    np.testing.assert_allclose(whole[kept], 1 / 0.7, rtol=1e-6)
    assert np.array_equal(layer(x), x)


def test_labels_stand_beside_vectors_and_pixels():
    layer, labels = ConcatLabel(3), tf.constant([2, 0])
    vectors = layer(tf.ones([2, 4]), labels=labels).numpy()
    assert vectors.tolist() == [[1, 1, 1, 1, 0, 0, 1], [1, 1, 1, 1, 1, 0, 0]]
    pixels = layer(tf.zeros([2, 5, 5, 1]), labels=labels).numpy()
    assert pixels.shape == (2, 5, 5, 4)
    assert (pixels == np.array([[0, 0, 0, 1], [0, 1, 0, 0]])[:, None, None]).all()
