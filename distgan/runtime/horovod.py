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
from distgan.runtime import control
from distgan.runtime.base import Runtime
from distgan.runtime.control import Control, Deadline, Group, Line, waiting_for
from distgan.runtime.hub import Limits
from distgan.runtime.topology import Topology, Workers

try:
    import horovod.tensorflow as hvd
except ImportError as error:
    raise UserError(
        f"Horovod cannot be imported ({error}): build it for this TensorFlow by bash launch/install_horovod.sh"
    ) from None


def connect(workers: Workers, limits: Limits, port: int) -> Control:
    """Starts the line between workers, and Horovod once all are on it: a worker that is late is then waited for by name.

    Raises:
      UserError: the port of the line is in use.
      Ended: a worker did not come.
    """
    if not workers.table:
        return _connect_by_mpi(workers, limits, port)
    try:
        server, found = meet(workers, limits, port)
    except TimeoutError as error:
        raise Ended(1, str(error)) from None
    line = Line(found.job, workers.rank, workers.world_size, limits, found.addresses, server).join()
    with line.together(), Deadline(limits.join_seconds, f"Horovod to start with {workers.world_size} workers"):
        hvd.init()
    return line


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
      TimeoutError: rank 0 has not said it in time.
    """
    server, place, end = None, None, time.monotonic() + limits.join_seconds
    if workers.rank == 0:
        try:
            server = control.listen(port)
            place = Place(secrets.token_hex(8), [(host, server.getsockname()[1]) for host in own_addresses()])
        except UserError as error:
            place = Place("", [], str(error))
        ask(workers, _LINE, json.dumps(place).encode())
    while not place:
        if content := ask(workers, _LINE):
            place = Place(*json.loads(content))
        elif time.monotonic() > end:
            waited = f"rank {workers.rank} waited {limits.join_seconds:g} s for rank 0"
            raise TimeoutError(f"{waited} (--runtime.join_timeout_seconds)")
        else:
            time.sleep(0.1)
    if place.problem:
        raise UserError(place.problem)
    return server, place


_LINE = "distgan/line"


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
        return answer.read() if answer.status == http.HTTPStatus.OK else None
    finally:
        connection.close()


def _connect_by_mpi(workers: Workers, limits: Limits, port: int) -> Control:
    """The same where Horovod has to start first, as there is no table."""
    with Deadline(
        limits.join_seconds, f"Horovod to start with {workers.world_size} workers (--runtime.join_timeout_seconds)"
    ):
        hvd.init()
        here, problem, server = None, "", None
        if workers.rank == 0:
            try:
                server = control.listen(port)
                here = (secrets.token_hex(8), [(host, server.getsockname()[1]) for host in own_addresses()])
            except UserError as error:
                problem = str(error)
        found, problem = hvd.broadcast_object((here, problem), root_rank=0, name="control")
    if problem:
        raise UserError(problem)
    return Line(found[0], workers.rank, workers.world_size, limits, found[1], server).join()


def own_addresses() -> list[str]:
    """Names and numbers by which other workers may reach this host, the loopback last."""
    numbers = [
        each.address
        for interface in psutil.net_if_addrs().values()
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
