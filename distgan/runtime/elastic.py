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
import logging
import math
import os
import threading
import time
from collections.abc import Callable

from horovod.common.elastic import notification_manager

from distgan.errors import Ended, Regroup
from distgan.runtime.control import Deadline, Group, Heartbeat, Line
from distgan.runtime.horovod import NotMet, ask, hvd, meet
from distgan.runtime.hub import Limits
from distgan.runtime.topology import Workers

log = logging.getLogger("distgan")

_ATTEMPTS = 3  # So many times the limit for workers to be there may pass before a group trains again.
_REACH_SECONDS = 20.0  # For a primary that has said where it listens.


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
    try:
        server, place = meet(workers, limits, port)
    except NotMet as error:
        raise Regroup(str(error)) from None
    if workers.rank:
        limits = dataclasses.replace(limits, join_seconds=min(limits.join_seconds, _REACH_SECONDS))
    host, own = os.environ["HOROVOD_HOSTNAME"], (workers.rank, workers.world_size)
    line = _ElasticLine(place.job, secret + place.job, *own, limits, place.addresses, server, elastic=True, host=host)
    line.told = told
    return line


# What the launcher answers, in its order, and Horovod reads when it starts.
_PLACE = [f"HOROVOD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")]


def _ask(workers: Workers, seconds: float) -> Workers:
    """This worker's place in the next group, which Horovod reads from the environment.

    Raises:
      Ended: the launcher has removed this worker's host, has ended, or does not answer.
    """
    own = f"{os.environ['HOROVOD_HOSTNAME']}:{os.environ['HOROVOD_LOCAL_RANK']}"
    try:
        answer = ask(workers, f"rank_and_size/{own}", seconds=seconds)
    except (OSError, http.client.HTTPException) as error:
        raise Ended(1, f"the launcher gave no place in a new group: {error or type(error).__name__}") from None
    place = (answer or b"-1").decode().split(",")
    if int(place[0]) < 0:
        log.info("%s was removed from the job", own)
        raise Ended(0, "removed", spoken=False)
    os.environ.update(zip(_PLACE, place, strict=True))
    return dataclasses.replace(workers, rank=int(place[0]), world_size=int(place[1]))
