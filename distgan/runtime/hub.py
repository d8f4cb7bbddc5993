"""The primary's side of the line between workers: who is there, where they stand, and how it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterable
from typing import Any

from distgan.errors import printable

log = logging.getLogger("distgan")

PATIENCE = 10
"""How many times the usual limit a worker may take for what is known to be long: compiling, saving, evaluating."""
HELLO_SECONDS = 5.0
"""How long a greeting may take."""
LARGEST_HELLO = 2**12
"""Bytes of a message of somebody who has not proved to be of the job."""
LARGEST_MESSAGE = 2**22
"""Bytes of a worker's message."""
LARGEST_ANSWER = 2**26
"""Bytes of the primary's, which may hold a value of every worker."""
_LONGEST_TEXT = 20_000
_MOST_STRANGERS = 16  # Greetings that may be under way at a time, beside one of each worker.
BEAT_SECONDS = 1.0
"""How often a worker says where it stands."""
_QUIET_SECONDS = (
    5 * BEAT_SECONDS
)  # A worker that says nothing for so long is stopped or gone, however late the rest is.


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long to wait."""

    join_seconds: float
    """For all workers to be there."""
    hang_seconds: float
    """For the end of a step, and for a word from a worker."""


@dataclasses.dataclass
class Position:
    """Where a worker stands, as the primary knows it."""

    host: str
    doing: str = "starting"
    step: int = 0
    patient: bool = True
    """Whether it does something that may take long."""
    changes: int = 0
    since: float = 0.0
    """When it began this (seconds of the primary's clock)."""
    heard: float = 0.0
    """When it was last heard."""


class Hub:
    """The primary's side: who is there, where they stand, and how it ends. Lives in the line's thread.

    A worker says who it is, both sides prove that they know the job's secret, which itself is not sent, and only then is the
    worker counted. Whoever does otherwise is cut off.
    """

    def __init__(self, job: str, secret: str, world_size: int, limits: Limits, elastic: bool):
        self.job, self.secret, self.world_size, self.limits, self.elastic = job, secret, world_size, limits, elastic
        self.own_secret = secrets.token_hex(16)
        """Known to this process alone: nobody else can be rank 0."""
        self.positions: dict[int, Position] = {}
        self.writers: list[asyncio.StreamWriter] = []
        self.gathered = 0
        """Gatherings that are done."""
        self.gathering: dict[int, Any] = {}
        """The values of the next one, by rank."""
        self.failures: list[tuple[int, float, int, int | None, str]] = []
        """Urgency, when, rank, exit code (None: a worker was lost, and the others regroup) and text of each."""
        self.left: set[int] = set()
        self.end: dict[str, Any] | None = None
        self.complete = threading.Event()
        self._greeting: dict[asyncio.StreamWriter, None] = {}
        """Connections whose greeting is under way, the oldest first."""
        self._told_of_strangers = False

    async def serve(self, server: Any) -> None:
        """Answers the workers, and watches over them."""
        start = told = time.monotonic()
        address, port = server.getsockname()[:2]
        async with await asyncio.start_server(self._answer, sock=server, limit=LARGEST_HELLO):
            while len(self.positions) < self.world_size and not self.failures:
                await asyncio.sleep(0.05)
                waited = time.monotonic() - start
                missing = sorted(set(range(self.world_size)) - self.positions.keys())
                who = f"rank{'s' if len(missing) > 1 else ''} {_several(missing)} of {self.world_size} workers"
                if missing and waited > self.limits.join_seconds:
                    limit = f"{self.limits.join_seconds:g} s for {who} (--runtime.join_timeout_seconds)"
                    self.failures.append((0, waited, 0, self._of_lost, f"waited {limit}"))
                elif missing and time.monotonic() - told > 15:
                    told = time.monotonic()
                    log.info("waiting for %s, on %s:%d", who, address, port)
            if not self.failures:
                self._tell({"begin": self.positions[0].host})
            while not self.end:
                await asyncio.sleep(0.1 if self.failures else BEAT_SECONDS / 4)
                self._tell({"beat": True})
                if not self.failures and (found := judge(time.monotonic(), self.positions, self.limits.hang_seconds)):
                    self._end(1, found, stacks=True)
                self._end_if_failed()
            await asyncio.Event().wait()  # For those who come after the end.

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: a stranger's, which is closed, or a worker's, from its hello to its end."""
        self._greeting[writer] = None
        if len(self._greeting) > self.world_size + _MOST_STRANGERS:
            next(iter(self._greeting)).transport.abort()
        try:
            hello = await asyncio.wait_for(self._greet(reader, writer), HELLO_SECONDS)
            self._greeting.pop(writer)
            if hello:
                await self._follow(hello, reader, writer)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self._tell_of_stranger(writer, str(error) if isinstance(error, ValueError) else "it said nothing")
        except asyncio.CancelledError:
            pass  # At the line's end, of which asyncio would else tell by a traceback.
        finally:
            self._greeting.pop(writer, None)
            writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Hello | None:
        """The hello of a worker that knows the secret; None where it is told to come again.

        Raises:
          ValueError: it is no worker of this job.
          OSError, EOFError: it left.
        """
        hello = Hello.of(await read(reader, LARGEST_HELLO))
        if hello.job != self.job:
            raise ValueError("it is of another job")
        if self.complete.is_set():
            # All had come: this one was started again, before this job has ended. It waits for the next primary.
            writer.write(encode({"later": self.job}))
            return None
        secret = self.secret if hello.rank else self.own_secret
        nonce = secrets.token_hex(16)
        writer.write(
            encode({"welcome": self.job, "nonce": nonce, "proof": proof(secret, "primary", hello.nonce, nonce)})
        )
        answer = await read(reader, LARGEST_HELLO)
        if not equal(answer.get("proof"), proof(secret, f"rank {hello.rank}", hello.nonce, nonce)):
            raise ValueError("it does not know this job's secret")
        return hello

    async def _follow(self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One worker, from its hello to its end."""
        rank = hello.rank
        self.writers.append(writer)
        if problem := self._misfit(hello):
            self._fail(0, rank, 2, problem)
        else:
            now = time.monotonic()
            self.positions[rank] = Position(hello.host, since=now, heard=now)
        if len(self.positions) == self.world_size:
            self.complete.set()
        if self.end:
            writer.write(encode({"end": self.end}))
        try:
            while True:
                self._take(rank, await read(reader, LARGEST_MESSAGE))
        except (OSError, EOFError, ValueError, KeyError, TypeError, asyncio.CancelledError):
            pass
        if rank not in self.left and not self.end:
            lost = f"lost {self._name(rank)}" if self.elastic else "ended without a word (killed, or crashed)"
            self._fail(1, rank, self._of_lost, lost)

    def _tell_of_stranger(self, writer: asyncio.StreamWriter, why: str) -> None:
        """Says it once: there may be thousands."""
        if not self._told_of_strangers:
            peer = (writer.get_extra_info("peername") or ["?"])[0]
            log.warning(
                "a connection from %s to the workers' line was closed: %s; further ones are not told of", peer, why
            )
        self._told_of_strangers = True

    def _misfit(self, hello: Hello) -> str | None:
        rank, size = hello.rank, hello.world_size
        if size != self.world_size or not 0 <= rank < self.world_size:
            return f"is number {rank} of {size} workers, and the primary's cluster has {self.world_size}"
        if rank in self.positions:
            return f"two workers have the index {rank}: on {self.positions[rank].host} and on {hello.host}"
        return None

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        """Takes a worker's message.

        Raises:
          ValueError, KeyError, TypeError: it is none.
        """
        now = time.monotonic()
        position = self.positions.get(rank)
        if position:
            position.heard = now
        if "beat" in message and position:
            doing, step, patient, changes = message["beat"]
            position.doing, position.step, position.patient = text_of(doing), int(step), bool(patient)
            if changes != position.changes:
                position.changes, position.since = int(changes), now
        elif "gather" in message:
            if message["gather"] != self.gathered + 1 or rank in self.gathering:
                raise ValueError("not the gathering under way")
            self.gathering[rank] = message["value"]
            if len(self.gathering) == self.world_size:
                self.gathered += 1
                values = [self.gathering[each] for each in range(self.world_size)]
                self._tell({"gathered": self.gathered, "values": values})
                self.gathering = {}
        elif "fail" in message:
            failure = message["fail"]
            self._fail(int(failure["urgency"]), rank, failing(failure["code"]), text_of(failure["text"]))
        elif "bye" in message:
            self.left.add(rank)
            self.positions.pop(rank, None)
            if len(self.left) == self.world_size:
                for writer in self.writers:
                    writer.close()

    @property
    def _of_lost(self) -> int | None:
        return None if self.elastic else 1

    def _fail(self, urgency: int, rank: int, code: int | None, text: str) -> None:
        self.failures.append((urgency, time.monotonic(), rank, code, text))

    def _end_if_failed(self) -> None:
        """Ends all by the first real error; an echo waits for what it may be the echo of."""
        if not self.failures or self.end:
            return
        urgency, when, rank, code, text = min(self.failures)
        first = min(failure[1] for failure in self.failures)
        if time.monotonic() - first < (0.5 if urgency < 2 else 3):
            return
        if code is None:
            self._end(None, ", ".join(sorted({text for *_, each, text in self.failures if each is None})), stacks=False)
            return
        rank = min(failure[2] for failure in self.failures if failure[3:] == (code, text))
        self._end(code, text if rank == 0 else f"{self._name(rank)}: {text}", stacks=False)

    def _end(self, code: int | None, text: str, stacks: bool) -> None:
        self.end = {"code": code, "text": text, "stacks": stacks}
        self._tell({"end": self.end})

    def _name(self, rank: int) -> str:
        position = self.positions.get(rank)
        return f"rank {rank} on {position.host}" if position else f"rank {rank}"

    def _tell(self, message: dict[str, Any]) -> None:
        for writer in self.writers:
            if not writer.is_closing():
                writer.write(encode(message))


def judge(now: float, positions: dict[int, Position], hang_seconds: float) -> str | None:
    """What is wrong with the workers, in words: one is silent, or nobody gets on; None where all is well.

    Args:
      now: in seconds, of the clock of `since` and `heard`.
      positions: of all workers that have not left, by rank.
      hang_seconds: the limit for a word and for a step; `PATIENCE` times as long for what may take long.
    """
    lost = [at for at in positions.values() if now - at.heard > hang_seconds]
    waiting = [at for at in positions.values() if now - at.since > hang_seconds]
    busy = [at for at in positions.values() if at.patient and now - at.since <= PATIENCE * hang_seconds]
    if not lost and (not waiting or busy):
        return None
    # Those who wait for a silent worker may pass the limit first.
    silent = {rank: at for rank, at in positions.items() if now - at.heard > min(_QUIET_SECONDS, hang_seconds)}
    if silent:
        words = [f"rank {rank} on {at.host} (last at step {at.step}, {at.doing})" for rank, at in silent.items()]
        quiet = max(now - at.heard for at in silent.values())
        return f"not heard from for {quiet:.0f} s: {'; '.join(words)} (--runtime.hang_timeout_seconds={hang_seconds:g})"
    last = min(at.step for at in positions.values())
    # Of those at the same step, the ones that do something else than waiting for it are behind.
    words = [
        f"rank {rank} on {at.host} at step {at.step}, {at.doing}" for rank, at in positions.items() if at.step == last
    ]
    ahead = sorted(rank for rank, at in positions.items() if at.step > last)
    text = f"no step ended within {hang_seconds:g} s (--runtime.hang_timeout_seconds); behind: {'; '.join(words)}"
    return text + (f"; ahead: rank {_several(ahead)}" if ahead else "")


@dataclasses.dataclass(frozen=True)
class Hello:
    """Who a worker says it is."""

    job: str
    rank: int
    world_size: int
    host: str
    nonce: str
    """Of its own, so that no proof can be used twice."""

    @classmethod
    def of(cls, message: dict[str, Any]) -> Hello:
        """Reads a message; raises ValueError where it is none."""
        fields: dict[str, Any] = {field.name: message.get(field.name) for field in dataclasses.fields(cls)}
        numbers = fields["rank"], fields["world_size"]
        words = fields["job"], fields["host"], fields["nonce"]
        if not all(type(each) is int for each in numbers) or not all(type(each) is str for each in words):
            raise ValueError("it is no worker")
        return cls(**{**fields, "host": text_of(fields["host"])[:255]})


def proof(secret: str, who: str, *nonces: str) -> str:
    """What only somebody who knows the secret can say of two nonces; `who` keeps one side from repeating the other's."""
    return hmac.new(secret.encode(), "\n".join((who, *nonces)).encode(), hashlib.sha256).hexdigest()


def equal(said: Any, expected: str) -> bool:
    """Whether a proof is the expected one; takes as long whatever is wrong with it."""
    return isinstance(said, str) and said.isascii() and hmac.compare_digest(said, expected)


def text_of(said: Any) -> str:
    """A text for another worker, or from one, fit to be printed; of a long one the start and the end."""
    text, half = str(said), _LONGEST_TEXT // 2
    return printable(text if len(text) <= 2 * half else f"{text[:half]} ... {text[-half:]}")


def failing(code: Any) -> int:
    """An exit code from another worker; whatever it says, it is not that of a success."""
    return code if type(code) is int and 0 < code < 256 else 1


def encode(message: dict[str, Any]) -> bytes:
    """A message as it is sent: JSON behind its length."""
    content = json.dumps(message).encode()
    return len(content).to_bytes(4, "big") + content


async def read(reader: asyncio.StreamReader, largest: int) -> dict[str, Any]:
    """The next message of at most so many bytes.

    Raises:
      ValueError: it is none, or larger.
      OSError, EOFError: the connection was closed.
    """
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > largest:
        raise ValueError("it sent no message of distgan's")
    try:
        message = json.loads(await reader.readexactly(size))
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ValueError("it sent no message of distgan's")
    return message


def _several(numbers: Iterable[int]) -> str:
    listed = [str(number) for number in numbers]
    return ", ".join(listed[:8]) + (" ..." if len(listed) > 8 else "")
