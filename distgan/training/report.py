"""What a run says of itself: the times of its calls, and the row of a report."""

from __future__ import annotations

import dataclasses
import math
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from distgan.models.layers import call_with
from distgan.runtime import devices, gpus
from distgan.runtime.base import Waits
from distgan.training import ema
from distgan.training.phases import measured_keys

if TYPE_CHECKING:
    from distgan.training.loop import Run

_CALL_SECONDS = 1.0


@dataclasses.dataclass
class Times:
    """What some calls took together."""

    steps: int = 0
    seconds: float = 0.0
    waits: Waits = Waits(0.0, 0.0)
    """Known of measured steps alone."""

    def add(self, steps: int, seconds: float, waits: Waits) -> None:
        """Takes a call."""
        self.steps, self.seconds = self.steps + steps, self.seconds + seconds
        self.waits = Waits(self.waits.data + waits.data, self.waits.others + waits.others)

    def per_step(self, seconds: float) -> float:
        """Milliseconds a step; NaN where no step was timed."""
        return 1000 * seconds / self.steps if self.steps else math.nan


class Clock:
    """Times calls: how many steps fit in one, and what a report says of speed. Calls that compile count where no others came."""

    def __init__(self) -> None:
        self.seconds_per_step = math.inf
        self.steps_in_call = 1
        self.start_report()

    def start_report(self) -> None:
        """Forgets the times of the last report."""
        self.steps = 0
        # By whether the steps were measured, and whether the call compiled.
        self.times = {(measured, fresh): Times() for measured in (False, True) for fresh in (False, True)}

    def limit(self) -> int:
        """Steps that fit in a call; grows by doubling, as the first measurements are rough."""
        return max(1, min(int(_CALL_SECONDS / self.seconds_per_step), 2 * self.steps_in_call))

    def add(self, steps: int, seconds: float, waits: Waits | None, fresh: bool) -> None:
        """Takes the times of a call, what it waited for if it was measured, and whether it compiled."""
        self.steps += steps
        self.times[waits is not None, fresh].add(steps, seconds, waits or Waits(0.0, 0.0))
        if waits is None and not fresh:
            self.seconds_per_step, self.steps_in_call = seconds / steps, steps

    def all(self) -> Times:
        """The times of all steps since the last row."""
        both = Times()
        for measured in (False, True):
            part = self.times[measured, False]
            both.add(part.steps, part.seconds, part.waits)
        return both if both.steps else self.times[False, True] if self.times[False, True].steps else self.measured()

    def measured(self) -> Times:
        """The times of the measured steps since the last row."""
        return self.times[True, False] if self.times[True, False].steps else self.times[True, True]


def report(run: Run, clock: Clock, seen: int) -> None:
    """Writes a row: means over the steps since the last one; all workers call it."""
    state, config, control = run.state, run.config, run.runtime.control
    # A row that is made up for comes without a step; what is not known is written as null.
    times, measured = clock.all(), clock.measured()
    step_ms = times.per_step(times.seconds)
    rate = run.images_per_step / step_ms * 1000
    # What a worker's step takes without the waiting in sums over replicas tells who the others wait for.
    own_ms = measured.per_step(measured.seconds - measured.waits.others)
    gathered = control.gather([own_ms, socket.gethostname(), devices.gpu_figures()])
    left_out = {}
    if config.data.on_error == "skip":
        everywhere = control.gather(sorted(run.reader.unreadable))
        left_out = {"data/unreadable_images": len({index for each in everywhere for index in each})}
    row = {
        "progress/images_seen": seen,
        "progress/kimg": seen / 1000,
        "progress/step": seen // run.images_per_step,
        "progress/restarts": run.directory.starts if run.directory else 0,
        **_measured(run),
        **_schedules(run),
        **run.scores,
        **{
            f"{part}/{key}": float(v.numpy())
            for part, kept in state.kept.items()
            for key, v in kept.items()
            if part != "augmentation"
        },
        "throughput/images_per_second": rate,
        "throughput/images_per_second_per_replica": rate / run.runtime.topology.num_replicas,
        "time/step_ms": step_ms,
        "time/data_wait_ms": measured.per_step(measured.waits.data),
        **_checkpoint_time(run),
        **_workers([own for own, _, _ in gathered], measured.per_step(measured.waits.others)),
        **nodes([(host, figures) for _, host, figures in gathered]),
        **left_out,
        **{f"memory/{key}": value for key, value in devices.memory().items()},
    }
    run.follow()
    run.tracker.row(row)
    run.scores = {}
    clock.start_report()
    state.report_totals.assign(tf.zeros_like(state.report_totals))
    state.report_counts.assign(tf.zeros_like(state.report_counts))


def _measured(run: Run) -> dict[str, float]:
    """Means over the steps since the last row, and over the phases that measure the same."""
    totals, counts = run.state.report_totals.numpy(), run.state.report_counts.numpy()
    values: dict[str, list[float]] = {}
    left_out, steps_of = 0.0, dict[str, float]()
    for (phase, key), total, count in zip(measured_keys(run.config), totals, counts, strict=True):
        steps_of.setdefault(phase, count)
        left_out += (steps_of[phase] - count) if key.startswith("grad_norm/") else 0
        if count:  # A phase that comes seldom may not have come since the last row.
            values.setdefault(key, []).append(total / count)
    means = {key: float(np.mean(each)) for key, each in values.items()}
    for kind in ("real", "fake"):
        square, mean = means.pop(f"d_logits/{kind}_square", None), means.get(f"d_logits/{kind}_mean")
        if square is not None and mean is not None:
            means[f"d_logits/{kind}_std"] = math.sqrt(max(0.0, square - mean**2))
    # In float16 an update whose gradients overflowed is left out; in other precisions it ends the run.
    return means | ({"health/nonfinite_steps": left_out} if run.config.precision == "mixed_float16" else {})


def _schedules(run: Run) -> dict[str, float]:
    """Where augmentation, learning rates and the average stand."""
    state, config = run.state, run.config
    values = {f"lr/{name}": float(optimizer.learning_rate.numpy()) for name, optimizer in state.optimizers.items()}
    values["ema/decay"] = 1 - float(ema.amount(config, state.images_seen.read_value(), run.images_per_step))
    part, kept = config.objective.augmentation, state.kept["augmentation"]
    if part.name != "none":
        values["augmentation/p"] = float(part.options.probability(kept, state.images_seen, config.train.total_kimg))
    return values


def _checkpoint_time(run: Run) -> dict[str, float]:
    """How long saves have held up the training since the last row, where there were any."""
    if not (run.saver and run.saver.held_seconds):
        return {}
    seconds, run.saver.held_seconds = run.saver.held_seconds, 0.0
    return {"time/checkpoint_s": seconds}


def _workers(own_ms: Sequence[float], reduction_wait_ms: float) -> dict[str, float]:
    """Who is slow, and how long the primary waits for sums over replicas; nothing of one worker."""
    if len(own_ms) == 1:
        return {}
    return {
        "workers/step_ms_fastest": min(own_ms),
        "workers/step_ms_mean": float(np.mean(own_ms)),
        "workers/step_ms_slowest": max(own_ms),
        "workers/slowest_rank": int(np.argmax(own_ms)),
        "time/reduction_wait_ms": reduction_wait_ms,
    }


def nodes(figures: Sequence[tuple[str, gpus.Figures]]) -> dict[str, float]:
    """`node/0/gpu_utilization` and so on from every worker's host and its GPUs' figures, hosts numbered by first rank.

    >>> nodes([("a", {"GPU-0": {"busy": 90.0}}), ("a", {"GPU-1": {"busy": 80.0}}), ("b", {}), ("c", {"GPU-0": {"busy": 70.0}})])
    {'node/0/gpu_utilization': 85.0, 'node/2/gpu_utilization': 70.0}
    """
    by_host: dict[str, list[gpus.Figures]] = {}
    for host, of_worker in figures:
        by_host.setdefault(host, []).append(of_worker)
    rows = enumerate(map(gpus.host_row, by_host.values()))
    return {f"node/{number}/{key}": value for number, row in rows for key, value in row.items()}


def report_logits(run: Run, fakes: np.ndarray, labels: np.ndarray, seen: int) -> None:
    """Histograms of what the discriminator, as it is for inference, says of a grid's fakes and as many real images.

    Args:
      run: the run, on the primary.
      fakes: uint8 [N, H, W, C].
      labels: int32 [N], of the fakes.
      seen: images seen.
    """
    if not run.tracker.takes_histograms:
        return
    reals = run.reader(np.arange(len(fakes)))
    for kind, (pixels, classes) in {"fake": (fakes, labels), "real": reals}.items():
        run.tracker.histogram(f"d_logits/{kind}", logits(run.state.discriminator, pixels, classes), seen)


def logits(discriminator: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Float [N]: what a discriminator, as it is for inference, says of uint8 [N, H, W, C] images of classes int32 [N]."""
    judged = tf.cast(images, discriminator.variable_dtype) / 127.5 - 1
    variables = (discriminator.trainable_variables, discriminator.non_trainable_variables)
    trained, others = ([tf.convert_to_tensor(v.value) for v in each] for each in variables)
    return call_with(discriminator, trained, others, judged, labels=tf.constant(labels, tf.int32))[:, 0].numpy()
