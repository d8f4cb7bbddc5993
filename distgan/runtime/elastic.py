"""Elastic Horovod: what happens between the loss of a worker, or the coming of one, and the next step.

1. It is noticed. A worker that ends without a word leaves the line between workers, whose primary tells the others; what
   the launcher adds or removes it tells rank 0, and all hear of it at the end of a call (`changes`). Either
   way `Regroup` is raised in every worker, wherever it is.
2. `run` takes it, shuts Horovod down, and asks the launcher for a new place (`_ask`). The launcher answers once each worker
   of the old group has asked or ended, and starts the new ones. The oldest host has rank 0.
3. A new line is drawn (`_line`). Once all are on it Horovod starts: it cannot wait for a worker that starts, or dies, meanwhile.
4. `work` is called again, in the same process: it goes back to its last snapshot, takes rank 0's state, and deals the image
   numbers anew.

Of Horovod's own elastic layer only the listener to its launcher is used: its states and hooks do not know Keras 3, and it ends
a process whose host was removed by an abort.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable

from horovod.common.elastic import notification_manager

from distgan.errors import Ended, Regroup, UserError
from distgan.runtime.control import Deadline, Group, Heartbeat, Line
from distgan.runtime.horovod import hvd, listen, own_addresses
from distgan.runtime.hub import Limits, text_of
from distgan.runtime.topology import Workers

log = logging.getLogger("distgan")

_ATTEMPTS = 3  # So many times the limit for workers to be there may pass before a group trains again.
_REACH_SECONDS = 20.0  # For a primary that has said where it listens.
_PRIMARY_SECONDS = 120.0  # For a primary to say so.


def run(
    work: Callable[[Group], None],
    workers: Workers,
    limits: Limits,
    port: int,
    secret: str = "",
    heartbeat: Heartbeat | None = None,
) -> None:
    """Calls `work` for the group that the launcher started, and again for each that follows, until it returns.

    Args:
      work: leaves by `Regroup` where the group has changed.
      workers: as the launcher started them.
      limits: how long to wait.
      port: see --runtime.control_port.
      secret: of --runtime.secret_file.
      heartbeat: see --runtime.heartbeat.

    Raises:
      Ended: of all workers, by one's error; or of this one, as the launcher has removed its host.
      UserError: the port is in use.
    """
    os.environ.setdefault("HOROVOD_LOG_LEVEL", "fatal")  # What it says of a lost worker is said in a line of ours.
    # The line's verdict on a silent worker comes first.
    os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(math.ceil(1.5 * limits.hang_seconds) + 10))
    told = _Told()
    reason, noticed = "", time.monotonic()
    alone_since = noticed  # Whoever reaches the launcher can keep a group from meeting: that has a limit.
    while True:
        line = None
        try:
            line = _line(workers, limits, port, secret, told.event)
            line.heartbeat = heartbeat
            with line.together():
                line.join()
                with Deadline(limits.join_seconds, f"Horovod to start with {workers.world_size} workers"):
                    hvd.init()
                os.environ["HOROVOD_ELASTIC"] = "0"  # Else it would ask for a place by itself from now on.
                told.listen()
                alone_since = math.inf
                work(Group(workers, line, reason, noticed))
            return
        except Regroup as regroup:
            reason, noticed = str(regroup), time.monotonic()
        alone_since = min(alone_since, noticed)
        if noticed - alone_since > _ATTEMPTS * limits.join_seconds:
            limit = f"{_ATTEMPTS} x {limits.join_seconds:g} s (--runtime.join_timeout_seconds)"
            raise Ended(1, f"no group of workers came together within {limit}: {reason}")
        told.event.clear()
        with Deadline(limits.hang_seconds, "Horovod to shut down"):
            hvd.shutdown()
        workers = _ask(workers, limits.join_seconds)
        if line:  # Until now it has told late workers that their group is no more.
            line.leave()


class _Told:
    """Hears of hosts that the launcher adds or removes; it tells rank 0 alone."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def listen(self) -> None:
        """Begins, once."""
        notification_manager.init()
        notification_manager.register_listener(self)

    def on_hosts_updated(self, timestamp: int, result: int) -> None:
        """Called by Horovod's listener, in its thread."""
        self.event.set()


class _ElasticLine(Line):
    told: threading.Event

    def changes(self) -> bool:
        return any(self.gather(self.told.is_set()))


def _line(workers: Workers, limits: Limits, port: int, secret: str, told: threading.Event) -> Line:
    """The line of a group; rank 0 says by the launcher's table where it listens.

    Raises:
      Regroup: rank 0 did not say so in time.
      UserError: the port is in use.
    """
    server = None
    if workers.rank == 0:
        try:
            server, own = listen(port, own_addresses())
        except UserError as error:
            _launcher("distgan/line", json.dumps(["", [], str(error)]).encode())
            raise
        found = json.dumps([secrets.token_hex(8), own, ""]).encode()
        _launcher("distgan/line", found)
    else:
        end = time.monotonic() + min(limits.join_seconds, _PRIMARY_SECONDS)
        while (found := _launcher("distgan/line") or b"") == b"":
            if time.monotonic() > end:
                raise Regroup("rank 0 did not come")
            time.sleep(0.1)
        limits = dataclasses.replace(limits, join_seconds=min(limits.join_seconds, _REACH_SECONDS))
    job, addresses, problem = _entry(found)
    if problem:
        raise UserError(problem)
    host, place = os.environ["HOROVOD_HOSTNAME"], (workers.rank, workers.world_size)
    line = _ElasticLine(job, secret + job, *place, limits, addresses, server, elastic=True, host=host)
    line.told = told
    return line


def _entry(found: bytes) -> tuple[str, list[tuple[str, int]], str]:
    """What rank 0 wrote to the launcher's table, which anybody who reaches it may write to: job, addresses, or its problem.

    Raises:
      Regroup: it is none.
    """
    try:
        job, addresses, problem = json.loads(found)
        return str(job), [(str(host), int(number)) for host, number in addresses], text_of(problem)
    except (ValueError, TypeError, RecursionError):
        raise Regroup("the launcher's table does not say where rank 0 is") from None


# What the launcher answers, in its order, and Horovod reads when it starts.
_PLACE = [f"HOROVOD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")]


def _ask(workers: Workers, seconds: float) -> Workers:
    """This worker's place in the next group, which Horovod reads from the environment.

    Raises:
      Ended: the launcher has removed this worker's host, has ended, or does not answer.
    """
    own = f"{os.environ['HOROVOD_HOSTNAME']}:{os.environ['HOROVOD_LOCAL_RANK']}"
    try:
        answer = _launcher(f"rank_and_size/{own}", seconds=seconds)
    except (OSError, http.client.HTTPException) as error:
        raise Ended(1, f"the launcher gave no place in a new group: {error or type(error).__name__}") from None
    place = (answer or b"-1").decode().split(",")
    if int(place[0]) < 0:
        log.info("%s was removed from the job", own)
        raise Ended(0, "removed", spoken=False)
    os.environ.update(zip(_PLACE, place, strict=True))
    return dataclasses.replace(workers, rank=int(place[0]), world_size=int(place[1]))


def _launcher(path: str, value: bytes | None = None, seconds: float = 30.0) -> bytes | None:
    """An entry of the launcher's table, once it is set to a value if there is one; None where there is no such entry.

    Raises:
      OSError, http.client.HTTPException: it does not answer.
    """
    address, port = os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"], int(os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"])
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    try:
        connection.request("GET" if value is None else "PUT", f"/{path}", value)
        answer = connection.getresponse()
        return answer.read(2**20) if answer.status == http.HTTPStatus.OK else None
    finally:
        connection.close()
