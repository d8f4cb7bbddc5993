"""The line between workers beside the collectives: TCP to the primary, served from a thread of its own.

Collectives wait for ever for a worker that is gone, and say nothing. This line still works then: every worker tells the
primary each second where it stands, the primary judges who is lost or stuck, and one worker's error, or end without a word,
becomes the end of all, with its message shown once and its exit code everywhere. Small values are gathered over it too.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import errno
import faulthandler
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distgan.errors import Broken, Ended, Exit, Regroup, Stopped, UserError, printable
from distgan.runtime.hub import (
    BEAT_SECONDS,
    HELLO_SECONDS,
    LARGEST_ANSWER,
    LARGEST_HELLO,
    LARGEST_MESSAGE,
    PATIENCE,
    Hub,
    Limits,
    Position,
    encode,
    equal,
    failing,
    proof,
    read,
    text_of,
)

log = logging.getLogger("distgan")

_GRACE_SECONDS = 5.0  # From the end of all to this process' own, where its main thread is stuck in a collective.
_FORCED_SECONDS = 1.0  # The same, where a signal's time is up.
_PRIMARY_SECONDS = 30.0  # How long the others stay for the primary to end, or --runtime.hang_timeout_seconds.
_SILENT_SECONDS = 2.0  # From the end of the work to a word on what is waited for.
_STRAGGLERS_SECONDS = 30.0  # How long a primary that fails early stays to tell those who have yet to come.


class Heartbeat:
    """A file whose time of change is now while this worker is alive and gets on."""

    def __init__(self, path: str, limits: Limits):
        """Begins to touch the file.

        Raises:
          UserError: it cannot be written.
        """
        self._path, self._limits = Path(path), limits
        # The start is what the others are waited for, or what is built before the first step.
        self._until = time.monotonic() + limits.join_seconds + PATIENCE * limits.hang_seconds
        try:
            self._path.touch()
        except OSError as error:
            raise UserError(f"--runtime.heartbeat={path} cannot be written: {error.strerror}") from None
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def at(self, patient: bool) -> None:
        """Notes that the worker begins something else; see `Control.at`."""
        self._until = time.monotonic() + self._limits.hang_seconds * (PATIENCE if patient else 1)

    def _beat(self) -> None:
        while True:
            if time.monotonic() < self._until:
                with contextlib.suppress(OSError):
                    self._path.touch()
            time.sleep(BEAT_SECONDS)


class Control:
    """A lone worker's line: it gathers what it has, and nobody waits for it."""

    elastic = False
    """Whether the loss of a worker means `Regroup` for the others, and not the end."""
    before_leaving: Callable[[int], None] = staticmethod(lambda exit_code: None)
    """Called with the exit code where the process ends without its main thread: saves what can be saved."""
    heartbeat: Heartbeat | None = None

    def gather(self, value: Any) -> list[Any]:
        """The value of every worker (as JSON carries it), by rank; all workers call it at the same places."""
        return [value]

    def at(self, doing: str, step: int, patient: bool = False) -> None:
        """Notes where this worker stands.

        Args:
          doing: in words.
          step: passes over the phases so far.
          patient: whether this may take `PATIENCE` times as long as a step.
        """
        if self.heartbeat:
            self.heartbeat.at(patient)

    def changes(self) -> bool:
        """Whether the launcher adds or removes elastic workers, so that all are to `Regroup`; all call it at the same places."""
        return False

    def fail(self, error: BaseException) -> BaseException:
        """What this worker ends with, once an error ended it or another worker did."""
        return error

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What ends the block on one worker ends it on all, with one message and one exit code."""
        try:
            yield
        except BaseException as error:
            ended = self.fail(error)
            if ended is error:
                raise
            raise ended from None

    def release(self) -> None:
        """From here on the main thread ends the process, in its own time: what waits in it has a limit of its own."""

    def force(self, text: str) -> None:
        """From any thread: ends all workers as stopped, whatever their main threads are doing."""
        self.before_leaving(Stopped.code)
        _speak(Ended(Stopped.code, text))
        logging.shutdown()
        os._exit(Stopped.code)

    def close(self) -> None:
        """Leaves in peace."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Workers that train together, seen from one of them: until the end, or among elastic ones until one comes or goes."""

    workers: Any
    """`topology.Workers`, or None where no launcher has started any."""
    control: Control
    reason: str = ""
    """Why there is a new group; empty in a process' first."""
    noticed: float = 0.0
    """When this was noticed (seconds of `time.monotonic`)."""


class Line(Control):
    """The line of one of several workers; the primary serves it and is its own first client."""

    def __init__(
        self,
        job: str,
        secret: str,
        rank: int,
        world_size: int,
        limits: Limits,
        addresses: Sequence[tuple[str, int]],
        server: Any = None,
        elastic: bool = False,
        host: str = "",
    ):
        """Starts it; see `join`.

        Args:
          job: equal on all workers of a job, and different in other jobs; it is no secret.
          secret: equal too; who does not know it is not let in.
          rank: this worker's number.
          world_size: how many workers there are.
          limits: how long to wait.
          addresses: where the primary may be reached; tried in turn.
          server: the primary's listening socket, see `listen`.
          elastic: see `Control`.
          host: under which name this worker is told of.
        """
        self.rank, self.world_size, self.limits, self.job, self.elastic = rank, world_size, limits, job, elastic
        self.addresses, self._primary = addresses, ""
        self._position = Position(host or socket.gethostname())
        self._gathered = 0
        self._answers: dict[int, concurrent.futures.Future[Any]] = {}
        self._verdict: concurrent.futures.Future[Ended | Regroup] = concurrent.futures.Future()
        self._begun: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._closing = False
        self._full = False
        self._taken = False
        self._closed = threading.Event()
        self._heard = time.monotonic()
        self._writer: asyncio.StreamWriter | None = None
        self._hub = Hub(job, secret, world_size, limits, elastic) if server else None
        self._secret = self._hub.own_secret if self._hub else secret
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(server,), name="control", daemon=True)
        self._thread.start()

    def join(self) -> Line:
        """Waits until all workers are on it.

        Raises:
          Ended: not all came, or two came as one.
          Regroup: the same, if it is elastic.
        """
        self._wait(self._begun)
        return self

    def gather(self, value: Any) -> list[Any]:
        self._gathered += 1
        answer = self._answers[self._gathered] = concurrent.futures.Future()
        self._send({"gather": self._gathered, "value": value})
        return self._wait(answer)

    def at(self, doing: str, step: int, patient: bool = False) -> None:
        super().at(doing, step, patient)
        now = self._position
        self._position = dataclasses.replace(now, doing=doing, step=step, patient=patient, changes=now.changes + 1)
        if self._verdict.done():
            raise self._end()

    def release(self) -> None:
        self._taken = True

    def fail(self, error: BaseException) -> BaseException:
        self._taken = True
        if isinstance(error, Exit) and error.code == 0:
            # All have it from a gathering, and none of them believes another's word for it.
            self._closing = True
            self._send({"bye": True})
            verdict: Ended | Regroup = Ended(0, str(error), spoken=self.rank == 0)
        else:
            verdict = error if isinstance(error, Ended | Regroup) else self._report(error)
        if isinstance(verdict, Regroup):
            return verdict
        _speak(verdict)
        if self.rank and time.monotonic() - self._heard < 3 * BEAT_SECONDS:
            # Launchers kill the rest once one has left, and the primary may have something to upload.
            self._closed.wait(max(_PRIMARY_SECONDS, self.limits.hang_seconds))
        if self._hub and not self._begun.done():
            self._hub.complete.wait(min(self.limits.join_seconds, _STRAGGLERS_SECONDS))
        return verdict

    def _report(self, error: BaseException) -> Ended | Regroup:
        """Tells an error of this worker; returns what all end with."""
        if isinstance(error, Exit):
            urgency, code, text = 2 if isinstance(error, Broken) else 0, error.code, str(error)
        else:
            # An error of TensorFlow or Horovod is often the echo of another worker's end.
            urgency = 2 if type(error).__module__.startswith(("tensorflow", "horovod")) else 1
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
            text = "".join(traceback.format_exception(error)).rstrip()
        self._send({"fail": {"urgency": urgency, "code": code, "text": text_of(text)}})
        try:
            return self._verdict.result(timeout=2 * _GRACE_SECONDS)
        except concurrent.futures.TimeoutError:
            return Ended(code, text, spoken=False)

    def force(self, text: str) -> None:
        self._send({"fail": {"urgency": 0, "code": Stopped.code, "text": text}})
        with contextlib.suppress(concurrent.futures.TimeoutError):
            if isinstance(self._verdict.result(_FORCED_SECONDS), Regroup):
                super().force(text)
            return
        self._conclude(Ended(Stopped.code, text))

    def close(self) -> None:
        if not self._verdict.done():
            self._closing = True
            self._send({"bye": True})
            self._closed.wait(_GRACE_SECONDS)
        self.leave()

    def leave(self) -> None:
        """Ends it without a word: all have left this group."""
        self._closing = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_GRACE_SECONDS)

    def _wait(self, answer: concurrent.futures.Future[Any]) -> Any:
        """The answer, or the end of all, whichever comes first."""
        concurrent.futures.wait([answer, self._verdict], return_when=concurrent.futures.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise self._end()

    def _end(self) -> Ended | Regroup:
        """The verdict, taken by the main thread, which ends the process in its own way."""
        self._taken = True
        return self._verdict.result()

    # What follows runs in the thread.

    def _serve(self, server: Any) -> None:
        asyncio.set_event_loop(self._loop)
        tasks = [self._loop.create_task(self._follow())]
        if self._hub:
            tasks.append(self._loop.create_task(self._hub.serve(server)))
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(self._loop), return_exceptions=True))
        if self._writer:
            self._writer.close()
        self._loop.run_until_complete(asyncio.sleep(0))  # In which the connections are closed.
        self._loop.close()

    def _send(self, message: dict[str, Any]) -> None:
        """From any thread, which hears of what cannot be said."""
        line = encode(message)
        if len(line) > LARGEST_MESSAGE:
            raise ValueError(
                f"a message of {len(line)} bytes to the other workers: at most {LARGEST_MESSAGE} are taken"
            )

        def write() -> None:
            if self._writer and not self._writer.is_closing():
                self._writer.write(line)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(write)

    async def _follow(self) -> None:
        """Joins, then follows what the primary says."""
        try:
            reader, self._writer = await asyncio.wait_for(self._connect(), self.limits.join_seconds)
        except (TimeoutError, UserError) as error:
            tried = ", ".join(f"{host}:{port}" for host, port in self.addresses)
            waited = f"rank {self.rank} waited {self.limits.join_seconds:g} s for the primary at {tried}"
            waited += ", which has all its workers: is this one there twice?" if self._full else ""
            code, text = (2, str(error)) if isinstance(error, UserError) else (1, waited)
            self._conclude(Regroup(text) if self.elastic and code == 1 else Ended(code, text))
            return
        beats = self._loop.create_task(self._beat())
        try:
            while True:
                message = await read(reader, LARGEST_ANSWER)
                self._heard = time.monotonic()
                self._take(message)
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            pass
        beats.cancel()
        self._closed.set()
        if not self._closing:
            gone = Ended(1, "the primary (rank 0) ended without a word", spoken=self.rank == 1)
            self._conclude(Regroup(f"lost rank 0 on {self._primary}") if self.elastic else gone)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        foreign = 0
        while True:
            for host, port in self.addresses:
                try:
                    reader, writer = await asyncio.wait_for(
                        asyncio.open_connection(host, port, limit=LARGEST_HELLO), HELLO_SECONDS
                    )
                except (OSError, TimeoutError):
                    continue
                try:
                    if await asyncio.wait_for(self._greet(reader, writer), HELLO_SECONDS):
                        return reader, writer
                    self._full = True
                except (OSError, EOFError, TimeoutError, ValueError):
                    foreign += 1
                writer.close()
                if foreign >= 3:
                    raise UserError(
                        f"{host}:{port} is taken by another program, or by a job of another secret "
                        "(--runtime.secret_file): choose --runtime.control_port"
                    )
            await asyncio.sleep(0.2)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the primary lets this worker in; it may have all its workers for now.

        Raises:
          ValueError: it is not this job's primary.
          OSError, EOFError: it closed the connection.
        """
        own = secrets.token_hex(16)
        hello = {"rank": self.rank, "world_size": self.world_size, "host": self._position.host, "nonce": own}
        writer.write(encode({"job": self.job, **hello}))
        answer = await read(reader, LARGEST_HELLO)
        if answer.get("later") == self.job:
            return False
        nonce = str(answer.get("nonce"))
        if not equal(answer.get("proof"), proof(self._secret, "primary", own, nonce)):
            raise ValueError("it does not know this job's secret")
        writer.write(encode({"proof": proof(self._secret, f"rank {self.rank}", own, nonce)}))
        return True

    async def _beat(self) -> None:
        while True:
            now = self._position
            self._send({"beat": [now.doing, now.step, now.patient, now.changes]})
            await asyncio.sleep(BEAT_SECONDS)
            silent = time.monotonic() - self._heard
            if silent > self.limits.hang_seconds and not self._closing:
                self._conclude(
                    Ended(1, f"the primary (rank 0) has not been heard from for {silent:.0f} s", spoken=self.rank == 1),
                    True,
                )

    def _take(self, message: dict[str, Any]) -> None:
        """Takes a message of the primary.

        Raises:
          ValueError, KeyError, TypeError: it is none.
        """
        if "gathered" in message:
            values = message["values"]
            if len(values) != self.world_size:
                raise ValueError("not a value of each worker")
            self._answers.pop(message["gathered"]).set_result(values)
        elif "begin" in message:
            self._primary = text_of(message["begin"])
            if not self._begun.done():
                self._begun.set_result(None)
        elif "end" in message:
            code, text = message["end"]["code"], text_of(message["end"]["text"])
            regroups = self.elastic and code is None
            ended = Ended(failing(code), text, spoken=self.rank == 0)
            self._conclude(Regroup(text) if regroups else ended, bool(message["end"]["stacks"]))

    def _conclude(self, verdict: Ended | Regroup, stacks: bool = False) -> None:
        """Hands the verdict to the main thread; ends the process where that one does not take it.

        To regroup it comes by itself: a sum over replicas fails once one of them is gone.
        """
        if self._verdict.done():
            return
        if stacks:
            now = self._position
            log.error("rank %d is at step %d: %s; its stacks:\n%s", self.rank, now.step, now.doing, _stacks())
        self._verdict.set_result(verdict)
        if isinstance(verdict, Ended):
            threading.Thread(target=self._leave, args=(verdict,), daemon=True).start()

    def _leave(self, verdict: Ended) -> None:
        # A forced end comes after the main thread had its time.
        time.sleep(_FORCED_SECONDS if verdict.code == Stopped.code else _GRACE_SECONDS)
        if self._taken or self._closing:
            return
        self.before_leaving(verdict.code)
        _speak(verdict)
        logging.shutdown()
        os._exit(verdict.code)


def listen(port: int, address: str = "") -> Any:
    """The primary's socket on a port of one of its addresses, or of all of them; port 0 chooses a free one.

    Where the host has no such address, which may lead to it all the same, it listens on all.

    Raises:
      UserError: the port is in use.
    """
    try:
        return socket.create_server((address, port), backlog=1024)
    except OSError as error:
        if address and error.errno == errno.EADDRNOTAVAIL:
            return listen(port)
        raise UserError(f"--runtime.control_port={port} cannot be listened on: {error.strerror}") from None


def narrowest(hosts: Sequence[str]) -> str:
    """The address at which the first of several hosts is to listen so that all reach it by its name; empty is all of its own."""
    numbers = [_number(host) for host in hosts]
    # Many a host has its own name lead to its loopback, where others do not find it.
    if numbers[0].startswith("127.") and not all(number.startswith("127.") for number in numbers):
        return ""
    return numbers[0]


def _number(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""


@contextlib.contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Says what is waited for, if the block takes more than two seconds."""
    timer = threading.Timer(_SILENT_SECONDS, log.info, (f"waiting for {what}",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Deadline:
    """A context: ends the process, saying what it waited for, if its block takes longer than a limit.

    Where native code holds Python's lock all that time, as TensorFlow's server does while it waits for the others, the end
    comes a little later and says in which function.
    """

    def __init__(self, seconds: float, what: str):
        self.seconds = seconds
        self.timer = threading.Timer(seconds, self._end, (f"waited {seconds:g} s for {what}",))
        self.timer.daemon = True
        # A copy, as stderr may be held back within the block.
        self.terminal = os.fdopen(os.dup(2), "w")

    def __enter__(self) -> None:
        self.timer.start()
        faulthandler.dump_traceback_later(self.seconds + _GRACE_SECONDS, exit=True, file=self.terminal)

    def __exit__(self, *_: Any) -> None:
        self.timer.cancel()
        faulthandler.cancel_dump_traceback_later()
        self.terminal.close()

    def _end(self, text: str) -> None:
        print(f"distgan: {text}", file=self.terminal, flush=True)
        os._exit(1)


def _speak(verdict: Ended) -> None:
    """Writes how it ended to the log file, and to the terminal if this worker speaks for all."""
    write_to_files(str(verdict))
    if verdict.spoken:
        print(f"distgan: {printable(str(verdict))}", file=sys.stderr, flush=True)
    verdict.spoken = False


def write_to_files(text: str) -> None:
    """Writes an error to the log's files, and not to the terminal."""
    record = log.makeRecord(log.name, logging.ERROR, "", 0, "%s", (printable(text),), None)
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _stacks() -> str:
    """The Python stacks of all threads."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
