"""Adversarial losses: per-example numbers from logits; the step takes the mean over the global batch.

Each is a pair of functions of real_logits and fake_logits (float32 [N], D(x) and D(G(z)) before any squashing) that return
float32 [N] to be minimized. softplus(t) = log(1 + e^t) = -log sigmoid(-t) is stable for any logit. In the formulas r is a real
logit, f a fake one.
To add a loss, write such a pair and a line in `distgan.objectives.LOSSES`. Your own is named `my_package.my_module:MY_LOSS`; it
is a `Loss`, or a plain pair of functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

PerExample = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Loss:
    """What the discriminator and the generator minimize, each as (real_logits, fake_logits) -> float32 [N]."""

    discriminator: PerExample
    generator: PerExample
    pairs: bool = False
    """Whether the generator's loss looks at real logits too; elsewhere it gets None for them."""
    opposed: bool = False
    """Whether logits are taken relative to the other kind's mean over all replicas: r - mean f and f - mean r."""


def cross_entropy_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """-log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))) (Goodfellow et al. 2014, eq. 1, negated).

    >>> round(float(cross_entropy_discriminator(tf.zeros(1), tf.zeros(1))[0]), 3)
    1.386
    """
    return tf.nn.softplus(-real_logits) + tf.nn.softplus(fake_logits)


def non_saturating_generator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """-log sigmoid(D(G(z))) (Goodfellow et al. 2014, section 3): strong gradients while the discriminator is ahead.

    >>> round(float(non_saturating_generator(tf.zeros(1), tf.zeros(1))[0]), 3)
    0.693
    """
    del real_logits
    return tf.nn.softplus(-fake_logits)


def minimax_generator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """log(1 - sigmoid(D(G(z)))) (Goodfellow et al. 2014, eq. 1): vanishing gradients while the discriminator is ahead.

    >>> round(float(minimax_generator(tf.zeros(1), tf.zeros(1))[0]), 3)
    -0.693
    """
    del real_logits
    return -tf.nn.softplus(fake_logits)


def hinge_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """relu(1 - r) + relu(1 + f) (Lim and Ye 2017; Miyato et al. 2018, eq. 16).

    >>> float(hinge_discriminator(tf.constant([0.5]), tf.constant([-2.0]))[0])
    0.5
    """
    return tf.nn.relu(1 - real_logits) + tf.nn.relu(1 + fake_logits)


def wasserstein_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """The difference f - r (Arjovsky et al. 2017, eq. 3, negated)."""
    return fake_logits - real_logits


def raise_fakes(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """The negative -f: the generator's side of the hinge and Wasserstein losses."""
    del real_logits
    return -fake_logits


def least_squares_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """(r - 1)^2 / 2 + f^2 / 2, on logits (Mao et al. 2017, eq. 2 with a = 0, b = c = 1)."""
    return 0.5 * (real_logits - 1) ** 2 + 0.5 * fake_logits**2


def least_squares_generator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """(f - 1)^2 / 2 (Mao et al. 2017, eq. 2)."""
    del real_logits
    return 0.5 * (fake_logits - 1) ** 2


def relativistic_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """-log sigmoid(r - f): the real and the fake of the same place in the batch (Jolicoeur-Martineau 2018, eq. 5)."""
    return tf.nn.softplus(fake_logits - real_logits)


def relativistic_generator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """-log sigmoid(f - r) (Jolicoeur-Martineau 2018, eq. 6)."""
    return tf.nn.softplus(real_logits - fake_logits)


def opposed_generator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """-log sigmoid(f) - log(1 - sigmoid(r)): the discriminator's cross-entropy with the kinds changed about."""
    return cross_entropy_discriminator(fake_logits, real_logits)


NON_SATURATING = Loss(cross_entropy_discriminator, non_saturating_generator)
MINIMAX = Loss(cross_entropy_discriminator, minimax_generator)
HINGE = Loss(hinge_discriminator, raise_fakes)
WASSERSTEIN = Loss(wasserstein_discriminator, raise_fakes)
LEAST_SQUARES = Loss(least_squares_discriminator, least_squares_generator)
RELATIVISTIC = Loss(relativistic_discriminator, relativistic_generator, pairs=True)
# Jolicoeur-Martineau 2018, eq. 7 and 8: the cross-entropy of r - mean f and f - mean r.
RELATIVISTIC_AVERAGE = Loss(cross_entropy_discriminator, opposed_generator, pairs=True, opposed=True)
