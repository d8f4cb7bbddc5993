"""A number that may change along the run: what a flag holds, and its value at an image count.

`0.002` is constant. `linear:0.002:0:6400` goes from 0.002 to 0 while 6,400 kimg are seen and stays there, `cosine:...` along
half a cosine. Without the last number it takes the whole run.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

_KINDS = ("linear", "cosine")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """From `start` to `end`, in `kimg` thousands of images: v(n) = start + s(n / N) (end - start), constant after N images.

    s(t) is t (linear) or (1 - cos(pi t)) / 2 (cosine; Loshchilov and Hutter 2017, eq. 5 without restarts).
    """

    start: float
    end: float
    kind: str = "linear"
    kimg: float | None = None
    """None is the whole run."""

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """The schedule that a flag spells; raises ValueError where it spells none."""
        kind, *numbers = text.split(":")
        if not numbers:
            return cls.constant(float(text))
        if kind not in _KINDS or len(numbers) not in (2, 3):
            raise ValueError
        start, end, *kimg = map(float, numbers)
        if kimg and not 0 < kimg[0] < math.inf:
            raise ValueError
        if start == end:
            return cls.constant(start)
        return cls(start, end, kind, kimg[0] if kimg else None)

    @classmethod
    def constant(cls, value: float) -> Schedule:
        """One value for the whole run."""
        return cls(value, value)

    @property
    def is_constant(self) -> bool:
        """Whether it has one value."""
        return self.start == self.end

    @property
    def takes_whole_run(self) -> bool:
        """Whether its values depend on the length of the run."""
        return not self.is_constant and self.kimg is None

    def __str__(self) -> str:
        if self.is_constant:
            return str(self.start)
        return ":".join(map(str, [self.kind, self.start, self.end, *([self.kimg] if self.kimg else [])]))

    def at(self, images_seen: Any, total_kimg: float) -> Any:
        """The value once `images_seen` images (int64 scalar) of a run of `total_kimg` were seen, as a float64 scalar tensor."""
        import tensorflow as tf

        if self.is_constant:
            return tf.constant(self.start, tf.float64)
        length = 1000 * (self.kimg or total_kimg)
        share = tf.minimum(tf.cast(images_seen, tf.float64) / length, 1)
        if self.kind == "cosine":
            share = (1 - tf.cos(math.pi * share)) / 2
        return self.start + share * (self.end - self.start)


def schedule(value: float | str) -> Schedule:
    """A schedule as a default of an option: `schedule(0.002)`, `schedule("cosine:0.05:0.005:20000")`."""
    return Schedule.parse(str(value))
