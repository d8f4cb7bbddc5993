"""What a step of a preset would launch, send, compute and move on a GPU, read from its graph; no step is run.

The graph is the one that is trained, as `training/graph_ops.py` walks it: what TensorFlow simplifies in any graph is
simplified, what its further optimizations and XLA's fusions may save is not, but that elementwise operations in functions
that XLA compiles count one kernel a group. All figures are means of one step and one replica: where phases come every few
steps, over the cycle of steps, each with its own graph; where one graph has several replicas, their share of it. Of two
branches the one with more operations counts, and of a loop within a step one turn.

The projection is arithmetic on these figures and on three of a GPU, not a measurement. A step takes at least the longest of
  launch-bound: (kernels + collectives) x launch_us,
  memory-bound: bytes / gbytes_per_s,
  compute-bound: flops / tflops,
each by itself, with all other limits away. Below the intensity tflops / gbytes_per_s, in FLOPs a byte, memory is the limit
rather than arithmetic (Williams et al. 2009, "Roofline: an insightful visual performance model"). Links between replicas
are not in it: `--what=allreduce` projects them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from distgan.commands import op_costs
from distgan.config import Config
from distgan.data import pipeline
from distgan.data.source import Description
from distgan.errors import UserError
from distgan.runtime.base import Runtime
from distgan.training import graph_ops
from distgan.training.graph_ops import Op
from distgan.training.phases import batches_per_step, cycle, due, phases
from distgan.training.state import build_state
from distgan.training.step import PhaseStep, build_step, evidence_size


def graph(
    config: Config, images: Any, runtime: Runtime, tflops: float, gbytes_per_s: float, launch_us: float
) -> dict[str, Any]:
    """The figures of a step, with a projection to a GPU.

    Args:
      config: of the run.
      images: of the run.
      runtime: whose replicas take part.
      tflops: what the GPU computes, in 10^12 FLOPs per second.
      gbytes_per_s: what its memory moves, in 10^9 bytes per second.
      launch_us: microseconds from one kernel's launch to the next one's.

    Raises:
      UserError: this TensorFlow was built without CUDA, so that it does not know what a GPU could do.
    """
    if not tf.test.is_built_with_cuda():
        raise UserError(
            f"--what=graph needs the list of GPU kernels, which this TensorFlow {tf.__version__} was built without: install "
            "the package tensorflow of PyPI for Linux on x86-64, no GPU is needed"
        )
    figures = figures_of(traced_steps(config, images, runtime), len(runtime.topology.local_replicas))
    launches = figures["kernels"] + sum(each["times"] for each in figures["collectives"])
    seconds = {
        "launch_bound": launches * launch_us * 1e-6,
        "memory_bound": figures["bytes"] / (gbytes_per_s * 1e9),
        "compute_bound": figures["flops"] / (tflops * 1e12),
    }
    return {
        "strategy": runtime.topology.strategy,
        "replicas": runtime.topology.num_replicas,
        **figures,
        "projection": {
            "gpu_tflops": tflops,
            "gpu_gbytes_per_s": gbytes_per_s,
            "launch_us": launch_us,
            "step_seconds": {name: round(value, 9) for name, value in seconds.items()},
            "bound_by": max(seconds, key=lambda name: seconds[name]),
            "note": "a projection, not a measurement: see distgan/commands/graph.py",
        },
    }


def traced_steps(config: Config, images: Any, runtime: Runtime) -> list[tuple[float, Any]]:
    """The graphs of a run's steps: each a ConcreteFunction, with the share of the steps that it makes."""
    state = build_state(config, Description.of(images), runtime)
    plan, place = phases(config), runtime.topology
    passes = {phase.name: PhaseStep(phase, config, state, runtime) for phase in plan}
    reader = pipeline.Reader(images, config.data, config.seed)
    iterator = runtime.distribute(pipeline.batches(reader, 0, config.train, place.num_replicas, place.local_replicas))
    steps_by_phases = Counter(due(plan, step) for step in range(cycle(plan)))
    traced = []
    for due_phases, count in steps_by_phases.items():
        step = build_step(config, state, runtime, [passes[phase.name] for phase in due_phases])
        compiled = runtime.compile(step, batches_per_step(config), evidence_size(config, state))
        traced.append((count / cycle(plan), compiled.trace(iterator)))
    return traced


def figures_of(traced: Sequence[tuple[float, Any]], replicas: int = 1) -> dict[str, Any]:
    """What one replica does in a mean step, of graphs with their shares of the steps.

    Args:
      traced: of `traced_steps`.
      replicas: that each graph has.
    """
    walked = [(share / replicas, [op for op in graph_ops.walk(function) if op.times]) for share, function in traced]
    weighted = [(share * op.times, op) for share, ops in walked for op in ops]
    working = [(times, op) for times, op in weighted if op_costs.launches_kernel(op)]
    groups = [(share * group[0].times, group) for share, ops in walked for group in op_costs.fusible_groups(ops)]
    saved_by_xla = sum(times * (len(group) - 1) for times, group in groups if group[0].compiled)
    fused = [(times, group) for times, group in groups if len(group) > 1 and not group[0].compiled]
    moved = [(times, op_costs.bytes_moved(op)) for times, op in working]
    read, written = (sum(times * (pair[place] or 0) for times, pair in moved) for place in (0, 1))
    flops = _counted(working, op_costs.kind, op_costs.flops)
    transfers = {
        name: [
            (share * op.times, f"{value.tensor.name} to {op.node.name}")
            for share, ops in walked
            for value, op in way(ops)
        ]
        for name, way in (("to_host", graph_ops.host_transfers), ("to_device", graph_ops.device_transfers))
    }
    collectives: dict[tuple[str, int | None], float] = defaultdict(float)
    for share, ops in walked:
        for op, size in graph_ops.collectives(ops):
            collectives[op.type, size] += share * op.times
    python = [(times, op) for times, op in weighted if graph_ops.py_functions([op])]
    return {
        "ops": _counted(weighted, op_costs.kind),
        "kernels": _rounded(sum(times for times, _ in working) - saved_by_xla),
        "kernels_by_kind": _counted(working, op_costs.kind),
        "fusible": {
            "elementwise_kernels": _rounded(sum(times * len(group) for times, group in fused)),
            "fused_kernels": _rounded(sum(times for times, _ in fused)),
        },
        "collectives": [
            {"op": op_type, "bytes": size, "times": _rounded(times)} for (op_type, size), times in collectives.items()
        ],
        "host_transfers": _rounded(sum(times for times, _ in transfers["to_host"])),
        "device_transfers": _rounded(sum(times for times, _ in transfers["to_device"])),
        "host_ops": _counted(
            [(share * op.times, op) for share, ops in walked for op in graph_ops.host_ops(ops)], _type
        ),
        "py_functions": _rounded(sum(times for times, _ in python)),
        "flops": _rounded(sum(flops.values())),
        "flops_by_kind": {name: value for name, value in flops.items() if value},
        "bytes": _rounded(read + written),
        "bytes_read": _rounded(read),
        "bytes_written": _rounded(written),
        "arithmetic_intensity": round(sum(flops.values()) / max(read + written, 1), 3),
        "inner_loops_of_one_turn": sum(op.type in graph_ops.LOOPS for _, op in weighted),
        "without_formula": _counted([(times, op) for times, op in working if op_costs.kind(op) == "other"], _type),
        "of_unknown_shape": _counted(
            [(times, op) for times, op in working if None in (op_costs.flops(op), *op_costs.bytes_moved(op))], _type
        ),
        "transferred_to_host": [name for _, name in transfers["to_host"]],
        "ops_by_type": _counted(weighted, _type),
    }


def _counted(
    weighted: Iterable[tuple[float, Op]], key: Callable[[Op], str], amount: Callable[[Op], int | None] = lambda _: 1
) -> dict[str, float]:
    """Sums by key, the largest first."""
    sums: dict[str, float] = {}
    for times, op in weighted:
        sums[key(op)] = sums.get(key(op), 0) + times * (amount(op) or 0)
    return {name: _rounded(sums[name]) for name in sorted(sums, key=lambda name: (-sums[name], name))}


def _type(op: Op) -> str:
    return op.type


def _rounded(value: float) -> float:
    return int(value) if value == int(value) else round(value, 3)
