"""Adversarial losses: per-example numbers from logits; the step takes the mean over the global batch.

Each is a pair of functions of real_logits and fake_logits (float32 [N], D(x) and D(G(z)) before any squashing) that return
float32 [N] to be minimized. softplus(t) = log(1 + e^t) = -log sigmoid(-t) is stable for any logit.
To add a loss, write such a pair and a line in `distgan.objectives.LOSSES`.
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


NON_SATURATING = Loss(cross_entropy_discriminator, non_saturating_generator)
MINIMAX = Loss(cross_entropy_discriminator, minimax_generator)
