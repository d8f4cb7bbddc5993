"""The log, on the terminal and in a file, and a progress line."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn

from distgan.errors import UserError, printable
from distgan.tracking.alerts import Alert, Row
from distgan.tracking.tracker import Sink

log = logging.getLogger("distgan")
_console = Console(stderr=True)
_TELL_SECONDS = 10


class _Formatter(logging.Formatter):
    """Names of files and classes, and other workers' words, may hold what commands a terminal: it is spelled out."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _LogFile(logging.FileHandler):
    """A log file; what a full disk does not take is not worth an error."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def start_log(show: bool = True) -> None:
    """Sends the log to stderr, or nowhere yet: of several workers the primary alone is heard."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if _console.is_terminal:
        handler = RichHandler(
            console=_console, show_time=False, show_level=False, show_path=False, highlighter=NullHighlighter()
        )
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for old in log.handlers:
        old.close()
    log.handlers = [handler] if show else []
    log.setLevel(logging.INFO)
    log.propagate = False


def log_to(path: Path) -> None:
    """Sends the log to a file as well.

    Raises:
      UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path)
    except OSError as error:
        raise UserError(f"--run_dir={path.parent} cannot be written: {error.strerror}") from None
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)


def move_log(path: Path) -> None:
    """Goes on with the log's file in another place: that to which it was moved, or a new file, which gets all lines so far."""
    for handler in [each for each in log.handlers if isinstance(each, _LogFile)]:
        with contextlib.suppress(OSError, UserError):
            lines = Path(f"/proc/self/fd/{handler.stream.fileno()}").read_bytes() if handler.stream else b""
            if not path.exists():
                path.write_bytes(lines)
            log_to(path)
            log.removeHandler(handler)
            handler.close()


class ProgressLine(Sink):
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
            f"{clock((self.total_images - seen) / rate) if rate > 0 else '?'} left  "
            f"loss D {row['loss/discriminator']:.3f} G {row['loss/generator']:.3f}"
        )
        if self.live:
            self.live.update(self.task, completed=seen, description=text)
        else:
            log.info(text)

    def alert(self, alert: Alert) -> None:
        """Says it."""
        log.log(logging.INFO if alert.level == "INFO" else logging.WARNING, "%s: %s", alert.title, alert.text)

    def close(self, exit_code: int) -> None:
        """Removes the live line."""
        if self.live:
            self.live.stop()


class Count:
    """A context that shows how many images are done, with rate and time left: live on a terminal, else a line now and then."""

    def __init__(self, doing: str, total_images: int):
        self.doing, self.total_images, self.done = doing, total_images, 0
        self.live = Progress(BarColumn(), TextColumn("{task.description}"), console=_console, transient=True)

    def __enter__(self) -> Count:
        self.start = self.told = time.monotonic()
        self.task = self.live.add_task(self.doing, total=self.total_images)
        if _console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.live.stop()

    def add(self, images: int) -> None:
        """Counts images."""
        self.done += images
        now = time.monotonic()
        rate = self.done / max(now - self.start, 1e-9)
        left = clock((self.total_images - self.done) / max(rate, 1e-9))
        text = f"{self.doing} {self.done} of {self.total_images} images  {rate:.0f} images/s  {left} left"
        self.live.update(self.task, completed=self.done, description=text)
        if not _console.is_terminal and now - self.told > _TELL_SECONDS:
            self.told = now
            log.info(text)


def clock(seconds: float) -> str:
    """`4:05`, or `1:04:05` from an hour on."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
