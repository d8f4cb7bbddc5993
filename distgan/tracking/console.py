"""The log, on the terminal and in a file, and a progress line."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn

from distgan.tracking.tracker import Row

log = logging.getLogger("distgan")
_console = Console(stderr=True)


def start_log() -> None:
    """Sends the log to stderr."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if _console.is_terminal:
        handler = RichHandler(
            console=_console, show_time=False, show_level=False, show_path=False, highlighter=NullHighlighter()
        )
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def log_to(path: Path) -> None:
    """Sends the log to a file as well."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)


class ProgressLine:
    """A live line on a terminal; a log line a report elsewhere."""

    def __init__(self, total_images: int):
        self.total_images = total_images
        self.live: Progress | None = None
        if _console.is_terminal:
            columns = (BarColumn(), TextColumn("{task.description}"))
            self.live = Progress(*columns, console=_console, transient=True)
            self.task = self.live.add_task("compiling", total=total_images)
            self.live.start()

    def row(self, row: Row) -> None:
        """Shows a report."""
        seen, rate = row["progress/images_seen"], row["throughput/images_per_second"]
        text = (
            f"{seen / 1000:.1f} of {self.total_images / 1000:g} kimg  {rate:.0f} images/s  "
            f"{clock((self.total_images - seen) / rate)} left  "
            f"loss D {row['loss/discriminator']:.3f} G {row['loss/generator']:.3f}"
        )
        if self.live:
            self.live.update(self.task, completed=seen, description=text)
        else:
            log.info(text)

    def picture(self, name: str, path: Path, images_seen: int) -> None:
        """Pictures are not shown."""

    def close(self, exit_code: int) -> None:
        """Removes the live line."""
        if self.live:
            self.live.stop()


def clock(seconds: float) -> str:
    """`4:05`, or `1:04:05` from an hour on."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
