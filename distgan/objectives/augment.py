"""Augmentation of what the discriminator sees, real and fake alike, in both networks' updates.

An augmentation is a frozen dataclass of options that offers what `Augmentation` does. It is differentiable in the images, since
the generator learns through it, and twice, since R1 is taken with respect to the images before it. Every random number is
keyed by the image's number, so that the same image is augmented alike on any number of replicas.
To add one, write such a class and a line in `distgan.objectives.AUGMENTATIONS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from distgan.schema import option
from distgan.seeds import Draws

SMALLEST = 16


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What the step asks of an augmentation; as it stands, one that keeps nothing and changes nothing."""

    def fits(self, image_shape: tuple[int, int, int]) -> Iterator[str]:
        """Yields what is wrong with images [H, W, C], or with the options."""
        height, width, channels = image_shape
        if min(height, width) < SMALLEST:
            yield (
                f"--data.resolution={min(height, width)} is under {SMALLEST} pixels, which an augmentation needs; "
                "--objective.augmentation=none does without"
            )
        if not 1 <= channels <= 4:
            yield f"images of {channels} channels have no known colours to augment; --objective.augmentation=none leaves them"

    def initial(self) -> dict[str, float]:
        """The scalars that are kept from step to step, and their first values."""
        return {}

    def update(self, kept: Mapping[str, Any], measured: Mapping[str, Any], images_per_step: int) -> dict[str, Any]:
        """The kept scalars after a discriminator update of `images_per_step` images (float64 -> float64).

        Args:
          kept: the current values, under the names of `initial`.
          measured: means over the global batch, by their keys in a row of metrics (`d_sign/real`).
          images_per_step: the global batch.
        """
        del measured, images_per_step
        return dict(kept)

    def probability(self, kept: Mapping[str, Any], images_seen: Any, total_kimg: float) -> Any:
        """How probable a transform is: p in [0, 1] once `images_seen` (int64) of a run were seen, a float64 scalar."""
        import tensorflow as tf

        del kept, images_seen, total_kimg
        return tf.constant(1, tf.float64)

    def augment(self, images: Any, draws: Draws, p: Any) -> Any:
        """The augmented images: float32 (or float64) [N, H, W, C] in [-1, 1] -> the same shape and dtype, unclipped.

        Args:
          images: the images; they may have any of 1 to 4 channels, of which the second of 2 and the fourth of 4 is alpha.
          draws: the random numbers of these images; every name is drawn once.
          p: what `probability` said, a scalar.
        """
        del draws, p
        return images


@dataclasses.dataclass(frozen=True)
class Unchanged(Augmentation):
    """Images as they are."""

    def fits(self, image_shape: tuple[int, int, int]) -> Iterator[str]:
        yield from ()


@dataclasses.dataclass(frozen=True)
class DiffAugment(Augmentation):
    """A policy of simple changes to every image (Zhao et al. 2020, "Differentiable augmentation", section 3 and its code).

    `color` changes brightness, saturation and contrast of the colour channels; `translation` moves the image by up to an eighth
    of its size; `cutout` blanks a square of half its size. Blank is 0, the middle of the range. p has no say here.
    """

    policy: str = option(
        "color,translation,cutout",
        "changes in their order; color,translation,cutout for about a hundred images, translation,cutout for CIFAR-10",
    )

    def fits(self, image_shape: tuple[int, int, int]) -> Iterator[str]:
        yield from super().fits(image_shape)
        words = self.policy.split(",")
        if unknown := [word for word in words if word not in _CHANGES]:
            yield f"--objective.diffaugment.policy={self.policy}: {unknown[0]!r} is not one of {', '.join(_CHANGES)}"
        if len(set(words)) < len(words):
            yield f"--objective.diffaugment.policy={self.policy} names a change twice; each may be named once"

    def augment(self, images: Any, draws: Draws, p: Any) -> Any:
        del p
        draws = draws_as(images.dtype, draws)
        for word in self.policy.split(","):
            images = _CHANGES[word](images, draws)
        return images


def draws_as(dtype: Any, draws: Draws) -> Draws:
    """The same draws, in another floating dtype."""
    import tensorflow as tf

    return Draws(lambda *asked: tf.cast(draws.make(*asked), dtype))


def split_alpha(images: Any) -> tuple[Any, Any]:
    """The colour channels [N, H, W, 1 or 3] and what is left [N, H, W, 0 or 1]: alpha has no brightness."""
    colours = 1 if images.shape[-1] < 3 else 3
    return images[..., :colours], images[..., colours:]


def _color(images: Any, draws: Draws) -> Any:
    import tensorflow as tf

    def drawn(name: str) -> Any:
        return draws.uniform(name, (1, 1, 1))

    x, alpha = split_alpha(images)
    x += drawn("brightness") - 0.5
    gray = tf.reduce_mean(x, -1, keepdims=True)
    x = (x - gray) * 2 * drawn("saturation") + gray
    mean = tf.reduce_mean(x, [1, 2, 3], keepdims=True)
    x = (x - mean) * (drawn("contrast") + 0.5) + mean
    return tf.concat([x, alpha], -1)


def _translation(images: Any, draws: Draws) -> Any:
    """By whole pixels; a positive draw moves the content up, or left, as in the authors' code."""
    import tensorflow as tf

    drawn = draws.uniform("translation", (2, 1))
    for axis in (1, 2):
        size = images.shape[axis]
        reach = int(size * 0.125 + 0.5)
        # In 64 bits: a GPU leaves numbers of 32 to the host.
        shift = tf.cast(tf.floor(drawn[:, axis - 1] * (2 * reach + 1)), tf.int64) - reach
        source = tf.range(size, dtype=tf.int64) + shift  # [N, size]
        inside = _along(axis, (source >= 0) & (source < size))
        moved = tf.gather(images, tf.clip_by_value(source, 0, size - 1), axis=axis, batch_dims=1)
        images = tf.where(inside, moved, 0)
    return images


def _cutout(images: Any, draws: Draws) -> Any:
    """A square whose centre is anywhere, the borders included, so that a part of it may lie outside."""
    import tensorflow as tf

    drawn = draws.uniform("cutout", (2, 1))
    inside = []
    for axis in (1, 2):
        size = images.shape[axis]
        side = int(size * 0.5 + 0.5)
        first = tf.floor(drawn[:, axis - 1] * (size + 1 - side % 2)) - side // 2
        pixel = tf.range(size, dtype=images.dtype)
        inside.append(_along(axis, (pixel >= first) & (pixel < first + side)))
    return tf.where(inside[0] & inside[1], tf.zeros([], images.dtype), images)


def _along(axis: int, values: Any) -> Any:
    """[N, size] as rows [N, size, 1, 1] or columns [N, 1, size, 1] of images."""
    return values[:, :, None, None] if axis == 1 else values[:, None, :, None]


_CHANGES = {"color": _color, "translation": _translation, "cutout": _cutout}
