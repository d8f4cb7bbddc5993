"""The primary's side of the line between workers: who is there, where they stand, and how it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

log = logging.getLogger("distgan")

PATIENCE = 10
"""How many times the usual limit a worker may take for what is known to be long: compiling, saving, evaluating."""
LARGEST_MESSAGE = 2**26
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
    """The primary's side: who is there, where they stand, and how it ends. Lives in the line's thread."""

    def __init__(self, job: str, world_size: int, limits: Limits, elastic: bool):
        self.job, self.world_size, self.limits, self.elastic = job, world_size, limits, elastic
        self.positions: dict[int, Position] = {}
        self.writers: list[asyncio.StreamWriter] = []
        self.gathering: dict[int, dict[int, Any]] = {}
        self.failures: list[tuple[int, float, int, int | None, str]] = []
        """Urgency, when, rank, exit code (None: a worker was lost, and the others regroup) and text of each."""
        self.left: set[int] = set()
        self.end: dict[str, Any] | None = None
        self.complete = threading.Event()

    async def serve(self, server: Any) -> None:
        """Answers the workers, and watches over them."""
        start = told = time.monotonic()
        async with await asyncio.start_server(self._answer, sock=server, limit=LARGEST_MESSAGE):
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
                    log.info("waiting for %s", who)
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
        """One worker, from its hello to its end."""
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), 10))
            if hello["hello"] != self.job:
                raise ValueError
            rank, host = int(hello["rank"]), str(hello["host"])
        except (OSError, TimeoutError, ValueError, KeyError, TypeError):
            writer.close()
            return
        if self.complete.is_set():
            # All had come: this one was started again, before this job has ended. It waits for the next primary.
            writer.write(encode({"later": self.job}))
            writer.close()
            return
        writer.write(encode({"welcome": self.job}))
        self.writers.append(writer)
        if problem := self._misfit(rank, host, hello["world_size"]):
            self._fail(0, rank, 2, problem)
        else:
            now = time.monotonic()
            self.positions[rank] = Position(host, since=now, heard=now)
        if len(self.positions) == self.world_size:
            self.complete.set()
        if self.end:
            writer.write(encode({"end": self.end}))
        try:
            while line := await reader.readline():
                self._take(rank, json.loads(line))
        except (ConnectionError, ValueError, asyncio.CancelledError):
            pass
        if rank not in self.left and not self.end:
            lost = f"lost {self._name(rank)}" if self.elastic else "ended without a word (killed, or crashed)"
            self._fail(1, rank, self._of_lost, lost)

    def _misfit(self, rank: int, host: str, world_size: int) -> str | None:
        if world_size != self.world_size or not 0 <= rank < self.world_size:
            return f"is number {rank} of {world_size} workers, and the primary's cluster has {self.world_size}"
        if rank in self.positions:
            return f"two workers have the index {rank}: on {self.positions[rank].host} and on {host}"
        return None

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        now = time.monotonic()
        position = self.positions.get(rank)
        if position:
            position.heard = now
        if "beat" in message and position:
            position.doing, position.step, position.patient, changes = message["beat"]
            if changes != position.changes:
                position.changes, position.since = changes, now
        elif "gather" in message:
            number = message["gather"]
            values = self.gathering.setdefault(number, {})
            values[rank] = message["value"]
            if len(values) == self.world_size:
                self._tell({"gathered": number, "values": [values[each] for each in range(self.world_size)]})
                del self.gathering[number]
        elif "fail" in message:
            failure = message["fail"]
            self._fail(failure["urgency"], rank, failure["code"], failure["text"])
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


def encode(message: dict[str, Any]) -> bytes:
    """A message as one line of JSON."""
    return json.dumps(message).encode() + b"\n"


def _several(numbers: Iterable[int]) -> str:
    listed = [str(number) for number in numbers]
    return ", ".join(listed[:8]) + (" ..." if len(listed) > 8 else "")
