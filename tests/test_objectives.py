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
    "hinge": (lambda r, f: np.maximum(0, 1 - r) + np.maximum(0, 1 + f), lambda r, f: -f),
    "least_squares": (lambda r, f: ((r - 1) ** 2 + f**2) / 2, lambda r, f: (f - 1) ** 2 / 2),
    "wasserstein": (lambda r, f: f - r, lambda r, f: -f),
    "relativistic": (lambda r, f: -log_sigmoid(r - f), lambda r, f: -log_sigmoid(f - r)),
    # Of logits that are already relative to the other kind's mean.
    "relativistic_average": (
        lambda r, f: -log_sigmoid(r) - log_sigmoid(-f),
        lambda r, f: -log_sigmoid(f) - log_sigmoid(-r),
    ),
}


@pytest.mark.parametrize("name", LOSSES.parts)
def test_values(name):
    loss = registry.resolve(LOSSES, name)
    real, fake = EXTREME, EXTREME[::-1].copy()
    for function, expected in zip((loss.discriminator, loss.generator), EXPECTED[name], strict=True):
        value = function(tf.constant(real), tf.constant(fake))
        assert value.dtype == tf.float32
        assert value.shape == real.shape
        np.testing.assert_allclose(value, expected(real, fake).astype(np.float64), rtol=1e-6, atol=1e-37)


def gradients(name, real, fake):
    """Of the discriminator's loss by real and fake logits, and of the generator's by fake ones."""
    loss = registry.resolve(LOSSES, name)
    logits = [tf.constant(real), tf.constant(fake)]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        losses = loss.discriminator(*logits), loss.generator(*logits)
    return [each.numpy() for each in (*tape.gradient(losses[0], logits), tape.gradient(losses[1], logits[1]))]


@pytest.mark.parametrize("name", LOSSES.parts)
def test_gradients(name):
    real, fake = (each.astype(np.longdouble) for each in (EXTREME, EXTREME[::-1]))
    discriminator, generator = EXPECTED[name]
    step = np.longdouble(1e-6)
    expected = [
        (discriminator(real + step, fake) - discriminator(real - step, fake)) / (2 * step),
        (discriminator(real, fake + step) - discriminator(real, fake - step)) / (2 * step),
        (generator(real, fake + step) - generator(real, fake - step)) / (2 * step),
    ]
    for found, wanted in zip(gradients(name, EXTREME, EXTREME[::-1].copy()), expected, strict=True):
        np.testing.assert_allclose(found, wanted.astype(np.float64), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES.parts)
def test_directions(name):
    """The discriminator raises real and lowers fake logits; the generator raises fake logits."""
    mild = np.array([0.1, 0.5, 0.9], np.float32)
    for gradient, sign in zip(gradients(name, mild, mild[::-1].copy()), (-1, 1, -1), strict=True):
        assert (sign * gradient > 0.01).all()
