"""Keyed draws: a replica's slice of one global draw, bit for bit, and of the right distribution."""

import numpy as np
import pytest
import tensorflow as tf

from distgan import seeds


@pytest.mark.parametrize("draw", [seeds.normal, seeds.uniform])
@pytest.mark.parametrize("shape", [(100,), (3,), (5, 5, 2)])
def test_slices_of_one_draw(draw, shape):
    key = seeds.key(0, "test")
    whole = draw(key, tf.constant(40, tf.int64), 12, shape).numpy()
    parts = [draw(key, tf.constant(40 + first, tf.int64), 4, shape).numpy() for first in (0, 4, 8)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert whole.shape == (12, *shape)
    assert len(np.unique(whole)) > 0.99 * whole.size


def test_draws_far_into_a_run():
    far = seeds.normal(seeds.key(0, "test"), tf.constant(10**12, tf.int64), 2, (4,)).numpy()
    assert not np.array_equal(far[0], far[1])


def test_distributions():
    first = tf.constant(0, tf.int64)
    normal = seeds.normal(seeds.key(1, "test"), first, 1000, (100,)).numpy()
    # The standard error of the mean of 100,000 values is 0.003.
    assert abs(normal.mean()) < 0.016
    assert abs(normal.std() - 1) < 0.016
    uniform = seeds.uniform(seeds.key(1, "test"), first, 1000, (100,)).numpy()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.005


def test_classes():
    weights = np.array([90.0, 0.0, 10.0])
    key = seeds.key(0, "test")

    def classes(first, count):
        return seeds.classes(seeds.uniform(key, tf.constant(first, tf.int64), count, ()), weights).numpy()

    drawn = classes(0, 10_000)
    assert drawn.dtype == np.int32
    # The standard error of a share of 0.1 of 10,000 is 0.003.
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 10_000, weights / 100, atol=0.012)
    assert np.array_equal(classes(7000, 5), drawn[7000:7005])


def test_keys_differ_by_seed_and_purpose():
    assert len({seeds.key(seed, purpose) for seed in range(10) for purpose in ("a", "b", "1/a")}) == 30


def test_bits_are_even():
    bits = seeds.bits(seeds.key(0, "test"), np.arange(10_000))
    share = [(bits >> np.uint64(position) & np.uint64(1)).mean() for position in range(64)]
    assert np.abs(np.array(share) - 0.5).max() < 0.03
