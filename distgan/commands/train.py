"""`distgan train`: opens the parts of a run, hands them to the loop, and answers for how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distgan import config as configs
from distgan import presets
from distgan.config import Config, option
from distgan.data.source import Description, Images
from distgan.errors import Diverged, Exit, Regroup, Stopped, UserError
from distgan.runtime import devices, topology
from distgan.runtime.control import Control, Group
from distgan.tracking import console
from distgan.tracking.console import log
from distgan.training.run_dir import RunDir, read_config, versions
from distgan.training.saving import Saver, Snapshots
from distgan.training.stopping import Stop


@dataclasses.dataclass(frozen=True)
class Options(Config):
    """A run, and how this start of it behaves."""

    dry_run: bool = option(False, "print the config, batch arithmetic, parameters and memory, and stop")
    verbosity: int = option(0, "1 shows TensorFlow's own log", minimum=0, maximum=1)

    def run_config(self) -> Config:
        """The run alone."""
        return Config(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)})


def base(preset: str, run_dir: str) -> dict[str, Any]:
    """The values that flags stand on: the named preset, else the run in --run_dir, else the default preset."""
    gone_on_with = read_config(Path(run_dir)) if run_dir and not preset else {}
    values = gone_on_with or presets.preset(preset or presets.DEFAULT)
    return {**values, "run_dir": run_dir or f"runs/{preset or presets.DEFAULT}"}


def run(options: Options) -> int:
    """Trains; returns 0 when the run is complete."""
    config = options.run_config()
    workers = topology.find_workers(topology.read_environment(), config.runtime.workers, config.runtime.peers)
    primary = workers is None or workers.rank == 0
    console.start_log(show=primary)
    if workers and not options.dry_run:
        console.log_to(Path(config.run_dir) / ("log.txt" if primary else f"log.{workers.rank}.txt"))
    if workers and workers.strategy == "horovod":
        devices.silence(options.verbosity)
    with Stop(Control(), _grace_seconds(config, workers)).watching() as stop:
        training = _Training(options, config, stop)
        with training.recorded():
            devices.in_groups(config, workers, training.work)
    return 0


def _grace_seconds(config: Config, workers: topology.Workers | None) -> float:
    """Little under horovodrun, which kills its workers 4.5 s after it is told to stop."""
    by_horovodrun = workers is not None and workers.strategy == "horovod"
    return config.checkpoint.grace_seconds or (2 if by_horovodrun else 30)


class _Training:
    """This process' part in a run; elastic workers have one in each group of workers after the other."""

    def __init__(self, options: Options, config: Config, stop: Stop):
        self.options, self.config, self.stop = options, config, stop
        self.images: Any = None
        self.runtime: Any = None
        self.run: Any = None
        """The `loop.Run`."""

    def work(self, group: Group) -> None:
        """Trains in a group of workers to the end.

        Raises:
          Regroup: a worker came or went; `work` is called again.
        """
        control = self.stop.control = group.control
        config = self.config = _agree_on_config(self.options, self.config, control)
        if self.images is None:
            self.images = open_images(config)
            devices.silence(self.options.verbosity)
        if self.runtime is None:
            self.runtime = devices.open_runtime(config, group.workers, control)
        else:
            self.runtime = self.runtime.regrouped(group)
        runtime = self.runtime
        _agree_on_versions(self.images, runtime)
        from distgan.training import phases

        problems = list(phases.problems(config, runtime.topology.num_replicas))
        if problems:
            raise UserError("; ".join(problems))
        shares = (config.train.global_batch, runtime.topology.num_replicas, config.train.accumulation_steps)
        topology.check_shares(*shares) if control.elastic else topology.split_batch(*shares)
        if group.reason:
            log.info(topology.describe_batch(*shares))
        elif runtime.topology.is_primary:
            log_topology(config, runtime.topology)
        if self.options.dry_run:
            describe(config, self.images, runtime)
        else:
            with self.recorded():
                self._train(group)
        runtime.close()

    def _train(self, group: Group) -> None:
        from distgan.tracking.tracker import JsonLines, Tracker
        from distgan.training import checkpoint, loop

        config, runtime, control, images = self.config, self.runtime, group.control, self.images
        place, path, total = runtime.topology, Path(config.run_dir), configs.images(config.train.total_kimg)
        control.at("building the networks", 0, patient=True)
        if self.run is None:
            self.run = self._start()
        run = self.run
        run.runtime = runtime
        if not place.is_primary:
            self._let_go(Stopped.code)  # Another process goes on with it.
        if control.elastic:
            control.gather("networks built, run directory let go")
        opens = place.is_primary and run.directory is None
        saved = run.snapshots.newest if run.snapshots else None
        if opens:
            if group.workers is None or group.reason:
                console.start_log()
                console.log_to(path / "log.txt")
            run.directory = RunDir(path, config, images.fingerprint, _LET_GO_SECONDS if group.reason else 0)
            on_disk = checkpoint.newest(run.directory.checkpoints, repair=True)
            run.best = on_disk.info.get("best") if on_disk else None
            saved = saved or on_disk
            rows = JsonLines(path / "metrics.jsonl")
            run.tracker = Tracker([rows])
        run.state.share(saved.arrays if saved else None, runtime)
        seen = run.images_seen
        if group.reason:
            log.info("%s", _told(group, place.world_size, seen))
        else:
            log.info("%s at %g of %g kimg in %s", "goes on" if seen else "starts", seen / 1000, total / 1000, path)
            lacking = opens and loop.lacks(config, run.state, path, rows.last_images_seen)
            if seen >= total and not control.gather(lacking)[0]:
                log.info("nothing left to do: raise --train.total_kimg, or choose another --run_dir")
                return
        run.facts = _facts(config, images, run.state.description, place, run.directory)
        if place.is_primary or control.elastic:
            run.snapshots = run.snapshots or Snapshots(lambda: loop.snapshot(run))
        if opens:
            run.tracker = self._open_tracker(rows, total)
            if on_disk and not group.reason:
                run.scores = dict(on_disk.info.get("scores", {}))
            run.saver = Saver(
                run.directory.checkpoints, config.checkpoint, run.snapshots, on_disk.images_seen if on_disk else -1
            )
            tell = run.tracker.checkpoint
            run.saver.tell_of = lambda folder, taken, best: tell(folder, taken.images_seen, best, taken.info)
        if run.saver:
            control.before_leaving = run.saver.flush
        loop.train(run, self.stop)
        control.release()
        self._let_go(0)
        log.info("done: %g kimg, samples in %s", total / 1000, path / "samples")

    def _start(self) -> Any:
        """The run, with the networks that it starts from."""
        from distgan.data.pipeline import Reader
        from distgan.tracking.tracker import Tracker
        from distgan.training import checkpoint, loop
        from distgan.training.state import build_state

        config, images, runtime = self.config, self.images, self.runtime
        state = build_state(config, Description.of(images), runtime)
        fresh = runtime.topology.is_primary and not checkpoint.whole(Path(config.run_dir) / "checkpoints")
        if config.init_from and fresh:
            _start_from(config, state)
        reader = Reader(images, config.data, config.seed)
        return loop.Run(config, reader, runtime, state, None, Tracker([]), {})

    def _open_tracker(self, rows: Any, total: int) -> Any:
        from distgan.tracking.tensorboard import TensorBoard
        from distgan.tracking.tracker import Sink, Tracker
        from distgan.tracking.wandb_sink import open_wandb

        path, directory = Path(self.config.run_dir), self.run.directory
        tracked = {**directory.facts(), "num_images": self.images.num_images, **self.runtime.topology.facts()}
        wandb_run = open_wandb(self.config.tracking, tracked, path, directory.starts)
        events = TensorBoard(path / "tensorboard") if self.config.tracking.tensorboard else None
        sinks: list[Sink | None] = [rows, console.ProgressLine(total), wandb_run, events]
        return Tracker([sink for sink in sinks if sink], rows.last_images_seen)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Lets go of the run directory at the end of the block, unless the run goes on in another group."""
        exit_code = 1
        try:
            yield
            exit_code = 0
        except Regroup:
            exit_code = -1
            raise
        except Exit as error:
            exit_code = error.code
            raise
        finally:
            if exit_code >= 0:
                self.stop.control.release()
                self._let_go(exit_code)

    def _let_go(self, exit_code: int) -> None:
        """Ends what is written to the run directory, and lets another process in."""
        from distgan.tracking.tracker import Tracker

        run = self.run
        if run is None or run.directory is None:
            return
        # What other workers' ends have cut off is not lost; what diverged is not kept.
        if run.saver and exit_code != Diverged.code:
            run.saver.flush()
        run.tracker.close(exit_code)
        run.directory.close()
        run.directory, run.saver, run.tracker = None, None, Tracker([])


_LET_GO_SECONDS = 150  # For the process that had the run directory to close it: W&B may take two minutes.


def _told(group: Group, count: int, seen: int) -> str:
    who = f"{count} workers go on" if count > 1 else "1 worker goes on"
    return f"{group.reason}; {who} at {seen / 1000:g} kimg after {time.monotonic() - group.noticed:.1f} s"


# What each worker may have of its own.
_OWN = ("run_dir", "data.path")


def _agree_on_config(options: Options, config: Config, control: Any) -> Config:
    """The config of all workers.

    A run that goes on without --preset takes its config from the run directory, which only the primary has; the others
    take it from the primary.

    Raises:
      UserError: two workers were started with different flags.
    """
    flat = configs.flatten(config)
    goes_on = not options.preset and bool(read_config(Path(config.run_dir)))
    (first, first_goes_on), *others = control.gather((flat, goes_on))
    if first_goes_on:
        own = {name: flat[name] for name in _OWN}
        return configs.build(Config, {**first, **own})
    for rank, (other, _) in enumerate(others, start=1):
        names = [name for name in sorted(first.keys() | other.keys()) if first.get(name) != other.get(name)]
        changed = [f"{name}={other.get(name)} (rank 0: {first.get(name)})" for name in names if name not in _OWN]
        if changed:
            raise UserError(f"rank {rank} has another config than rank 0: {', '.join(changed)}")
    return config


def _agree_on_versions(images: Images, runtime: Any) -> None:
    """Compares what decides a run's numbers.

    Raises:
      UserError: two workers have other packages, data or numbers of devices.
    """
    facts = {
        **{f"package {name}": version for name, version in versions().items() if name != "python"},
        "data fingerprint": images.fingerprint,
        "number of replicas": runtime.topology.num_replicas,
    }
    first, *others = runtime.control.gather(facts)
    for rank, other in enumerate(others, start=1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise UserError(f"{name} is {other.get(name)} on rank {rank} and {first.get(name)} on rank 0")


def open_images(config: Config) -> Images:
    """The run's images, once everything that can be said about the config without TensorFlow has been checked.

    Raises:
      UserError: the first problem.
    """
    problems = configs.problems(config)
    if problems:
        raise UserError("; ".join(problems))
    images = config.data.source.options.open(config.data)
    problems = list(config.model.name.options.fits(images.shape))
    problems += list(config.objective.augmentation.options.fits(images.shape))
    if config.model.conditional and not images.num_classes:
        problems.append(f"--model.conditional needs labels, and {images.name} has none")
    if config.train.global_batch > images.num_images:
        problems.append(
            f"--train.global_batch={config.train.global_batch} is more than the {images.num_images} images of {images.name}"
        )
    if problems:
        raise UserError("; ".join(problems))
    return images


def log_topology(config: Config, found: topology.Topology) -> None:
    """Says which strategy and why, on what, and how the batch is divided."""
    log.info("strategy %s (%s)", found.strategy, found.reason)
    if names := devices.gpu_names():
        log.info("GPUs: %s", ", ".join(names))
    train = config.train
    log.info(topology.describe_batch(train.global_batch, found.num_replicas, train.accumulation_steps))


def describe(config: Config, images: Images, runtime: Any) -> None:
    """Prints what a run would be."""
    from distgan.training import estimate
    from distgan.training.state import build_state

    state = build_state(config, Description.of(images), runtime)
    train = config.train
    micro_batch = topology.split_batch(train.global_batch, runtime.topology.num_replicas, train.accumulation_steps)
    memory = estimate.memory_bytes(config, state, micro_batch)
    if not runtime.topology.is_primary:
        return
    print(json.dumps(configs.flatten(config), indent=1))
    print(f"{images.num_images} images {'x'.join(map(str, images.shape))}, {images.num_classes} classes")
    print(topology.describe_batch(train.global_batch, runtime.topology.num_replicas, train.accumulation_steps))
    for name, count in state.parameter_counts().items():
        print(f"{name}: {count:,} parameters")
    parts = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in memory.items())
    print(f"estimated memory of a replica: {sum(memory.values()) / 2**20:.1f} MiB ({parts})")


def _start_from(config: Config, state: Any) -> None:
    """Takes the networks' weights from the newest checkpoint of --init_from.

    Raises:
      UserError: there is none, or its networks are not these.
    """
    from distgan.training import checkpoint

    saved = checkpoint.newest(Path(config.init_from) / "checkpoints")
    if saved is None:
        raise UserError(f"--init_from={config.init_from} holds no run with a checkpoint")
    try:
        state.load_networks(saved.arrays)
    except ValueError as error:
        raise UserError(f"--init_from={config.init_from} has other networks: {error}") from None


def _facts(
    config: Config, images: Images, description: Description, place: topology.Topology, directory: RunDir | None
) -> dict[str, Any]:
    """What explains a checkpoint besides its images seen."""
    return {
        **dataclasses.asdict(description),
        "num_images": images.num_images,
        "data_fingerprint": images.fingerprint,
        "strategy": place.strategy,
        "world_size": place.world_size,
        "num_replicas": place.num_replicas,
        "versions": versions(),
        "config": configs.flatten(config),
        "wandb_run_id": directory.wandb_run_id() if directory else None,
    }
