"""Trains variants of a small run on N replicas, and writes their states: `replicas.py N OUT.npz VARIANTS.json`.

A variant is a config by flag names. Written, by the primary, are the state at the start, after one step and after 20, and
samples of the last. Which workers share the work is the launcher's to say, as for `distgan train`.
"""

import json
import sys
from pathlib import Path

import numpy as np

from distgan import schema
from distgan.config import Config
from distgan.runtime import devices, topology

_opened = []


def runtime_of(config):
    """The process' one runtime: the collectives of a second strategy would take the numbers of the first one's."""
    if not _opened:
        workers = topology.find_workers(topology.read_environment())
        _opened.append(devices.open_runtime(config, workers, devices.connect(config, workers)))
    return _opened[0]


def train_variant(values, moments, start=None):
    """Trains a variant; returns its arrays after each of the given numbers of steps.

    With the `start` arrays of another, it goes on with that one's weights and clock.
    """
    from distgan.data import pipeline
    from distgan.data.contract import open_source
    from distgan.data.source import Description
    from distgan.evaluation.sampling import Sampler
    from distgan.training.desync import build_check
    from distgan.training.state import build_state
    from distgan.training.step import compile_steps

    config = schema.build(Config, values)
    runtime = runtime_of(config)
    devices.set_precision(config.precision)
    images = open_source(config.data)
    state = build_state(config, Description.of(images), runtime)
    advance = compile_steps(config, state, runtime)
    fresh = state.arrays()
    taken = {name: array for name, array in (start or {}).items() if name in fresh and not name.startswith("report")}
    state.share(fresh | taken, runtime)
    check = build_check(state, runtime)
    replicas = runtime.topology.num_replicas
    reader = pipeline.Reader(images, config.data, config.seed)
    first_batch = int(state.images_seen.numpy()) // config.train.global_batch
    shares = pipeline.batches(reader, first_batch, config.train, replicas, runtime.topology.local_replicas)
    iterator = runtime.distribute(shares)
    done, found = 0, []
    for moment in moments:
        if moment > done:
            ok, _ = advance(iterator, moment - done)
            assert ok.numpy()
        done = moment
        check()
        found.append(state.arrays())
    found[-1]["samples"] = Sampler(config, state.generator_ema, state.description)(0, range(16))
    return found


def main(replicas, out, variants):
    devices.silence(0)
    arrays = {}
    for name, values in json.loads(Path(variants).read_text()).items():
        workers = topology.find_workers(topology.read_environment())
        logical_cpus = replicas // (workers.world_size if workers else 1)
        found = train_variant({**values, "runtime.logical_cpus": logical_cpus}, (0, 1, 20))
        assert _opened[0].topology.num_replicas == replicas
        for moment, state in zip(("start", "first", "end"), found, strict=True):
            arrays |= {f"{name}|{moment}|{key}".replace("/", ":"): value for key, value in state.items()}
    if _opened[0].topology.is_primary:
        np.savez(out, **arrays)
    _opened[0].close()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
