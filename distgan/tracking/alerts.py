"""What of a run's rows somebody should look at."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Iterator, Mapping
from typing import NamedTuple

Row = Mapping[str, float]

_LONG = 20  # Rows.
_SURE = 0.95  # Mean sign of the real images' logits; 1 is right about all.
_SLOW = 0.6  # Of the run's own median.
_SLOW_ROWS = 3
_WORSE = 2  # Times the best.


class Alert(NamedTuple):
    """A sentence for somebody who is not there."""

    title: str
    text: str
    level: str = "WARN"
    """INFO, WARN or ERROR."""


class Watch:
    """Looks at rows as they come; what goes on is told once, and again after it was over."""

    def __init__(self) -> None:
        self.signs: collections.deque[float] = collections.deque(maxlen=_LONG)
        self.rates: collections.deque[float] = collections.deque(maxlen=10 * _LONG)
        self.slow = 0
        self.told: set[str] = set()

    def row(self, row: Row) -> Iterator[Alert]:
        """Yields what a row gives cause for."""
        yield from self._overfit(row["d_sign/real"]) if "d_sign/real" in row else ()
        yield from self._slow(row["throughput/images_per_second"])
        yield from (
            self._worse(row["eval/fid"], row["eval/fid_best"]) if {"eval/fid", "eval/fid_best"} <= row.keys() else ()
        )

    def _overfit(self, sign: float) -> Iterator[Alert]:
        self.signs.append(sign)
        holds = len(self.signs) == _LONG and min(self.signs) >= _SURE
        text = f"for {_LONG} rows the discriminator has known the real images (d_sign/real is {sign:.3f}): it may have "
        yield from self._once(holds, "discriminator overfits", text + "learnt them by heart; augmentation helps")

    def _slow(self, rate: float) -> Iterator[Alert]:
        median = statistics.median(self.rates) if len(self.rates) >= _LONG else 0.0
        self.slow = self.slow + 1 if rate < _SLOW * median else 0
        if not self.slow:
            self.rates.append(rate)
        text = f"{rate:.0f} images/s, where the run's median is {median:.0f}"
        yield from self._once(self.slow >= _SLOW_ROWS, "throughput dropped", text)

    def _worse(self, distance: float, best: float) -> Iterator[Alert]:
        text = f"eval/fid is {distance:.2f}, and was {best:.2f}: the best checkpoint is kept"
        yield from self._once(distance > _WORSE * best, "score got worse", text)

    def _once(self, holds: bool, title: str, text: str) -> Iterator[Alert]:
        if holds and title not in self.told:
            yield Alert(title, text)
        (self.told.add if holds else self.told.discard)(title)
