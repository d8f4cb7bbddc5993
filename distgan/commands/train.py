"""`distgan train`: opens the parts of a run, hands them to the loop, and answers for how it ends."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from distgan import config as configs
from distgan import presets
from distgan.config import Config, option
from distgan.data.source import Description, Images
from distgan.errors import Diverged, Exit, UserError
from distgan.runtime import devices, topology
from distgan.runtime.control import Control
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
        stop.control = control = devices.connect(config, workers)
        with control.together():
            _run(options, config, workers, control, stop)
    return 0


def _grace_seconds(config: Config, workers: topology.Workers | None) -> float:
    """Little under horovodrun, which kills its workers 4.5 s after it is told to stop."""
    by_horovodrun = workers is not None and workers.strategy == "horovod"
    return config.checkpoint.grace_seconds or (2 if by_horovodrun else 30)


def _run(options: Options, config: Config, workers: topology.Workers | None, control: Control, stop: Stop) -> None:
    config = _agree_on_config(options, config, control)
    images = open_images(config)
    devices.silence(options.verbosity)
    runtime = devices.open_runtime(config, workers, control)
    _agree_on_versions(images, runtime)
    from distgan.training import phases

    problems = list(phases.problems(config, runtime.topology.num_replicas))
    if problems:
        raise UserError("; ".join(problems))
    if runtime.topology.is_primary:
        log_topology(config, runtime.topology)
    else:
        train = config.train
        topology.split_batch(train.global_batch, runtime.topology.num_replicas, train.accumulation_steps)
    if options.dry_run:
        describe(config, images, runtime)
    else:
        _train(config, images, runtime, stop)
    runtime.close()


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


def _train(config: Config, images: Images, runtime: Any, stop: Stop) -> None:
    from distgan.training import checkpoint
    from distgan.training.state import build_state

    primary = runtime.topology.is_primary
    runtime.control.at("building the networks", 0, patient=True)
    state = build_state(config, Description.of(images), runtime)
    if primary and config.init_from and not checkpoint.whole(Path(config.run_dir) / "checkpoints"):
        _start_from(config, state)
    directory = RunDir(Path(config.run_dir), config, images.fingerprint) if primary else None
    try:
        _train_in(directory, config, images, runtime, state, stop)
    finally:
        if directory:
            directory.close()


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


def _train_in(directory: RunDir | None, config: Config, images: Images, runtime: Any, state: Any, stop: Stop) -> None:
    from distgan.data.pipeline import Reader
    from distgan.tracking.tensorboard import TensorBoard
    from distgan.tracking.tracker import JsonLines, Sink, Tracker
    from distgan.tracking.wandb_run import open_wandb
    from distgan.training import checkpoint, loop

    path, alone = Path(config.run_dir), runtime.topology.world_size == 1
    if alone:
        console.log_to(path / "log.txt")
    saved = checkpoint.newest(directory.checkpoints, repair=True) if directory else None
    state.share(saved.arrays if saved else None, runtime)
    seen, total = int(state.images_seen.numpy()), configs.images(config.train.total_kimg)
    log.info("%s at %g of %g kimg in %s", "goes on" if seen else "starts", seen / 1000, total / 1000, path)
    if seen >= total:
        log.info("nothing left to do: raise --train.total_kimg, or choose another --run_dir")
        return
    tracker = Tracker([])
    if directory:
        rows = JsonLines(path / "metrics.jsonl")
        wandb_run = open_wandb(config.tracking, configs.flatten(config), path)
        events = TensorBoard(path / "tensorboard") if config.tracking.tensorboard else None
        sinks: list[Sink | None] = [rows, console.ProgressLine(total), wandb_run, events]
        tracker = Tracker([sink for sink in sinks if sink], rows.last_images_seen)
    facts = _facts(config, images, state.description, runtime.topology, directory)
    run = loop.Run(config, Reader(images, config.data, config.seed), runtime, state, directory, tracker, facts)
    if directory:
        run.best = saved.info.get("best") if saved else None
        run.snapshots = Snapshots(lambda: loop.snapshot(run))
        run.saver = Saver(directory.checkpoints, config.checkpoint, run.snapshots, seen if saved else -1)
        runtime.control.before_leaving = run.saver.flush
    exit_code = 1
    try:
        loop.train(run, stop)
        exit_code = 0
    except Exit as error:
        exit_code = error.code
        raise
    finally:
        runtime.control.release()
        # What other workers' ends have cut off is not lost; what diverged is not kept.
        if run.saver and exit_code != Diverged.code:
            run.saver.flush()
        tracker.close(exit_code)
    log.info("done: %g kimg, samples in %s", total / 1000, path / "samples")


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
