"""Graphs of a few operations, whose counts, places and transfers are plain to see."""

import numpy as np
import tensorflow as tf

from distgan.training import graph_ops


def ops_of(function, *specs):
    return graph_ops.walk(tf.function(function).get_concrete_function(*specs))


def types(ops, times=None):
    return sorted(op.type for op in ops if times is None or op.times == times)


VECTOR = tf.TensorSpec([4], tf.float32)
FLAG = tf.TensorSpec([], tf.bool)


def test_what_tensorflow_drops_is_dropped():
    def function(x):
        tf.exp(x)  # Nothing depends on it.
        size = tf.cast(tf.shape(x)[0], tf.float32) * tf.sqrt(tf.constant(3.0))
        return tf.sin(x) + tf.sin(x) * size

    assert types(ops_of(function, VECTOR)) == ["AddV2", "Mul", "Sin"]


def test_calls_are_entered():
    @tf.function(autograph=False)
    def inner(x):
        return tf.cos(x)

    [cosine] = [op for op in ops_of(lambda x: inner(tf.sin(x)) + 1, VECTOR) if op.type == "Cos"]
    assert cosine.inputs[0].producer.type == "Sin"
    assert cosine.function
    assert not cosine.compiled
    assert cosine.inputs[0].bytes == 16


def test_a_compiled_function_is_known():
    inner = tf.function(tf.cos, jit_compile=True, autograph=False)
    by_type = {op.type: op for op in ops_of(lambda x: tf.sin(inner(x)), VECTOR)}
    assert by_type["Cos"].compiled
    assert not by_type["Sin"].compiled


def test_the_larger_branch_counts():
    def function(ok, x):
        return tf.cond(ok, lambda: tf.sin(tf.cos(x)), lambda: tf.exp(x))

    assert not {"Sin", "Cos"} - set(types(ops_of(function, FLAG, VECTOR)))
    assert "Exp" not in types(ops_of(function, FLAG, VECTOR))


def test_a_turn_of_the_loop_counts():
    def function(count, x):
        x = tf.exp(x)
        done = tf.constant(0)
        while done < count:
            x = tf.sin(x) + tf.random.normal([4])
            done += 1
        return x

    ops = ops_of(function, tf.TensorSpec([], tf.int32), VECTOR)
    assert "Exp" in types(ops, 0)
    assert {"Sin", "RandomStandardNormal", "Condition"} <= set(types(ops, 1))
    assert not graph_ops.host_transfers(ops)  # An int32 counts on the host.


def test_a_loop_that_asks_the_device_is_noticed():
    def by_result(count, x):
        while tf.reduce_all(tf.math.is_finite(x)):
            x = tf.sin(x)
        return x

    def by_wide_counter(count, x):
        done = tf.constant(0, tf.int64)
        while done < tf.cast(count, tf.int64):
            x = tf.sin(x)
            done += 1
        return x

    for function in by_result, by_wide_counter:
        [(value, taker)] = graph_ops.host_transfers(ops_of(function, tf.TensorSpec([], tf.int32), VECTOR))
        assert taker.type == "Condition"
        assert value.tensor.dtype == tf.bool


def test_a_branch_that_asks_the_device_is_noticed():
    def function(x):
        return tf.cond(x[0] > 0, lambda: tf.sin(x), lambda: x)

    [(_, taker)] = graph_ops.host_transfers(ops_of(function, VECTOR))
    assert taker.type in ("If", "StatelessIf")


def test_python_is_noticed():
    def function(x):
        [y] = tf.numpy_function(np.sin, [tf.exp(x)], [tf.float32])
        z = tf.py_function(lambda t: t, [y], tf.float32)
        return tf.cos(z)

    ops = ops_of(function, VECTOR)
    assert types(graph_ops.py_functions(ops)) == types(graph_ops.host_ops(ops)) == ["EagerPyFunc", "PyFunc"]
    assert [taker.type for _, taker in graph_ops.host_transfers(ops)] == ["PyFunc"]


def test_host_kernels_are_noticed():
    def function(x):
        tf.print(tf.exp(x))
        return tf.timestamp() + tf.cast(x[0], tf.float64)

    ops = ops_of(function, VECTOR)
    assert {"PrintV2", "StringFormat", "Timestamp"} <= set(types(graph_ops.host_ops(ops)))
    assert [taker.type for _, taker in graph_ops.host_transfers(ops)] == ["StringFormat"]
    assert [value.producer.type for value, _ in graph_ops.device_transfers(ops)] == ["Timestamp"]


def test_shapes_that_depend_on_values_wait():
    ops = ops_of(lambda x: tf.boolean_mask(x, x > 0), VECTOR)
    assert "Where" in [taker.type for _, taker in graph_ops.host_transfers(ops)]
    fixed = ops_of(lambda x: tf.boolean_mask(x, [True, False, True, True]), VECTOR)
    assert not graph_ops.host_transfers(fixed)


def test_an_iterator_is_the_hosts_by_right():
    data = tf.data.Dataset.from_tensors(tf.zeros([4])).repeat()
    ops = ops_of(lambda iterator: tf.sin(next(iterator)), iter(data))
    assert "IteratorGetNext" in types(ops)
    assert not graph_ops.host_ops(ops)
    assert not graph_ops.host_transfers(ops)


def test_where_a_gpu_would_work():
    variable = tf.Variable(tf.zeros([4]))

    def function(x):
        variable.assign_add(tf.sin(x))
        return tf.constant(2) * tf.cast(tf.timestamp(), tf.int32)

    working = {op.type: graph_ops.runs_on_device(op) for op in ops_of(function, VECTOR)}
    assert working["Sin"]
    assert working["AssignAddVariableOp"]
    assert not working["Timestamp"]
    assert not working["Mul"]  # An int32 is worked out by the host.
