"""The run: hands the iterator to the compiled step, some steps a call, and between calls reports, samples and saves.

A call ends at the next image count at which something is due, so the counts at which things happen follow from the config
alone. Calls are kept to about a second, so that a signal is answered soon (`report.Clock`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import tensorflow as tf

from distgan.config import Config, images
from distgan.data import pipeline
from distgan.data.pipeline import Reader
from distgan.errors import Diverged, Halted, Regroup, Stopped, UserError
from distgan.evaluation.evaluator import GivenUp
from distgan.evaluation.sampling import Sampler, save_grid
from distgan.runtime import devices
from distgan.runtime.base import Runtime
from distgan.runtime.control import waiting_for
from distgan.tracking import console
from distgan.tracking.console import log
from distgan.tracking.tracker import Tracker
from distgan.training import blackbox, desync, scores
from distgan.training.checkpoint import Checkpoint
from distgan.training.phases import batches_per_step
from distgan.training.report import Clock, report, report_logits
from distgan.training.run_dir import RunDir
from distgan.training.saving import Saver, Snapshots
from distgan.training.state import TrainState
from distgan.training.step import compile_steps
from distgan.training.stopping import Stop

_GRID_IMAGES = 64
MEASURED_STEPS = 2
"""The last steps before each row, which are run one by one to measure what they wait for (`runtime.base.Steps.measure`)."""
STOP_BUTTON = "W&B's stop button"


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
    facts: Mapping[str, Any]
    """What explains a checkpoint besides its images seen."""
    snapshots: Snapshots | None = None
    """Copies of the state in memory, on the workers that keep them."""
    saver: Saver | None = None
    """The primary's."""
    best: Mapping[str, Any] | None = None
    """Images seen and scores of the best evaluation."""
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of the last evaluation, for the next row."""
    moves: int = 0
    """How often `follow` has met the run directory in another place."""

    @property
    def path(self) -> Path:
        """The run directory, where this worker may write no more than its log unless it is the primary."""
        return self.directory.path if self.directory else Path(self.config.run_dir)

    def follow(self) -> Path:
        """The run directory as it is now, to which all that is written beside the checkpoints goes from here on."""
        if self.directory:
            with contextlib.suppress(OSError):  # It is gone: the next save says so.
                self.directory.find()
            if self.directory.moves != self.moves:
                self.moves = self.directory.moves
                self.tracker.move(self.path)
                console.move_log(self.path / "log.txt")
        return self.path

    @property
    def images_per_step(self) -> int:
        """Real images shown in a step."""
        return self.config.train.global_batch * batches_per_step(self.config)

    @property
    def images_seen(self) -> int:
        """The run's clock."""
        return int(self.state.images_seen.numpy())


class Every(NamedTuple):
    """Images between two of what happens now and then; 0 is never."""

    evaluation: int
    report: int
    samples: int
    checkpoint: int
    snapshot: int

    @classmethod
    def of(cls, config: Config) -> Every:
        """As a config says."""
        train, save = config.train, config.checkpoint
        kimgs = (
            config.evaluation.every_kimg,
            train.report_kimg,
            train.sample_kimg,
            save.every_kimg,
            save.snapshot_kimg,
        )
        return cls(*(max(images(kimg), 1) if kimg else 0 for kimg in kimgs))


def crosses(interval: int, before: int, seen: int) -> bool:
    """Whether a multiple of the interval lies above `before` and not above `seen`."""
    return bool(interval) and seen // interval > before // interval


def lacks(config: Config, state: TrainState, path: Path, last_row: int) -> bool:
    """Whether a state that has seen all its images still lacks its evaluation or its last row, which an end came before."""
    seen, step = int(state.images_seen.numpy()), config.train.global_batch * batches_per_step(config)
    evaluated = any(each["images_seen"] == seen for each in scores.read(path))
    evaluation_due = crosses(Every.of(config).evaluation, max(seen - step, 0), seen)
    return (evaluation_due and not evaluated) or (last_row < seen and bool(state.report_counts.numpy().any()))


def train(run: Run, stop: Stop) -> None:
    """Trains from where the state stands to the end.

    Raises:
      Regroup: elastic workers came or went; called again with another runtime, it goes on.
      Stopped: a signal came; the state is saved.
      Diverged: a step was not finite; the weights are those before it, the evidence is saved.
      UserError: the state cannot be saved at the end, or with --checkpoint.on_error=fail before.
    """
    train_config, topology = run.config.train, run.runtime.topology
    advance = compile_steps(run.config, run.state, run.runtime)
    first_batch = run.images_seen // train_config.global_batch
    dataset = pipeline.batches(run.reader, first_batch, train_config, topology.num_replicas, topology.local_replicas)
    iterator = run.runtime.distribute(dataset)
    sampler = Sampler(run.config, run.state.generator_ema, run.state.description)
    clock, total, seen = Clock(), images(train_config.total_kimg), run.images_seen
    control, primary = run.runtime.control, run.directory is not None
    check = desync.build_check(run.state, run.runtime) if run.config.runtime.check_desync else lambda: None

    def asked() -> str | None:
        """Who asked for the run's end."""
        return stop.asked_by or (STOP_BUTTON if run.tracker.stop_asked else None)

    def save(best: bool = False) -> None:
        check()
        if run.saver:
            run.saver.save(best)

    def save_last() -> None:
        stop.answer()
        check()
        if run.saver:
            run.saver.save_last()

    def leave(signals: Sequence[str | None]) -> NoReturn:
        save_last()
        control.gather(None)
        name = next(name for name in signals if name)
        text = f"stopped by {name} at {seen / 1000:g} kimg, saved; start it again to go on"
        # The button is the primary's to see: nobody else can end a run as done.
        raise (Halted if signals[0] == STOP_BUTTON else Stopped)(text)

    def evaluate() -> bool:
        """Whether this is the best score so far."""
        control.at("evaluating", seen // run.images_per_step, patient=True)
        started = time.perf_counter()
        try:
            result = evaluations(seen, lambda: any(control.gather(asked() is not None)), run.follow)
        except GivenUp:
            leave(control.gather(asked()))
        best = False
        if result:
            best = evaluations.is_best(seen)
            run.best = {"images_seen": seen, "scores": result["scores"]} if best else run.best
            run.scores = scores.for_row(run.config, result["scores"], run.best)
            run.scores["time/evaluation_s"] = time.perf_counter() - started
            run.tracker.evaluation(result["cards"])
        return control.gather(best)[0]

    def due(before: int, seen: int) -> Every:
        return Every(*(crosses(interval, before, seen) for interval in every))

    every = Every.of(run.config)
    if every.evaluation:
        evaluations = scores.Evaluations(
            run.config, run.reader.images, run.runtime, sampler, run.path if primary else None
        )
    profile = Profile(run)
    if primary:
        write_reals(run, sampler)
    if seen == 0 and train_config.sample_kimg:
        write_samples(run, sampler, seen)
    if run.snapshots:
        run.snapshots.take()
    stop.doing = lambda: f"step {seen // run.images_per_step}"
    # An evaluation that a signal has ended is made up for, with what was due behind it.
    owed = due(max(seen - run.images_per_step, 0), seen)
    row_owed = owed.report and run.state.report_counts.numpy().any()
    if owed.evaluation and (row_owed or not control.gather(evaluations.has(seen))[0]):
        best = evaluate()
        if owed.samples or seen >= total:
            write_samples(run, sampler, seen)
        if row_owed:
            report(run, clock, seen)
        if best:
            save(best)
    while seen < total:
        step = seen // run.images_per_step
        signals, limits = zip(*control.gather([asked(), clock.limit()]), strict=True)
        if any(signals):
            leave(signals)
        marks = [seen // interval * interval + interval for interval in every if interval] + profile.marks(step)
        steps = min(math.ceil((min(*marks, total) - seen) / run.images_per_step), *limits)
        row = min(seen // every.report * every.report + every.report, total) if every.report else total
        ordinary = math.ceil((row - seen) / run.images_per_step) - MEASURED_STEPS
        measured = ordinary <= 0
        ready = advance.ready(steps if measured else min(steps, ordinary), measured)
        steps, fresh = ready or 1, not ready
        control.at(f"training, {steps} steps a call", step, patient=fresh)
        profile.start(step)
        started = time.perf_counter()
        # XLA tells on stderr that it compiled. Among workers the line between them may have to speak meanwhile.
        with devices.quiet() if fresh and topology.world_size == 1 else nullcontext(), data_errors(run.reader):
            progress, waits = advance.measure(iterator, steps) if measured else (advance(iterator, steps), None)
            finite = bool(progress.ok.numpy())
        clock.add(steps, time.perf_counter() - started, waits, fresh)
        profile.stop(
            step + steps, last=not finite or seen + steps * run.images_per_step >= total or bool(stop.asked_by)
        )
        control.at("between two calls", step + steps, patient=primary)
        if not finite:
            raise Diverged(control.gather(blackbox.write(run, progress.evidence.numpy()) if primary else None)[0])
        before, seen = seen, seen + steps * run.images_per_step
        now = due(before, seen)
        best = bool(now.evaluation) and evaluate()
        # Before the row of the same place, which pictures go along with.
        if now.samples or seen >= total:
            write_samples(run, sampler, seen)
        if now.report:
            check()
            report(run, clock, seen)
        changes = control.changes()
        # Last, so that whoever goes on from here has nothing to make up for.
        if now.checkpoint or best:
            save(best)
        if run.snapshots and not (run.saver and (now.checkpoint or best)):
            run.snapshots.take() if now.snapshot or changes else run.snapshots.refresh()
        if changes and seen < total:
            raise Regroup("workers were added or removed")
    # Saved before the last row, which may come early: a run that is made longer reports whole intervals again.
    with waiting_for("the last checkpoint to be on the disk"):
        save_last()
    if run.state.report_counts.numpy().any() and clock.steps:
        report(run, clock, seen)


@contextmanager
def data_errors(reader: Reader) -> Iterator[None]:
    """Raises the data's own error where TensorFlow raises one of its own in its place."""
    try:
        yield
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
def telling(run: Run) -> Iterator[None]:
    """A full or failing disk costs a picture, and not the run, unless --checkpoint.on_error=fail."""
    try:
        yield
    except OSError as error:
        place = error.filename or run.path
        text = f"--run_dir={run.path}: cannot write {place}: {error.strerror or error}"
        if run.config.checkpoint.on_error == "fail":
            raise UserError(text) from None
        log.warning("%s; the training goes on", text)


def write_samples(run: Run, sampler: Sampler, seen: int) -> None:
    """Writes the grid of fixed latents: those of the run's seed, as `distgan sample` draws them."""
    if run.directory is None:
        return
    run.follow()
    path = run.directory.sample_path(seen, run.images_per_step)
    numbers = range(_GRID_IMAGES)
    drawn, labels = sampler(run.config.seed, numbers), sampler.labels(numbers)
    with telling(run):
        save_grid(drawn, path, sampler.captions(labels))
        run.tracker.picture("samples/ema_grid", path, seen)
    report_logits(run, drawn, labels, seen)


def write_reals(run: Run, sampler: Sampler) -> None:
    """Writes the run's first real images as a grid, once."""
    path = run.path / "samples" / "reals.png"
    if not path.exists():
        pixels, labels = run.reader(np.arange(_GRID_IMAGES))
        with telling(run):
            save_grid(pixels, path, sampler.captions(labels))
            run.tracker.picture("samples/real_grid", path, 0)


def snapshot(run: Run) -> Checkpoint:
    """A copy of the state as it stands, with what explains it."""
    return Checkpoint(
        run.state.arrays(), {"images_seen": run.images_seen, **run.facts, "best": run.best, "scores": run.scores}
    )
