"""What of a step a GPU can compute, by the kernels that TensorFlow has registered: its wheel has those for GPUs too."""

import functools

import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from distgan import schema
from distgan.config import Config
from distgan.data import pipeline
from distgan.data.source import Description
from distgan.runtime import devices
from distgan.runtime.base import Runtime
from distgan.runtime.control import Control
from distgan.runtime.topology import Topology
from distgan.training.phases import batches_per_step, phases
from distgan.training.state import build_state
from distgan.training.step import PhaseStep, build_step

SMALL = {"data.source": "digits", "data.resolution": 16, "train.global_batch": 4}
BIGGAN = {"model.name": "biggan", "model.latent_size": 12, "model.generator_width": 4, "model.discriminator_width": 4}
CASES = {
    "float16": {"model.width": 4, "precision": "mixed_float16", "objective.augmentation": "ada"},
    "conditional": BIGGAN | {"model.conditional": True, "model.head": "projection", "model.attention": 8},
    "penalties": {
        "model.width": 4,
        "objective.regularizers": "r1,gradient_penalty,consistency",
        "objective.augmentation": "diffaugment",
    },
}
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
PLACEHOLDERS = {"Placeholder", "NoOp", "Const"}


def operations(values):
    """The operations of a step on one device."""
    config = schema.build(Config, SMALL | values)
    devices.set_precision(config.precision)
    images = config.data.source.options.open(config.data)
    runtime = Runtime(Topology("single", "", 1), Control())
    state = build_state(config, Description.of(images), runtime)
    step = build_step(config, state, runtime, [PhaseStep(phase, config, state, runtime) for phase in phases(config)])
    reader = pipeline.Reader(images, config.data, config.seed)
    batch = pipeline.batches(reader, 0, config.train, 1, range(1)).element_spec
    function = tf.function(lambda *batches: step(batches), autograph=False)
    graph = function.get_concrete_function(*[batch] * batches_per_step(config)).graph
    yield from graph.get_operations()
    for name in list(graph._functions):
        yield from graph._functions[name].graph.get_operations()


@functools.cache
def registered(name):
    """An operation's kernels for GPUs, or for any device."""
    return [k for k in kernels.get_registered_kernels_for_op(name).kernel if k.device_type in ("GPU", "DEFAULT")]


def has_gpu_kernel(operation):
    """Whether a kernel for GPUs takes the types that an operation has."""

    def takes(kernel):
        for constraint in kernel.constraint:
            value = operation.get_attr(constraint.name)
            types = [t for t in (value if isinstance(value, list) else [value]) if isinstance(t, tf.DType)]
            if not {t.as_datatype_enum for t in types} <= set(constraint.allowed_values.list.type):
                return False
        return True

    return any(map(takes, registered(operation.type)))


@pytest.mark.parametrize("case", CASES)
def test_kernels(case):
    try:
        found = list(operations(CASES[case]))
    finally:
        devices.set_precision("float32")
    assert len(found) > 100
    assert not {operation.type for operation in found} & RAISE
    lacking = [operation for operation in found if operation.type not in PLACEHOLDERS and not has_gpu_kernel(operation)]
    assert sorted({(operation.type, operation.outputs[0].dtype.name) for operation in lacking}) == []


def test_a_kernel_that_is_not_there_is_seen():
    @tf.function(autograph=False)
    def words(text, number):
        return tf.strings.to_number(text), number + 1, tf.strings.join([text, text])

    graph = words.get_concrete_function(tf.TensorSpec([2], tf.string), tf.TensorSpec([2], tf.float32)).graph
    kernels_there = {operation.type: has_gpu_kernel(operation) for operation in graph.get_operations()}
    assert kernels_there["AddV2"]
    assert not kernels_there["StringToNumber"]
    assert not kernels_there["StringJoin"]
