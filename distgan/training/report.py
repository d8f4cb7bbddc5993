"""What a run says of itself: the times of its calls, and the row of a report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from distgan.runtime import devices
from distgan.training.phases import measured_keys

if TYPE_CHECKING:
    from distgan.training.loop import Run

_CALL_SECONDS = 1.0


class Clock:
    """Times calls: how many steps fit in one, and what a report says of speed."""

    def __init__(self) -> None:
        self.calls = 0
        self.seconds_per_step = math.inf
        self.steps_in_call = 1
        self.start_report()

    def start_report(self) -> None:
        """Forgets the times of the last report."""
        self.seconds, self.waited, self.waited_for_others, self.steps = 0.0, 0.0, 0.0, 0

    def limit(self) -> int:
        """Steps that fit in a call; grows by doubling, as the first measurements are rough."""
        return max(1, min(int(_CALL_SECONDS / self.seconds_per_step), 2 * self.steps_in_call))

    def add(self, steps: int, seconds: float, waited: float, waited_for_others: float) -> None:
        """Takes the times of a call; those of the first one, which compiles, are forgotten at the second."""
        if self.calls == 1:
            self.start_report()
        if self.calls:
            self.seconds_per_step, self.steps_in_call = seconds / steps, steps
        self.calls += 1
        self.seconds, self.waited, self.steps = self.seconds + seconds, self.waited + waited, self.steps + steps
        self.waited_for_others += waited_for_others


def report(run: Run, clock: Clock, seen: int) -> None:
    """Writes a row: means over the steps since the last one; all workers call it."""
    state, config = run.state, run.config
    values: dict[str, list[float]] = {}
    totals, counts = state.report_totals.numpy(), state.report_counts.numpy()
    for (_, key), total, count in zip(measured_keys(config), totals, counts, strict=True):
        if count:  # A phase that comes seldom may not have come since the last row.
            values.setdefault(key, []).append(total / count)
    seconds_per_step = clock.seconds / clock.steps
    rate = run.images_per_step / seconds_per_step
    # What a worker's step takes without the waiting in sums over replicas tells who the others wait for.
    own = run.runtime.control.gather((clock.seconds - clock.waited_for_others) / clock.steps * 1000)
    workers = {
        "workers/step_ms_fastest": min(own),
        "workers/step_ms_mean": float(np.mean(own)),
        "workers/step_ms_slowest": max(own),
        "workers/slowest_rank": int(np.argmax(own)),
    }
    left_out = {}
    if config.data.on_error == "skip":
        everywhere = run.runtime.control.gather(sorted(run.reader.unreadable))
        left_out = {"data/unreadable_images": len({index for each in everywhere for index in each})}
    row = {
        "progress/images_seen": seen,
        "progress/kimg": seen / 1000,
        "progress/step": seen // run.images_per_step,
        "progress/restarts": run.directory.starts if run.directory else 0,
        **{key: float(np.mean(means)) for key, means in values.items()},
        **_schedules(run),
        **run.scores,
        **{
            f"{part}/{key}": float(v.numpy())
            for part, kept in state.kept.items()
            for key, v in kept.items()
            if part != "augmentation"
        },
        **{f"lr/{name}": float(optimizer.learning_rate.numpy()) for name, optimizer in state.optimizers.items()},
        "throughput/images_per_second": rate,
        "throughput/images_per_second_per_replica": rate / run.runtime.topology.num_replicas,
        "time/step_ms": seconds_per_step * 1000,
        "time/data_wait_ms": clock.waited / clock.steps * 1000,
        **(workers if len(own) > 1 else {}),
        **left_out,
        **{f"memory/{key}": value for key, value in devices.memory().items()},
    }
    run.tracker.row(row)
    run.scores = {}
    clock.start_report()
    state.report_totals.assign(tf.zeros_like(state.report_totals))
    state.report_counts.assign(tf.zeros_like(state.report_counts))


def _schedules(run: Run) -> dict[str, float]:
    """Where the augmentation stands."""
    part, kept = run.config.objective.augmentation, run.state.kept["augmentation"]
    if part.name == "none":
        return {}
    p = part.options.probability(kept, run.state.images_seen, run.config.train.total_kimg)
    return {"augmentation/p": float(p)}
