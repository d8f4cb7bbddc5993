"""What sums over replicas cost: measured in a step, measured by size, and projected to more replicas.

The projection is the ring's cost model. n replicas that sum S bytes take T(n) = 2 (n - 1) alpha + 2 (n - 1) / n * S / beta
seconds: each message passes 2 (n - 1) hops of latency alpha, and each link of bandwidth beta (bytes per second) carries
2 (n - 1) / n of the bytes (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
workstations"). A step takes compute + T(n), nothing of it hidden behind the backward pass, and
efficiency = compute / (compute + T(n)). Measured on the links between these replicas, it holds for others of their kind.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from distgan.config import Config
from distgan.data import pipeline
from distgan.data.source import Description
from distgan.errors import UserError
from distgan.runtime.base import Runtime
from distgan.training.state import build_state
from distgan.training.step import compile_steps

_MESSAGE_BYTES = tuple(4**power for power in range(1, 13))  # 4 bytes to 16 MiB.
_PROJECTED = (8, 64, 256, 1024)
_REPEATS = 40


class _Reduction:
    """A runtime whose gradients are summed as usual, replaced by a sum of 4 bytes, or by none; batch norm only by the last."""

    def __init__(self, runtime: Runtime, kind: str):
        self.runtime, self.kind, self.bytes = runtime, kind, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def sum(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        return list(tensors) if self.kind == "none" else self.runtime.sum(tensors, f"{self.kind}/{name}")

    def sum_gradients(self, gradients: Sequence[tf.Tensor], measured: tf.Tensor, name: str) -> list[tf.Tensor]:
        if self.kind == "gradients":
            self.bytes += self.runtime.wire_bytes(gradients)
            return self.runtime.sum_gradients(gradients, measured, f"{self.kind}/{name}")
        tensors = [*gradients, measured]
        if self.kind == "none":
            return tensors
        with tf.control_dependencies(tensors):
            # Not a constant: TensorFlow would work out its sum once, when it optimizes the graph.
            waited = self.runtime.sum([tf.reshape(gradients[0], [-1])[:1]], f"{self.kind}/{name}")
        with tf.control_dependencies(waited):
            return [tf.identity(tensor) for tensor in tensors]


def reduction(config: Config, images: Any, runtime: Runtime, blocks: int, block_seconds: float) -> dict[str, Any]:
    """Rates of steps with the gradients' sum, with a sum of 4 bytes in its place, and with none, in turn.

    A sum of 4 bytes waits for the others all the same, so the rate with it shows what the waiting alone costs.

    Raises:
      UserError: there is one replica.
    """
    if runtime.topology.num_replicas == 1:
        raise UserError("--what=reduction needs several replicas: use horovodrun, TF_CONFIG or --strategy=mirrored")
    kinds = {kind: _Reduction(runtime, kind) for kind in ("gradients", "4_bytes", "none")}
    loops = {kind: _loop(config, images, made) for kind, made in kinds.items()}
    for loop in loops.values():
        loop(1)
    start = time.perf_counter()
    loops["gradients"](4)
    # The primary's clock decides, so that all run as many steps.
    steps = runtime.control.gather(max(1, round(block_seconds / ((time.perf_counter() - start) / 4))))[0]
    rates: dict[str, list[float]] = {kind: [] for kind in loops}
    for block in range(blocks):
        for kind in list(loops) if block % 2 else reversed(list(loops)):
            runtime.control.gather(None)
            start = time.perf_counter()
            loops[kind](steps)
            rates[kind].append(steps * config.train.global_batch / (time.perf_counter() - start))

    medians = {kind: statistics.median(each) for kind, each in rates.items()}
    # Waited for the sums and for each other: what a step takes longer than without any sum.
    waited = config.train.global_batch * (1 / medians["gradients"] - 1 / medians["none"])
    return {
        "strategy": runtime.topology.strategy,
        "replicas": runtime.topology.num_replicas,
        "images_per_second": {kind: round(median, 1) for kind, median in medians.items()},
        "of_the_4_byte_rate": round(medians["gradients"] / medians["4_bytes"], 4),
        "of_the_rate_without": round(medians["gradients"] / medians["none"], 4),
        "gradient_bytes_per_step": kinds["gradients"].bytes,
        "parameters": sum(_parameters(config, images, runtime)),
        "seconds_waited_per_step": round(waited, 5),
        "blocks": blocks,
        "steps_per_block": steps,
    }


def _parameters(config: Config, images: Any, runtime: Runtime) -> list[int]:
    return list(build_state(config, Description.of(images), runtime).parameter_counts().values())


def _loop(config: Config, images: Any, runtime: Any) -> Callable[[int], None]:
    state = build_state(config, Description.of(images), runtime)
    state.share(None, runtime)
    steps = compile_steps(config, state, runtime)
    place = runtime.topology
    reader = pipeline.Reader(images, config.data, config.seed)
    iterator = runtime.distribute(pipeline.batches(reader, 0, config.train, place.num_replicas, place.local_replicas))

    def advance(count: int) -> None:
        ok, _ = steps(iterator, count)
        if not ok.numpy():
            raise UserError("the benchmark's training diverged: choose a smaller --optimizer.learning_rate")

    return advance


def allreduce(config: Config, images: Any, runtime: Runtime) -> dict[str, Any]:
    """Seconds of a sum by its size, alpha and beta fitted to them, and what they mean for more replicas.

    Raises:
      UserError: there is one replica.
    """
    replicas = runtime.topology.num_replicas
    if replicas == 1:
        raise UserError("--what=allreduce needs several replicas: use horovodrun, TF_CONFIG or --strategy=mirrored")
    seconds = {size: _time_sum(runtime, size) for size in _MESSAGE_BYTES}
    alpha, beta = fit(seconds, replicas)
    alone = _loop(config, images, _Reduction(runtime, "none"))
    alone(2)
    start = time.perf_counter()
    alone(4)
    compute = (time.perf_counter() - start) / 4
    size = 4 * sum(_parameters(config, images, runtime))
    return {
        "strategy": runtime.topology.strategy,
        "replicas": replicas,
        "seconds_by_bytes": {str(size): round(each, 6) for size, each in seconds.items()},
        "alpha_seconds": round(alpha, 7),
        "beta_bytes_per_second": round(beta),
        "compute_seconds_per_step": round(compute, 5),
        "gradient_bytes_per_step": size,
        "projection": [
            {
                "replicas": n,
                "step_seconds": round(compute + ring_seconds(n, size, alpha, beta), 5),
                "efficiency": round(compute / (compute + ring_seconds(n, size, alpha, beta)), 4),
            }
            for n in _PROJECTED
        ],
        "note": "the projection is arithmetic on the figures above, not a measurement: see distgan/commands/scaling.py",
    }


def ring_seconds(replicas: int, size: int, alpha: float, beta: float) -> float:
    """T(n) of the module's docstring.

    >>> ring_seconds(2, 1000, 0.5, 1000.0)
    2.0
    """
    return 2 * (replicas - 1) * alpha + 2 * (replicas - 1) / replicas * size / beta


def fit(seconds: dict[int, float], replicas: int) -> tuple[float, float]:
    """Least squares of the relative errors: the alpha (seconds a hop) and beta (bytes per second) of times by size.

    >>> alpha, beta = fit({4: ring_seconds(4, 4, 1e-4, 1e9), 2**20: ring_seconds(4, 2**20, 1e-4, 1e9)}, 4)
    >>> round(alpha, 9), round(beta)
    (0.0001, 1000000000)
    """
    sizes, times = np.array(list(seconds), float), np.array(list(seconds.values()))
    hops = 2 * (replicas - 1)
    terms = np.stack([np.full_like(sizes, hops), hops / replicas * sizes], axis=1) / times[:, None]
    (alpha, per_byte), *_ = np.linalg.lstsq(terms, np.ones_like(times), rcond=None)
    return max(float(alpha), 0.0), 1 / max(float(per_byte), 1e-15)


def _time_sum(runtime: Runtime, size: int) -> float:
    """The median over several calls of the seconds that one sum of a message takes."""
    message = tf.random.normal([size // 4])  # As a constant it would be summed once, when the graph is optimized.

    def step(message: tf.Tensor, ok: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        [total] = runtime.sum([message], f"allreduce/{size}")
        return ok, tf.cast(total[:1], tf.float64)

    once = tf.function(lambda: runtime.run(step, message, tf.constant(True)), autograph=False)
    times = []
    # One after the other, so that the sums themselves keep the workers in step.
    for _ in range(_REPEATS):
        start = time.perf_counter()
        once()[1].numpy()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])
