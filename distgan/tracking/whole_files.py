"""Files that are whole, whatever happens while they are written; and damaged ones, which are set aside and not lost."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

_ASIDE = ".corrupt"


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
