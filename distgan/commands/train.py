"""`distgan train`: checks a run and agrees on it with the other workers, trains it, and answers for how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distgan import config as configs
from distgan import presets, schema
from distgan.config import Config
from distgan.data.contract import open_source
from distgan.data.source import Description, Images
from distgan.errors import Exit, Regroup, UserError
from distgan.runtime import devices, topology
from distgan.runtime.control import Control, Group
from distgan.schema import option
from distgan.tracking import console, streams
from distgan.tracking.console import log
from distgan.training.run_dir import read_config, versions
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
    if not options.dry_run:
        sys.stdout = streams.forgiving(sys.stdout)  # What a plug-in prints must not end a run.
    console.start_log(show=primary)
    if workers and not options.dry_run:
        console.log_to(Path(config.run_dir) / ("log.txt" if primary else f"log.{workers.rank}.txt"))
    with Stop(Control(), _grace_seconds(config, workers), speaks=primary).watching() as stop:
        if workers and workers.strategy == "horovod":
            devices.silence(options.verbosity)
        part = _Part(options, config, stop)
        with part.recorded():
            devices.in_groups(config, workers, part.work)
    return 0


def _grace_seconds(config: Config, workers: topology.Workers | None) -> float:
    """Little under horovodrun, which kills its workers 4.5 s after it is told to stop."""
    by_horovodrun = workers is not None and workers.strategy == "horovod"
    return config.checkpoint.grace_seconds or (2 if by_horovodrun else 30)


class _Part:
    """This process' part in a run; elastic workers have one in each group of workers after the other."""

    def __init__(self, options: Options, config: Config, stop: Stop):
        self.options, self.config, self.stop = options, config, stop
        self.images: Any = None
        self.runtime: Any = None
        self.worker: Any = None
        """The `training.worker.Worker`."""

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
        images, runtime = self.images, self.runtime
        _agree_on_versions(images, runtime)
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
            describe(config, images, runtime)
        else:
            with self.recorded():
                control.at("building the networks", 0, patient=True)
                if self.worker is None:
                    from distgan.training.worker import Worker

                    self.worker = Worker(config, images, runtime, self.stop)
                from distgan.training import precision
                from distgan.training.device_errors import explained

                hint = precision.channel_hint(config.precision, self.worker.run.state.trained())
                if hint and devices.gpu_names() and runtime.topology.is_primary and not group.reason:
                    log.info(hint)
                with explained(self.worker.run, self.stop):
                    self.worker.train(group, runtime)
        runtime.close()

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
                if self.worker:
                    self.worker.let_go(exit_code)


# What each worker may have of its own.
_OWN = ("run_dir", "data.path")


def _agree_on_config(options: Options, config: Config, control: Any) -> Config:
    """The config of all workers.

    A run that goes on without --preset takes its config from the run directory, which only the primary has; the others
    take it from the primary.

    Raises:
      UserError: two workers were started with different flags.
    """
    flat = schema.flatten(config)
    goes_on = not options.preset and bool(read_config(Path(config.run_dir)))
    (first, first_goes_on), *others = control.gather((flat, goes_on))
    if first_goes_on:
        own = {name: flat[name] for name in _OWN}
        return schema.build(Config, {**first, **own})
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
    images = open_source(config.data)
    problems = configs.misfits(config, images.shape)
    if config.model.conditional and not images.num_classes:
        reason = getattr(images, "no_classes", "") or "it has no labels"
        problems.append(f"--model.conditional needs classes, and {images.name} has none: {reason}")
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
    if unused := devices.unused_gpus():
        log.warning(unused)
    train = config.train
    log.info(topology.describe_batch(train.global_batch, found.num_replicas, train.accumulation_steps))


def describe(config: Config, images: Images, runtime: Any) -> None:
    """Prints what a run would be."""
    from distgan.training import estimate, precision
    from distgan.training.state import build_state

    state = build_state(config, Description.of(images), runtime)
    train = config.train
    micro_batch = topology.split_batch(train.global_batch, runtime.topology.num_replicas, train.accumulation_steps)
    memory = estimate.memory_bytes(config, state, micro_batch)
    if not runtime.topology.is_primary:
        return
    print(json.dumps(schema.flatten(config), indent=1))
    print(f"{images.num_images} images {'x'.join(map(str, images.shape))}, {images.num_classes} classes")
    print(topology.describe_batch(train.global_batch, runtime.topology.num_replicas, train.accumulation_steps))
    for name, count in state.parameter_counts().items():
        print(f"{name}: {count:,} parameters")
    if hint := precision.channel_hint(config.precision, state.trained()):
        print(hint)
    parts = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in memory.items())
    print(f"estimated memory of a replica: {sum(memory.values()) / 2**20:.1f} MiB ({parts})")
