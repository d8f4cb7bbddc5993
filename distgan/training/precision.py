"""The loss scale of float16: gradients too small for 16 bits are made larger on the way and put right after the sum.

It is decided on the sums over all replicas, so an overflow on one of them leaves the update out on all (Micikevicius et al.
2018, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

_FIRST = 2.0**15
_UPDATES_TO_DOUBLE = 2000
_MOST = 2.0**24


def initial() -> dict[str, float]:
    """What is kept of a network's scale from step to step."""
    return {"scale": _FIRST, "finite_updates": 0.0}


def unscale(gradients: Sequence[tf.Tensor], kept: Mapping[str, Any]) -> list[tf.Tensor]:
    """Gradients as they would be without the scale."""
    return [gradient / tf.cast(kept["scale"], gradient.dtype) for gradient in gradients]


def rescaled(kept: Mapping[str, Any], finite: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """What is kept after an update: half the scale where gradients were not finite, twice after 2,000 updates that were.

    Returns:
      The values, and whether training can go on: false where gradients were not finite with a scale of 1.
    """
    scale, updates = tf.convert_to_tensor(kept["scale"]), tf.convert_to_tensor(kept["finite_updates"]) + 1
    doubles = updates >= _UPDATES_TO_DOUBLE
    larger = tf.where(doubles, tf.minimum(2 * scale, _MOST), scale)
    values = {
        "scale": tf.where(finite, larger, tf.maximum(scale / 2, 1)),
        "finite_updates": tf.where(finite & ~doubles, updates, 0),
    }
    return values, finite | (scale > 1)


_TENSOR_CORE_CHANNELS = 8
_FEWEST_CHANNELS = 5  # Below it are an image's channels and a single logit, which no flag changes.


def channel_hint(precision: str, variables: Sequence[Any]) -> str:
    """Which layers tensor cores compute slowly in 16 bits, as their channels are no multiple of 8; empty if none.

    Args:
      precision: the run's --precision.
      variables: the networks' trained weights; of a kernel the last two axes are channels.
    """
    uneven = {}
    for variable in variables:
        channels = [size for size in variable.shape[-2:] if size >= _FEWEST_CHANNELS and size % _TENSOR_CORE_CHANNELS]
        if len(variable.shape) >= 2 and channels:
            uneven[variable.path.rpartition("/")[0]] = " and ".join(map(str, channels))
    if not precision.startswith("mixed") or not uneven:
        return ""
    layers = ", ".join(f"{layer} ({channels})" for layer, channels in list(uneven.items())[:4])
    more = f" and {len(uneven) - 4} more" if len(uneven) > 4 else ""
    return (
        f"--precision={precision}: channels that are no multiple of 8 keep GPUs from their full speed: {layers}{more}; "
        "the model's widths and --model.latent_size change them"
    )
