"""The run: hands the iterator to the compiled step, some steps a call, and between calls reports, samples and saves.

A call ends at the next image count at which something is due, so the counts at which things happen follow from the config
alone. Calls are kept to about a second, so that a signal is answered soon.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from distgan.config import Config, images
from distgan.data import pipeline
from distgan.data.pipeline import Reader
from distgan.errors import Diverged, Stopped, UserError
from distgan.evaluation.evaluator import GivenUp
from distgan.evaluation.sampling import Sampler, save_grid
from distgan.runtime import devices
from distgan.runtime.base import Runtime
from distgan.tracking.console import log
from distgan.tracking.tracker import Tracker
from distgan.training import checkpoint, desync, scores
from distgan.training.phases import batches_per_step, cycle, measured_keys, phases
from distgan.training.run_dir import RunDir
from distgan.training.state import TrainState
from distgan.training.step import compile_steps

_CALL_SECONDS = 1.0
_GRID_IMAGES = 64


@dataclasses.dataclass
class Run:
    """What a run works with."""

    config: Config
    reader: Reader
    runtime: Runtime
    state: TrainState
    directory: RunDir | None
    """None on the workers that write nothing."""
    tracker: Tracker
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of the last evaluation, for the next row."""
    snapshot: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """The state to which elastic workers go back when they lose one."""

    @property
    def path(self) -> Path:
        """The run directory, where this worker may write no more than its log unless it is the primary."""
        return Path(self.config.run_dir)

    @property
    def images_per_step(self) -> int:
        """Real images shown in a step."""
        return self.config.train.global_batch * batches_per_step(self.config)

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
    dataset = pipeline.batches(run.reader, first_batch, train_config, topology.num_replicas, topology.local_replicas)
    iterator = run.runtime.distribute(dataset)
    sampler = Sampler(run.config, run.state.generator_ema, run.state.description)
    clock, total, seen = Clock(), images(train_config.total_kimg), run.images_seen
    first_step = seen // run.images_per_step
    control, primary = run.runtime.control, run.directory is not None
    check = desync.build_check(run.state, run.runtime) if run.config.runtime.check_desync else lambda: None

    def checked_save(seen: int) -> None:
        check()
        save(run)

    def checked_report(seen: int) -> None:
        check()
        report(run, clock, seen)

    def evaluate(seen: int) -> None:
        control.at("evaluating", seen // run.images_per_step, patient=True)
        with contextlib.suppress(GivenUp):
            result = evaluations(seen, lambda: any(control.gather(stop.signal is not None)))
            best = bool(result) and scores.is_best(run.config, run.path)
            if result:
                run.scores = {f"eval/{name}": value for name, value in result["scores"].items()}
            if control.gather(best)[0]:
                checked_save(seen)
                if primary:
                    checkpoint.mark_best(run.path / "checkpoints", seen)

    every_kimg = run.config.evaluation.every_kimg
    if every_kimg:
        evaluations = scores.Evaluations(
            run.config, run.reader.images, run.runtime, sampler, run.path if primary else None
        )
    every: list[tuple[int, Callable[[int], None]]] = [
        (images(every_kimg), evaluate),
        (images(train_config.report_kimg), checked_report),
        (images(train_config.sample_kimg), lambda seen: write_samples(run, sampler, seen)),
        (images(run.config.checkpoint.every_kimg), checked_save),
    ]
    every = [(max(interval, 1), action) for interval, action in every if interval]
    profile = Profile(run)
    with writing(run):
        if primary:
            write_reals(run, sampler)
        if seen == 0 and train_config.sample_kimg:
            write_samples(run, sampler, seen)
    while seen < total:
        step = seen // run.images_per_step
        signals, limits = zip(*control.gather([stop.signal and stop.signal.name, clock.limit()]), strict=True)
        if any(signals):
            with writing(run):
                checked_save(seen)
            control.gather(None)
            name = next(name for name in signals if name)
            raise Stopped(f"stopped by {name} at {seen / 1000:g} kimg, saved; start it again to go on")
        if control.elastic:
            # What is due at this count is done by all.
            run.snapshot = run.state.arrays()
            control.regroup_if_told()
        marks = [seen // interval * interval + interval for interval, _ in every] + profile.marks(step)
        steps = min(math.ceil((min(*marks, total) - seen) / run.images_per_step), *limits)
        # Steps with other phases are compiled when they first come.
        fresh = step - first_step < cycle(phases(run.config))
        control.at(f"training, {steps} steps a call", step, patient=fresh)
        profile.start(step)
        started = time.perf_counter()
        # XLA tells on stderr that it compiled. Among workers the line between them may have to speak meanwhile.
        with devices.quiet() if fresh and topology.world_size == 1 else nullcontext():
            ok, evidence, waited = _advance(advance, iterator, steps, run.reader)
        finite = bool(ok.numpy())
        clock.add(steps, time.perf_counter() - started, float(waited), run.runtime.take_waited())
        profile.stop(step + steps, last=not finite or seen + steps * run.images_per_step >= total or bool(stop.signal))
        control.at("between two calls", step + steps, patient=primary)
        with writing(run):
            if not finite:
                raise Diverged(control.gather(diverged(run, evidence.numpy()) if primary else None)[0])
            before, seen = seen, seen + steps * run.images_per_step
            for interval, action in every:
                if seen // interval > before // interval:
                    action(seen)
    with writing(run):
        write_samples(run, sampler, seen)
        # Saved before the last row, which may come early: a run that is made longer reports whole intervals again.
        checked_save(seen)
        if run.state.report_counts.numpy().any():
            report(run, clock, seen)


def _advance(advance: Any, iterator: Any, steps: int, reader: Reader) -> Any:
    """Several steps; an error of the data is raised as itself."""
    try:
        return advance(iterator, steps)
    except tf.errors.OpError:
        if reader.error:
            raise reader.error from None
        raise


class Profile:
    """A trace of the steps of --runtime.profile_steps, one a worker."""

    def __init__(self, run: Run):
        self.range = run.config.runtime.profile_range()
        self.images_per_step = run.images_per_step
        rank = run.runtime.topology.rank
        self.path = run.path / (f"profile.{rank}" if rank else "profile")
        self.running = False

    def marks(self, step: int) -> list[int]:
        """The image counts at which a call must end."""
        return [edge * self.images_per_step for edge in (self.range.start, self.range.stop) if edge > step]

    def start(self, step: int) -> None:
        """Starts at the first step, or where a run goes on among them."""
        if step in self.range and not self.running:
            tf.profiler.experimental.start(str(self.path))
            self.running = True

    def stop(self, step: int, last: bool) -> None:
        """Writes the trace at the last step, or at the run's end."""
        if self.running and (last or step == self.range.stop):
            tf.profiler.experimental.stop()
            self.running = False
            log.info("profile of steps %d:%d written to %s", self.range.start, self.range.stop, self.path)


@contextmanager
def writing(run: Run) -> Iterator[None]:
    """Tells of a full or failing disk in a line; what was whole stays whole."""
    try:
        yield
    except OSError as error:
        place = error.filename or run.path
        raise UserError(f"--run_dir={run.path}: cannot write {place}: {error.strerror or error}") from None


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


def write_samples(run: Run, sampler: Sampler, seen: int) -> None:
    """Writes the grid of fixed latents: those of the run's seed, as `distgan sample` draws them."""
    if run.directory is None:
        return
    path = run.directory.sample_path(seen)
    numbers = range(_GRID_IMAGES)
    save_grid(sampler(run.config.seed, numbers), path, sampler.captions(sampler.labels(numbers)))
    run.tracker.picture("samples/ema_grid", path, seen)


def write_reals(run: Run, sampler: Sampler) -> None:
    """Writes the run's first real images as a grid, once."""
    path = run.path / "samples" / "reals.png"
    if not path.exists():
        pixels, labels = run.reader(np.arange(_GRID_IMAGES))
        save_grid(pixels, path, sampler.captions(labels))
        run.tracker.picture("samples/real_grid", path, 0)


def save(run: Run) -> None:
    """Writes a checkpoint of the state as it stands, on the primary."""
    if run.directory is None:
        return
    info = {
        "images_seen": run.images_seen,
        **dataclasses.asdict(run.state.description),
        "num_images": run.reader.images.num_images,
        "data_fingerprint": run.reader.images.fingerprint,
    }
    checkpoint.write(
        run.directory.checkpoints, checkpoint.Checkpoint(run.state.arrays(), info), run.config.checkpoint.keep
    )


def diverged(run: Run, evidence: np.ndarray) -> str:
    """Saves what is known about a step that was not finite; returns it in words."""
    seen = run.images_seen
    keys = measured_keys(run.config)
    phase, key = next(name for name, value in zip(keys, evidence, strict=True) if not np.isfinite(value))
    values: dict[str, dict[str, str]] = {}
    for (phase_name, name), value in zip(keys, evidence, strict=True):
        values.setdefault(phase_name, {})[name] = repr(float(value))
    path = run.path / f"diverged-{seen:012d}.json"
    content = {
        "step": seen // run.images_per_step,
        "images_seen": seen,
        "phase": phase,
        "not_finite": key,
        "values": values,
        "image_numbers": [seen, seen + run.images_per_step - 1],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return (
        f"{key} was not finite in phase {phase} of step {content['step']} (images {seen} to {seen + run.images_per_step - 1}); "
        f"the weights are those before it, the evidence is in {path}"
    )
