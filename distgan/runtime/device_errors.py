"""What a device's errors mean: memory that does not suffice, a GPU or a sum over GPUs that failed, a kernel that is not there.

TensorFlow tells of them in many lines, most of them a graph's. Here each comes to one line with a way out.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import tensorflow as tf

from distgan.errors import Broken, Exit, UserError

_MEMORY = re.compile(r"\bOOM\b|out of memory|OUT_OF_MEMORY|ALLOC_FAILED|failed to allocate", re.IGNORECASE)
_DETERMINISM = re.compile(r"determinis", re.IGNORECASE)
_DEVICE = re.compile(
    r"nccl|cuda|cudnn|cublas|\bxid\b|gpu sync|dnn library|illegal (memory|address|instruction)|\becc\b", re.IGNORECASE
)
# A mistake in the program, whatever it mentions.
_OURS = (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError, tf.errors.NotFoundError)
_LINE_LENGTH = 200


def explain(error: BaseException, place: str, remedy: Callable[[], str]) -> Exit | None:
    """What a run or command ends with instead of an error of TensorFlow's; None of any other error.

    Args:
      error: of TensorFlow's, or any other.
      place: what was being done, as `step 7`.
      remedy: says what to do where the memory does not suffice.

    Returns:
      A `UserError` where the next start would end the same: the memory does not suffice, or --deterministic meets a kernel
      that cannot be so. `Broken` where a GPU or a sum over GPUs failed.
    """
    if not isinstance(error, tf.errors.OpError):
        return None
    if line := _line(error, _MEMORY):
        if isinstance(error, tf.errors.ResourceExhaustedError | tf.errors.InternalError | tf.errors.UnknownError):
            return UserError(f"out of memory at {place} ({line}): {remedy()}")
    elif isinstance(error, tf.errors.UnimplementedError) and (line := _line(error, _DETERMINISM)):
        return UserError(f"--deterministic cannot be kept on this device: {line}; train without the flag")
    elif not isinstance(error, _OURS) and (line := _line(error, _DEVICE)):
        return Broken(
            f"a GPU or a sum over GPUs failed at {place} ({line}); start it again, and a run goes on from its last checkpoint. "
            "`dmesg | grep Xid` and NCCL_DEBUG=INFO tell more"
        )
    return None


def _line(error: tf.errors.OpError, pattern: re.Pattern[str]) -> str:
    """The first line of an error's message that says something of a pattern, shortened; empty if none does."""
    lines = [re.sub(r"\{\{.*?\}\}", "", line).strip() for line in (error.message or "").splitlines()]
    spoken = (line for line in lines if not line.startswith(("File ", "Detected at ")))
    return next((line[:_LINE_LENGTH] for line in spoken if pattern.search(line)), "")
