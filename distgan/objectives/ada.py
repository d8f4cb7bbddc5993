"""Adaptive discriminator augmentation (Karras et al. 2020, "Training generative adversarial networks with limited data")."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from distgan.objectives.augment import Augmentation, draws_as, split_alpha
from distgan.schedules import Schedule, schedule
from distgan.schema import option
from distgan.seeds import Draws


@dataclasses.dataclass(frozen=True)
class Pipe(Augmentation):
    """The paper's transforms (appendix B, algorithm 1), each made to an image with probability p times its group's multiplier.

    The default is the paper's `bgc`. Alpha takes part in what moves or blanks pixels, not in what changes colours.
    """

    blit: float = option(1.0, "multiplier of flips, quarter turns and whole-pixel shifts", minimum=0, maximum=1)
    geom: float = option(1.0, "multiplier of scaling, rotation, stretching and shifts", minimum=0, maximum=1)
    color: float = option(
        1.0, "multiplier of brightness, contrast, luma flip, hue and saturation", minimum=0, maximum=1
    )
    filter: float = option(0.0, "multiplier of gains of four frequency bands", minimum=0, maximum=1)
    noise: float = option(0.0, "multiplier of additive noise", minimum=0, maximum=1)
    cutout: float = option(0.0, "multiplier of a blank square", minimum=0, maximum=1)

    def augment(self, images: Any, draws: Draws, p: Any) -> Any:
        import tensorflow as tf

        from distgan.objectives import pipe

        draws, p = draws_as(images.dtype, draws), tf.cast(p, images.dtype)
        if self.blit or self.geom:
            images = pipe.warp(images, pipe.geometry(draws, p * self.blit, p * self.geom, images.shape[1:3]))
        x, alpha = split_alpha(images)
        if self.color:
            x = pipe.recolor(x, draws, p * self.color)
        if self.filter:
            x = pipe.equalize(x, draws, p * self.filter)
        if self.noise:
            x = pipe.add_noise(x, draws, p * self.noise)
        images = tf.concat([x, alpha], -1)
        return pipe.cut_out(images, draws, p * self.cutout) if self.cutout else images


@dataclasses.dataclass(frozen=True)
class Ada(Pipe):
    """p follows how far the discriminator overfits: r_t = E[sign D(x)] of real images x (section 3, heuristic r_t).

    Every `interval` updates p moves by the same amount up where r_t is above its target, down where it is below.
    """

    target: float = option(0.6, "the r_t that p aims at", minimum=-1, maximum=1)
    speed_kimg: float = option(500.0, "images in which p could go from 0 to 1", above=0)
    interval: int = option(4, "discriminator updates between two adjustments of p", minimum=1)
    most: float = option(1.0, "p is never more", minimum=0, maximum=1)
    start: float = option(0.0, "p at the start", minimum=0, maximum=1)

    def fits(self, image_shape: tuple[int, int, int]) -> Iterator[str]:
        yield from super().fits(image_shape)
        if self.start > self.most:
            yield (
                f"--objective.ada.start={self.start} is more than --objective.ada.most={self.most}; "
                f"--objective.ada.most={self.start} allows it"
            )

    def initial(self) -> dict[str, float]:
        return {"p": self.start, "sign_sum": 0.0, "updates": 0.0}

    def update(self, kept: Mapping[str, Any], measured: Mapping[str, Any], images_per_step: int) -> dict[str, Any]:
        import tensorflow as tf

        p, sign_sum, updates = kept["p"], kept["sign_sum"] + measured["d_sign/real"], kept["updates"] + 1
        move = tf.sign(sign_sum / updates - self.target) * self.interval * images_per_step / (1000 * self.speed_kimg)
        due = updates >= self.interval
        return {
            "p": tf.where(due, tf.clip_by_value(p + move, 0, self.most), p),
            "sign_sum": tf.where(due, tf.zeros_like(sign_sum), sign_sum),
            "updates": tf.where(due, tf.zeros_like(updates), updates),
        }

    def probability(self, kept: Mapping[str, Any], images_seen: Any, total_kimg: float) -> Any:
        return kept["p"]


@dataclasses.dataclass(frozen=True)
class Fixed(Pipe):
    """p is set beforehand (the paper's figure 4), perhaps on a schedule (as in R3GAN; Huang et al. 2024)."""

    p: Schedule = option(schedule(0.5), "probability of each transform, perhaps on a schedule")

    def fits(self, image_shape: tuple[int, int, int]) -> Iterator[str]:
        yield from super().fits(image_shape)
        if not (0 <= self.p.start <= 1 and 0 <= self.p.end <= 1):
            yield f"--objective.fixed.p={self.p} leaves the probabilities, which are 0 to 1; --objective.fixed.p=1 is all"

    def probability(self, kept: Mapping[str, Any], images_seen: Any, total_kimg: float) -> Any:
        return self.p.at(images_seen, total_kimg)
