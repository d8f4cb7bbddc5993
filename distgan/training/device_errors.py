"""What a device's errors mean: memory that does not suffice, a GPU or a sum over GPUs that failed, a kernel that is not there.

TensorFlow tells of them in many lines, most of them a graph's. Here each comes to one line with a way out; all that it said goes
to the run's log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

import tensorflow as tf

from distgan import config as configs
from distgan.config import Config
from distgan.errors import Broken, Exit, UserError
from distgan.runtime import control, devices
from distgan.training import estimate, phases
from distgan.training.stopping import Stop

if TYPE_CHECKING:
    from distgan.training.loop import Run

_MEMORY = re.compile(r"\bOOM\b|out of memory|OUT_OF_MEMORY|ALLOC_FAILED|failed to allocate", re.IGNORECASE)
_DETERMINISM = re.compile(r"determinis", re.IGNORECASE)
_DEVICE = re.compile(
    r"nccl|cuda|cudnn|cublas|\bxid\b|gpu sync|dnn library|illegal (memory|address|instruction)|\becc\b", re.IGNORECASE
)
# A mistake in the program, whatever it mentions.
_OURS = (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError, tf.errors.NotFoundError)
_MOST_OF_THE_MEMORY = 0.9  # What the estimate may fill: work space of kernels comes on top.
_LINE_LENGTH = 200
_NOT_OF_THE_STEP = (
    "the steps fit, and samples or an evaluation beside them do not: --evaluation.every_kimg=0 trains without evaluations, which "
    "`distgan evaluate` makes up for, and --train.sample_kimg=0 without samples"
)


@contextlib.contextmanager
def explained(run: Run, stop: Stop) -> Iterator[None]:
    """Makes a device's error in the block one line with the exit code that goes with it.

    Args:
      run: what trains in the block.
      stop: knows what is being done.

    Raises:
      UserError: the memory does not suffice, or --deterministic meets a kernel that cannot be so: the next start ends the same.
      Broken: a GPU or a sum over GPUs failed: the next start goes on.
    """
    try:
        yield
    except tf.errors.OpError as error:
        ending = _explanation(run, error, stop.doing() if stop.doing else "the start")
        if ending is None:
            raise
        peaks = ", ".join(f"{name} {value:.2f}" for name, value in devices.memory().items())
        control.write_to_files(f"{peaks}\n{''.join(traceback.format_exception(error)).rstrip()}")
        raise ending from None


def _explanation(run: Run, error: tf.errors.OpError, place: str) -> Exit | None:
    if line := _line(error, _MEMORY):
        if isinstance(error, tf.errors.ResourceExhaustedError | tf.errors.InternalError | tf.errors.UnknownError):
            evaluates = any(
                frame.f_globals.get("__name__", "").startswith("distgan.evaluation")
                for frame, _ in traceback.walk_tb(error.__traceback__)
            )
            return UserError(f"out of memory at {place} ({line}): {_NOT_OF_THE_STEP if evaluates else _remedy(run)}")
    elif isinstance(error, tf.errors.UnimplementedError) and (line := _line(error, _DETERMINISM)):
        return UserError(f"--deterministic cannot be kept on this device: {line}; train without the flag")
    elif not isinstance(error, _OURS) and (line := _line(error, _DEVICE)):
        return Broken(
            f"a GPU or a sum over GPUs failed at {place} ({line}); start it again, and it goes on from the last checkpoint. "
            "The log has the rest; `dmesg | grep Xid` and NCCL_DEBUG=INFO tell more"
        )
    return None


def _line(error: tf.errors.OpError, pattern: re.Pattern[str]) -> str:
    """The first line of an error's message that says something of a pattern, shortened; empty if none does."""
    lines = [re.sub(r"\{\{.*?\}\}", "", line).strip() for line in (error.message or "").splitlines()]
    spoken = (line for line in lines if not line.startswith(("File ", "Detected at ")))
    return next((line[:_LINE_LENGTH] for line in spoken if pattern.search(line)), "")


def _remedy(run: Run) -> str:
    """What a replica needs by the estimate, and the largest micro-batch that would fit by it."""
    config, place = run.config, run.runtime.topology
    micro_batch = _micro_batch(config, place.num_replicas, config.train.accumulation_steps)
    memory = estimate.memory_bytes(config, run.state, micro_batch)
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in memory.items())
    text = (
        f"by the estimate a replica needs {sum(memory.values()) / 2**30:.2f} GiB for micro-batches of {micro_batch} images "
        f"({parts})"
    )
    limit = devices.gpu_memory_bytes()
    if limit:
        text += f", and its GPU has {limit / 2**30:.2f}"
    # What overflowed needs all that there is, whatever the estimate says.
    steps = accumulation_to_fit(config, place.num_replicas, memory, limit or sum(memory.values()))
    if steps is None:
        return f"{text}; not even an image at a time would fit: a smaller model or --data.resolution, or 16 bits (--precision)"
    fits = _micro_batch(config, place.num_replicas, steps)
    changed = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulation_steps=steps))
    if any((*configs.problems(changed), *phases.problems(changed, place.num_replicas))):
        batch = config.train.global_batch * fits // micro_batch
        return f"{text}; {fits} would fit: --train.global_batch={batch}"
    return (
        f"{text}; {fits} would fit: --train.accumulation_steps={steps} trains the same run with them, a smaller "
        "--train.global_batch another one"
    )


def accumulation_to_fit(config: Config, num_replicas: int, memory: dict[str, int], limit: int) -> int | None:
    """The fewest accumulation steps whose micro-batches fit by the estimate; None if none do.

    Args:
      config: whose micro-batches did not fit.
      num_replicas: that share the global batch.
      memory: a replica's bytes with these micro-batches, see `estimate.memory_bytes`.
      limit: a replica's bytes in all.
    """
    train = config.train
    micro_batch = _micro_batch(config, num_replicas, train.accumulation_steps)
    fixed = sum(size for name, size in memory.items() if name != "activations")
    most = _MOST_OF_THE_MEMORY * min(limit, sum(memory.values()))
    for steps in range(train.accumulation_steps + 1, train.global_batch // num_replicas + 1):
        fits = _micro_batch(config, num_replicas, steps)
        if (
            train.global_batch % (num_replicas * steps) == 0
            and fixed + memory["activations"] * fits / micro_batch <= most
        ):
            return steps
    return None


def _micro_batch(config: Config, num_replicas: int, accumulation_steps: int) -> int:
    """The images of a replica's largest micro-batch; among elastic workers they may differ by one."""
    return math.ceil(config.train.global_batch / (num_replicas * accumulation_steps))
