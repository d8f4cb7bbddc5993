"""Numbers that change along the run: what a flag spells, their values, and what is recorded of them."""

import math

import numpy as np
import pytest
import tensorflow as tf

from distgan import schema
from distgan.config import Config
from distgan.errors import UserError
from distgan.schedules import Schedule, schedule
from distgan.training.run_dir import differences


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.002", Schedule(0.002, 0.002)),
        ("1e-05", Schedule(1e-5, 1e-5)),
        ("linear:0.002:0:6400", Schedule(0.002, 0.0, "linear", 6400.0)),
        ("linear:64:32", Schedule(64.0, 32.0)),
        ("cosine:5e-2:0.005:2e4", Schedule(0.05, 0.005, "cosine", 20000.0)),
        ("cosine:3:3:5", Schedule(3.0, 3.0)),
    ],
)
def test_spelling(text, value):
    assert Schedule.parse(text) == value
    assert Schedule.parse(str(value)) == value
    assert value.takes_whole_run == (text == "linear:64:32")


@pytest.mark.parametrize(
    "text",
    ["", "fast", "linear", "linear:", "linear:1", "linear:1:2:3:4", "linear:1:two", "square:1:2:3", "linear:1:2:0"]
    + [
        "linear:1:2:-1",
        "linear:1:2:inf",
        "linear:1:2:nan",
        "nan",
        "inf",
        "linear:nan:1",
        "linear:1:inf",
        "1:2:3",
        ":1:2",
    ],
)
def test_wrong_spelling(text, refused, tmp_path):
    flag = f"--optimizer.learning_rate={text}"
    line = refused("train", f"--run_dir={tmp_path / 'run'}", flag)
    assert f"{flag} is not a number, or linear:FROM:TO[:KIMG] or cosine:..., at least 0" in line
    assert not (tmp_path / "run").exists()


def test_limits_hold_for_both_ends(refused):
    assert "beta_2=linear:0.9:1:5 is not" in refused("train", "--optimizer.beta_2=linear:0.9:1:5")
    assert "at most 0.999999" in refused("train", "--optimizer.beta_2=linear:1:0.9:5")


def test_values():
    seen = [0, 1, 500, 1000, 3999, 4000, 9000]
    shares = np.minimum(np.array(seen) / 4000, 1)
    for text, total_kimg, expected in (
        ("linear:2:-1:4", 100.0, 2 - 3 * shares),
        ("linear:2:-1", 4.0, 2 - 3 * shares),
        ("cosine:0.5:8:4", 1.0, [0.5 + 7.5 * math.sin(math.pi * share / 2) ** 2 for share in shares]),
        ("cosine:0.5:8", 4.0, [0.5 + 7.5 * math.sin(math.pi * share / 2) ** 2 for share in shares]),
        ("7", 4.0, [7.0] * len(seen)),
    ):
        found = [schedule(text).at(tf.constant(each, tf.int64), total_kimg) for each in seen]
        assert all(each.dtype == tf.float64 for each in found)
        np.testing.assert_allclose(found, expected, rtol=1e-13)


VALUES = {
    "objective.regularizers": "r1,lecam,top_k",
    "objective.r1.gamma": "cosine:2:0.5:1000",
    "objective.r1.interval": 16,
    "objective.top_k.k": "linear:64:32",
    "objective.augmentation": "fixed",
    "objective.fixed.p": "linear:0:0.3:500",
    "optimizer.learning_rate": 1e-5,
    "optimizer.beta_2": "linear:0.9:0.99:10",
    "optimizer.discriminator_beta_1": 0.0,
    "optimizer.discriminator_learning_rate": None,
    "optimizer.discriminator_beta_2": "0.99",
    "ema.halflife_kimg": "linear:1:5",
}


def test_configs_are_what_they_were_written_as():
    config = schema.build(Config, VALUES)
    flat = schema.flatten(config)
    assert schema.build(Config, flat) == config
    assert config.objective.regularizers[0].options.gamma == Schedule(2.0, 0.5, "cosine", 1000.0)
    assert config.optimizer.name.options.discriminator_beta_1 == 0
    assert config.optimizer.name.options.discriminator_learning_rate is None
    assert flat["optimizer.discriminator_learning_rate"] is None
    assert flat["objective.top_k.k"] == "linear:64.0:32.0"
    assert flat["optimizer.learning_rate"] == 1e-5
    assert not list(differences(flat, config))


def test_a_run_that_schedules_take_whole_keeps_its_length():
    longer = {"train.total_kimg": 200.0}
    for name, value in (
        ("optimizer.learning_rate", "cosine:0.001:0"),
        ("optimizer.discriminator_beta_2", "linear:0.9:0.99"),
        ("objective.r1.gamma", "linear:9.0:1.0"),
        ("ema.halflife_kimg", "linear:1.0:5.0"),
    ):
        chosen = {"objective.regularizers": "r1"} | {name: value}
        old = schema.flatten(schema.build(Config, chosen))
        [changed] = differences(old, schema.build(Config, chosen | longer))
        assert changed == f"train.total_kimg=100.0 (now 200.0), the length of {name}={old[name]}"
        chosen[name] = f"{value}:50"
        old = schema.flatten(schema.build(Config, chosen))
        assert not list(differences(old, schema.build(Config, chosen | longer)))
        [changed] = differences(old, schema.build(Config, chosen | {name: 0.5}))
        assert changed == f"{name}={old[name]} (now 0.5)"


def test_a_longer_run_is_refused_in_a_line(tmp_path):
    from distgan.training.run_dir import RunDir

    values = {"optimizer.learning_rate": "linear:0.001:0"}
    RunDir(tmp_path, schema.build(Config, values), "data").close()
    RunDir(tmp_path, schema.build(Config, values), "data").close()
    with pytest.raises(
        UserError, match=r"holds another run: train\.total_kimg=100\.0 \(now 5\.0\).*choose another --run_dir"
    ):
        RunDir(tmp_path, schema.build(Config, values | {"train.total_kimg": 5.0}), "data")
