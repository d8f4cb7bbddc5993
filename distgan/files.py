"""Opening files that somebody else may have made: only regular ones, and no more of them than was asked for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | Path) -> BinaryIO:
    """A file opened for reading; a pipe, a socket or a device, which could block or never end, is refused.

    Raises:
      OSError: it cannot be opened, or is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_text(path: str | Path, most_bytes: int) -> str:
    """The text of a small file.

    Raises:
      OSError: it cannot be read, is no regular file, or is larger.
      ValueError: it is no UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes} bytes", str(path))
    return content.decode()
