"""Holds that no ordinary step of some variants of a small run waits for the host: `step_graphs.py VARIANTS.json [OUT]`.

Nor has a step with `deterministic` an operation that would refuse a GPU. The steps are traced and not run. Which workers share
the work is the launcher's to say, as for `distgan train`. OUT is written by the primary when all went well.
"""

import json
import sys
from pathlib import Path

from replicas import runtime_of

from distgan import schema
from distgan.config import Config
from distgan.runtime import devices

# TensorFlow 2.20's kernels for GPUs that raise, or may, where operations must be deterministic: by the errors in its library.
RAISE = {
    "AdjustContrast",
    "AdjustContrastv2",
    "Bincount",
    "CropAndResizeGradBoxes",
    "CropAndResizeGradImage",
    "DenseBincount",
    "DepthwiseConv2dNativeBackpropFilter",
    "Dilation2DBackpropFilter",
    "Dilation2DBackpropInput",
    "FakeQuantWithMinMaxVarsGradient",
    "FakeQuantWithMinMaxVarsPerChannelGradient",
    "FusedBatchNormGrad",
    "FusedBatchNormGradV2",
    "FusedBatchNormGradV3",
    "MaxPoolGradWithArgmax",
    "ResizeNearestNeighborGrad",
    "SoftmaxCrossEntropyWithLogits",
    "SparseSoftmaxCrossEntropyWithLogits",
    "SparseTensorDenseMatMul",
    "Svd",
    "Timestamp",
}
SMALL = {"data.source": "digits", "data.resolution": 16, "train.global_batch": 16}


def described(op):
    """An operation, and the line of distgan that made it."""
    places = [frame for frame in op.node.traceback if "/distgan/" in frame.filename]
    place = f"{places[-1].filename.rpartition('/distgan/')[2]}:{places[-1].lineno}" if places else "TensorFlow"
    return f"{op.type} of {place} ({op.node.name})"


def check(name, values):
    """Traces a variant's steps, those with other phases due too."""
    from distgan.data import pipeline
    from distgan.data.source import Description
    from distgan.training import graph_ops
    from distgan.training.state import build_state
    from distgan.training.step import compile_steps

    config = schema.build(Config, SMALL | values)
    runtime = runtime_of(config)
    devices.set_precision(config.precision)
    images, place = config.data.source.options.open(config.data), runtime.topology
    state = build_state(config, Description.of(images), runtime)
    reader = pipeline.Reader(images, config.data, config.seed)
    shares = pipeline.batches(reader, 0, config.train, place.num_replicas, place.local_replicas)
    iterator = runtime.distribute(shares)
    variants = compile_steps(config, state, runtime).variants
    for phases, steps in variants.items():
        ops = graph_ops.walk(steps.trace(iterator))
        assert sum(op.times for op in ops if graph_ops.runs_on_device(op)) > 100
        waiting = [f"{described(op)} calls Python" for op in graph_ops.py_functions(ops)]
        waiting += [f"{described(op)} runs on the host alone" for op in graph_ops.host_ops(ops)]
        waiting += [f"{described(op)} takes {value.tensor} to the host" for value, op in graph_ops.host_transfers(ops)]
        if config.deterministic:
            waiting += [f"{described(op)} may raise" for op in ops if op.type in RAISE]
        assert not waiting, "\n".join([f"{name}, {[phase.name for phase in phases]}:", *waiting])
        if place.num_replicas > 1:
            assert graph_ops.collectives(ops)
    return len(variants)


def main(variants, out=""):
    devices.silence(0)
    counts = {name: check(name, values) for name, values in json.loads(Path(variants).read_text()).items()}
    runtime = runtime_of(None)
    is_primary = runtime.topology.is_primary
    runtime.close()
    if out and is_primary:
        Path(out).write_text(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
