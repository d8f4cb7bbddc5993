"""The state of a run is all that its future depends on: a walk over every variable that is alive."""

import gc

import numpy as np
import pytest
import tensorflow as tf
from replicas import runtime_of

from distgan import schema
from distgan.config import Config
from distgan.data import pipeline
from distgan.data.source import Description
from distgan.evaluation.sampling import Sampler
from distgan.runtime import devices
from distgan.training.state import build_state
from distgan.training.step import compile_steps

SMALL = {"model.width": 4, "train.global_batch": 16}
KEEPING = {
    "objective.regularizers": "lecam,r1",
    "objective.r1.interval": 2,
    "objective.augmentation": "ada",
    "objective.ada.start": 0.5,
    "objective.ada.interval": 2,
    "objective.ada.speed_kimg": 1.0,
    "optimizer.learning_rate": "linear:0.001:0:0.3",
    "optimizer.beta_2": "cosine:0.9:0.99:0.2",
    "ema.halflife_kimg": "linear:0.1:1:0.5",
}
RUNS = {
    "plain": {},
    "keeping": KEEPING,
    "float16": {**KEEPING, "precision": "mixed_float16"},
    "standing": {"ema.statistics": "standing"},
    "spectral": {
        "model.name": "biggan",
        "model.conditional": True,
        "data.resolution": 32,
        "train.update_order": "alternating",
        "train.discriminator_updates": 2,
    },
    "sgd": {"optimizer.name": "sgd", "train.accumulation_steps": 2, "train.clip_norm": 1.0},
}


def alive():
    """Every variable of TensorFlow's that somebody holds, by identity."""
    gc.collect()
    return {id(each): each for each in gc.get_objects() if isinstance(each, tf.Variable)}


@pytest.mark.parametrize("values", RUNS.values(), ids=RUNS)
def test_all_that_lasts_is_saved_and_restored(values):
    before_all = alive()
    config = schema.build(Config, SMALL | values)
    runtime = runtime_of(schema.build(Config, {}))
    devices.set_precision(config.precision)
    try:
        images = config.data.source.options.open(config.data)
        state = build_state(config, Description.of(images), runtime)
        advance = compile_steps(config, state, runtime)
        data = pipeline.batches(pipeline.Reader(images, config.data, config.seed), 0, config.train, 1, range(1))
        iterator = runtime.distribute(data)
        advance(iterator, 1)  # What is made at the first step is there.
        own = {key: each for key, each in alive().items() if key not in before_all}
        values_before = {key: each.numpy() for key, each in own.items()}
        ok, _ = advance(iterator, 4)
        assert ok.numpy()
        assert own.keys() == {key for key in alive() if key not in before_all}, "steps make variables"
    finally:
        devices.set_precision("float32")
    saved = {id(each) for each in state.variables().values()}
    assert saved <= own.keys()
    changed = {key for key, each in own.items() if not np.array_equal(each.numpy(), values_before[key])}
    assert len(changed) > 10
    twin = state.precise_discriminator
    working_copies = {id(each.value) for each in twin.variables} if twin else set()
    assert not changed & working_copies
    lasting = changed | {key for key, each in own.items() if each.trainable}
    assert not [own[key].name for key in lasting - saved - working_copies]

    # Every variable is restored, from values that none of them has.
    arrays = state.arrays()
    others = {name: np.where(array == 0, 3, array * 0).astype(array.dtype) for name, array in arrays.items()}
    state.load(others)
    for name, each in state.variables().items():
        np.testing.assert_array_equal(each.numpy(), others[name], err_msg=name)
    state.load(arrays)
    for name, array in state.arrays().items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_sampling_changes_nothing_that_lasts():
    """Not even where batch norm's statistics are worked out anew for it."""
    config = schema.build(Config, SMALL | {"ema.statistics": "standing"})
    runtime = runtime_of(schema.build(Config, {}))
    images = config.data.source.options.open(config.data)
    state = build_state(config, Description.of(images), runtime)
    before = state.arrays()
    sampler = Sampler(config, state.generator_ema, state.description)
    first = sampler(0, range(16))
    np.testing.assert_array_equal(sampler(0, range(16)), first)
    for name, array in state.arrays().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
