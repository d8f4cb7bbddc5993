"""What must hold among workers, asserted on each; run by test_workers.py under a launcher: `workers.py WHAT OUT`.

Rank 0 writes OUT when all went well.
"""

import hashlib
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from distgan import schema
from distgan.config import Config
from distgan.errors import Desynced
from distgan.runtime import devices, topology


def once(runtime, function):
    """What a function gives on the first local replica."""
    ok = tf.constant(True)
    step = tf.function(lambda: runtime.run(lambda _, ok: (ok, function()), (), ok), autograph=False)
    return step()[1].numpy()


def sums(runtime):
    """One sum, of numbers that show a factor, an infinity on one worker, and 16 bits that would not hold the sum of means."""
    rank, size = runtime.topology.rank, runtime.topology.world_size
    total = once(runtime, lambda: runtime.sum([tf.constant([rank + 1.0])], "sum")[0])
    assert total == sum(range(1, size + 1))
    total = once(runtime, lambda: runtime.sum([tf.constant([np.inf if rank else 1.0], tf.float64)], "infinity")[0])
    assert np.isinf(total)

    def gradient_of_sum():
        x = tf.constant([rank + 1.0])
        with tf.GradientTape() as tape:
            tape.watch(x)
            [total] = runtime.sum([x], "squared")
            loss = total**2 / size
        return tape.gradient(loss, x)

    # The loss of all workers together is (x_0 + x_1 + ...)^2.
    assert np.allclose(once(runtime, gradient_of_sum), 2 * sum(range(1, size + 1)))


def wire(runtime):
    """A mean of 60000 stays 60000 in 16 bits: each worker's share of it is what is summed."""
    from distgan.runtime.horovod import HorovodRuntime

    size = runtime.topology.world_size
    shares = [tf.fill([3], 60000.0 / size), tf.fill([2, 2], 1.0 / size), tf.fill([5], 2.0 / size)]
    for compression, groups in (("none", 1), ("fp16", 1), ("none", 3), ("fp16", 2)):
        other = HorovodRuntime(runtime.topology, runtime.control, compression, groups)
        name = f"{compression}{groups}"
        reduced = tf.function(lambda other=other, name=name: other.sum_gradients(shares, tf.constant([0.1]), name))()
        assert [float(tf.reduce_max(each)) for each in reduced[:3]] == [60000.0, 1.0, 2.0]
        assert np.allclose(reduced[3], 0.1 * size)
        assert other.wire_bytes(shares) == 12 * (2 if compression == "fp16" else 4)


def poisoned_steps(runtime, values):
    """Three steps in which one worker's last gradient, of the generator, is infinite: states around, and whether all was well."""
    from distgan.data import pipeline
    from distgan.data.source import Description
    from distgan.training.state import build_state
    from distgan.training.step import compile_steps

    small = {"model.width": 4, "train.global_batch": 16, "data.source": "synthetic", "data.resolution": 16}
    config = schema.build(Config, small | values)
    images = config.data.source.options.open(config.data)
    state, place = build_state(config, Description.of(images), runtime), runtime.topology
    state.share(None, runtime)
    original = runtime.sum_gradients

    def poisoned(gradients, measured, name):
        factor = np.float32(np.inf if place.rank == 1 else 1)
        return original([*gradients[:-1], gradients[-1] * factor], measured, name)

    with mock.patch.object(runtime, "sum_gradients", poisoned):
        advance = compile_steps(config, state, runtime)
        replicas = (place.num_replicas, place.local_replicas)
        data = pipeline.batches(pipeline.Reader(images, config.data, config.seed), 0, config.train, *replicas)
        before = state.arrays()
        ok, _ = advance(runtime.distribute(data), 3)
    return before, state.arrays(), ok.numpy()


def infinity(runtime):
    """An infinity in one worker's gradient stops all before any weight changes."""
    before, after, ok = poisoned_steps(runtime, {})
    assert not ok
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert not changed


def overflow(runtime):
    """In float16 it leaves the update out on all, which halve the scale alike; the other network goes on."""
    devices.set_precision("mixed_float16")
    try:
        before, after, ok = poisoned_steps(runtime, {"precision": "mixed_float16"})
    finally:
        devices.set_precision("float32")
    assert ok
    for name in before:
        if name.startswith(("generator/", "discriminator/")) and "moving" not in name:
            assert np.array_equal(before[name], after[name]) == name.startswith("generator/"), name
    found = {name: float(after[name]) for name in after if name.startswith("kept/loss_scale/")}
    assert list(found.values()) == [2.0**15, 3.0, 2.0**12, 0.0]
    assert after["images_seen"] == 48
    everywhere = runtime.control.gather({name: hashlib.sha256(after[name]).hexdigest() for name in after})
    assert all(each == everywhere[0] for each in everywhere)


def desync(runtime):
    """A bit that differs on one worker is found, and named."""
    from distgan.data.source import Description
    from distgan.training.desync import build_check
    from distgan.training.state import build_state

    config = schema.build(Config, {"model.width": 4})
    state = build_state(config, Description((16, 16, 1), (), ()), runtime)
    state.share(None, runtime)
    check = build_check(state, runtime)
    check()
    if runtime.topology.rank == 1:
        variable = state.network("generator").trainable_variables[0]
        value = variable.numpy()
        value[0, 0] = np.nextafter(value[0, 0], np.float32(np.inf))
        variable.assign(value)
    with pytest.raises(Desynced, match="generator/project/kernel is not the same"):
        check()


CHECKS = {check.__name__: check for check in (sums, wire, infinity, overflow, desync)}


def main(what, out):
    devices.silence(0)
    workers = topology.find_workers(topology.read_environment())
    config = schema.build(Config, {"model.width": 4})
    line = devices.connect(config, workers)
    runtime = devices.open_runtime(config, workers, line)
    try:
        line.at("checking", 0, patient=True)
        assert line.gather([runtime.topology.rank]) == [[rank] for rank in range(workers.world_size)]
        for each in what.split(","):
            CHECKS[each](runtime)
    except BaseException as error:
        raise line.fail(error) from error
    runtime.close()
    if workers.rank == 0:
        Path(out).write_text("good")


if __name__ == "__main__":
    main(*sys.argv[1:])
