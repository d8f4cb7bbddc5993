"""Who shares the work, in plain numbers: which strategy and why, and how the global batch is divided. No TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence

import psutil

from distgan.errors import UserError

_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
_HOROVODRUN = ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE")
_ELASTIC, _HOST = "HOROVOD_ELASTIC", "HOROVOD_HOSTNAME"
_TABLE = ("HOROVOD_GLOO_RENDEZVOUS_ADDR", "HOROVOD_GLOO_RENDEZVOUS_PORT")
_LAUNCHER = "DISTGAN_LAUNCHER"  # Set by the scripts of launch/ to their process number.
# Where a cluster says only who a worker is, and not how many there are: Kubernetes' Indexed Job, and Slurm's srun.
_INDICES = ("JOB_COMPLETION_INDEX", "SLURM_PROCID")


@dataclasses.dataclass(frozen=True)
class Workers:
    """The workers of a run as their launcher placed them, seen from one of them."""

    strategy: str
    """`horovod` or `multiworker`."""
    reason: str
    """How this is known."""
    rank: int
    """This worker's number."""
    world_size: int
    """Number of workers."""
    local_rank: int = 0
    """This worker's number on its host."""
    local_size: int = 1
    """Workers on this host."""
    addresses: tuple[str, ...] = ()
    """`host:port` of every worker (multiworker)."""
    elastic: bool = False
    """Whether workers may come and go (horovod)."""
    table: tuple[str, int] | None = None
    """Where horovodrun keeps a table of what its ranks tell each other, by HTTP; None under mpirun."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """The workers and replicas of a run, seen from one worker."""

    strategy: str
    """`single`, `mirrored`, `multiworker` or `horovod`."""
    reason: str
    """Why this strategy, for the log."""
    num_replicas: int
    """Copies of the networks over all workers."""
    rank: int = 0
    """This worker's number."""
    world_size: int = 1
    """Number of workers."""
    local_rank: int = 0
    """This worker's number on its host."""
    addresses: tuple[str, ...] = ()
    """`host:port` of every worker (multiworker)."""

    @property
    def is_primary(self) -> bool:
        """Whether this worker reads and writes the run directory."""
        return self.rank == 0

    def facts(self) -> dict[str, str | int]:
        """What a run's page tells of it."""
        # The flag `strategy` may be `auto`, and is told of as it was given.
        return {"chosen_strategy": self.strategy, "num_replicas": self.num_replicas, "world_size": self.world_size}

    @property
    def local_replicas(self) -> range:
        """The replicas of this worker."""
        each = self.num_replicas // self.world_size
        return range(self.rank * each, (self.rank + 1) * each)


def read_environment() -> dict[str, str]:
    """The variables that launchers set, and nothing else of the environment."""
    names = {
        "TF_CONFIG",
        *_INDICES,
        *_HOROVODRUN,
        *_TABLE,
        _ELASTIC,
        _HOST,
        *(name for names in _MPI for name in names),
    }
    return {name: os.environ[name] for name in names if name in os.environ}


def wandb_run_id() -> str:
    """The id of the W&B run that a sweep agent, a launcher too, has set for its trial; empty without one."""
    return os.environ.get("WANDB_RUN_ID", "")


def gloo_interface() -> str:
    """The network interface that horovodrun has chosen for its ranks; empty where it has not."""
    return os.environ.get("HOROVOD_GLOO_IFACE", "")


def launcher() -> int | None:
    """The process number of the script of launch/ that this process descends from; None without one, or once it has ended."""
    number = os.environ.get(_LAUNCHER, "")
    ancestor = psutil.Process() if number.isdigit() else None
    with contextlib.suppress(psutil.Error):
        while ancestor and ancestor.pid != int(number):
            ancestor = ancestor.parent()
        return ancestor.pid if ancestor else None
    return None


def find_workers(environment: Mapping[str, str], workers: int = 1, peers: str = "") -> Workers | None:
    """The workers that a launcher has started, by its environment variables; None where there is no launcher.

    Args:
      environment: see `read_environment`.
      workers: --runtime.workers, where the launcher gives only an index.
      peers: --runtime.peers, `host:port` of the workers: a list with commas, or a pattern with {index}.

    Raises:
      UserError: what the launcher or the user said makes no sense.
    """
    for rank, size, local_rank, local_size in (_HOROVODRUN, *_MPI):
        if rank in environment and size in environment:
            numbers = [_number(environment, name, default) for name, default in ((rank, 0), (size, 1))]
            local = [_number(environment, name, default) for name, default in ((local_rank, 0), (local_size, 1))]
            launcher = "horovodrun" if rank.startswith("HOROVOD") else "mpirun"
            elastic = environment.get(_ELASTIC) == "1"
            if elastic and (slot := re.fullmatch(r"127\.(0*)1", environment.get(_HOST, ""))):
                local[0] += len(slot[1])  # launch/elastic.sh makes each slot of this machine a host of its own.
            reason = f"started by {launcher}" + (", elastic" if elastic else "")
            table = (environment[_TABLE[0]], _number(environment, _TABLE[1], 0)) if _TABLE[0] in environment else None
            return Workers("horovod", reason, numbers[0], numbers[1], local[0], local[1], elastic=elastic, table=table)
    if "TF_CONFIG" in environment:
        return _from_tf_config(environment["TF_CONFIG"])
    if workers == 1 and not peers:
        return None
    return _from_index(environment, workers, peers)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name, str(default))
    if not value.isdigit():
        raise UserError(f"{name}={value} is not a whole number; it is the launcher's to set")
    return int(value)


def _from_tf_config(text: str) -> Workers:
    try:
        content = json.loads(text)
        cluster, task = content["cluster"], content["task"]
        addresses = (*cluster.get("chief", ()), *cluster.get("worker", ()))
        kind, index = task["type"], int(task["index"])
        rank = index if kind == "chief" else index + len(cluster.get("chief", ()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(
            'TF_CONFIG is not {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": N}}: '
            + what
        ) from None
    if kind not in ("chief", "worker"):
        raise UserError(f"TF_CONFIG: task.type={kind} is not chief or worker: distgan has no other tasks")
    if not 0 <= index < len(cluster.get(kind, ())):
        raise UserError(
            f"TF_CONFIG: task.index={index} is not one of the {len(cluster.get(kind, ()))} of cluster.{kind}"
        )
    _check_addresses("TF_CONFIG", addresses)
    return Workers("multiworker", "TF_CONFIG is set", rank, len(addresses), addresses=tuple(addresses))


def _from_index(environment: Mapping[str, str], workers: int, peers: str) -> Workers:
    name = next((name for name in _INDICES if name in environment), None)
    if name is None:
        raise UserError(
            f"--runtime.workers={workers} needs TF_CONFIG, or an index of this worker in {' or '.join(_INDICES)}"
        )
    if not peers:
        raise UserError(
            f"--runtime.workers={workers} needs --runtime.peers, as run-{{index}}.run:2222 or host1:2222,host2:2222"
        )
    listed = peers.split(",")
    addresses = tuple(peers.replace("{index}", str(i)) for i in range(workers)) if "{index}" in peers else tuple(listed)
    if workers not in (1, len(addresses)):
        raise UserError(f"--runtime.peers={peers} names {len(addresses)} workers, and --runtime.workers={workers}")
    _check_addresses("--runtime.peers", addresses)
    index = _number(environment, name, 0)
    if index >= len(addresses):
        raise UserError(
            f"{name}={index} is not below the {len(addresses)} workers of --runtime.workers and --runtime.peers"
        )
    return Workers("multiworker", f"{name} is set", index, len(addresses), addresses=addresses)


def _check_addresses(source: str, addresses: tuple[str, ...]) -> None:
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UserError(f"{source}: {address} is not host:port")
    if len(set(addresses)) < len(addresses):
        raise UserError(f"{source}: two workers have one address: {', '.join(addresses)}")


def own_gpu(workers: Workers, num_gpus: int, visible: str | None) -> int:
    """The index of the GPU that a Horovod rank computes on, among the GPUs that it sees.

    Args:
      workers: the ranks.
      num_gpus: GPUs that TensorFlow sees in this process, at least 1.
      visible: CUDA_VISIBLE_DEVICES, None where it is not set. Where it shows one GPU to each of several ranks of a host, the
        launcher has dealt them out; that they differ is for `check_gpus` to say.

    Raises:
      UserError: there are more ranks than GPUs.
    """
    if visible is not None and num_gpus == 1:
        return 0
    shown = f"{num_gpus} GPU{'s' if num_gpus > 1 else ''}"
    way_out = "start at most one rank a GPU"
    if visible is not None:
        way_out += f", or show each rank its own: CUDA_VISIBLE_DEVICES={visible} here"
    if workers.local_size > num_gpus:
        raise UserError(f"{workers.local_size} Horovod ranks on a host with {shown}: {way_out} (-np, -H)")
    if workers.local_rank >= num_gpus:
        raise UserError(f"slot {workers.local_rank + 1} of a host with {shown}: {way_out} (-np)")
    return workers.local_rank


def check_gpus(workers: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Checks that no two workers of a host compute on one GPU, which NCCL refuses in its own words.

    Args:
      workers: of each worker, by rank, its host and the UUIDs of its GPUs.

    Raises:
      UserError: two do.
    """
    users: dict[tuple[str, str], int] = {}
    for rank, (host, gpus) in enumerate(workers):
        for gpu in gpus:
            other = users.setdefault((host, gpu), rank)
            if other != rank:
                raise UserError(
                    f"ranks {other} and {rank} on {host} would both compute on {gpu}: start at most one rank a GPU (-np), "
                    "or give each worker its own by CUDA_VISIBLE_DEVICES"
                )


def choose(
    strategy: str, num_gpus: int, logical_cpus: int, workers: Workers | None = None, visible: str | None = None
) -> Topology:
    """The topology of a run.

    Args:
      strategy: `auto`, `single`, `mirrored`, `multiworker` or `horovod`.
      num_gpus: GPUs that TensorFlow sees on this host.
      logical_cpus: devices that the CPU is split into; they count where there is no GPU.
      workers: see `find_workers`.
      visible: CUDA_VISIBLE_DEVICES, see `own_gpu`.

    Raises:
      UserError: the strategy does not go with how the workers were started, or with the devices.
    """
    devices, kind = (num_gpus, "GPU") if num_gpus else (logical_cpus, "CPU" if logical_cpus == 1 else "logical CPU")
    found = f"{devices} {kind}{'s' if devices > 1 else ''}"
    if strategy == "auto":
        local = "mirrored" if devices > 1 else "single"
        strategy, reason = (workers.strategy, workers.reason) if workers else (local, f"{found} found")
        reason = f"auto: {reason}"
    else:
        reason = f"asked for; {found} found"
    if strategy in ("single", "mirrored"):
        return Topology(strategy, reason, devices if strategy == "mirrored" else 1)
    if workers is None or workers.strategy != strategy:
        raise UserError(f"--strategy={strategy} {_STARTED_BY[strategy]}")
    if strategy == "multiworker":
        each = max(devices, 1)
        return Topology(
            strategy, reason, each * workers.world_size, workers.rank, workers.world_size, 0, workers.addresses
        )
    if num_gpus:
        own_gpu(workers, num_gpus, visible)
    if not num_gpus and logical_cpus > 1:
        raise UserError(f"--runtime.logical_cpus={logical_cpus} does not go with Horovod: a rank is one replica")
    return Topology(strategy, reason, workers.world_size, workers.rank, workers.world_size, workers.local_rank)


_STARTED_BY = {
    "horovod": "needs to be started by horovodrun or mpirun: horovodrun -np 2 distgan train ...",
    "multiworker": "needs TF_CONFIG, or --runtime.workers and --runtime.peers under a launcher that numbers the workers",
}


def split_batch(global_batch: int, num_replicas: int, accumulation_steps: int) -> int:
    """Images in one micro-batch of one replica: global batch = replicas x micro-batch x accumulation steps.

    Raises:
      UserError: the product cannot be met; lists the nearest legal global batches.
    """
    unit = num_replicas * accumulation_steps
    if global_batch % unit:
        below = global_batch // unit * unit
        nearest = " or ".join(str(batch) for batch in (below, below + unit) if batch)
        raise UserError(
            f"--train.global_batch={global_batch} is not divisible by {num_replicas} replicas x {accumulation_steps} "
            f"accumulation steps; the nearest legal values are {nearest}"
        )
    return global_batch // unit


def check_shares(global_batch: int, num_replicas: int, accumulation_steps: int) -> None:
    """Whether elastic workers can share a batch: their shares of a micro-batch differ by at most one image.

    Raises:
      UserError: a worker would have none, or micro-batches would differ.
    """
    images = split_batch(global_batch, 1, accumulation_steps)
    if num_replicas > images:
        raise UserError(
            f"{num_replicas} workers cannot share the {images} images of a micro-batch (--train.global_batch={global_batch}, "
            f"--train.accumulation_steps={accumulation_steps}): start at most {images} (--max-np)"
        )


def describe_batch(global_batch: int, num_replicas: int, accumulation_steps: int) -> str:
    """The batch arithmetic in a line: `global batch 256 = 8 replicas x 16 x 2 accumulation steps`."""
    shared = global_batch // accumulation_steps
    if shared % num_replicas:  # As among elastic workers.
        least, rest = divmod(shared, num_replicas)
        each = f"({num_replicas - rest} replicas x {least} + {rest} x {least + 1})"
        return f"global batch {global_batch} = {each} x {accumulation_steps} accumulation steps"
    micro_batch = split_batch(global_batch, num_replicas, accumulation_steps)
    return f"global batch {global_batch} = {num_replicas} replicas x {micro_batch} x {accumulation_steps} accumulation steps"
