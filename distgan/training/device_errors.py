"""A device's error in a run: one line with what a replica needs and what would fit; all that TensorFlow said is in the log."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

import tensorflow as tf

from distgan import config as configs
from distgan.config import Config
from distgan.runtime import control, device_errors, devices
from distgan.training import estimate, phases
from distgan.training.stopping import Stop

if TYPE_CHECKING:
    from distgan.training.loop import Run

_MOST_OF_THE_MEMORY = 0.9  # What the estimate may fill: work space of kernels comes on top.
_NOT_OF_THE_STEP = (
    "the steps fit, and samples or an evaluation beside them do not: --evaluation.every_kimg=0 trains without evaluations, which "
    "`distgan evaluate` makes up for, and --train.sample_kimg=0 without samples"
)


@contextlib.contextmanager
def explained(run: Run, stop: Stop) -> Iterator[None]:
    """Makes a device's error in the block one line with the exit code that goes with it (`runtime.device_errors.explain`).

    Args:
      run: what trains in the block.
      stop: knows what is being done.
    """
    try:
        yield
    except tf.errors.OpError as error:
        evaluates = any(
            frame.f_globals.get("__name__", "").startswith("distgan.evaluation")
            for frame, _ in traceback.walk_tb(error.__traceback__)
        )
        ending = device_errors.explain(
            error,
            stop.doing() if stop.doing else "the start",
            lambda: _NOT_OF_THE_STEP if evaluates else _remedy(run),
        )
        if ending is None:
            raise
        peaks = ", ".join(f"{name} {value:.2f}" for name, value in devices.memory().items())
        control.write_to_files(f"{peaks}\n{''.join(traceback.format_exception(error)).rstrip()}")
        raise ending from None


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
