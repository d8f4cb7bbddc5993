"""`distgan doctor --run_dir=...`: the checkpoints of a run, whether each is what it was, and what a restart would do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from distgan import config as configs
from distgan import schema
from distgan.config import Config
from distgan.errors import UserError
from distgan.training import checkpoint
from distgan.training.run_dir import read_config

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def describe(run_dir: Path) -> Iterator[str]:
    """Yields a line a checkpoint, oldest first, and one of what `distgan train --run_dir=...` would do.

    Raises:
      UserError: there is no run, or it cannot go on.
    """
    values = read_config(run_dir)
    if not values:
        raise UserError(f"--run_dir={run_dir} holds no run: config.json is not there")
    folder, good = run_dir / "checkpoints", []
    best = checkpoint.best_images_seen(folder)
    there = sorted(path for path in folder.glob("*") if path.is_dir())
    for path in there:
        state = _state(path)
        if state == "verified":
            good.append(int(path.name))
            state += ", the best" if good[-1] == best else ""
        age = _age(time.time() - path.stat().st_mtime)
        size = _size(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
        yield f"{path.name}: {_kimg(path.name)}{size}, {age} old, {state}"
    total = configs.images(schema.build(Config, values).train.total_kimg)
    if not good and any(path.name.isdigit() for path in there):
        raise UserError(f"{folder}: none of its checkpoints is whole; restore one, or choose another --run_dir")
    if not good:
        yield f"a restart begins at 0 of {total / 1000:g} kimg: there is no checkpoint"
    elif good[-1] >= total:
        yield f"a restart has nothing left to do: {good[-1] / 1000:g} of {total / 1000:g} kimg are done"
    else:
        yield f"a restart goes on at {good[-1] / 1000:g} of {total / 1000:g} kimg, from {folder / f'{good[-1]:012d}'}"


def _state(path: Path) -> str:
    if not path.name.isdigit():
        return "set aside as damaged" if ".corrupt" in path.name else "not finished, is removed at the next save"
    damage = checkpoint.damage(path)
    return f"DAMAGED ({damage}), is set aside at a restart" if damage else "verified"


def _kimg(name: str) -> str:
    return f"{int(name) / 1000:g} kimg, " if name.isdigit() else ""


def _size(count: int) -> str:
    """A number of bytes in words.

    >>> _size(5), _size(3 * 2**20)
    ('5 bytes', '3.0 MiB')
    """
    return next((f"{count / unit:.1f} {name}" for unit, name in _UNITS if count >= unit), f"{count} bytes")


def _age(seconds: float) -> str:
    """A time in words.

    >>> _age(5), _age(7200), _age(200000)
    ('5 s', '2.0 h', '2.3 days')
    """
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{max(seconds, 0):.0f} s"
