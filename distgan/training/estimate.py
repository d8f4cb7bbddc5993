"""What a replica will need, before it runs."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from distgan.config import Config
from distgan.models.layers import Pass
from distgan.training.state import TrainState

_FREE = {"Reshape", "Identity", "Const", "ReadVariableOp", "Placeholder", "StridedSlice", "Squeeze", "NoOp"}


def memory_bytes(config: Config, state: TrainState, micro_batch: int) -> dict[str, int]:
    """Bytes that one replica's device holds: `state` (weights, slots, averages), `gradients` and `activations`.

    Activations are the outputs of every op of the forward passes of one micro-batch, which the backward pass needs again;
    work space of kernels comes on top.
    """
    held = sum(_bytes(variable) for variable in state.variables().values())
    trained = [v.value for network in (state.generator, state.discriminator) for v in network.trainable_variables]

    def forward(latents: tf.Tensor, images: tf.Tensor, labels: tf.Tensor) -> Any:
        context = Pass.alone(lambda kind, name, shape: tf.random.uniform([micro_batch, *shape]))
        fakes = state.generator(latents, labels=labels, context=context)
        return [state.discriminator(each, labels=labels, context=context) for each in (images, fakes)]

    dtype = state.generator.variable_dtype
    latents = tf.TensorSpec([micro_batch, config.model.name.options.latent_size], dtype)
    images = tf.TensorSpec([micro_batch, *state.description.image_shape], dtype)
    labels = tf.TensorSpec([micro_batch], tf.int32)
    graph = tf.function(forward).get_concrete_function(latents, images, labels).graph
    outputs = [output for op in graph.get_operations() if op.type not in _FREE for output in op.outputs]
    activations = sum(_bytes(output) for output in outputs if output.shape.is_fully_defined())
    return {"state": held, "gradients": sum(_bytes(v) for v in trained), "activations": activations}


def _bytes(value: Any) -> int:
    return value.shape.num_elements() * value.dtype.size
