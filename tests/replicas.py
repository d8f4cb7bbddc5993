"""Trains variants of a small run with N logical CPUs, and writes their states: `replicas.py N OUT.npz`, variants on stdin.

A variant is a config by flag names. Written are the state at the start, after one step and after 20.
"""

import json
import sys

import numpy as np

from distgan import config as configs
from distgan.config import Config
from distgan.runtime import devices


def main(logical_cpus, out):
    devices.silence(0)
    arrays, runtime = {}, None
    for name, values in json.load(sys.stdin).items():
        config = configs.build(Config, {**values, "runtime.logical_cpus": logical_cpus})
        # One strategy a process: the collectives of a second one would take the numbers of the first one's.
        runtime = runtime or devices.open_runtime(config)
        devices.set_precision(config.precision)
        from distgan.data import pipeline
        from distgan.training.state import build_state
        from distgan.training.step import compile_steps

        images = config.data.source.options.open("", config.data.resolution)
        state = build_state(config, images.shape, runtime)
        advance = compile_steps(config, state, runtime)
        topology = runtime.topology
        assert topology.num_replicas == logical_cpus
        iterator = runtime.distribute(
            pipeline.batches(
                images, 0, config.data, config.train, topology.num_replicas, runtime.local_replicas, config.seed
            )
        )
        for moment, steps in (("start", 0), ("first", 1), ("end", 19)):
            if steps:
                ok, _, _ = advance(iterator, steps)
                assert ok.numpy()
            arrays |= {f"{name}|{moment}|{key}".replace("/", ":"): value for key, value in state.arrays().items()}
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
