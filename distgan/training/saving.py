"""Saving beside the training: copies of the state in host memory, written by a thread, one at a time.

A copy is taken between two steps, so it is a state that a run may go on from. The newest is kept: it is what a stop that
cannot wait for the end of a step writes, and what workers that lost one of theirs go back to.
"""

from __future__ import annotations

import tempfile
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

    def __init__(
        self,
        find_folder: Callable[[], Path],
        options: CheckpointConfig,
        snapshots: Snapshots,
        saved: int = -1,
        elsewhere: Callable[[Checkpoint], Path] | None = None,
    ):
        """Makes one.

        Args:
          find_folder: gives the folder of all checkpoints of the run, wherever it is now; raises OSError where it is gone.
          options: how many to keep, and what an error comes to.
          snapshots: the copies to write.
          saved: images seen of the newest checkpoint that is there.
          elsewhere: writes the last state to another run directory, which it returns, where this one cannot be written.
        """
        self.find_folder, self.options, self.snapshots, self.saved = find_folder, options, snapshots, saved
        self.elsewhere, self._saved_elsewhere = elsewhere, -1
        self.folder = find_folder()
        self.held_seconds = 0.0
        """How long saves have held up the training since somebody set this to 0."""
        self.tell_of: Callable[[Path, Checkpoint, bool], None] = lambda path, taken, best: None
        """Called with every checkpoint that is on the disk, and whether it is the best; from the thread that wrote it."""
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

        Meanwhile the state is in another place, which the log names.

        Raises:
          UserError: it cannot be saved in the run directory.
        """
        self.wait()
        taken, end = self.snapshots.take(), time.monotonic() + _LAST_SECONDS
        while not self._try(taken):
            self._save_elsewhere(taken)
            if self._error and (self.options.on_error == "fail" or time.monotonic() > end):
                raise UserError(self._tell(self._error))
            time.sleep(1)

    def flush(self) -> None:
        """Writes the newest copy unless it is on the disk, from any thread; elsewhere, where the run directory takes nothing."""
        taken = self.snapshots.newest
        with self._writing:  # Waits for a save that is going on.
            if taken is None or self._is_there(taken):
                return
            if self._try(taken):
                log.info("saved at %g kimg", taken.images_seen / 1000)
            else:
                self._save_elsewhere(taken)

    def make_sure(self) -> None:
        """Writes the last state again where its checkpoint has gone since it was saved, as with the whole run directory.

        Raises:
          UserError: it cannot be saved in the run directory.
        """
        self.flush()
        if self._error:
            raise UserError(self._tell(self._error))

    def _is_there(self, taken: Checkpoint) -> bool:
        try:
            return (self.find_folder() / checkpoint.name(taken.images_seen)).exists()
        except OSError:
            return False

    def _save_elsewhere(self, taken: Checkpoint) -> None:
        """Once for each state."""
        if self.elsewhere is None or self._saved_elsewhere == taken.images_seen:
            return
        self._saved_elsewhere = taken.images_seen
        try:
            place = self.elsewhere(taken)
        except OSError as error:
            log.warning("nor can the state be saved below TMPDIR: %s", error)
            return
        log.warning("the state at %g kimg is saved in --run_dir=%s instead", taken.images_seen / 1000, place)

    def _try(self, taken: Checkpoint, best: bool = False) -> bool:
        """Writes a copy; tells of a failure once, until a save succeeds again."""
        with self._writing:
            try:
                self.folder = self.find_folder()
                path = checkpoint.write(self.folder, taken, self.options.keep, best)
            except OSError as error:
                if not self._error and self.options.on_error == "continue":
                    rescue = f"; a run that is stopped saves to {tempfile.gettempdir()}" if self.elsewhere else ""
                    log.warning("%s; the next save tries again%s", self._tell(error), rescue)
                self._error = error
                return False
            if self._error:
                log.info("checkpoints are written again, at %g kimg", taken.images_seen / 1000)
            self._error, self.saved = None, taken.images_seen
            self.tell_of(path, taken, best)
            return True

    def _tell(self, error: OSError) -> str:
        place = error.filename or self.folder
        return f"--run_dir={self.folder.parent}: no checkpoint can be saved: {place}: {error.strerror or error}"
