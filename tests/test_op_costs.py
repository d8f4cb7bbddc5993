"""FLOPs, bytes and fusible kernels of small graphs, against numbers by hand."""

import collections

import keras
import pytest
import tensorflow as tf

from distgan.commands import graph, op_costs
from distgan.training import graph_ops


def costs(layer, shape):
    """FLOPs by type of a layer's forward pass, and of its gradients by input and weights: one number for each operation."""
    layer.build(shape)

    def function(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return y, tape.gradient(y, [x, *layer.trainable_variables], output_gradients=upstream)

    found = collections.defaultdict(list)
    for op in walked(function, shape, layer.compute_output_shape(shape)):
        if flops := op_costs.flops(op):
            found[op_costs.kind(op)].append(flops)
    return found


def test_dense():
    # [8, 20] x [20, 30]: 8 x 30 results of 20 products each, in either direction too; the bias, and a sum over the batch for it.
    assert costs(keras.layers.Dense(30), (8, 20)) == {
        "matmul": [9600, 9600, 9600],
        "elementwise": [240],
        "reduction": [240],
    }


def test_convolution():
    # 2 x 8 x 8 x 6 results of 5 x 5 x 3 products each; the gradients pair the same numbers.
    layer = keras.layers.Conv2D(6, 5, strides=2, padding="same", use_bias=False)
    assert costs(layer, (2, 16, 16, 3)) == {"convolution": [115200] * 3}


def test_transposed_convolution():
    # 2 x 8 x 8 x 3 inputs meet 5 x 5 x 6 weights each; a bias for 2 x 16 x 16 x 6 results.
    layer = keras.layers.Conv2DTranspose(6, 5, strides=2, padding="same")
    assert costs(layer, (2, 8, 8, 3)) == {"convolution": [115200] * 3, "elementwise": [3072], "reduction": [3072]}


def walked(function, *shapes):
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    return graph_ops.walk(tf.function(function, autograph=False).get_concrete_function(*specs))


@pytest.mark.parametrize(
    ("function", "shapes", "flops", "read", "written"),
    [
        (lambda x, y: x * y, ([4, 5], [4, 5]), 20, 160, 80),
        (lambda x, y: x * y, ([4, 5], [5]), 20, 100, 80),
        (lambda x, y: tf.add_n([x, y, y]), ([4, 5], [4, 5]), 40, 240, 80),
        (lambda x: tf.reduce_sum(x, axis=0), ([4, 5],), 20, 80, 20),
        (tf.nn.l2_loss, ([4, 5],), 40, 80, 4),
        (tf.transpose, ([4, 5],), 0, 80, 80),
        (lambda x, y: tf.matmul(x, y, transpose_a=True), ([3, 4, 5], [3, 4, 6]), 2 * 3 * 4 * 5 * 6, 528, 360),
    ],
)
def test_one_kernel(function, shapes, flops, read, written):
    [op] = [op for op in walked(function, *shapes) if op_costs.launches_kernel(op)]
    assert (op_costs.flops(op), op_costs.bytes_moved(op)) == (flops, (read, written))


def test_adam():
    """It reads a weight, two moments and a gradient, and writes all but the last; beside these, six scalars."""
    from distgan.training.adam import Adam

    variable = keras.Variable(tf.zeros([4, 5]))
    optimizer = Adam()
    optimizer.build([variable])
    ops = walked(lambda gradient: optimizer.update_step(gradient, variable, 0.1), [4, 5])
    [op] = [op for op in ops if op.type == "ResourceApplyAdam"]
    assert op_costs.flops(op) == 12 * 20
    assert op_costs.bytes_moved(op) == (4 * 80 + 6 * 4, 3 * 80)


def test_unknown_shapes():
    ops = walked(lambda x, y: tf.matmul(tf.sin(x), y), [None, 5], [5, 6])
    assert [op_costs.flops(op) for op in ops] == [None, None]
    assert [op_costs.bytes_moved(op) for op in ops] == [(None, None), (None, None)]
    function = tf.function(tf.sin).get_concrete_function(tf.TensorSpec([None], tf.float32))
    assert graph.figures_of([(1.0, function)])["of_unknown_shape"] == {"Sin": 1}


def groups(function, *shapes):
    return sorted(sorted(op.type for op in group) for group in op_costs.fusible_groups(walked(function, *shapes)))


def test_fusible_groups():
    assert groups(lambda x: tf.exp(tf.sin(x)), [4]) == [["Exp", "Sin"]]
    assert groups(lambda x: tf.exp(tf.reshape(tf.sin(x), [2, 2])), [4]) == [["Exp", "Sin"]]
    assert groups(lambda x: (tf.sin(x), tf.cos(x)), [4]) == [["Cos"], ["Sin"]]
    # What comes before a sum can't be in one kernel with what comes behind it, even where it is its neighbour.
    assert groups(lambda x: tf.sin(x) * tf.cos(tf.reduce_sum(tf.sin(x))), [4]) == [["Cos", "Mul"], ["Sin"]]


def test_lazy_steps_count_by_their_share():
    often, seldom = (
        tf.function(function).get_concrete_function(tf.TensorSpec([4], tf.float32))
        for function in (lambda x: tf.sin(x), lambda x: tf.exp(tf.sin(x)))
    )
    found = graph.figures_of([(0.75, often), (0.25, seldom)])
    assert found["kernels"] == 1.25
    assert found["flops"] == 5
    assert found["bytes"] == 40
    assert found["fusible"] == {"elementwise_kernels": 0.5, "fused_kernels": 0.25}
    assert found["arithmetic_intensity"] == 0.125


def test_compiled_elementwise_kernels_are_one():
    function = tf.function(lambda x: tf.reduce_sum(tf.exp(tf.sin(x))), jit_compile=True)
    outer = tf.function(lambda x: tf.sqrt(function(x)))
    found = graph.figures_of([(1.0, outer.get_concrete_function(tf.TensorSpec([4], tf.float32)))])
    assert found["kernels"] == 3
    assert found["fusible"]["elementwise_kernels"] == 0
