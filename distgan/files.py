"""Reading files that somebody else may have made, and writing files that are whole whatever happens meanwhile.

Only regular files are read, and no more of them than is asked for. Damaged ones are set aside, or made anew if they are caches.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import math
import os
import shutil
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

log = logging.getLogger("distgan")

_ASIDE = ".corrupt"
_SEAL = b"distgan sha256 "
_SEAL_BYTES = len(_SEAL) + hashlib.sha256().digest_size
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def descriptor(path: str | Path) -> int:
    """A descriptor for reading a file; a pipe, a socket or a device, which could block or never end, is refused.

    Raises:
      OSError: it cannot be opened, or is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody to write to it.
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return opened


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file opened for reading; raises OSError as `descriptor` does."""
    return os.fdopen(descriptor(path), "rb")


def read_text(path: str | Path, most_bytes: int) -> str:
    """The text of a small file.

    Raises:
      OSError: it cannot be read, is no regular file, or is larger.
      ValueError: it is no UTF-8.
    """
    return read_bytes(path, most_bytes).decode()


def read_bytes(path: str | Path, most_bytes: int) -> bytes:
    """The content of a file; raises OSError where it cannot be read, is no regular file, or is larger."""
    with open_regular(path) as file:
        content = file.read() if os.fstat(file.fileno()).st_size <= most_bytes else b""
        if len(content) > most_bytes or file.read(1):
            raise OSError(errno.EFBIG, f"it is larger than {most_bytes:,} bytes", str(path))
    return content


def set_aside(path: Path, keep: bool = False) -> Path:
    """Gives a damaged file another name, so that it is not lost; with `keep` it has both. Returns its new place.

    Raises:
      OSError: it cannot be renamed.
    """
    names = (f"{path.name}{_ASIDE}" + (f".{number}" if number else "") for number in range(1000))
    place = next((place for name in names if not (place := path.with_name(name)).exists()), None)
    if place is None:
        raise FileExistsError(errno.EEXIST, "1000 others of its name are set aside", str(path))
    if keep:
        shutil.copy2(path, place)
        return place
    return path.rename(place)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is the old one or the new one, whatever happens meanwhile.

    Raises:
      OSError: it cannot be written; the old one is untouched.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


class Damaged(ValueError):
    """A file that is not what it should be; says why."""


def sealed(content: bytes) -> bytes:
    """Content with its SHA-256 behind it, for a file that is made anew where it is damaged."""
    return content + _SEAL + hashlib.sha256(content).digest()


def read_sealed(path: Path) -> bytes | None:
    """What was sealed in a file; None where there is none, or it is damaged or of before there were seals."""
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError:
        return None
    content, seal = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    if seal == _SEAL + hashlib.sha256(content).digest():
        return content
    log.warning("%s is damaged, or of an earlier version: it is made anew", path)
    return None


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays to a sealed file of a cache; raises OSError where it cannot be written."""
    made = io.BytesIO()
    np.savez(made, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, sealed(made.getvalue()))


def read_sealed_npz(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of the wanted arrays that a file of `write_npz` has; none where it is not there, or damaged."""
    content = read_sealed(path)
    return {} if content is None else read_npz(io.BytesIO(content), wanted)[0]


def read_npz(file: BinaryIO, wanted: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of the wanted arrays that an .npz file has, and the names of all that it has.

    Nothing in it is run, and it takes no more memory than it says, which is looked at first.

    Raises:
      Damaged: it is no .npz, or one of the arrays is not what it says.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            return {name: _array(archive, entries[name], name) for name in wanted if name in entries}, list(entries)
    except Damaged:
        raise
    except (
        Exception
    ) as error:  # Of zipfile, zlib, lzma and NumPy, whose parser of headers raises what Python's own does.
        raise Damaged(str(error) or type(error).__name__) from None


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> np.ndarray:
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise Damaged(f"{name} is of an unknown version of NumPy's format")
        shape, by_columns, dtype = _HEADERS[version](stream)
        if dtype.hasobject:
            raise Damaged(f"{name} holds Python objects, and not numbers")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != entry.file_size - stream.tell():
            raise Damaged(f"{name} says it is {dtype} {list(shape)}, and has another number of bytes")
        if size > (free := free_memory()):
            raise Damaged(f"{name} takes {size / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of memory are free")
        array = np.empty(math.prod(shape), dtype)
        view, done = array.view(np.uint8) if size else np.empty(0, np.uint8), 0
        while part := stream.read(min(2**24, size - done + 1)):
            view[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        if done != size:
            raise Damaged(f"{name} is cut short")
    return array.reshape(shape, order="F" if by_columns else "C")


def free_memory() -> int:
    """The bytes that this process may still take: of the machine, or of its container where that has less."""
    import psutil  # Help does not need it.

    free = psutil.virtual_memory().available
    try:
        most = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, most - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass  # No container, or one without a limit.
    return free
