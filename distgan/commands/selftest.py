"""`distgan doctor --selftest`: sums over this machine's replicas, two training steps, and times, as text for a report.

The text names versions, devices and numbers, and no host, user or path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from distgan import schema
from distgan.config import Config, RuntimeConfig
from distgan.errors import Broken, Exit, UserError
from distgan.runtime import devices, topology
from distgan.training.run_dir import versions

LIMIT = 1e-3
"""Largest relative difference that rounding in float32 may explain; a wrong factor makes it 1 or so."""
_SUM_BYTES = {"4 KiB": 2**12, "1 MiB": 2**20, "32 MiB": 2**25}
_REPEATS = 5
_STEPS = 2
_TIMED_STEPS = 4
_IMAGES_PER_REPLICA = 4


def run(strategy: str, runtime_options: RuntimeConfig, verbosity: int) -> int:
    """Prints what it finds, on the primary; returns 0 if all checks passed.

    Raises:
      Exit: a check failed, which the message names.
      UserError: the replicas cannot be had.
    """
    start = time.perf_counter()
    devices.silence(verbosity)
    workers = topology.find_workers(topology.read_environment(), runtime_options.workers, runtime_options.peers)
    values = {
        f"runtime.{field.name}": getattr(runtime_options, field.name) for field in dataclasses.fields(RuntimeConfig)
    }
    line = devices.connect(schema.build(Config, {**values, "strategy": strategy}), workers)
    with line.together():
        runtime = devices.open_runtime(schema.build(Config, {**values, "strategy": strategy}), workers, line)
        say: Callable[[str], None] = print if runtime.topology.is_primary else lambda text: None
        for text in _facts(runtime):
            say(text)
        with _checking("the sum over replicas"):
            problems = _check_sums(runtime, say)
        with _checking("two training steps"):
            problems += _check_steps(values, runtime, say)
        # Each worker checks its own sums, and the primary alone compares.
        problems = list(dict.fromkeys(problem for several in line.gather(problems) for problem in several))
        say(f"verdict: {'FAILED' if problems else 'ok'}, in {time.perf_counter() - start:.0f} s")
        if problems:
            raise Exit(f"selftest failed: {'; '.join(problems)}")
        runtime.close()
    return 0


def _facts(runtime: Any) -> Iterator[str]:
    """Versions and devices."""
    import tensorflow as tf

    place, gpus = runtime.topology, devices.gpu_names()
    yield ", ".join(f"{package} {version}" for package, version in versions().items())
    build = tf.sysconfig.get_build_info()
    yield f"TensorFlow is built for CUDA {build.get('cuda_version', 'no')}, cuDNN {build.get('cudnn_version', 'no')}"
    yield f"machine: {platform.platform()}, {os.cpu_count()} CPUs"
    yield f"strategy {place.strategy} ({place.reason}): {place.num_replicas} replicas, {place.world_size} workers"
    yield f"GPUs of the first worker: {', '.join(gpus) if gpus else 'none'}"
    if unused := devices.unused_gpus():
        yield unused
    with contextlib.suppress(UserError):
        from distgan.runtime import horovod

        yield f"Horovod: {horovod.describe_build()}"


@contextlib.contextmanager
def _checking(what: str) -> Iterator[None]:
    """Names the check in an error of TensorFlow's.

    Raises:
      Broken: instead of it.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        last = [line.strip() for line in (error.message or type(error).__name__).splitlines() if line.strip()]
        raise Broken(f"selftest failed: {what}: {last[0]} {last[-1] if len(last) > 1 else ''}".rstrip()) from error


def _check_sums(runtime: Any, say: Callable[[str], None]) -> list[str]:
    """Sums whole numbers, which float32 holds exactly, over the replicas; returns what is wrong."""
    import tensorflow as tf

    replicas, problems = runtime.topology.num_replicas, []
    for name, size in _SUM_BYTES.items():
        runtime.control.at(f"summing {name}", 0, patient=True)
        numbers = np.arange(size // 4, dtype=np.float32) % 1021
        expected = numbers * replicas + replicas * (replicas - 1) / 2

        def of_replica(number: Any, message: Any, name: str) -> Any:
            [total] = runtime.sum([message + tf.cast(number, tf.float32)], f"selftest/{name.replace(' ', '')}")
            return total

        def of_all(message: Any, name: str = name) -> list[Any]:
            return runtime.each(lambda number: of_replica(number, message, name))

        summed, seconds = tf.function(of_all, autograph=False), []
        for _ in range(1 + _REPEATS):
            message = tf.constant(numbers)
            start = time.perf_counter()
            totals = [total.numpy() for total in summed(message)]
            seconds.append(time.perf_counter() - start)
        exact = all(np.array_equal(total, expected) for total in totals)
        if not exact:
            problems.append(f"the sum of {name} over {replicas} replicas is wrong on rank {runtime.topology.rank}")
        median = statistics.median(seconds[1:])
        moved = 2 * (replicas - 1) / replicas * size / median / 1e9
        say(
            f"sum of {name} over {replicas} replicas: {'exact' if exact else 'WRONG'}, {median * 1000:.2f} ms to the host, "
            f"{moved:.3g} GB/s a replica"
        )
    return problems


def _check_steps(values: dict[str, Any], runtime: Any, say: Callable[[str], None]) -> list[str]:
    """Trains two steps here and on one replica on the CPU, and compares; returns what is wrong."""
    import tensorflow as tf

    from distgan.commands import equivalence
    from distgan.runtime.base import Runtime
    from distgan.runtime.control import Control
    from distgan.runtime.topology import Topology

    class OnCpu(Runtime):
        """One replica on the CPU, whatever devices there are beside it."""

        def distribute(self, dataset: Any) -> Any:
            return iter(dataset)

    # 10 bits of mantissa, which Ampere and later multiply with, are no rounding of float32.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    batch = _IMAGES_PER_REPLICA * runtime.topology.num_replicas
    small = {"precision": "float32", "model.width": 8, "model.latent_size": 12, "train.global_batch": batch}
    config = equivalence.base_config({**values, **small})
    devices.set_precision(config.precision)
    runtime.control.at("training", 0, patient=True)
    many = _train(config, runtime)
    if not runtime.topology.is_primary:
        return []
    runtime.control.at("training on the CPU", 0, patient=True)
    with tf.device("/CPU:0"):
        one = _train(config, OnCpu(Topology("single", "", 1), Control()))
    found = equivalence.difference(one.states, many.states)
    worst = max(found.gradients, found.weights)
    say(
        f"two training steps in float32, against one replica on the CPU: gradients {found.gradients:.1e}, weights "
        f"{found.weights:.1e} (largest relative difference, at most {LIMIT:g})"
    )
    say(
        f"a step: {many.step_ms:.2f} ms here, {one.step_ms:.2f} ms on the CPU; compiled in {many.first:.1f} and {one.first:.1f} s"
    )
    return [] if worst <= LIMIT else [f"two training steps differ from the CPU's by {worst:.1e} in {found.variable}"]


@dataclasses.dataclass(frozen=True)
class _Trained:
    states: list[dict[str, np.ndarray]]
    """At the start, after one step and after two."""
    first: float
    """Seconds of the first step, which compiles."""
    step_ms: float
    """Of a later one."""


def _train(config: Config, runtime: Any) -> _Trained:
    from distgan.commands import equivalence

    state, advance = equivalence.opened(config, runtime)
    states, times = [state.arrays()], []
    for steps in (1, _STEPS - 1, _TIMED_STEPS):
        start = time.perf_counter()
        if not advance(steps)[0].numpy():
            raise Exit("selftest failed: a training step was not finite")
        times.append(time.perf_counter() - start)
        states.append(state.arrays())
    return _Trained(states[:3], times[0], times[2] / _TIMED_STEPS * 1000)
