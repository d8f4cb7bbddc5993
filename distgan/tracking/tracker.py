"""One object for where numbers and pictures go; a worker that writes nothing has the same object, empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distgan.tracking import json_lines
from distgan.tracking.alerts import Alert, Row, Watch

_BINS = 64


class Sink:
    """A place for what a run says of itself; by default it takes nothing."""

    stop_asked = False
    """Whether somebody asked there for the run's end."""

    def row(self, row: Row) -> None:
        """Takes one report; `progress/images_seen` is its place on the axis."""

    def picture(self, name: str, path: Path, images_seen: int) -> None:
        """Takes a picture file, as `samples/ema_grid`."""

    def histogram(self, name: str, counts: np.ndarray, edges: np.ndarray, images_seen: int) -> None:
        """Takes a histogram, as `d_logits/real`: int [B] numbers between float [B + 1] edges."""

    def evaluation(self, cards: Mapping[str, Any]) -> None:
        """Takes how the scores of an evaluation were got."""

    def checkpoint(self, path: Path, images_seen: int, best: bool, facts: Mapping[str, Any]) -> None:
        """Takes a checkpoint that is on the disk."""

    def alert(self, alert: Alert) -> None:
        """Takes what somebody should look at."""

    def move(self, run_dir: Path) -> None:
        """Goes on in another run directory: the moved one, or one that was made anew."""

    def leave(self, exit_code: int) -> None:
        """Hears how the run ends where nobody can wait for it to close; from any thread."""

    def close(self, exit_code: int) -> None:
        """Ends with the exit code of the run."""


class Tracker:
    """Hands everything to every sink, once: what a restart works out again is not written again."""

    def __init__(self, sinks: Sequence[Sink], seen_before: int = -1):
        self.sinks = sinks
        self.seen_before = seen_before
        self.watch = Watch()

    @property
    def stop_asked(self) -> bool:
        """Whether somebody asked for the run's end, where it is tracked."""
        return any(sink.stop_asked for sink in self.sinks)

    @property
    def takes_histograms(self) -> bool:
        """Whether any sink does something with them."""
        return any(type(sink).histogram is not Sink.histogram for sink in self.sinks)

    def row(self, row: Row) -> None:
        """Takes one report, unless an earlier start of the run has written its place on the axis."""
        if row["progress/images_seen"] > self.seen_before:
            self.seen_before = int(row["progress/images_seen"])
            for sink in self.sinks:
                sink.row(row)
            for alert in self.watch.row(row) if self.sinks else ():
                self.alert(alert)

    def picture(self, name: str, path: Path, images_seen: int) -> None:
        """Takes a picture file."""
        for sink in self.sinks:
            sink.picture(name, path, images_seen)

    def histogram(self, name: str, values: np.ndarray, images_seen: int) -> None:
        """Takes float [N] values as a histogram."""
        counts, edges = np.histogram(values[np.isfinite(values)], _BINS)
        for sink in self.sinks:
            sink.histogram(name, counts, edges, images_seen)

    def evaluation(self, cards: Mapping[str, Any]) -> None:
        """Takes how the scores of an evaluation were got."""
        for sink in self.sinks:
            sink.evaluation(cards)

    def checkpoint(self, path: Path, images_seen: int, best: bool, facts: Mapping[str, Any]) -> None:
        """Takes a checkpoint that is on the disk; from any thread."""
        for sink in self.sinks:
            sink.checkpoint(path, images_seen, best, facts)

    def move(self, run_dir: Path) -> None:
        """Tells every sink where the run directory is now."""
        for sink in self.sinks:
            sink.move(run_dir)

    def alert(self, alert: Alert) -> None:
        """Tells of what somebody should look at."""
        for sink in self.sinks:
            sink.alert(alert)

    def leave(self, exit_code: int) -> None:
        """Tells every sink how the run ends, and waits for none; from any thread."""
        for sink in self.sinks:
            sink.leave(exit_code)

    def close(self, exit_code: int) -> None:
        """Ends every sink."""
        for sink in self.sinks:
            sink.close(exit_code)


class JsonLines(Sink):
    """`metrics.jsonl`: a JSON object a row, appended; see `json_lines` for what is torn, damaged or not taken by the disk."""

    def __init__(self, path: Path):
        """Opens the file, once what an earlier start left of it is whole.

        Raises:
          OSError: it cannot be read or written.
        """
        last = json_lines.mend(path, json_lines.is_row)
        self.last_images_seen = int(last["progress/images_seen"]) if last else -1
        self.lines = json_lines.Appender(path)
        self.lines.open()

    def row(self, row: Row) -> None:
        # JSON has no NaN and no infinity: what is not finite is written as null.
        self.lines.add({key: value if abs(value) < float("inf") else None for key, value in row.items()})

    def move(self, run_dir: Path) -> None:
        self.lines.move(run_dir / self.lines.path.name)

    def close(self, exit_code: int) -> None:
        self.lines.close()
