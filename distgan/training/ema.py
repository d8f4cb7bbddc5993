"""The exponential moving average of the generator's weights, with its half-life in images."""

from __future__ import annotations

import tensorflow as tf

from distgan.config import Config


def amount(config: Config, images_seen: tf.Tensor, images_per_step: int) -> tf.Tensor:
    """The share of the new weights in a step's average: 1 - 0.5^(images per step / half-life), a float64 scalar.

    The half-life is at most `rampup` times the images seen, this step's among them, so that the average soon forgets the first
    weights. The idea is from the code of Karras et al. 2020 ("Training generative adversarial networks with limited data"), whose
    `ema_nimg = min(ema_nimg, cur_nimg * ema_rampup)` counts the images before the step: this ramp is one step ahead of it. After
    n steps of the ramp the half-life is rampup * n * images per step here, and rampup * (n - 1) * images per step there.

    Args:
      config: half-life and ramp-up are in `config.ema`.
      images_seen: int64 scalar, this step's images among them.
      images_per_step: real images shown in a step.
    """
    halflife = 1000 * config.ema.halflife_kimg.at(images_seen, config.train.total_kimg)
    if config.ema.rampup:
        halflife = tf.minimum(halflife, tf.cast(images_seen, tf.float64) * config.ema.rampup)
    return 1 - tf.constant(0.5, tf.float64) ** (images_per_step / tf.maximum(halflife, 1e-8))
