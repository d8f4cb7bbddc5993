"""The update rules, against their papers' formulas in numpy."""

import numpy as np
import tensorflow as tf

from distgan.training.optimizers import Adam


def test_adam_is_the_papers():
    options = Adam(epsilon=1e-3)
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(3, 4))
    variable, optimizer = tf.Variable(weights), options.build("adam", learning_rate=0.01, beta_1=0.5, beta_2=0.9)
    optimizer.build([variable])
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, 6):
        gradient = draw.normal(size=weights.shape)
        optimizer.update_step(tf.constant(gradient), variable, optimizer.learning_rate)
        optimizer.iterations.assign_add(1)
        mean = 0.5 * mean + 0.5 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        # Section 2, the last paragraph: the corrections in the step size, epsilon beside the uncorrected root.
        step_size = np.float64(np.float32(0.01)) * np.sqrt(1 - 0.9**step) / (1 - 0.5**step)
        weights = weights - step_size * mean / (np.sqrt(square) + 1e-3)
        np.testing.assert_allclose(variable.numpy(), weights, rtol=1e-12)
