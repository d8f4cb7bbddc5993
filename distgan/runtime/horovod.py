"""Replicas in processes of their own, by Horovod: one a worker.

Of Horovod's Python layer only the plain operations are used: its optimizer, tape, batch norm and broadcast hooks do not
know Keras 3 and go wrong without a word (the optimizer applies local gradients).
"""

from __future__ import annotations

import copy
import dataclasses
import http.client
import json
import secrets
import socket
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
import psutil
import tensorflow as tf

from distgan.errors import Ended, UserError
from distgan.runtime import control, topology
from distgan.runtime.base import Runtime
from distgan.runtime.control import Control, Deadline, Group, Line, waiting_for
from distgan.runtime.hub import Limits, text_of
from distgan.runtime.topology import Topology, Workers

try:
    import horovod.tensorflow as hvd
except ImportError as error:
    raise UserError(
        f"Horovod cannot be imported ({error}): build it for this TensorFlow by bash launch/install_horovod.sh"
    ) from None


def connect(workers: Workers, limits: Limits, port: int, secret: str = "") -> Control:
    """Starts the line between workers, and Horovod once all are on it: a worker that is late is then waited for by name.

    `secret` is the launcher's, if it has made one.

    Raises:
      UserError: the port of the line is in use.
      Ended: a worker did not come.
    """
    if not workers.table:
        return _connect_by_mpi(workers, limits, port, secret)
    try:
        server, found = meet(workers, limits, port)
    except NotMet as error:
        raise Ended(1, str(error)) from None
    line = Line(found.job, secret + found.job, workers.rank, workers.world_size, limits, found.addresses, server).join()
    with line.together(), Deadline(limits.join_seconds, f"Horovod to start with {workers.world_size} workers"):
        hvd.init()
    return line


class NotMet(Exception):
    """Rank 0 has not said where it listens, or not so that it can be understood."""


class Place(NamedTuple):
    """Where rank 0 listens for the others."""

    job: str
    addresses: Sequence[tuple[str, int]]
    problem: str = ""
    """Why it does not."""


def meet(workers: Workers, limits: Limits, port: int) -> tuple[socket.socket | None, Place]:
    """Rank 0's socket for the line, and where that is: it says so in horovodrun's table, and the others look there.

    Raises:
      UserError: the port is in use.
      NotMet: see there.
    """
    server, place, end = None, None, time.monotonic() + limits.join_seconds
    if workers.rank == 0:
        try:
            server, addresses = listen(port, _hosts(workers))
            place = Place(secrets.token_hex(8), addresses)
        except UserError as error:
            place = Place("", [], str(error))
        ask(workers, _LINE, json.dumps(place).encode())
    while not place:
        if content := ask(workers, _LINE):
            place = _read_place(content)
        elif time.monotonic() > end:
            waited = f"rank {workers.rank} waited {limits.join_seconds:g} s for rank 0"
            raise NotMet(f"{waited} (--runtime.join_timeout_seconds)")
        else:
            time.sleep(0.1)
    if place.problem:
        raise UserError(place.problem)
    return server, place


_LINE = "distgan/line"


def _read_place(content: bytes) -> Place:
    """What rank 0 wrote to the table, which anybody who reaches it may write to; raises NotMet where it is something else."""
    try:
        job, addresses, problem = json.loads(content)
        return Place(str(job), [(str(host), int(number)) for host, number in addresses], text_of(problem))
    except (ValueError, TypeError, RecursionError):
        raise NotMet("horovodrun's table does not say where rank 0 is") from None


def ask(workers: Workers, path: str, value: bytes | None = None, seconds: float = 30.0) -> bytes | None:
    """An entry of horovodrun's table, once it is set to a value if there is one; None where there is no such entry.

    Raises:
      OSError, http.client.HTTPException: horovodrun does not answer.
    """
    address, port = workers.table or ("", 0)
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    try:
        connection.request("GET" if value is None else "PUT", f"/{path}", value)
        answer = connection.getresponse()
        return answer.read(2**20) if answer.status == http.HTTPStatus.OK else None
    finally:
        connection.close()


def _connect_by_mpi(workers: Workers, limits: Limits, port: int, secret: str) -> Control:
    """The same where Horovod has to start first, as there is no table."""
    with Deadline(
        limits.join_seconds, f"Horovod to start with {workers.world_size} workers (--runtime.join_timeout_seconds)"
    ):
        hvd.init()
        here, problem, server = None, "", None
        if workers.rank == 0:
            try:
                server, addresses = listen(port, _hosts(workers))
                here = (secrets.token_hex(8), secrets.token_hex(16), addresses)
            except UserError as error:
                problem = str(error)
        found, problem = hvd.broadcast_object((here, problem), root_rank=0, name="control")
    if problem:
        raise UserError(problem)
    job, drawn, addresses = found
    return Line(job, secret + drawn, workers.rank, workers.world_size, limits, addresses, server).join()


def listen(port: int, hosts: Sequence[str]) -> tuple[Any, list[tuple[str, int]]]:
    """The primary's socket, on the one address of `hosts` or on all of this host, and where it may be reached.

    Raises:
      UserError: the port is in use.
    """
    server = control.listen(port, hosts[0] if len(hosts) == 1 else "")
    return server, [(host, server.getsockname()[1]) for host in hosts]


def _hosts(workers: Workers) -> list[str]:
    """The addresses at which the other workers reach this host, now or, of elastic ones, when they come."""
    alone = workers.local_size == workers.world_size and not workers.elastic
    return ["127.0.0.1"] if alone else own_addresses()


def own_addresses() -> list[str]:
    """Numbers by which other workers may reach this host, the loopback last; of the interface that Gloo uses, if it is known."""
    interfaces = psutil.net_if_addrs()
    chosen = interfaces.get(topology.gloo_interface())
    numbers = [
        each.address
        for interface in ([chosen] if chosen else interfaces.values())
        for each in interface
        if each.family == socket.AF_INET
    ]
    return sorted(numbers, key=lambda number: number.startswith("127."))


class HorovodRuntime(Runtime):
    """One replica a worker."""

    control: Any  # A line.

    def __init__(self, topology: Topology, line: Control, compression: str = "none", groups: int = 1):
        """Args: see --runtime.compression and --runtime.reduction_groups."""
        super().__init__(topology, line)
        self.compression = hvd.Compression.fp16 if compression == "fp16" else hvd.Compression.none
        self.groups = groups

    def regrouped(self, group: Group) -> HorovodRuntime:
        """The same among the workers of another group."""
        other = copy.copy(self)
        rank, count = group.workers.rank, group.workers.world_size
        other.topology = dataclasses.replace(self.topology, num_replicas=count, rank=rank, world_size=count)
        other.control = group.control
        return other

    def sum(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        with self.timing(tensors) as timed:
            return timed(hvd.grouped_allreduce(list(tensors), op=hvd.Sum, name=name))

    def sum_gradients(self, gradients: Sequence[tf.Tensor], measured: tf.Tensor, name: str) -> list[tf.Tensor]:
        if self.groups == 1 and self.compression is hvd.Compression.none:
            return super().sum_gradients(gradients, measured, name)
        reduced: list[tf.Tensor] = []
        # Backward passes end with the first layers, so the last group is ready first.
        for number, part in enumerate(_parts(gradients, self.groups)):
            # Horovod divides after the sum unless told to sum; these gradients are shares of a mean already, so their
            # sum in 16 bits is as large as the mean and no larger.
            part_name = f"{name}/gradients{number}"
            reduced += hvd.grouped_allreduce(part, op=hvd.Sum, compression=self.compression, name=part_name)
        return [*reduced, *self.sum([measured], f"{name}/measured")]

    def total(self, arrays: Sequence[np.ndarray], name: str) -> list[np.ndarray]:
        return [
            tensor.numpy() for tensor in hvd.grouped_allreduce(list(map(tf.constant, arrays)), op=hvd.Sum, name=name)
        ]

    def wire_bytes(self, gradients: Sequence[tf.Tensor]) -> int:
        if self.compression is hvd.Compression.none:
            return super().wire_bytes(gradients)
        return sum(2 * gradient.shape.num_elements() for gradient in gradients)

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        hvd.broadcast_variables(list(variables), root_rank=0)

    def close(self) -> None:
        super().close()
        limit = self.control.limits.hang_seconds
        with Deadline(limit, "Horovod to shut down"), waiting_for("Horovod to shut down"):
            hvd.shutdown()


def _parts(tensors: Sequence[tf.Tensor], count: int) -> list[list[tf.Tensor]]:
    """Neighbours in `count` parts of about equal size in numbers."""
    total = sum(tensor.shape.num_elements() for tensor in tensors)
    parts: list[list[tf.Tensor]] = [[] for _ in range(count)]
    before = 0
    for tensor in tensors:
        parts[min(count - 1, before * count // total)].append(tensor)
        before += tensor.shape.num_elements()
    return [part for part in parts if part]


def describe_build() -> str:
    """Version, controllers and operations of the installed Horovod, in words."""
    built = {"gloo": hvd.gloo_built(), "mpi": hvd.mpi_built(), "nccl": hvd.nccl_built()}
    controllers = [name for name in ("gloo", "mpi") if built[name]]
    operations = [name for name, there in built.items() if there]
    return f"{metadata.version('horovod')}, controllers {', '.join(controllers)}, operations {', '.join(operations)}"
