"""What asks a run to stop: noted at once, answered between two steps, and by a thread where the main one comes to no end.

Python runs signal handlers in the main thread only, which may be in native code for minutes (a compilation, a collective).
The signal's number also goes through a socket to a thread of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distgan import signals
from distgan.errors import Exit, Stopped
from distgan.runtime import topology
from distgan.runtime.control import Control, write_to_files

_SAME_SECONDS = (
    1.0  # Signals within it are one: a terminal, `timeout` and launchers all send a Ctrl-C to the same process.
)
_LOOK_SECONDS = 1.0  # Between two looks for the launcher.


class Stop:
    """Notes the first of `signals.STOPPING`, and the end of the launcher. The others change nothing.

    But a second Ctrl-C, more than a second after the first one, ends the process at once.
    """

    def __init__(
        self,
        control: Control,
        grace_seconds: float = 0,
        early: str = "before the first step; start it again",
        speaks: bool = True,
    ):
        """Makes one.

        Args:
          control: ends all workers.
          grace_seconds: how long the main thread may take to `answer`.
          early: what is said where it need not.
          speaks: whether this worker says what a second Ctrl-C comes to.
        """
        self.control, self.grace_seconds, self.early, self.speaks = control, grace_seconds, early, speaks
        self.asked_by: str | None = None
        """The signal, or what else asks for the end."""
        self.doing: Callable[[], str] | None = None
        """What the main thread does, in words; None while there is nothing to save, and a signal need not wait."""
        self._answered = False
        self._interrupted = float("inf")
        """When the first Ctrl-C came."""
        self._timer = threading.Timer(0, self._force)
        self._lock = threading.Lock()
        self._terminal = -1

    def answer(self) -> None:
        """From the main thread: it leaves by itself from here on, and saves before."""
        self._answered = True
        self._timer.cancel()

    @contextmanager
    def watching(self) -> Iterator[Stop]:
        """Answers the signals within the block, and after it too where the run was stopped: the code it ends with stays."""
        self._terminal = os.dup(2)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        # What nohup has the process ignore stays ignored.
        answered = [
            each for each in signals.STOPPING if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN
        ]
        handlers = {each: signal.signal(each, lambda *_: None) for each in answered}
        descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        listener = threading.Thread(target=self._listen, args=(ours,), name="signals", daemon=True)
        listener.start()
        done = threading.Event()
        if launcher := topology.launcher():
            threading.Thread(target=self._follow, args=(launcher, done), name="launcher", daemon=True).start()
        signals.release()
        stopped = False
        try:
            yield self
        except Exit as error:
            stopped = error.code == Stopped.code  # By a signal to this worker, or to another.
            raise
        finally:
            self.answer()
            done.set()
            signal.set_wakeup_fd(descriptor)
            if not (stopped or self.asked_by):  # Else the process is about to end, and no signal must change with what.
                for each, handler in handlers.items():
                    signal.signal(each, handler)
            theirs.close()
            listener.join()
            ours.close()
            os.close(self._terminal)

    def _listen(self, ours: socket.socket) -> None:
        while number := ours.recv(1):
            if number[0] not in signals.STOPPING:
                continue
            if number[0] == signal.SIGINT:
                self._interrupt()
            self._ask(signal.Signals(number[0]).name)

    def _interrupt(self) -> None:
        now = time.monotonic()
        if now - self._interrupted > _SAME_SECONDS:
            write_to_files("a second Ctrl-C: stopped at once, unsaved")
            os._exit(128 + signal.SIGINT)
        if self._interrupted == float("inf"):
            self._interrupted = now
            if self.speaks:
                text = "Ctrl-C: saves and stops; a second Ctrl-C stops at once, unsaved"
                # A copy, as stderr may be held back while steps are compiled.
                os.write(self._terminal, f"{text}\n".encode())

    def _follow(self, launcher: int, done: threading.Event) -> None:
        while not done.wait(_LOOK_SECONDS):
            if topology.launcher() != launcher:
                self._ask("the end of its launcher")
                return

    def _ask(self, by: str) -> None:
        with self._lock:
            if self.asked_by or self._answered:
                return
            self.asked_by = by
            self._timer = threading.Timer(self.grace_seconds if self.doing else 0, self._force)
            self._timer.daemon = True
            self._timer.start()

    def _force(self) -> None:
        if self._answered or not self.asked_by:
            return
        text = f"stopped by {self.asked_by} {self.early}"
        if self.doing:
            text = f"stopped by {self.asked_by} while {self.doing()} took more than {self.grace_seconds:g} s; "
            text += "the state before it is saved, start it again to go on"
        os.dup2(self._terminal, 2)  # It may be held back while steps are compiled.
        self.control.force(text)
