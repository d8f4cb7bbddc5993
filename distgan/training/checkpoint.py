"""Checkpoints: directories that are there only when they are whole.

One is written under a temporary name, forced to the disk and renamed; its manifest, written last, holds a SHA-256 of the
data. A directory is named by the images seen, so the newest is the last by name. Nothing in it depends on the strategy or
the number of replicas: arrays by name, read without TensorFlow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from distgan.errors import UserError
from distgan.tracking.console import log

_STATE = "state.safetensors"
_MANIFEST = "manifest.json"
_TEMPORARY = ".tmp-"
_BEST = "best.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What one holds."""

    arrays: Mapping[str, np.ndarray]
    """Every variable of the state, by name."""
    info: Mapping[str, Any]
    """`images_seen`, `data_fingerprint` and whatever else explains it."""


def write(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Saves a checkpoint and removes all but the newest `keep` and the best; returns its directory.

    Raises:
      OSError: the disk is full or not writable; the checkpoints that were there are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{checkpoint.info['images_seen']:012d}"
    for left_over in folder.glob(_TEMPORARY + "*"):
        shutil.rmtree(left_over, ignore_errors=True)
    if not _is_good(target):
        _write(folder, target, checkpoint)
    best = best_images_seen(folder)
    for old in whole(folder)[:-keep]:
        if int(old.name) != best:
            _remove(old)
    return target


def _write(folder: Path, target: Path, checkpoint: Checkpoint) -> None:
    temporary = folder / (_TEMPORARY + target.name)
    try:
        temporary.mkdir()
        data = save(dict(checkpoint.arrays))
        _write_through(temporary / _STATE, data)
        manifest = {**checkpoint.info, "sha256": {_STATE: hashlib.sha256(data).hexdigest()}}
        _write_through(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync(temporary)
        _remove(target)
        temporary.rename(target)
        _sync(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def mark_best(folder: Path, images_seen: int) -> None:
    """Notes which checkpoint has the best score."""
    temporary = folder / (_TEMPORARY + _BEST)
    _write_through(temporary, json.dumps({"images_seen": images_seen}).encode())
    temporary.rename(folder / _BEST)


def best_images_seen(folder: Path) -> int | None:
    """The images seen of the checkpoint with the best score; None where none is noted."""
    try:
        return int(json.loads((folder / _BEST).read_text())["images_seen"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find(folder: Path, which: str, flag: str) -> Checkpoint:
    """The `newest` checkpoint, the `best`, or the one of so many images seen; `flag` is what asked for it.

    Raises:
      UserError: there is none, or it is damaged.
    """
    if which == "newest":
        if (found := newest(folder)) is None:
            raise UserError(f"--run_dir={folder.parent} has no checkpoint yet")
        return found
    images_seen = best_images_seen(folder) if which == "best" else which
    there = {path.name.lstrip("0") or "0": path for path in whole(folder)}
    if str(images_seen) not in there:
        names = ", ".join(there) or "no other"
        there_is = f"newest, best (after an evaluation), {names}"
        raise UserError(f"--{flag}={which} is no checkpoint of --run_dir={folder.parent}: {there_is}")
    try:
        return read(there[str(images_seen)])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--{flag}={which}: the checkpoint is damaged ({error})") from None


def whole(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path.parent for path in folder.glob(f"*/{_MANIFEST}") if path.parent.name.isdigit())


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is what its manifest says; None where there is none. Damaged ones are named and passed over."""
    for path in reversed(whole(folder)):
        try:
            return read(path)
        except (OSError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is damaged (%s): going back to the one before", path, error)
    return None


def read(path: Path) -> Checkpoint:
    """The checkpoint in a directory.

    Raises:
      OSError, ValueError, KeyError: it is not what its manifest says.
    """
    info = json.loads((path / _MANIFEST).read_text())
    data = (path / _STATE).read_bytes()
    if hashlib.sha256(data).hexdigest() != info.pop("sha256")[_STATE]:
        raise ValueError(f"{_STATE} has another SHA-256")
    return Checkpoint(load(data), info)


def _is_good(path: Path) -> bool:
    try:
        return bool(read(path).info)
    except (OSError, ValueError, KeyError):
        return False


def _remove(path: Path) -> None:
    """Removes a directory under another name, so that no part of it is ever taken for a checkpoint."""
    if path.exists():
        doomed = path.with_name(f"{_TEMPORARY}removed-{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed)


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
