"""Files of a JSON object a line: written to so that nothing tears them, read and mended where something has."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from distgan import files

log = logging.getLogger("distgan")

Check = Callable[[dict[str, Any]], bool]
"""Whether an object is what a line of the file holds."""
_MOST_NAMED = 5
_MOST_IMAGES = 1e15
_LARGEST_BYTES = 2**30


def is_row(content: dict[str, Any]) -> bool:
    """Whether an object is a row of metrics.jsonl: one with a place on the axis."""
    seen: Any = content.get("progress/images_seen")
    return is_number(seen) and 0 <= seen <= _MOST_IMAGES


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse(line: bytes, check: Check) -> dict[str, Any] | None:
    """The object of a line; None where it is damaged."""
    try:
        content = json.loads(line)
        return content if isinstance(content, dict) and check(content) else None
    except (ValueError, RecursionError):
        return None


def read(path: Path, check: Check) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file that may not be there, oldest first; damaged lines are passed over.

    Raises:
      OSError: the file cannot be read.
    """
    *lines, rest = files.read_bytes(path, _LARGEST_BYTES).split(b"\n") if path.exists() else (b"",)
    damaged = 0
    for line in lines:
        content = parse(line, check)
        damaged += content is None
        if content is not None:
            yield content
    if rest and (content := parse(rest, check)) is not None:  # Otherwise torn, or still being written.
        yield content
    if damaged:
        log.warning("%s: %d damaged lines are passed over", path, damaged)


def mend(path: Path, check: Check) -> dict[str, Any] | None:
    """Makes a file one of whole lines, so that it can be added to; returns the last line's object, None where there is none.

    A torn last line, as a kill or a full disk leaves it, is cut off; it stays where it lacks its end alone. Where other lines
    are damaged, the file is set aside under another name, and goes on with those that are not.

    Raises:
      OSError: the file cannot be read or written.
    """
    if not path.exists():
        return None
    *lines, rest = files.read_bytes(path, _LARGEST_BYTES).split(b"\n")
    last, damaged = None, []
    for number, line in enumerate(lines, 1):
        content = parse(line, check)
        damaged += [number] if content is None else []
        last = last if content is None else content
    if rest and (content := parse(rest, check)) is not None:
        last = content
        with path.open("ab") as file:
            file.write(b"\n")
        lines.append(rest)
    elif rest:
        os.truncate(path, path.stat().st_size - len(rest))
    if damaged:
        aside = files.set_aside(path, keep=True)
        whole = [line for number, line in enumerate(lines, 1) if number not in set(damaged)]
        files.write_whole(path, b"".join(line + b"\n" for line in whole))
        names = ", ".join(map(str, damaged[:_MOST_NAMED])) + (", ..." if len(damaged) > _MOST_NAMED else "")
        log.warning("%s is damaged in line %s: kept as %s, the other %d go on", path, names, aside.name, len(whole))
    return last


class Appender:
    """Adds lines to a file, whole or not at all. What a full or failing disk does not take waits in memory for the next one."""

    def __init__(self, path: Path):
        self.path = path
        self.waiting: list[bytes] = []
        self.file: BinaryIO | None = None

    def open(self) -> BinaryIO:
        """Opens the file, which the first line does where nobody else has.

        Raises:
          OSError: it cannot be written.
        """
        if self.file is None:
            self.file = self.path.open("a+b", buffering=0)
        return self.file

    def add(self, content: Mapping[str, Any]) -> None:
        """Adds an object, which JSON must hold."""
        self.waiting.append(json.dumps(content, allow_nan=False).encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        if not self.waiting:
            return
        try:
            self._write(b"".join(self.waiting))
        except OSError as error:
            if len(self.waiting) == 1:
                log.warning("%s cannot be written (%s): its line waits for the next one", self.path, error.strerror)
            return
        self.waiting = []

    def _write(self, data: bytes) -> None:
        file = self.open().fileno()
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            data = b"\n" + data  # Another process has left a torn line.
        try:
            if os.write(file, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(file, size)
            raise

    def move(self, path: Path) -> None:
        """Goes on in another place: that to which the file was moved, or a new file, which gets the lines that it lacks."""
        old, self.path = self.file, path
        if old is None:
            return
        try:
            new = path.open("a+b", buffering=0)
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error.strerror)
            return
        self.file = new
        if not os.path.samestat(os.fstat(old.fileno()), os.fstat(new.fileno())):
            lines, there = (os.pread(file, os.fstat(file).st_size, 0) for file in (old.fileno(), new.fileno()))
            if lines.startswith(there):
                self.waiting = [lines[len(there) :], *self.waiting]
                self.flush()
        old.close()

    def close(self) -> None:
        """Ends the file; what could not be written is lost."""
        self.flush()
        if self.waiting:
            log.warning("%s lacks its last %d lines", self.path, len(self.waiting))
        if self.file:
            self.file.close()
