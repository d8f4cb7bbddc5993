"""The step: non-finite values stop it before a weight changes, clipping acts on the mean, XLA and bfloat16 work."""

import json

import numpy as np
import pytest
from conftest import SMALL, distgan, rows
from replicas import runtime_of, train_variant

from distgan import schema
from distgan.config import Config
from distgan.runtime import devices

BASE = {"data.source": "digits", "data.resolution": 16, "model.width": 4, "train.global_batch": 16}
SGD = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.5}


def norm(before, after, network):
    """Of the change of a network's trained weights."""
    trained = [name for name in before if name.startswith(f"{network}/") and "moving" not in name]
    return np.sqrt(sum(np.square(after[name] - before[name]).sum() for name in trained))


def test_clipping_acts_on_the_mean():
    free = train_variant(BASE | SGD | {"precision": "float64"}, (0, 1))
    clipped = train_variant(BASE | SGD | {"precision": "float64", "train.clip_norm": 0.01}, (0, 1))
    for network in ("generator", "discriminator"):
        assert norm(*free, network) > 0.1
        # A step of SGD is the learning rate times the gradient.
        assert norm(*clipped, network) == pytest.approx(0.5 * 0.01, rel=1e-9)


@pytest.mark.parametrize("change", [{"jit_compile": True}, {"precision": "mixed_bfloat16"}], ids=["jit", "bfloat16"])
def test_compiled_and_mixed_steps_are_near(change):
    before, plain = train_variant(BASE | SGD, (0, 3))
    _, other = train_variant(BASE | SGD | change, (0, 3))
    for network in ("generator", "discriminator"):
        difference = norm(plain, other, network)
        assert 0 < difference < (1e-3 if "jit_compile" in change else 0.2) * norm(before, plain, network)


def opened(values):
    """A run's fresh state, its compiled steps, and their data."""
    from distgan.data import pipeline
    from distgan.data.source import Description
    from distgan.training.state import build_state
    from distgan.training.step import compile_steps

    config = schema.build(Config, BASE | values)
    runtime = runtime_of(config)
    devices.set_precision(config.precision)
    images = config.data.source.options.open(config.data)
    state = build_state(config, Description.of(images), runtime)
    data = pipeline.batches(pipeline.Reader(images, config.data, config.seed), 0, config.train, 1, range(1))
    return state, compile_steps(config, state, runtime), runtime.distribute(data)


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert not [name for name in one if not np.array_equal(one[name], other[name])]


LAZY_R1 = {"objective.regularizers": "r1", "objective.r1.interval": 3}


@pytest.mark.parametrize("values", [{}, SGD | {"optimizer.momentum": 0.5}, LAZY_R1], ids=["adam", "sgd", "lazy"])
def test_measured_steps_are_ordinary_ones(values):
    """The last steps before a row are run one by one, and come to the same bits."""
    state, advance, iterator = opened(values)
    assert advance.ready(7, measured=False) == 0
    progress = advance(iterator, 7)
    other, measure, other_iterator = opened(values)
    measured, waits = measure.measure(other_iterator, 7)
    assert measure.ready(7, measured=True) == 7
    assert waits.data > 0
    assert waits.others == 0
    assert np.array_equal(progress.evidence, measured.evidence)
    assert_same(state.arrays(), other.arrays())


FAR = {"optimizer.learning_rate": 1e18}


@pytest.mark.parametrize(
    "values", [FAR, SGD | FAR | {"optimizer.momentum": 0.5}, FAR | LAZY_R1], ids=["adam", "sgd", "lazy"]
)
def test_nothing_changes_after_a_step_that_is_not_finite(values):
    """Several steps a call end where one at a time ends: the first that is not finite is the last that does anything."""
    state, advance, iterator = opened(values)
    while True:
        before, last = state.arrays(), advance(iterator, 1)
        if not last.ok.numpy():
            break
    steps = int(before["step"]) + 1
    assert steps < 9
    assert state.arrays()["step"] == before["step"]
    for measured in (False, True):
        other, advance, iterator = opened(values)
        progress = advance.measure(iterator, 9)[0] if measured else advance(iterator, 9)
        assert not progress.ok.numpy()
        assert np.array_equal(progress.evidence, last.evidence, equal_nan=True)
        assert_same(state.arrays(), other.arrays())


PENALTIES = "r1,r2,gradient_penalty,dragan,lecam,consistency,orthogonal,top_k"


LAZY = {"objective.top_k.k": 8, "objective.dragan.interval": 2}
CLASSES = {
    "model.name": "resnet",
    "model.generator_width": 8,
    "model.discriminator_width": 8,
    "model.conditional": True,
}
CLASSES |= {"model.head": "auxiliary", "model.discriminator_norm": "none"}


@pytest.mark.parametrize(
    ("regularizers", "more"), [(PENALTIES, LAZY), ("auxiliary,weight_clip", CLASSES)], ids=["penalties", "classes"]
)
def test_compiled_penalties_are_near(regularizers, more):
    """Second-order gradients under XLA, those of lazy phases too."""
    values = BASE | SGD | more | {"objective.regularizers": regularizers, "optimizer.learning_rate": 0.01}
    values |= {"objective.augmentation": "ada", "objective.ada.start": 0.5}
    before, plain = train_variant(values, (0, 3))
    _, compiled = train_variant(values | {"jit_compile": True}, (0, 3))
    for network in ("generator", "discriminator"):
        assert norm(plain, compiled, network) < 1e-3 * norm(before, plain, network)


def test_divergence(tmp_path):
    run_dir = tmp_path / "run"
    words = ["train", f"--run_dir={run_dir}", "--tracking.wandb=disabled", "--model.width=4", "--train.global_batch=16"]
    words += ["--optimizer.name=sgd", "--optimizer.learning_rate=1e18", "--train.total_kimg=0.32"]
    words += ["--checkpoint.every_kimg=0.016", "--checkpoint.keep=100"]
    _, err = distgan(*words, code=3)
    assert "was not finite in phase both" in err
    assert "Traceback" not in err
    [path] = run_dir.glob("diverged-*.json")
    evidence = json.loads(path.read_text())
    seen = evidence["images_seen"]
    assert evidence["step"] == seen // 16
    assert evidence["image_numbers"] == [seen, seen + 15]
    assert not np.isfinite(float(evidence["values"]["both"][evidence["key"]]))
    norms = evidence["gradient_norms"]["both"]
    assert norms.keys() >= {"generator/project/kernel", "discriminator/logit/kernel"}, norms.keys()
    assert evidence["reports"] == rows(run_dir)[-100:]
    assert evidence["seed"] == 0
    from distgan.training import checkpoint

    saved = checkpoint.newest(run_dir / "checkpoints")
    if saved:
        assert all(np.isfinite(array).all() for array in saved.arrays.values())


def test_loss_limit(tmp_path):
    """A loss beyond the limit is divergence; the norms of the layers' gradients make up the network's."""
    words = ["train", f"--run_dir={tmp_path}", *SMALL, "--train.loss_limit=0.01", "--train.total_kimg=0.16"]
    _, err = distgan(*words, code=3)
    assert "loss/discriminator was beyond --train.loss_limit=0.01 in phase both of step 0 (images 0 to 15)" in err
    [path] = tmp_path.glob("diverged-*.json")
    evidence = json.loads(path.read_text())
    values, norms = evidence["values"]["both"], evidence["gradient_norms"]["both"]
    for network in ("generator", "discriminator"):
        total = sum(norm**2 for name, norm in norms.items() if name.startswith(f"{network}/"))
        assert np.isclose(values[f"grad_norm/{network}"], np.sqrt(total), rtol=1e-6)
    _, err = distgan(*words, "--train.loss_limit=0")
    assert "done" in err


def test_compiled_batch_norm_over_replicas_is_refused(tmp_path):
    words = ["train", f"--run_dir={tmp_path}", "--tracking.wandb=disabled", "--runtime.logical_cpus=2", "--jit_compile"]
    _, err = distgan(*words, code=2)
    assert "--jit_compile does not go with 2 replicas here: generator/norm0 sums over replicas" in err


def test_opposed_losses_need_the_whole_batch(tmp_path):
    words = ["train", f"--run_dir={tmp_path}", *SMALL, "--objective.loss=relativistic_average"]
    _, err = distgan(*words, "--train.accumulation_steps=2", code=2)
    assert "--train.accumulation_steps=2 does not go with --objective.loss=relativistic_average" in err
    _, err = distgan(*words, "--jit_compile", "--runtime.logical_cpus=2", code=2)
    assert "--jit_compile with 2 replicas does not go with --objective.loss=relativistic_average" in err
    assert not any(tmp_path.iterdir())
