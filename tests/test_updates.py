"""Updates that are not the plain ones: lazy phases, two time scales, schedules, batches of fakes, frozen layers, classes."""

from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from replicas import runtime_of, train_variant

from distgan import schema, seeds
from distgan.config import Config
from distgan.data import pipeline
from distgan.data.source import Description
from distgan.training import optimizers
from distgan.training.phases import phases
from distgan.training.seen import MicroBatch
from distgan.training.state import build_state

BASE = {
    "data.source": "digits",
    "data.resolution": 16,
    "model.name": "parts:Plain",
    "train.global_batch": 16,
    "precision": "float64",
}
RATE = 0.05
SGD = BASE | {"optimizer.name": "sgd", "optimizer.learning_rate": RATE}
ADAM = BASE | {"optimizer.name": "adam", "optimizer.learning_rate": 2e-3}
LAZY = {"objective.regularizers": "r1", "objective.r1.gamma": 3.0, "objective.r1.interval": 4}
ALTERNATING = {"train.update_order": "alternating"}


def weights(arrays, network):
    found = {name: array for name, array in arrays.items() if name.startswith(f"{network}/")}
    assert found
    return found


def assert_equal(one, other, rtol=0.0):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=0, err_msg=name)


def r1_gradients(values, discriminator):
    """Of 3/2 ||grad D||^2 on the run's first batch, with the gradient by images of Plain's discriminator written out."""
    config = schema.build(Config, values)
    reader = pipeline.Reader(config.data.source.options.open(config.data), config.data, config.seed)
    pixels, _ = reader(np.arange(16))
    images = tf.constant(pixels.reshape(16, -1) / 127.5 - 1)
    found = {name: tf.constant(array) for name, array in discriminator.items()}
    with tf.GradientTape() as tape:
        tape.watch(found)
        kernel, bias = found["discriminator/hidden/kernel"], found["discriminator/hidden/bias"]
        slopes = 1 - tf.tanh(images @ kernel + bias) ** 2
        by_images = (slopes * found["discriminator/logit/kernel"][:, 0]) @ tf.transpose(kernel)
        loss = tf.reduce_mean(1.5 * tf.reduce_sum(by_images**2, 1))
    gradients = tape.gradient(loss, found, unconnected_gradients="zero")
    return {name: gradient.numpy() for name, gradient in gradients.items()}, float(loss)


def test_lazy_r1():
    """A step of both, then one of R1 alone at where that led, with c = 4/5 of the rate and 4 times the weight."""
    share = 4 / 5
    plain = train_variant(SGD, (0, 1))
    start, first, fourth = train_variant(SGD | LAZY, (0, 1, 4))
    assert_equal(weights(first, "generator"), weights(plain[1], "generator"))
    before, without, found = (weights(each, "discriminator") for each in (start, plain[1], first))
    between = {name: before[name] + share * (without[name] - before[name]) for name in before}
    gradients, penalty = r1_gradients(SGD, between)
    for name in before:
        expected = -RATE * share * 4 * gradients[name]
        np.testing.assert_allclose(found[name] - between[name], expected, rtol=1e-9, atol=1e-15, err_msg=name)
    assert np.abs(gradients["discriminator/hidden/kernel"]).max() > 1e-3
    # What is measured last: the penalty with its weight alone, and the norm of what was applied.
    norm = np.sqrt(sum(np.square(4 * gradient).sum() for gradient in gradients.values()))
    np.testing.assert_allclose(first["report_totals"][-2:], [penalty, norm], rtol=1e-9)
    assert list(fourth["report_counts"]) == [4.0] * (len(fourth["report_counts"]) - 2) + [1.0] * 2
    # Until the fifth step the run is one without it, at the lower rate.
    slower = SGD | {"optimizer.discriminator_learning_rate": RATE * share}
    [other] = train_variant(slower, (3,), start=first)
    for network in ("generator", "discriminator"):
        assert_equal(weights(fourth, network), weights(other, network))


def test_lazy_phases_share_the_rates_of_adam():
    config = schema.build(Config, ADAM | LAZY | {"optimizer.beta_1": 0.5, "optimizer.discriminator_beta_2": 0.99})
    discriminator, generator = (optimizers.build(config, network) for network in ("discriminator", "generator"))
    assert float(discriminator.learning_rate) == pytest.approx(0.8 * 2e-3, rel=1e-6)
    assert (discriminator.beta_1, discriminator.beta_2) == (0.5**0.8, 0.99**0.8)
    assert float(generator.learning_rate) == pytest.approx(2e-3, rel=1e-6)
    assert (generator.beta_1, generator.beta_2) == (0.5, 0.999)
    config = schema.build(Config, ADAM | LAZY | ALTERNATING | {"train.discriminator_updates": 3})
    assert optimizers.build(config, "discriminator").beta_1 == 0.9 ** (3 / 3.25)


def test_two_time_scales():
    start, one = train_variant(SGD, (0, 1))
    _, other = train_variant(SGD | {"optimizer.discriminator_learning_rate": 3 * RATE}, (0, 1))
    assert_equal(weights(one, "generator"), weights(other, "generator"))
    for name, before in weights(start, "discriminator").items():
        np.testing.assert_allclose(other[name] - before, 3 * (one[name] - before), rtol=1e-9, atol=1e-16)


def test_schedules_move_adam():
    """The state after each step against the paper's, with the rates of each step worked out here."""
    changes = {
        "optimizer.learning_rate": "linear:0.004:0.001:0.064",
        "optimizer.beta_1": 0.5,
        "optimizer.beta_2": "cosine:0.9:0.99:0.048",
        "optimizer.epsilon": 1e-3,
        "train.total_kimg": 0.064,
        "optimizer.discriminator_learning_rate": "linear:0.01:0.002",
    }
    states = train_variant(ADAM | changes, range(7))
    for network, first, last in (("generator", 0.004, 0.001), ("discriminator", 0.01, 0.002)):
        name = f"{network}/hidden/kernel"
        mean_name, square_name = (
            f"optimizer/{network}/{network}_hidden_kernel_{each}" for each in ("momentum", "velocity")
        )
        for step in range(1, 7):
            before, after = states[step - 1], states[step]
            rate = first + (last - first) * min((step - 1) / 4, 1)
            beta_2 = 0.9 + 0.09 * (1 - np.cos(np.pi * min((step - 1) / 3, 1))) / 2
            assert after[f"optimizer/{network}/learning_rate"] == pytest.approx(rate, rel=1e-12)
            assert after[f"optimizer/{network}/beta_2"] == pytest.approx(beta_2, rel=1e-12)
            gradient = 2 * after[mean_name] - before[mean_name]
            square = beta_2 * before[square_name] + (1 - beta_2) * gradient**2
            np.testing.assert_allclose(after[square_name], square, rtol=1e-9, atol=1e-20)
            step_size = rate * np.sqrt(1 - beta_2**step) / (1 - 0.5**step)
            moved = before[name] - step_size * after[mean_name] / (np.sqrt(square) + 1e-3)
            np.testing.assert_allclose(after[name], moved, rtol=1e-11)
            assert np.any(gradient)


def test_schedules_and_lazy_phases():
    changes = LAZY | {"optimizer.learning_rate": "linear:0.004:0:0.064", "optimizer.beta_2": "linear:0.9:0.5:0.064"}
    [state] = train_variant(ADAM | changes, (3,))
    found = [
        float(state[f"optimizer/{network}/{name}"])
        for network in ("discriminator", "generator")
        for name in ("learning_rate", "beta_2")
    ]
    np.testing.assert_allclose(found, [0.8 * 0.002, 0.7**0.8, 0.002, 0.7], rtol=1e-12)


def test_several_batches_of_fakes():
    """With two the generator moves by the mean of what each would give; the discriminator stands still."""
    still = SGD | ALTERNATING | {"optimizer.discriminator_learning_rate": 0.0}
    start, one = train_variant(still, (0, 1))
    original = seeds.key

    def key(seed, purpose):
        return original(seed, purpose.replace("generator/latents", "generator/1/latents"))

    with mock.patch.object(seeds, "key", key):
        _, other = train_variant(still, (0, 1))
    _, both = train_variant(still | {"train.generator_batch_multiple": 2}, (0, 1))
    assert_equal(weights(start, "discriminator"), weights(both, "discriminator"))
    for name in weights(start, "generator"):
        assert np.abs(one[name] - other[name]).max() > 1e-4
        np.testing.assert_allclose(both[name], (one[name] + other[name]) / 2, rtol=1e-12, atol=1e-16)
    # The generator's loss is measured over both.
    losses = [each["report_totals"][-2] for each in (one, other, both)]
    assert losses[2] == pytest.approx((losses[0] + losses[1]) / 2, rel=1e-12)


def test_frozen_layers():
    for count in (1, 2):
        values = SGD | {"model.name": "dcgan", "model.width": 4, "train.freeze_discriminator": count}
        start, end = train_variant(values, (0, 2))
        for name, before in weights(start, "discriminator").items():
            frozen = name.startswith(tuple(f"discriminator/down{number}/" for number in range(1, count + 1)))
            assert np.array_equal(before, end[name]) == frozen, name
        assert not any("down1" in name for name in end if name.startswith("optimizer/discriminator"))


@pytest.mark.parametrize(
    ("fake_labels", "expected"), [("paired", [1, 1, 0, 1]), ("data", [0, 0, 0, 1]), ("uniform", [0, 0, 1, 1])]
)
def test_labels_of_fakes(fake_labels, expected):
    """Three of four images of the data are of class 0."""
    config = schema.build(Config, {"model.conditional": True, "model.width": 4, "train.fake_labels": fake_labels})
    state = build_state(config, Description((16, 16, 1), (30, 10), ("a", "b")), runtime_of(config))
    draws = seeds.Draws(lambda kind, name, shape: tf.constant([[0.0], [0.49], [0.51], [0.76]]))
    images, labels = tf.zeros([4, 16, 16, 1], tf.uint8), tf.constant([1, 1, 0, 1])
    seen = MicroBatch(
        phases(config)[0], config, state, images, labels, tf.constant(0, tf.int64), draws, lambda tensor, name: tensor
    )
    assert list(seen.fake_labels.numpy()) == expected
