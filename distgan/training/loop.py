"""The run: hands the iterator to the compiled step, some steps a call, and between calls reports, samples and saves.

A call ends at the next image count at which something is due, so the counts at which things happen follow from the config
alone. Calls are kept to about a second, so that a signal is answered soon.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from distgan.config import Config, images
from distgan.data import pipeline
from distgan.data.source import Images
from distgan.errors import Diverged, Stopped, UserError
from distgan.evaluation.sampling import Sampler, save_grid
from distgan.runtime import devices
from distgan.runtime.base import Runtime
from distgan.tracking.console import log
from distgan.tracking.tracker import Tracker
from distgan.training import checkpoint
from distgan.training.run_dir import RunDir
from distgan.training.state import TrainState
from distgan.training.step import batches_per_step, compile_steps, measured_keys

_CALL_SECONDS = 1.0
_GRID_IMAGES = 64


@dataclasses.dataclass
class Run:
    """What a run works with."""

    config: Config
    images: Images
    runtime: Runtime
    state: TrainState
    directory: RunDir
    tracker: Tracker

    @property
    def images_per_step(self) -> int:
        """Real images shown in a step."""
        return self.config.train.global_batch * batches_per_step(self.config.train)

    @property
    def images_seen(self) -> int:
        """The run's clock."""
        return int(self.state.images_seen.numpy())


class Stop:
    """Set by the first SIGTERM or SIGINT; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self, number: int, frame: Any) -> None:
        self.signal = signal.Signals(number)
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)

    @contextmanager
    def watching(self) -> Iterator[Stop]:
        """Answers the signals within the block."""
        before = {each: signal.signal(each, self) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


class Clock:
    """Times calls: how many steps fit in one, and what a report says of speed."""

    def __init__(self) -> None:
        self.calls = 0
        self.seconds_per_step = math.inf
        self.steps_in_call = 1
        self.start_report()

    def start_report(self) -> None:
        """Forgets the times of the last report."""
        self.seconds, self.waited, self.steps = 0.0, 0.0, 0

    def limit(self) -> int:
        """Steps that fit in a call; grows by doubling, as the first measurements are rough."""
        return max(1, min(int(_CALL_SECONDS / self.seconds_per_step), 2 * self.steps_in_call))

    def add(self, steps: int, seconds: float, waited: float) -> None:
        """Takes the times of a call; those of the first one, which compiles, are forgotten at the second."""
        if self.calls == 1:
            self.start_report()
        if self.calls:
            self.seconds_per_step, self.steps_in_call = seconds / steps, steps
        self.calls += 1
        self.seconds, self.waited, self.steps = self.seconds + seconds, self.waited + waited, self.steps + steps


def train(run: Run, stop: Stop) -> None:
    """Trains from where the state stands to the end.

    Raises:
      Stopped: a signal came; the state is saved.
      Diverged: a step was not finite; the weights are those before it, the evidence is saved.
      UserError: the run directory cannot be written any more.
    """
    train_config, topology = run.config.train, run.runtime.topology
    advance = compile_steps(run.config, run.state, run.runtime)
    first_batch = run.images_seen // train_config.global_batch
    dataset = pipeline.batches(
        run.images,
        first_batch,
        run.config.data,
        train_config,
        topology.num_replicas,
        run.runtime.local_replicas,
        run.config.seed,
    )
    iterator = run.runtime.distribute(dataset)
    sampler = Sampler(run.state.generator_ema, run.config.model.name.options.latent_size)
    clock, total, seen = Clock(), images(train_config.total_kimg), run.images_seen
    every: list[tuple[int, Callable[[int], None]]] = [
        (images(train_config.report_kimg), lambda seen: report(run, clock, seen)),
        (images(train_config.sample_kimg), lambda seen: write_samples(run, sampler, seen)),
        (images(run.config.checkpoint.every_kimg), lambda seen: save(run)),
    ]
    every = [(max(interval, 1), action) for interval, action in every if interval]
    profiled, profiling = run.config.runtime.profile_range(), False
    with writing(run):
        write_reals(run)
        if seen == 0 and train_config.sample_kimg:
            write_samples(run, sampler, seen)
    while seen < total:
        step = seen // run.images_per_step
        marks = [seen // interval * interval + interval for interval, _ in every]
        marks += [edge * run.images_per_step for edge in (profiled.start, profiled.stop) if edge > step]
        steps = min(math.ceil((min(*marks, total) - seen) / run.images_per_step), clock.limit())
        if profiled and step == profiled.start:
            tf.profiler.experimental.start(str(run.directory.path / "profile"))
            profiling = True
        started = time.perf_counter()
        ok, evidence, waited = advance(iterator, steps)
        finite = bool(ok.numpy())
        clock.add(steps, time.perf_counter() - started, float(waited))
        last = step + steps == profiled.stop or seen + steps * run.images_per_step >= total or not finite or stop.signal
        if profiling and last:
            tf.profiler.experimental.stop()
            profiling = False
            log.info(
                "profile of steps %s written to %s", run.config.runtime.profile_steps, run.directory.path / "profile"
            )
        with writing(run):
            if not finite:
                raise diverged(run, evidence.numpy())
            before, seen = seen, seen + steps * run.images_per_step
            for interval, action in every:
                if seen // interval > before // interval:
                    action(seen)
            if stop.signal and seen < total:
                save(run)
                raise Stopped(f"stopped by {stop.signal.name} at {seen / 1000:g} kimg, saved; start it again to go on")
    with writing(run):
        write_samples(run, sampler, seen)
        # Saved before the last row, which may come early: a run that is made longer reports whole intervals again.
        save(run)
        if run.state.report_steps.numpy():
            report(run, clock, seen)


@contextmanager
def writing(run: Run) -> Iterator[None]:
    """Tells of a full or failing disk in a line; what was whole stays whole."""
    try:
        yield
    except OSError as error:
        place = error.filename or run.directory.path
        raise UserError(f"--run_dir={run.directory.path}: cannot write {place}: {error.strerror or error}") from None


def report(run: Run, clock: Clock, seen: int) -> None:
    """Writes a row: means over the steps since the last one."""
    state, config = run.state, run.config
    steps = float(state.report_steps.numpy())
    values: dict[str, list[float]] = {}
    for (_, key), total in zip(measured_keys(config.train), state.report_totals.numpy(), strict=True):
        values.setdefault(key, []).append(total / steps)
    seconds_per_step = clock.seconds / clock.steps
    rate = run.images_per_step / seconds_per_step
    row = {
        "progress/images_seen": seen,
        "progress/kimg": seen / 1000,
        "progress/step": seen // run.images_per_step,
        "progress/restarts": run.directory.starts,
        **{key: float(np.mean(means)) for key, means in values.items()},
        **{f"lr/{name}": float(optimizer.learning_rate.numpy()) for name, optimizer in state.optimizers.items()},
        "throughput/images_per_second": rate,
        "throughput/images_per_second_per_replica": rate / run.runtime.topology.num_replicas,
        "time/step_ms": seconds_per_step * 1000,
        "time/data_wait_ms": clock.waited / clock.steps * 1000,
        **{f"memory/{key}": value for key, value in devices.memory().items()},
    }
    run.tracker.row(row)
    clock.start_report()
    state.report_totals.assign(tf.zeros_like(state.report_totals))
    state.report_steps.assign(0)


def write_samples(run: Run, sampler: Sampler, seen: int) -> None:
    """Writes the grid of fixed latents: those of the run's seed, as `distgan sample` draws them."""
    path = run.directory.sample_path(seen)
    save_grid(sampler(run.config.seed, range(_GRID_IMAGES)), path)
    run.tracker.picture("samples/ema_grid", path, seen)


def write_reals(run: Run) -> None:
    """Writes the run's first real images as a grid, once."""
    path = run.directory.path / "samples" / "reals.png"
    if not path.exists():
        pixels, _ = pipeline.read(run.images, np.arange(_GRID_IMAGES), run.config.seed, run.config.data.flip)
        save_grid(pixels, path)
        run.tracker.picture("samples/real_grid", path, 0)


def save(run: Run) -> None:
    """Writes a checkpoint of the state as it stands."""
    info = {
        "images_seen": run.images_seen,
        "image_shape": list(run.images.shape),
        "data_fingerprint": run.images.fingerprint,
    }
    checkpoint.write(
        run.directory.checkpoints, checkpoint.Checkpoint(run.state.arrays(), info), run.config.checkpoint.keep
    )


def diverged(run: Run, evidence: np.ndarray) -> Diverged:
    """Saves what is known about a step that was not finite, and says it."""
    seen = run.images_seen
    keys = measured_keys(run.config.train)
    phase, key = next(name for name, value in zip(keys, evidence, strict=True) if not np.isfinite(value))
    values: dict[str, dict[str, str]] = {}
    for (phase_name, name), value in zip(keys, evidence, strict=True):
        values.setdefault(phase_name, {})[name] = repr(float(value))
    path = run.directory.path / f"diverged-{seen:012d}.json"
    content = {
        "step": seen // run.images_per_step,
        "images_seen": seen,
        "phase": phase,
        "not_finite": key,
        "values": values,
        "image_numbers": [seen, seen + run.images_per_step - 1],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return Diverged(
        f"{key} was not finite in phase {phase} of step {content['step']} (images {seen} to {seen + run.images_per_step - 1}); "
        f"the weights are those before it, the evidence is in {path}"
    )
