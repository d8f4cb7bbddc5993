"""The standard streams, which may be closed, full, or those of a terminal that is gone: what nobody can read ends nothing."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any, TextIO

_PATIENCE_SECONDS = 1  # With a terminal that takes no more for now, and says so instead of waiting.


class OutputLost(Exception):
    """What was printed cannot be written; `reader_left` as that of `| head` does, who wants no more."""

    def __init__(self, error: OSError):
        super().__init__(f"standard output cannot be written: {error.strerror}")
        self.reader_left = isinstance(error, BrokenPipeError)


class _File(io.FileIO):
    def __init__(self, number: int, forgives: bool):
        super().__init__(number, "w", closefd=False)
        self.forgives = forgives

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
            if written is None:
                select.select([], [self.fileno()], [], _PATIENCE_SECONDS)
                written = super().write(data)
            return len(data) if written is None else written
        except OSError as error:
            if self.forgives:
                return len(data)
            raise OutputLost(error) from None


def open_closed() -> None:
    """Opens /dev/null for streams that are closed; otherwise the next files that are opened would be taken for them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest number that is free: this one.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def forgiving(stream: TextIO) -> TextIO:
    """The same stream, which loses what it cannot write, and raises no error."""
    return _wrapped(stream, forgives=True)


def strict(stream: TextIO) -> TextIO:
    """The same stream, which raises `OutputLost` where it cannot write."""
    return _wrapped(stream, forgives=False)


def _wrapped(stream: TextIO, forgives: bool) -> TextIO:
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # One that a test or a notebook has put in its place.
        return stream
    raw: Any = _File(number, forgives)
    line_buffering = forgives or stream.isatty()
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors, line_buffering=line_buffering
    )
