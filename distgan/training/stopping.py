"""SIGTERM and SIGINT: noted at once, answered between two steps, and without the main thread where that does not come to one.

Python runs signal handlers in the main thread only, which may be in native code for minutes (a compilation, a collective).
The signal's number also goes through a socket to a thread of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distgan.errors import Exit, Stopped
from distgan.runtime.control import Control

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Notes the first SIGTERM or SIGINT. A second SIGINT (Ctrl-C) ends the process at once; other signals change nothing."""

    def __init__(
        self, control: Control, grace_seconds: float = 0, early: str = "before the first step; start it again"
    ):
        """Makes one.

        Args:
          control: ends all workers.
          grace_seconds: how long the main thread may take to `answer`.
          early: what is said where it need not.
        """
        self.control, self.grace_seconds, self.early = control, grace_seconds, early
        self.signal: signal.Signals | None = None
        self.doing: Callable[[], str] | None = None
        """What the main thread does, in words; None while there is nothing to save, and a signal need not wait."""
        self._answered = False
        self._timer = threading.Timer(0, self._force)
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
        handlers = {each: signal.signal(each, lambda *_: None) for each in _SIGNALS}
        descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._listen, args=(ours,), name="signals", daemon=True)
        thread.start()
        stopped = False
        try:
            yield self
        except Exit as error:
            stopped = error.code == Stopped.code  # By a signal to this worker, or to another.
            raise
        finally:
            self.answer()
            signal.set_wakeup_fd(descriptor)
            if stopped or self.signal:
                # The process is about to end, and a further SIGTERM must not change with what.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            else:
                for each, handler in handlers.items():
                    signal.signal(each, handler)
            theirs.close()
            thread.join()
            ours.close()
            os.close(self._terminal)

    def _listen(self, ours: socket.socket) -> None:
        while number := ours.recv(1):
            if number[0] not in _SIGNALS:
                continue
            if self.signal and number[0] == signal.SIGINT:
                os._exit(128 + signal.SIGINT)
            if not self.signal and not self._answered:
                self.signal = signal.Signals(number[0])
                self._timer = threading.Timer(self.grace_seconds if self.doing else 0, self._force)
                self._timer.daemon = True
                self._timer.start()

    def _force(self) -> None:
        if self._answered or not self.signal:
            return
        text = f"stopped by {self.signal.name} {self.early}"
        if self.doing:
            text = f"stopped by {self.signal.name} while {self.doing()} took more than {self.grace_seconds:g} s; "
            text += "the state before it is saved, start it again to go on"
        os.dup2(self._terminal, 2)  # It may be held back while steps are compiled.
        self.control.force(text)
