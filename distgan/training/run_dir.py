"""The run directory: who may write it, which run lives in it, and where in it everything lies."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distgan import __version__, files, schema, trust
from distgan.config import Config
from distgan.errors import UserError
from distgan.runtime import credentials
from distgan.schedules import Schedule
from distgan.tracking import wandb_file
from distgan.tracking.console import log
from distgan.training import checkpoint
from distgan.training.checkpoint import Checkpoint

_LARGEST_BYTES = 2**26  # Of config.json.
_COMPUTING = ("tensorflow", "tensorflow-cpu", "keras", "numpy")
_RECORDED = (*_COMPUTING, "wandb")


class RunDir:
    """A directory opened for writing by one process; see `read_config` for reading."""

    def __init__(
        self,
        path: Path,
        config: Config,
        data_fingerprint: str,
        patience_seconds: float = 0,
        earlier_fingerprint: Callable[[], str] = lambda: "",
    ):
        """Makes or goes on with a run.

        Args:
          path: the directory.
          config: of this start.
          data_fingerprint: of the data.
          patience_seconds: another process has so long to let go of it.
          earlier_fingerprint: by which earlier versions knew the data; empty where they made other pixels of it.

        Raises:
          UserError: it cannot be written, another process writes it, or it holds another run.
        """
        self.path = path
        """Where it is, so far as is known; see `find`."""
        self.moves = 0
        """How often `path` has become another directory."""
        self._finding = threading.Lock()
        self._content: dict[str, Any] = {}
        """Of config.json."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / ".lock", timeout=patience_seconds)
            self._lock.acquire()
            self._handle = os.open(path, os.O_RDONLY)
        except Timeout:
            raise UserError(f"--run_dir={path} is in use: another process trains there") from None
        except OSError as error:
            raise UserError(f"--run_dir={path} cannot be written: {error.strerror}") from None
        try:
            self.starts = self._record(config, data_fingerprint, earlier_fingerprint)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise UserError(f"--run_dir={path} cannot be written: {error.strerror}") from None
            raise

    def sample_path(self, images_seen: int, images_per_step: int) -> Path:
        """Where the grid of an image count lies: `000160.png` of the first step in a kimg, `000160.512.png` of a later one."""
        kimg, rest = divmod(images_seen, 1000)
        return self.path / "samples" / (f"{kimg:06d}" + (f".{rest:03d}" if rest >= images_per_step else "") + ".png")

    def facts(self) -> dict[str, Any]:
        """The flat config, and what this start goes by: data, versions and git revision."""
        content = _load(self.path / "config.json")
        start = content["starts"][-1]
        facts = {name: start[name] for name in ("versions", "git_revision")}
        return {**content["config"], "data_fingerprint": content["data_fingerprint"], **facts}

    def wandb_run_id(self) -> str | None:
        """The id of the run at W&B, which wandb_run.json keeps; None where there is none."""
        return wandb_file.read(self.path).get("id")

    def checkpoints(self) -> Path:
        """The folder of the checkpoints, as it is now.

        Raises:
          OSError: see `find`.
        """
        return self.find() / "checkpoints"

    def find(self) -> Path:
        """Where the directory is now, from any thread: it may have been moved, deleted, or its disk mounted anew.

        Where it was moved, `path` follows it. Where it is gone it is made anew, so that the run can go on from its next
        checkpoint.

        Raises:
          OSError: it is gone, and cannot be made anew.
        """
        with self._finding:
            if not _is_open_as(self._handle, self.path):
                place = _place(self._handle)
                if place and _is_open_as(self._handle, place):
                    log.warning("--run_dir=%s was moved: the run goes on in --run_dir=%s", self.path, place)
                    self.path = place
                else:
                    self._make_anew()
                self.moves += 1
            return self.path

    def _make_anew(self) -> None:
        file = self.path / "config.json"
        there = self._same_run(file)
        if file.exists() and not there:
            raise OSError(errno.ENOENT, "the run directory is gone, and another run is in its place", str(self.path))
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise OSError(
                errno.EBUSY, "the run directory is gone, and another run is in its place", str(self.path)
            ) from None
        self._write_config(self.path)
        handle = os.open(self.path, os.O_RDONLY)
        with contextlib.suppress(OSError):
            self._lock.release()
        with contextlib.suppress(OSError):
            os.close(self._handle)
        self._lock, self._handle = lock, handle
        if there:
            log.warning("--run_dir=%s is another mount of the same directory: the run goes on in it", self.path)
        else:
            text = "--run_dir=%s is gone: it is made anew, with config.json, all rows and the next checkpoint; samples are lost"
            log.warning(text, self.path)

    def _same_run(self, file: Path) -> bool:
        try:
            return _read(file) == _checked(self._content)
        except (OSError, *_Damage):
            return False

    def save_elsewhere(self, taken: Checkpoint) -> Path:
        """Makes a run directory with this state alone, where temporary files go; returns it.

        Raises:
          OSError: it cannot be written.
        """
        place = Path(tempfile.mkdtemp(prefix=f"{self.path.name}-"))
        self._write_config(place)
        checkpoint.write(place / "checkpoints", taken, keep=1)
        return place

    def close(self) -> None:
        """Lets another process in."""
        with contextlib.suppress(OSError):
            os.close(self._handle)
        self._lock.release()

    def _record(self, config: Config, data_fingerprint: str, earlier_fingerprint: Callable[[], str]) -> int:
        """Writes config.json with this start; returns how many starts there were before."""
        path = self.path / "config.json"
        flat = schema.flatten(config)
        starts: list[Mapping[str, Any]] = []
        if path.exists():
            old = _load(path)
            changed = list(differences(old["config"], config))
            if changed:
                raise UserError(
                    f"--run_dir={self.path} holds another run: {', '.join(changed)}; choose another --run_dir"
                )
            recorded = old["data_fingerprint"]
            if recorded != data_fingerprint and recorded != earlier_fingerprint():
                raise UserError(
                    f"--run_dir={self.path} holds a run on other data than --data.source and --data.path give, or than "
                    "--data.channels and --data.bits make of it; choose another --run_dir"
                )
            starts = old["starts"]
            if _is_damaged(path):
                aside = files.set_aside(path, keep=True)
                log.warning("%s is damaged: kept as %s, the newest checkpoint has the config too", path, aside.name)
            if starts and (changes := _changes(starts[-1]["versions"], versions())):
                log.warning("%s since this run's last start: its numbers may differ from here on by rounding", changes)
        now = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "versions": versions(),
            "git_revision": _git_revision(),
        }
        self._content = {"config": flat, "data_fingerprint": data_fingerprint, "starts": [*starts, now]}
        self._write_config(self.path)
        return len(starts)

    def _write_config(self, folder: Path) -> None:
        files.write_whole(folder / "config.json", json.dumps(self._content, indent=1).encode() + b"\n")


def _is_open_as(handle: int, path: Path) -> bool:
    """Whether a path leads to the directory of a file descriptor."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _place(handle: int) -> Path | None:
    """Where the directory of a file descriptor is, as Linux says it; None of one that is nowhere."""
    try:
        return Path(os.readlink(f"/proc/self/fd/{handle}"))
    except OSError:
        return None


def differences(old: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Yields `name=old (now new)` for every field that a run may not change and that differs."""
    entries = {entry.name: entry for entry in schema.entries(config)}
    # A run of before there was a field went by the field's default.
    old = {**schema.flatten(schema.build(Config, old)), **old}
    by_length = [f"{name}={entry.plain}" for name, entry in entries.items() if takes_whole_run(entry.value)]
    for name in sorted(old.keys() | entries.keys()):
        before, after = old.get(name), entries[name].plain if name in entries else None
        if before == after:
            continue
        if name == "train.total_kimg" and by_length:
            yield f"{name}={before} (now {after}), the length of {by_length[0]}"
        elif not (name in entries and entries[name].may_change):
            yield f"{name}={before} (now {after})"


def takes_whole_run(value: Any) -> bool:
    """Whether the value of a field is a schedule whose numbers depend on the length of the run."""
    return isinstance(value, Schedule) and value.takes_whole_run


def read_config(path: Path) -> dict[str, Any]:
    """The flat config of the run in a directory; empty where there is none.

    Raises:
      UserError: config.json is not readable.
    """
    file = path / "config.json"
    return _load(file)["config"] if file.exists() else {}


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Every start of the run in a directory: `time`, `command`, `versions` and `git_revision`; none where there is no run.

    Raises:
      UserError: config.json is not readable.
    """
    file = path / "config.json"
    return _load(file)["starts"] if file.exists() else []


def versions() -> dict[str, str]:
    """The installed versions of what decides a run's numbers."""
    from importlib import metadata  # Slow to import, and help does not need it.

    found = {"python": sys.version.split()[0], "distgan": __version__}
    for package in _RECORDED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Which packages that compute have another version now, as `keras 3.12.0 -> 3.15.1`; empty where none has."""
    names = [name for name in _COMPUTING if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in names)


def _load(path: Path) -> dict[str, Any]:
    """What config.json says; where it is damaged, what the newest checkpoint keeps of it.

    Raises:
      UserError: it cannot be read, and there is no checkpoint.
    """
    try:
        content = _read(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except _Damage as error:
        kept = _of_checkpoint(path.parent)
        if kept is None:
            raise UserError(
                f"{path} cannot be read: {error}; choose another --run_dir, or move this one away"
            ) from None
        content = kept
    trust.check(path.parent, content["config"], (entry.name for entry in schema.entries(Config()) if entry.table))
    return content


_Damage = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _read(path: Path) -> dict[str, Any]:
    """What config.json says.

    Raises:
      OSError, _Damage: it cannot be read.
    """
    return _checked(json.loads(files.read_bytes(path, _LARGEST_BYTES)))


def _checked(content: Mapping[str, Any]) -> dict[str, Any]:
    starts = [{**start, "versions": dict(start["versions"])} for start in content["starts"]]
    return {
        "config": dict(content["config"]),
        "data_fingerprint": str(content["data_fingerprint"]),
        "starts": starts,
    }


def _is_damaged(path: Path) -> bool:
    try:
        _read(path)
    except _Damage:
        return True
    return False


def _of_checkpoint(run_dir: Path) -> dict[str, Any] | None:
    """The config and the data's fingerprint of the newest checkpoint, without any start; None where there is none."""
    for path in reversed(checkpoint.whole(run_dir / "checkpoints")):
        with contextlib.suppress(OSError, *_Damage):
            info = checkpoint.read_info(path)
            return _checked({"config": info["config"], "data_fingerprint": info["data_fingerprint"], "starts": []})
    return None


def _git_revision() -> str | None:
    """The commit of the checkout that this package runs from; None where it is installed."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            env=credentials.for_child(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
