"""`distgan doctor`: what this machine can do, and whether its replicas train as one."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import socket
from pathlib import Path

from distgan.commands import restart
from distgan.config import RuntimeConfig
from distgan.errors import Exit, UserError
from distgan.runtime import control, cuda, devices, topology
from distgan.schema import option, section
from distgan.training.run_dir import versions


@dataclasses.dataclass(frozen=True)
class Options:
    """How to look."""

    run_dir: str = option("", "a run: lists its checkpoints, verified, and what a restart would do")
    equivalence: bool = option(False, "train on this machine's replicas and on one, and compare gradients and weights")
    selftest: bool = option(False, "sum over the replicas, train two steps, and print what a report of a problem needs")
    strategy: str = option(
        "auto",
        "whose replicas to compare, or to test",
        choices=("auto", "single", "mirrored", "multiworker", "horovod"),
    )
    runtime: RuntimeConfig = section(RuntimeConfig)
    verbosity: int = option(0, "1 shows TensorFlow's own log", minimum=0, maximum=1)


def run(options: Options) -> int:
    """Prints one line a finding; returns 0 when a training run can start, and its replicas train as one."""
    if options.run_dir:
        for line in restart.describe(Path(options.run_dir)):
            print(line)
        return 0
    if options.equivalence:
        return _equivalence(options)
    if options.selftest:
        from distgan.commands import selftest

        return selftest.run(options.strategy, options.runtime, options.verbosity)
    for package, version in versions().items():
        print(f"{package}: {version}")
    print(f"machine: {platform.platform()}, {os.cpu_count()} CPUs")
    devices.silence(options.verbosity)
    names = devices.gpu_names()
    print(f"GPUs: {', '.join(names) or f'none ({cuda.explain()})'}")
    print(f"Horovod: {_horovod()}")
    print(f"ssh: {shutil.which('ssh') or 'none (horovodrun needs it for other hosts)'}")
    with control.listen(0):
        print(f"host: {socket.gethostname()}, ports can be listened on")

    from distgan.tracking.wandb_run import has_key

    print(f"W&B key: {'yes' if has_key() else 'no (runs are tracked offline)'}")
    return 0


def _horovod() -> str:
    try:
        from distgan.runtime import horovod
    except UserError as error:
        return f"no ({error})"
    return horovod.describe_build()


def _equivalence(options: Options) -> int:
    from distgan import config as configs
    from distgan import schema

    values = {
        f"runtime.{field.name}": getattr(options.runtime, field.name) for field in dataclasses.fields(RuntimeConfig)
    }
    workers = topology.find_workers(topology.read_environment(), options.runtime.workers, options.runtime.peers)
    devices.silence(options.verbosity)
    config = schema.build(configs.Config, {**values, "strategy": options.strategy, "precision": "float64"})
    line = devices.connect(config, workers)
    with line.together():
        runtime = devices.open_runtime(config, workers, line)
        place = runtime.topology
        if place.num_replicas == 1:
            raise UserError(
                "one replica has nothing to be compared with: use horovodrun, several GPUs, or --runtime.logical_cpus=2"
            )
        from distgan.commands import equivalence

        found = equivalence.differences(equivalence.base_config(values), runtime)
        good = all(max(each.gradients, each.weights) <= equivalence.LIMIT for each in found.values())
        if place.is_primary:
            print(f"{place.strategy} ({place.reason}): {place.num_replicas} replicas against one, in float64")
            for case, each in found.items():
                print(
                    f"{case}: gradients {each.gradients:.1e}, weights {each.weights:.1e} (at most, in {each.variable})"
                )
            print(f"verdict: {'the same run' if good else f'NOT the same run (limit {equivalence.LIMIT:g})'}")
        if not good:
            raise Exit("the replicas do not train as one")
        runtime.close()
    return 0
