"""Saving beside the training: copies of the state in host memory, written by a thread, one at a time.

A copy is taken between two steps, so it is a state that a run may go on from. The newest is kept: it is what a stop that
cannot wait for the end of a step writes, and what workers that lost one of theirs go back to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from distgan.config import CheckpointConfig
from distgan.errors import UserError
from distgan.tracking.console import log
from distgan.training import checkpoint
from distgan.training.checkpoint import Checkpoint

_SNAPSHOT_SHARE = 0.005  # Of the time, for snapshots that nobody asked for.
_LAST_SECONDS = 60  # How long the last save tries, while a disk is full.


class Snapshots:
    """The newest copy of the state in host memory; every worker may have its own."""

    def __init__(self, take: Callable[[], Checkpoint]):
        """Args: take: copies the state as it stands."""
        self._take = take
        self.newest: Checkpoint | None = None
        self._cost, self._taken = 0.0, 0.0

    def take(self) -> Checkpoint:
        """Copies the state; call it between two steps."""
        start = time.monotonic()
        self.newest = self._take()
        self._taken = time.monotonic()
        self._cost = self._taken - start
        return self.newest

    def refresh(self) -> None:
        """Takes another one if it is time: as often as 0.5 % of the time allow."""
        if time.monotonic() - self._taken > self._cost / _SNAPSHOT_SHARE:
            self.take()


class Saver:
    """Writes the checkpoints of a run; the primary has it."""

    def __init__(self, folder: Path, options: CheckpointConfig, snapshots: Snapshots, saved: int = -1):
        """Makes one.

        Args:
          folder: of all checkpoints of the run.
          options: how many to keep, and what an error comes to.
          snapshots: the copies to write.
          saved: images seen of the newest checkpoint that is there.
        """
        self.folder, self.options, self.snapshots, self.saved = folder, options, snapshots, saved
        self.held_seconds = 0.0
        """How long saves have held up the training since somebody set this to 0."""
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None
        self._writing = threading.RLock()

    def save(self, best: bool = False) -> None:
        """Saves the state as it stands; returns when it is copied, and the save before is done.

        Raises:
          UserError: a save failed, and --checkpoint.on_error=fail.
        """
        start = time.monotonic()
        self.wait()
        taken = self.snapshots.take()
        self._thread = threading.Thread(target=self._try, args=(taken, best), name="save", daemon=True)
        self._thread.start()
        self.held_seconds += time.monotonic() - start

    def wait(self) -> None:
        """Waits for the save that is going on, if one is.

        Raises:
          UserError: it failed, and --checkpoint.on_error=fail.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error and self.options.on_error == "fail":
            raise UserError(self._tell(self._error))

    def save_last(self) -> None:
        """Saves the state as it stands, and waits for it; tries for a minute where the disk is full or not writable.

        Raises:
          UserError: it cannot be saved.
        """
        self.wait()
        taken, end = self.snapshots.take(), time.monotonic() + _LAST_SECONDS
        while not self._try(taken):
            if self._error and (self.options.on_error == "fail" or time.monotonic() > end):
                raise UserError(self._tell(self._error))
            time.sleep(1)

    def flush(self) -> None:
        """Writes the newest copy unless it is on the disk, from any thread; a failure is only told."""
        taken = self.snapshots.newest
        with self._writing:  # Waits for a save that is going on.
            if taken and taken.images_seen > self.saved and self._try(taken):
                log.info("saved at %g kimg", taken.images_seen / 1000)

    def _try(self, taken: Checkpoint, best: bool = False) -> bool:
        """Writes a copy; tells of a failure once, until a save succeeds again."""
        with self._writing:
            try:
                checkpoint.write(self.folder, taken, self.options.keep, best)
            except OSError as error:
                if not self._error and self.options.on_error == "continue":
                    log.warning("%s; the next save tries again", self._tell(error))
                self._error = error
                return False
            if self._error:
                log.info("checkpoints are written again, at %g kimg", taken.images_seen / 1000)
            self._error, self.saved = None, taken.images_seen
            return True

    def _tell(self, error: OSError) -> str:
        place = error.filename or self.folder
        return f"--run_dir={self.folder.parent}: no checkpoint can be saved: {place}: {error.strerror or error}"
