"""Iterators over batches that have been used for some seconds, and what their ends take; run by test_ends.py."""

import sys
import time

import tensorflow as tf

from distgan.config import DataConfig, TrainConfig
from distgan.data import pipeline
from distgan.data.arrays import Digits
from distgan.runtime.base import Runtime
from distgan.runtime.control import Control
from distgan.runtime.distribute import DistributedRuntime
from distgan.runtime.topology import Topology


def main(count, seconds):
    [cpu] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    data = DataConfig()
    reader = pipeline.Reader(Digits().open(data), data, 0)
    mirrored = DistributedRuntime(Topology("mirrored", "", 2), Control(), strategy)
    iterators = []
    for runtime in [Runtime(Topology("single", "", 1), Control()), mirrored] * count:
        replicas = runtime.topology.num_replicas
        batches = pipeline.batches(reader, 0, TrainConfig(global_batch=16), replicas, range(replicas))
        iterators.append(runtime.distribute(batches))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for each in iterators:
            next(each)
    del each
    while iterators:
        begun = time.monotonic()
        iterators.pop()
        print(f"{time.monotonic() - begun:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
