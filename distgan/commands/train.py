"""`distgan train`: opens the parts of a run, hands them to the loop, and answers for how it ends."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from distgan import config as configs
from distgan import presets
from distgan.config import Config, option
from distgan.data.source import Images
from distgan.errors import Exit, UserError
from distgan.runtime import devices, topology
from distgan.tracking import console
from distgan.tracking.console import log
from distgan.training.run_dir import RunDir, read_config


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
    console.start_log()
    images = open_images(config)
    devices.silence(options.verbosity)
    runtime = devices.open_runtime(config)
    log_topology(config, runtime.topology)
    if options.dry_run:
        describe(config, images, runtime)
        return 0
    directory = RunDir(Path(config.run_dir), config, images.fingerprint)
    try:
        _train(config, images, runtime, directory)
    finally:
        directory.close()
        runtime.close()
    return 0


def open_images(config: Config) -> Images:
    """The run's images, once everything that can be said about the config without TensorFlow has been checked.

    Raises:
      UserError: the first problem.
    """
    problems = configs.problems(config)
    if problems:
        raise UserError("; ".join(problems))
    images = config.data.source.options.open(config.data.path, config.data.resolution)
    problems = list(config.model.name.options.requires(images.shape))
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

    state = build_state(config, images.shape, runtime)
    train = config.train
    micro_batch = topology.split_batch(train.global_batch, runtime.topology.num_replicas, train.accumulation_steps)
    memory = estimate.memory_bytes(config, state, images.shape, micro_batch)
    print(json.dumps(configs.flatten(config), indent=1))
    print(f"{images.num_images} images {'x'.join(map(str, images.shape))}, {images.num_classes} classes")
    print(topology.describe_batch(train.global_batch, runtime.topology.num_replicas, train.accumulation_steps))
    for name, count in state.parameter_counts().items():
        print(f"{name}: {count:,} parameters")
    parts = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in memory.items())
    print(f"estimated memory of a replica: {sum(memory.values()) / 2**20:.1f} MiB ({parts})")


def _train(config: Config, images: Images, runtime: Any, directory: RunDir) -> None:
    from distgan.tracking.tracker import JsonLines, Sink, Tracker
    from distgan.tracking.wandb_run import open_wandb
    from distgan.training import checkpoint, loop
    from distgan.training.state import build_state

    console.log_to(directory.path / "log.txt")
    with loop.Stop().watching() as stop:
        state = build_state(config, images.shape, runtime)
        saved = checkpoint.newest(directory.checkpoints)
        if saved:
            state.load(saved.arrays)
        seen, total = int(state.images_seen.numpy()), configs.images(config.train.total_kimg)
        log.info(
            "%s at %g of %g kimg in %s", "goes on" if saved else "starts", seen / 1000, total / 1000, directory.path
        )
        if seen >= total:
            log.info("nothing left to do: raise --train.total_kimg, or choose another --run_dir")
            return
        rows = JsonLines(directory.path / "metrics.jsonl")
        wandb_run = open_wandb(config.tracking, configs.flatten(config), directory.path)
        sinks: list[Sink | None] = [rows, console.ProgressLine(total), wandb_run]
        tracker = Tracker([sink for sink in sinks if sink], rows.last_images_seen)
        exit_code = 1
        try:
            loop.train(loop.Run(config, images, runtime, state, directory, tracker), stop)
            exit_code = 0
        except Exit as error:
            exit_code = error.code
            raise
        finally:
            tracker.close(exit_code)
    log.info("done: %g kimg, samples in %s", total / 1000, directory.path / "samples")
