"""A worker's part in a run: opens what the loop works with, in each group of workers anew, and closes it however it ends."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

from distgan import config as configs
from distgan import schema
from distgan.config import Config
from distgan.data.pipeline import Reader
from distgan.data.source import Description, Images, earlier_fingerprint
from distgan.errors import Diverged, Stopped, UserError
from distgan.runtime import topology
from distgan.runtime.base import Runtime
from distgan.runtime.control import Group, waiting_for
from distgan.tracking import console
from distgan.tracking.console import log
from distgan.tracking.tensorboard import TensorBoard
from distgan.tracking.tracker import JsonLines, Sink, Tracker
from distgan.tracking.wandb_sink import lacks_rows, open_wandb
from distgan.training import checkpoint, loop
from distgan.training.checkpoint import Checkpoint
from distgan.training.run_dir import RunDir, versions
from distgan.training.saving import Saver, Snapshots
from distgan.training.state import TrainState, build_state
from distgan.training.stopping import Stop

_LET_GO_SECONDS = 150  # For the process that had the run directory to close it: W&B may take two minutes.


class _Opened(NamedTuple):
    """The primary's run directory."""

    directory: RunDir
    on_disk: Checkpoint | None
    """Its newest."""
    rows: JsonLines


class Worker:
    """What one process trains with; an elastic one goes through several groups with it.

    Args:
      config: of all workers.
      images: the run's.
      runtime: of the first group.
      stop: of this process.

    Raises:
      UserError: --init_from names nothing to start from.
    """

    def __init__(self, config: Config, images: Images, runtime: Runtime, stop: Stop):
        self.config, self.images, self.stop = config, images, stop
        self.path, self.total = Path(config.run_dir), configs.images(config.train.total_kimg)
        state = build_state(config, Description.of(images), runtime)
        if config.init_from and runtime.topology.is_primary and not checkpoint.whole(self.path / "checkpoints"):
            _start_from(config, state)
        reader = Reader(images, config.data, config.seed)
        self.run = loop.Run(config, reader, runtime, state, None, Tracker([]), {})

    def train(self, group: Group, runtime: Runtime) -> None:
        """Trains from the newest state that there is, in memory or on disk, to the end.

        Raises:
          Regroup: a worker came or went; it is called again.
          Exit: see `loop.train`.
        """
        run, control, place = self.run, group.control, runtime.topology
        run.runtime = runtime
        if not place.is_primary:
            self.let_go(Stopped.code)  # Another process goes on with it.
        if control.elastic:
            control.gather("networks built, run directory let go")
        opened = self._open_directory(group) if place.is_primary and run.directory is None else None
        in_memory = run.snapshots.newest if run.snapshots else None
        saved = in_memory or (opened.on_disk if opened else None)
        run.state.share(saved.arrays if saved else None, runtime)
        seen = run.images_seen
        if group.reason:
            log.info("%s", _told(group, place.world_size, seen))
        else:
            kimg, total_kimg = seen / 1000, self.total / 1000
            log.info("%s at %g of %g kimg in %s", "goes on" if seen else "starts", kimg, total_kimg, self.path)
            lacking = opened and loop.lacks(self.config, run.state, self.path, opened.rows.last_images_seen)
            if seen >= self.total and not control.gather(lacking)[0]:
                log.info("nothing left to do: raise --train.total_kimg, or choose another --run_dir")
                if opened:
                    self._hand_on_rows(opened)
                return
        run.facts = self._facts(place)
        if place.is_primary or control.elastic:
            run.snapshots = run.snapshots or Snapshots(lambda: loop.snapshot(run))
        if opened and run.snapshots:
            self._open_records(opened, run.snapshots, first=not group.reason)
        if run.saver:
            control.before_leaving = self._leave
        loop.train(run, self.stop)
        control.release()
        path = run.path
        self.let_go(0)
        log.info("done: %g kimg, samples in %s", self.total / 1000, path / "samples")

    def _open_directory(self, group: Group) -> _Opened:
        """Takes the run directory from whoever may still have it."""
        run = self.run
        if group.workers is None or group.reason:
            console.start_log()
            console.log_to(self.path / "log.txt")
        patience = _LET_GO_SECONDS if group.reason else 0
        images = self.images
        run.directory = directory = RunDir(
            self.path, self.config, images.fingerprint, patience, lambda: earlier_fingerprint(images)
        )
        on_disk = checkpoint.newest(directory.checkpoints(), repair=True)
        run.best = on_disk.info.get("best") if on_disk else None
        try:
            rows = JsonLines(self.path / "metrics.jsonl")
        except OSError as error:
            raise UserError(f"--run_dir={self.path}: metrics.jsonl cannot be written: {error.strerror}") from None
        run.tracker = Tracker([rows])
        return _Opened(directory, on_disk, rows)

    def _open_records(self, opened: _Opened, snapshots: Snapshots, first: bool) -> None:
        """Opens the sinks and the saver, once the state is known; `first` is the process' first group."""
        run, (directory, on_disk, rows) = self.run, opened
        wandb_run = open_wandb(self.config.tracking, self._tracked(directory), self.path, directory.starts)
        events = TensorBoard(self.path / "tensorboard") if self.config.tracking.tensorboard else None
        sinks: list[Sink | None] = [rows, console.ProgressLine(self.total), wandb_run, events]
        run.tracker = tracker = Tracker([sink for sink in sinks if sink], rows.last_images_seen)
        if on_disk and first:
            run.scores = dict(on_disk.info.get("scores", {}))
        newest = on_disk.images_seen if on_disk else -1
        run.saver = Saver(
            directory.checkpoints, self.config.checkpoint, snapshots, newest, elsewhere=directory.save_elsewhere
        )
        run.saver.tell_of = lambda folder, taken, best: tracker.checkpoint(folder, taken.images_seen, best, taken.info)

    def _hand_on_rows(self, opened: _Opened) -> None:
        """Gives W&B the rows of a complete run that it lacks."""
        tracking, rows = self.config.tracking, opened.rows
        if not lacks_rows(tracking, self.path, rows.last_images_seen):
            return
        log.info("W&B lacks rows of this run: it gets them now")
        if sink := open_wandb(tracking, self._tracked(opened.directory), self.path, opened.directory.starts):
            sink.close(0)

    def _tracked(self, directory: RunDir) -> dict[str, Any]:
        """The config of the run at W&B."""
        facts = self.run.runtime.topology.facts()
        return {**directory.facts(), "num_images": self.images.num_images, **facts}

    def _leave(self, exit_code: int) -> None:
        """Saves what is in memory, from any thread, where the process ends without its main thread."""
        if self.run.saver:
            self.run.saver.flush()
        self.run.tracker.leave(exit_code)

    def let_go(self, exit_code: int) -> None:
        """Ends what is written to the run directory, and lets another process in."""
        run = self.run
        if run.directory is None:
            return
        # What other workers' ends have cut off is not lost; what diverged is not kept.
        if run.saver and exit_code != Diverged.code:
            with waiting_for("the last checkpoint to be on the disk"):
                run.saver.flush()
        try:
            with waiting_for("W&B and the run's other records to be closed"):
                run.tracker.close(exit_code)
            if run.saver and exit_code in (0, Stopped.code):
                run.saver.make_sure()  # That may have taken minutes.
        finally:
            run.directory.close()
            run.directory, run.saver, run.tracker = None, None, Tracker([])

    def _facts(self, place: topology.Topology) -> dict[str, Any]:
        """What explains a checkpoint besides its images seen."""
        return {
            **dataclasses.asdict(self.run.state.description),
            "num_images": self.images.num_images,
            "data_fingerprint": self.images.fingerprint,
            "strategy": place.strategy,
            "world_size": place.world_size,
            "num_replicas": place.num_replicas,
            "versions": versions(),
            "config": schema.flatten(self.config),
            "wandb_run_id": self.run.directory.wandb_run_id() if self.run.directory else None,
        }


def _told(group: Group, count: int, seen: int) -> str:
    who = f"{count} workers go on" if count > 1 else "1 worker goes on"
    return f"{group.reason}; {who} at {seen / 1000:g} kimg after {time.monotonic() - group.noticed:.1f} s"


def _start_from(config: Config, state: TrainState) -> None:
    """Takes the networks' weights from the newest checkpoint of --init_from.

    Raises:
      UserError: there is none, or its networks are not these.
    """
    saved = checkpoint.newest(Path(config.init_from) / "checkpoints")
    if saved is None:
        raise UserError(f"--init_from={config.init_from} holds no run with a checkpoint")
    try:
        state.load_networks(saved.arrays)
    except ValueError as error:
        raise UserError(f"--init_from={config.init_from} has other networks: {error}") from None
