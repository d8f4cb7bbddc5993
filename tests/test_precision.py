"""16 bits: an overflow leaves an update out and no more, and penalties are taken in 32 bits."""

import json
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from replicas import runtime_of, train_variant

from distgan import cli, schema
from distgan.config import Config
from distgan.runtime.base import Runtime
from distgan.training import precision
from distgan.training.phases import measured_keys

BASE = {"data.source": "digits", "data.resolution": 16, "model.width": 4, "train.global_batch": 16}
FLOAT16 = BASE | {"model.name": "parts:Plain", "precision": "mixed_float16"}
FLOAT16.pop("model.width")


def rescaled(scale, finite_updates, finite):
    kept = {"scale": tf.constant(scale, tf.float64), "finite_updates": tf.constant(finite_updates, tf.float64)}
    values, possible = precision.rescaled(kept, tf.constant(finite))
    return float(values["scale"]), float(values["finite_updates"]), bool(possible)


def test_scale():
    assert precision.initial() == {"scale": 32768.0, "finite_updates": 0.0}
    assert rescaled(8.0, 0.0, True) == (8, 1, True)
    assert rescaled(8.0, 1998.0, True) == (8, 1999, True)
    assert rescaled(8.0, 1999.0, True) == (16, 0, True)
    assert rescaled(8.0, 1999.0, False) == (4, 0, True)
    assert rescaled(2.0, 5.0, False) == (1, 0, True)
    assert rescaled(1.0, 5.0, False) == (1, 0, False)
    assert rescaled(2.0**24, 1999.0, True) == (2**24, 0, True)


def test_channels_that_tensor_cores_take_slowly():
    def weight(path, *shape):
        return mock.Mock(path=path, shape=shape)

    even = [weight("generator/dense/kernel", 128, 1024), weight("discriminator/conv/kernel", 5, 5, 3, 64)]
    even += [weight("discriminator/logit/kernel", 2048, 1), weight("generator/norm/gamma", 12)]
    assert precision.channel_hint("mixed_float16", even) == ""
    uneven = [*even, weight("generator/first/kernel", 100, 4096), weight("generator/up/kernel", 5, 5, 12, 36)]
    hint = precision.channel_hint("mixed_bfloat16", uneven)
    assert hint.startswith(
        "--precision=mixed_bfloat16: channels that are no multiple of 8 keep GPUs from their full speed: "
    )
    assert "generator/first (100), generator/up (12 and 36);" in hint
    assert precision.channel_hint("float32", uneven) == ""


def poisoned(original, updates):
    """Sums over replicas in which the discriminator's gradients overflow in the first so many updates."""
    left = tf.Variable(updates)

    def sum_gradients(gradients, measured, name):
        first = gradients[0] + tf.where(left > 0, np.float32(np.inf), 0)
        with tf.control_dependencies([first]):
            left.assign_sub(1)
        return original([first, *gradients[1:]], measured, name)

    return sum_gradients


def test_an_overflow_leaves_an_update_out():
    runtime = runtime_of(schema.build(Config, FLOAT16))
    with mock.patch.object(runtime, "sum_gradients", poisoned(runtime.sum_gradients, 2)):
        states = train_variant(FLOAT16, range(4))
    _, undisturbed, *_ = train_variant(FLOAT16, range(2))
    for step, (before, after) in enumerate(zip(states, states[1:], strict=False), start=1):
        for name in after:
            if name.startswith("discriminator/") or name == "optimizer/discriminator/iteration":
                assert np.array_equal(before[name], after[name]) == (step <= 2), name
            elif name.startswith("generator/"):
                assert not np.array_equal(before[name], after[name]), name
        assert after["images_seen"] == 16 * step
        assert after["kept/loss_scale/discriminator/scale"] == 2.0 ** (15 - min(step, 2))
        assert after["kept/loss_scale/discriminator/finite_updates"] == max(step - 2, 0)
        assert after["kept/loss_scale/generator/scale"] == 2.0**15
        assert after["kept/loss_scale/generator/finite_updates"] == step
    # A report's mean is over the norms that are numbers.
    keys = [key for _, key in measured_keys(schema.build(Config, FLOAT16))]
    counts = dict(zip(keys, states[3]["report_counts"], strict=True))
    assert counts.pop("grad_norm/discriminator") == 1
    assert set(counts.values()) == {3}
    assert np.isfinite(states[3]["report_totals"]).all()
    # The scale is not in what is applied.
    single = BASE | {"model.name": "parts:Plain"}
    single.pop("model.width")
    start, plain = train_variant(single, range(2))
    for name in start:
        if name.startswith(("optimizer/generator/", "optimizer/discriminator/")) and name.endswith("momentum"):
            norm = np.linalg.norm(plain[name])
            assert np.linalg.norm(undisturbed[name] - plain[name]) < 0.02 * norm, name


def test_no_scale_left_ends_the_run(tmp_path, capsys):
    words = [f"--{name}={value}" for name, value in FLOAT16.items()]
    words += [f"--run_dir={tmp_path}", "--tracking.wandb=disabled", "--train.total_kimg=0.16"]
    infinite = poisoned(Runtime(None, None).sum_gradients, 10)
    with (
        mock.patch.object(precision, "_FIRST", 4.0),
        mock.patch.object(Runtime, "sum_gradients", lambda self, *given: infinite(*given)),
    ):
        assert cli.main(["train", *words]) == 3
    # Scales of 4, 2 and 1 are tried in three steps.
    assert "grad_norm/discriminator was not finite in phase both of step 2" in capsys.readouterr().err
    [path] = tmp_path.glob("diverged-*.json")
    assert json.loads(path.read_text())["images_seen"] == 32


@pytest.mark.parametrize("kind", ["mixed_bfloat16", "mixed_float16"])
def test_penalties_are_in_float32(kind):
    """Their values, and their gradients: what a step without an adversarial loss changes."""
    lazy = {f"objective.{name}.interval": 2 for name in ("r1", "dragan")} | {"objective.regularizers": "r1,dragan"}
    values = BASE | lazy | {"optimizer.name": "sgd", "optimizer.learning_rate": 1e-9, "objective.dragan.weight": 1.0}
    phase = [name for name, _ in measured_keys(schema.build(Config, values))]
    [single], [half] = train_variant(values, (1,)), train_variant(values | {"precision": kind}, (1,))
    lazy_values = [index for index, name in enumerate(phase) if name == "discriminator_every_2"]
    assert len(lazy_values) == 3
    np.testing.assert_allclose(half["report_totals"][lazy_values], single["report_totals"][lazy_values], rtol=1e-5)
    # The rest of the step is in 16 bits indeed.
    assert not np.allclose(half["report_totals"][1], single["report_totals"][1], rtol=1e-5)
