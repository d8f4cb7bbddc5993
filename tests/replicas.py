"""Trains variants of a small run with N logical CPUs, and writes their states: `replicas.py N OUT.npz`, variants on stdin.

A variant is a config by flag names. Written are the state at the start, after one step and after 20.
"""

import json
import sys

import numpy as np

from distgan import config as configs
from distgan.config import Config
from distgan.runtime import devices

_opened = []


def train_variant(values, moments):
    """Trains a variant; returns its arrays after each of the given numbers of steps."""
    from distgan.data import pipeline
    from distgan.training.state import build_state
    from distgan.training.step import compile_steps

    config = configs.build(Config, values)
    if not _opened:
        # One strategy a process: the collectives of a second one would take the numbers of the first one's.
        _opened.append(devices.open_runtime(config))
    [runtime] = _opened
    devices.set_precision(config.precision)
    images = config.data.source.options.open("", config.data.resolution)
    state = build_state(config, images.shape, runtime)
    advance = compile_steps(config, state, runtime)
    replicas = runtime.topology.num_replicas
    assert replicas == config.runtime.logical_cpus
    iterator = runtime.distribute(
        pipeline.batches(images, 0, config.data, config.train, replicas, runtime.local_replicas, config.seed)
    )
    done, found = 0, []
    for moment in moments:
        if moment > done:
            ok, _, _ = advance(iterator, moment - done)
            assert ok.numpy()
        done = moment
        found.append(state.arrays())
    return found


def main(logical_cpus, out):
    devices.silence(0)
    arrays = {}
    for name, values in json.load(sys.stdin).items():
        found = train_variant({**values, "runtime.logical_cpus": logical_cpus}, (0, 1, 20))
        for moment, state in zip(("start", "first", "end"), found, strict=True):
            arrays |= {f"{name}|{moment}|{key}".replace("/", ":"): value for key, value in state.items()}
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
