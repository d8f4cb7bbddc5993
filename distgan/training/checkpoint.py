"""Checkpoints: directories that are there only when they are whole.

One is written under a temporary name, forced to the disk and renamed; its manifest, written last, holds the SHA-256 of every
file. A directory is named by the images seen, so the newest is the last by name. Nothing in it depends on the strategy or
the number of replicas: arrays by name, a file for each network, read without TensorFlow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors.numpy import load, save

from distgan import files
from distgan.errors import UserError
from distgan.tracking.console import log

_MANIFEST = "manifest.json"
_SUFFIX = ".safetensors"
_REST = "run"
_TEMPORARY = ".tmp-"
_BEST = "best.json"

Damage = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What `read` raises of a checkpoint that is not what its manifest says (safetensors' own error among them)."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What one holds."""

    arrays: Mapping[str, np.ndarray]
    """Every variable of the state, by name."""
    info: Mapping[str, Any]
    """`images_seen`, `data_fingerprint` and whatever else explains it."""

    @property
    def images_seen(self) -> int:
        """When it was taken."""
        return int(self.info["images_seen"])


def name(images_seen: int) -> str:
    """Of a checkpoint's directory."""
    return f"{images_seen:012d}"


def write(folder: Path, checkpoint: Checkpoint, keep: int, best: bool = False) -> Path:
    """Saves a checkpoint, and then removes all but the newest `keep` and the best; returns its directory.

    What is removed gave way to one that was read back and is whole.

    Args:
      folder: of all checkpoints of the run.
      checkpoint: what to save; if it is there and whole, nothing is written.
      keep: how many to keep besides the best.
      best: whether it is the best from now on.

    Raises:
      OSError: the disk is full or not writable; the checkpoints that were there are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name(checkpoint.images_seen)
    for left_over in folder.glob(_TEMPORARY + "*"):
        shutil.rmtree(left_over, ignore_errors=True)
    if target.exists() and damage(target):
        set_aside(target)
    if not target.exists():
        _write(folder, target, checkpoint)
        if problem := damage(target):
            raise OSError(f"what was written to {target} is not what is read from it: {problem}")
    if best:
        _mark_best(folder, checkpoint.images_seen)
    kept = best_images_seen(folder)
    for old in whole(folder)[:-keep]:
        if int(old.name) != kept:
            _remove(old)
    return target


def _write(folder: Path, target: Path, checkpoint: Checkpoint) -> None:
    temporary = folder / (_TEMPORARY + target.name)
    try:
        temporary.mkdir()
        files = {}
        for name, arrays in _files(checkpoint.arrays).items():
            data = save(arrays)
            _write_through(temporary / name, data)
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest = {**checkpoint.info, "files": files}
        _write_through(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync(temporary)
        temporary.rename(target)
        _sync(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _files(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each file: one a network and one for the optimizers, by the first part of the names; the rest in one."""
    files: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        first, _, rest = name.partition("/")
        files.setdefault((first if rest and first != "kept" else _REST) + _SUFFIX, {})[name] = array
    return files


def _mark_best(folder: Path, images_seen: int) -> None:
    temporary = folder / (_TEMPORARY + _BEST)
    _write_through(temporary, json.dumps({"images_seen": images_seen}).encode())
    temporary.rename(folder / _BEST)


def best_images_seen(folder: Path) -> int | None:
    """The images seen of the checkpoint with the best score; None where none is noted."""
    try:
        return int(json.loads(_read(folder, _BEST))["images_seen"])
    except Damage:
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
    except Damage as error:
        raise UserError(f"--{flag}={which}: the checkpoint is damaged ({error})") from None


def whole(folder: Path) -> list[Path]:
    """The checkpoints in a folder whose files are all there, oldest first; what is in them is not looked at."""
    found = []
    for path in sorted(path.parent for path in folder.glob(f"*/{_MANIFEST}") if path.parent.name.isdigit()):
        try:
            parts = read_info(path)["files"]
            if all((path / name).stat().st_size == part["bytes"] for name, part in parts.items()):
                found.append(path)
        except Damage:
            continue
    return found


def newest(folder: Path, repair: bool = False) -> Checkpoint | None:
    """The newest checkpoint that is what its manifest says; None where there is none at all.

    Args:
      folder: of all checkpoints of a run.
      repair: whether damaged ones are set aside, which only the process that trains there may.

    Raises:
      UserError: there are some, and all are damaged.
    """
    damaged = []
    there = sorted((path for path in folder.glob("*") if path.name.isdigit() and path.is_dir()), reverse=True)
    for path in there:
        try:
            found = read(path)
        except Damage as error:
            damaged.append(path)
            log.warning("checkpoint %s is damaged (%s): going back to the one before", path, error)
            continue
        for bad in damaged if repair else ():
            set_aside(bad)
        return found
    if damaged:
        raise UserError(
            f"{folder}: none of {len(damaged)} checkpoints is whole; restore one, or choose another --run_dir"
        )
    return None


def read_info(path: Path) -> dict[str, Any]:
    """What explains the checkpoint in a directory, with its `files`; these are not looked at.

    Raises:
      Damage: there is no such manifest.
    """
    return json.loads(_read(path, _MANIFEST))


def read(path: Path) -> Checkpoint:
    """The checkpoint in a directory.

    Raises:
      Damage: it is not what its manifest says.
    """
    info = read_info(path)
    arrays: dict[str, np.ndarray] = {}
    for name, file in info.pop("files").items():
        data = _read(path, name)
        if hashlib.sha256(data).hexdigest() != file["sha256"]:
            raise ValueError(f"{name} has another SHA-256")
        try:
            arrays |= load(data)
        except Exception as error:  # The SHA-256 is right: it was written so.
            raise ValueError(f"{name}: {error}") from None
    return Checkpoint(arrays, {**info, "images_seen": int(info["images_seen"])})


def _read(folder: Path, name: str) -> bytes:
    """The content of a file of a checkpoint, which may be a stranger's.

    Raises:
      Damage: it would lie elsewhere, is no regular file, or is larger than the free memory.
    """
    if Path(name).name != name:
        raise ValueError(f"{name} would not lie in {folder}")
    return files.read_bytes(folder / name, files.free_memory())


def damage(path: Path) -> str:
    """Why a checkpoint is not what its manifest says; empty where it is."""
    try:
        read(path)
    except Damage as error:
        return str(error) or type(error).__name__
    return ""


def set_aside(path: Path) -> Path:
    """Renames a damaged checkpoint, so that it neither counts nor is lost; returns its new place."""
    place = files.set_aside(path)
    log.warning("checkpoint %s is set aside as %s", path, place.name)
    return place


def _remove(path: Path) -> None:
    """Removes a directory under another name, so that no part of it is ever taken for a checkpoint."""
    doomed = path.with_name(f"{_TEMPORARY}removed-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _write_through(path: Path, data: bytes) -> None:
    """Writes a file and waits until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        force(file)


def force(file: IO[bytes]) -> None:
    """Waits until the disk has what was written to a file."""
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
