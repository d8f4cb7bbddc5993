"""Losses against values worked out in another way, for every entry of the table."""

import numpy as np
import pytest
import tensorflow as tf

from distgan import registry
from distgan.objectives import LOSSES

EXTREME = np.array([-80.0, -5.0, 0.0, 5.0, 80.0], np.float32)


def log_sigmoid(t):
    """In extended precision, from the definition."""
    return -np.log1p(np.exp(-t.astype(np.longdouble)))


# The papers' formulas, by probabilities rather than by softplus.
EXPECTED = {
    "non_saturating": (lambda r, f: -log_sigmoid(r) - log_sigmoid(-f), lambda r, f: -log_sigmoid(f)),
    "minimax": (lambda r, f: -log_sigmoid(r) - log_sigmoid(-f), lambda r, f: log_sigmoid(-f)),
}


@pytest.mark.parametrize("name", LOSSES.parts)
def test_values(name):
    loss = registry.resolve(LOSSES, name)
    real, fake = EXTREME, EXTREME[::-1].copy()
    for function, expected in zip((loss.discriminator, loss.generator), EXPECTED[name], strict=True):
        value = function(tf.constant(real), tf.constant(fake))
        assert value.dtype == tf.float32
        assert value.shape == real.shape
        np.testing.assert_allclose(value, expected(real, fake).astype(np.float64), rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES.parts)
def test_gradients(name):
    loss = registry.resolve(LOSSES, name)
    logits = [tf.constant(EXTREME), tf.constant(EXTREME[::-1].copy())]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        losses = loss.discriminator(*logits), loss.generator(*logits)
    real, fake = (gradient.numpy() for gradient in tape.gradient(losses[0], logits))
    generator = tape.gradient(losses[1], logits[1]).numpy()
    # The discriminator raises real and lowers fake logits; the generator raises fake logits.
    for gradient, sign in ((real, -1), (fake, 1), (generator, -1)):
        assert np.isfinite(gradient).all()
        assert (sign * gradient >= 0).all()
        assert np.abs(gradient).max() > 0.9
