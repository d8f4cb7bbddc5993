"""Who shares the work, in plain numbers: which strategy and why, and how the global batch is divided. No TensorFlow."""

from __future__ import annotations

import dataclasses

from distgan.errors import UserError


@dataclasses.dataclass(frozen=True)
class Topology:
    """The workers and replicas of a run, seen from one worker."""

    strategy: str
    """`single` or `mirrored`."""
    reason: str
    """Why this strategy, for the log."""
    num_replicas: int
    """Copies of the networks over all workers."""
    rank: int = 0
    """This worker's number."""
    world_size: int = 1
    """Number of workers."""

    @property
    def is_primary(self) -> bool:
        """Whether this worker reads and writes the run directory."""
        return self.rank == 0


def choose(strategy: str, num_gpus: int, logical_cpus: int) -> Topology:
    """The topology of a run on one machine.

    Args:
      strategy: `auto`, `single` or `mirrored`.
      num_gpus: GPUs that TensorFlow sees.
      logical_cpus: devices that the CPU is split into; they count where there is no GPU.
    """
    devices, kind = (num_gpus, "GPU") if num_gpus else (logical_cpus, "CPU" if logical_cpus == 1 else "logical CPU")
    found = f"{devices} {kind}{'s' if devices > 1 else ''}"
    if strategy == "auto":
        strategy, reason = ("mirrored" if devices > 1 else "single"), f"auto: {found} found"
    else:
        reason = f"asked for; {found} found"
    return Topology(strategy, reason, devices if strategy == "mirrored" else 1)


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


def describe_batch(global_batch: int, num_replicas: int, accumulation_steps: int) -> str:
    """The batch arithmetic in a line: `global batch 256 = 8 replicas x 16 x 2 accumulation steps`."""
    micro_batch = split_batch(global_batch, num_replicas, accumulation_steps)
    return f"global batch {global_batch} = {num_replicas} replicas x {micro_batch} x {accumulation_steps} accumulation steps"
