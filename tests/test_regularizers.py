"""Regularizers against numpy, by a discriminator whose gradients are known: D(x) = sum(a x^2) / 2 + b sum(x) + c."""

import zlib

import numpy as np
import pytest
import tensorflow as tf
from replicas import train_variant

from distgan import registry, schema, seeds
from distgan.config import Config
from distgan.objectives import REGULARIZERS, penalties
from distgan.objectives.regularizers import (
    Auxiliary,
    Consistency,
    Dragan,
    GradientPenalty,
    LeCam,
    Orthogonal,
    TopK,
    WeightClip,
)
from distgan.schedules import schedule
from distgan.training.phases import measured_keys

N, SHAPE, CLASSES = 5, (8, 6, 2), 3
KEPT = {"real_mean": 0.4, "fake_mean": -0.3}
EXTREME = np.array([-80.0, -5.0, 0.0, 5.0, 80.0])


def part(name):
    return registry.resolve(REGULARIZERS, name)()


def drawn(name, shape=()):
    return np.random.default_rng(zlib.crc32(name.encode())).uniform(size=(N, *shape)).astype(np.float32)


def made(kind, name, shape):
    assert kind == "uniform"
    return tf.constant(drawn(name, shape))


def numbers():
    """Images, labels, and weights of a discriminator (a, b, c and those of its classes), as numpy float64."""
    draw = np.random.default_rng(0)
    weights = {
        "a": draw.normal(size=SHAPE),
        "b": np.array(0.3),
        "c": np.zeros(N),
        "classes": draw.normal(size=CLASSES),
        "kernel": draw.normal(size=(2, 3, 4)),
        "other_kernel": draw.normal(size=(3, 2)),
    }
    real, fake = draw.uniform(-1, 1, (2, N, *SHAPE))
    return weights, real, fake, np.array([0, 1, 2, 1, 0]), np.array([2, 2, 1, 0, 1])


class Stub:
    """`Seen` of such a discriminator; c, a number an image, is in the logits of the loss alone, with the other sign in fakes."""

    def __init__(self, dtype=tf.float64, **changed):
        weights, real, fake, *labels = numbers()
        self.weights = {name: tf.Variable(value, dtype=dtype) for name, value in (weights | changed).items()}
        self.real_images, self.fake_images = tf.constant(real, dtype), tf.constant(fake, dtype)
        self.real_augmented, self.fake_augmented = self.real_images, self.fake_images
        self.real_labels, self.fake_labels = (tf.constant(each, tf.int32) for each in labels)
        self.draws = seeds.Draws(made)
        self.images_seen = tf.constant(1000, tf.int64)

    def outputs(self, images):
        w = self.weights
        totals = tf.reduce_sum(images, [1, 2, 3])
        logits = tf.reduce_sum(w["a"] * images**2, [1, 2, 3]) / 2 + w["b"] * totals
        return tf.concat([logits[:, None], totals[:, None] * w["classes"]], 1)

    def judge(self, images, labels, name):
        assert labels is (self.fake_labels if "fake" in name else self.real_labels)
        return self.outputs(images)

    def gradients_at(self, images, labels, name):
        assert labels is self.real_labels
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = self.outputs(images)[:, 0]
        return tape.gradient(logits, images)

    def gradients_of_logits(self, kind):
        images = {"real": self.real_images, "fake": self.fake_images}[kind]
        return self.weights["a"] * images + self.weights["b"]

    @property
    def real_outputs(self):
        return self.outputs(self.real_images) + self.weights["c"][:, None]

    @property
    def fake_outputs(self):
        return self.outputs(self.fake_images) - self.weights["c"][:, None]

    real_logits = property(lambda self: self.real_outputs[:, 0])
    fake_logits = property(lambda self: self.fake_outputs[:, 0])

    def kept(self, name):
        return {key: tf.constant(value, tf.float64) for key, value in KEPT.items()}

    def kernels(self, network):
        assert network == "generator"
        return [self.weights["kernel"].read_value(), self.weights["other_kernel"].read_value()]

    def everywhere(self, values, name):
        """These images are the first half of the global batch."""
        return tf.concat([tf.stop_gradient(values), tf.cast(EXTREME, values.dtype)], 0)

    def sum_over_replicas(self, tensor, name):
        """Two replicas with the same images."""
        return 2 * tensor

    def value_of(self, given):
        return given.at(self.images_seen, 10.0)


def logits(w, images):
    return (w["a"] * images**2).sum((1, 2, 3)) / 2 + w["b"] * images.sum((1, 2, 3))


def squared_norms(w, images):
    return ((w["a"] * images + w["b"]) ** 2).sum((1, 2, 3))


def between(share, real, fake):
    share = drawn(share)[:, None, None, None]
    return share * real + (1 - share) * fake


def near(real):
    # The deviation of twice the same images.
    deviation = np.concatenate([real, real]).std(ddof=1)
    return real + drawn("dragan/share")[:, None, None, None] * deviation / 2 * drawn("dragan/noise", SHAPE)


def moved(images, share, kind):
    """Images mirrored and shifted one by one."""
    found = []
    draws = [drawn(f"consistency/{kind}/{name}") for name in ("mirrored", "shift1", "shift2")]
    for image, mirrored, *shifts in zip(images, *draws, strict=True):
        image = image[:, ::-1] if mirrored < 0.5 else image
        most = [int(share * side) for side in SHAPE[:2]]
        wide = np.pad(image, [(most[0], most[0]), (most[1], most[1]), (0, 0)], mode="reflect")
        y, x = (int(shift * (2 * each + 1)) for shift, each in zip(shifts, most, strict=True))
        found.append(wide[y : y + SHAPE[0], x : x + SHAPE[1]])
    return np.array(found)


def difference(w, images, share, kind):
    return (logits(w, images) + (1 if kind == "real" else -1) * w["c"] - logits(w, moved(images, share, kind))) ** 2


def off_diagonal(kernel):
    columns = kernel.reshape(-1, kernel.shape[-1]).T
    products = [[np.dot(one, other) for other in columns] for one in columns]
    return sum(products[i][j] ** 2 for i in range(len(products)) for j in range(len(products)) if i != j)


def surprise(w, images, labels):
    """-log softmax, in extended precision."""
    of_classes = (images.sum((1, 2, 3))[:, None] * w["classes"]).astype(np.longdouble)
    odds = np.exp(of_classes)
    return -np.log(odds[np.arange(N), labels] / odds.sum(1)).astype(np.float64)


def relu(values):
    return np.maximum(values, 0)


def lecam(w, r, f):
    real, fake = logits(w, r) + w["c"], logits(w, f) - w["c"]
    return relu(real - KEPT["fake_mean"]) ** 2 + relu(KEPT["real_mean"] - fake) ** 2


# Name -> the penalty of its defaults for each network, from weights, reals, fakes and their labels.
EXPECTED = {
    "r1": {"discriminator": lambda w, r, f, *_: squared_norms(w, r) / 2},
    "r2": {"discriminator": lambda w, r, f, *_: squared_norms(w, f) / 2},
    "gradient_penalty": {
        "discriminator": lambda w, r, f, *_: (
            (np.sqrt(squared_norms(w, between("gradient_penalty/share", r, f))) - 1) ** 2
        )
    },
    "dragan": {"discriminator": lambda w, r, f, *_: (np.sqrt(squared_norms(w, near(r))) - 1) ** 2},
    "lecam": {"discriminator": lambda w, r, f, *_: lecam(w, r, f)},
    "consistency": {"discriminator": lambda w, r, f, *_: difference(w, r, 0.125, "real")},
    "orthogonal": {"generator": lambda w, *_: off_diagonal(w["kernel"]) + off_diagonal(w["other_kernel"])},
    "auxiliary": {
        "discriminator": lambda w, r, f, y, z: surprise(w, r, y) + surprise(w, f, z),
        "generator": lambda w, r, f, y, z: surprise(w, f, z),
    },
    "weight_clip": {},
    "top_k": {},
}
OTHERS = {
    "target 0": (
        GradientPenalty(target=0.0),
        lambda w, r, f, *_: squared_norms(w, between("gradient_penalty/share", r, f)),
    ),
    "one-sided": (
        GradientPenalty(target=5.8, one_sided=True),
        lambda w, r, f, *_: relu(np.sqrt(squared_norms(w, between("gradient_penalty/share", r, f))) - 5.8) ** 2,
    ),
    "balanced": (
        Consistency(fake_weight=0.5, shift=0.5),
        lambda w, r, f, *_: difference(w, r, 0.5, "real") + 0.5 * difference(w, f, 0.5, "fake"),
    ),
    "classes of reals": (Auxiliary(fakes=False), lambda w, r, f, y, z: surprise(w, r, y)),
}
CASES = [
    *(
        (f"{name}-{network}", part(name), network, value)
        for name, by in EXPECTED.items()
        for network, value in by.items()
    ),
    *((name, options, "discriminator", value) for name, (options, value) in OTHERS.items()),
]
EACH = pytest.mark.parametrize(
    ("options", "network", "expected"), [each[1:] for each in CASES], ids=[each[0] for each in CASES]
)


def test_every_entry_is_here():
    for name in REGULARIZERS.parts:
        assert EXPECTED[name].keys() == set(part(name).networks), name


@EACH
def test_values(options, network, expected):
    weights, *inputs = numbers()
    value = options.penalty(Stub(tf.float32), network)
    assert value.dtype == tf.float32
    # An orthogonal penalty is of the kernels, and every image's alike.
    assert value.shape == (() if isinstance(options, Orthogonal) else (N,))
    np.testing.assert_allclose(value, expected(weights, *inputs), rtol=1e-4)
    np.testing.assert_allclose(options.penalty(Stub(), network), expected(weights, *inputs), rtol=1e-6)
    assert np.any(value)


@EACH
def test_extreme_logits(options, network, expected):
    weights, *inputs = numbers()
    changed = {"c": EXTREME, "classes": np.array([80.0, 0, -80]) / 10}
    seen = Stub(tf.float32, **changed)
    with tf.GradientTape() as tape:
        value = options.penalty(seen, network)
    gradients = tape.gradient(value, list(seen.weights.values()), unconnected_gradients="zero")
    assert all(np.isfinite(each).all() for each in gradients)
    np.testing.assert_allclose(value, expected(weights | changed, *inputs), rtol=1e-4, atol=1e-5)


@EACH
def test_gradients(options, network, expected):
    """By the weights, against differences of the formula; of what looks at gradients by images, this is a second derivative."""
    weights, *inputs = numbers()
    seen = Stub()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(options.penalty(seen, network))
    gradients = dict(
        zip(weights, tape.gradient(loss, list(seen.weights.values()), unconnected_gradients="zero"), strict=True)
    )
    draw = np.random.default_rng(1)
    for _ in range(4):
        direction = {name: draw.normal(size=value.shape) for name, value in weights.items()}

        def at(step, direction=direction):
            return np.mean(expected({name: weights[name] + step * direction[name] for name in weights}, *inputs))

        slope = (at(1e-5) - at(-1e-5)) / 2e-5
        found = sum(np.sum(gradients[name] * direction[name]) for name in weights)
        assert found == pytest.approx(slope, rel=1e-5)


def test_gradient_norms_of_zero():
    """Where the discriminator is flat the norm has no derivative; the penalty's is 0, not NaN."""
    flat = {"a": np.zeros(SHAPE), "b": 0.0}
    for options in (GradientPenalty(), Dragan()):
        seen = Stub(tf.float32, **flat)
        with tf.GradientTape() as tape:
            value = options.penalty(seen, "discriminator")
        assert np.array_equal(tape.gradient(value, seen.weights["a"]), np.zeros(SHAPE))
        np.testing.assert_allclose(value, 1, rtol=1e-5)


def test_lecam_follows_the_logits():
    real, fake = [1.0, 2.0, -1.0, 4.0], [0.5, 0.0, -3.0, 1.0]
    # The formula by hand with decay 0.75, from the first update's means on; those seen before the start have decay 0.
    for start_kimg, expected in (
        (0.0, ([1.0, 1.25, 0.6875, 1.515625], [0.5, 0.375, -0.46875, -0.1015625])),
        (0.032, ([1.0, 2.0, 1.25, 1.9375], [0.5, 0.0, -0.75, -0.3125])),
    ):
        options = LeCam(decay=0.75, start_kimg=start_kimg)
        kept = {name: tf.constant(value, tf.float64) for name, value in options.initial().items()}
        assert kept.keys() == {"real_mean", "fake_mean"}
        for step, (r, f) in enumerate(zip(real, fake, strict=True)):
            measured = {
                "d_logits/real_mean": tf.constant(r, tf.float64),
                "d_logits/fake_mean": tf.constant(f, tf.float64),
            }
            kept = options.update(kept, measured, tf.constant(16 * step, tf.int64))
            assert [float(kept["real_mean"]), float(kept["fake_mean"])] == [expected[0][step], expected[1][step]]
    seen = Stub()
    assert np.any(LeCam(start_kimg=1.0).penalty(seen, "discriminator"))
    assert not np.any(LeCam(start_kimg=1.001).penalty(seen, "discriminator"))


def lecam_after(kept, images_seen):
    """Both means after an update whose logits are 3 and -1 on average."""
    measured = {"d_logits/real_mean": tf.constant(3.0, tf.float64), "d_logits/fake_mean": tf.constant(-1.0, tf.float64)}
    kept = {name: tf.constant(value, tf.float64) for name, value in kept.items()}
    return [float(value) for value in LeCam(decay=0.75).update(kept, measured, images_seen).values()]


def test_lecam_starts_from_the_first_updates_means():
    start = tf.constant(0, tf.int64)
    assert lecam_after(LeCam().initial(), start) == [3, -1]
    # A second update in the same step, and means of a checkpoint, though they be 0 as at the start.
    assert lecam_after({"real_mean": 1.0, "fake_mean": 0.0}, start) == [1.5, -0.25]
    assert lecam_after(LeCam().initial(), start + 16) == [0.75, -0.25]
    seen = Stub()
    seen.images_seen = start
    assert np.any(LeCam().penalty(seen, "discriminator"))
    seen.kept = lambda name: {key: tf.constant(0.0, tf.float64) for key in KEPT}
    assert not np.any(LeCam().penalty(seen, "discriminator"))


def test_lecam_goes_on_as_a_checkpoint_has_it():
    """Two updates a step: by a checkpoint's names, and as if it had not stopped."""
    base = {"data.source": "digits", "model.width": 4, "train.global_batch": 16, "precision": "float64"}
    base |= {"objective.regularizers": "lecam", "train.update_order": "alternating", "train.discriminator_updates": 2}
    start, first, end = train_variant(base, (0, 1, 2))
    names = ["kept/lecam/real_mean", "kept/lecam/fake_mean"]
    assert names == [name for name in start if name.startswith("kept/")]
    assert [start[name] for name in names] == [0, 0]
    assert abs(first[names[0]]) > 1e-3
    [resumed] = train_variant(base, (1,), start=first)
    for name in names:
        assert resumed[name] == pytest.approx(end[name], rel=1e-9)
    # Anchors of 0 that an older checkpoint holds are not taken for a start.
    [older] = train_variant(base, (1,), start=first | dict.fromkeys(names, np.zeros(())))
    assert abs(older[names[0]]) < 0.2 * abs(resumed[names[0]])


def test_orthogonal_leaves_the_shared_embedding_out():
    values = {"data.source": "digits", "data.resolution": 16, "model.name": "biggan", "model.conditional": True}
    values |= {
        "model.latent_size": 6,
        "model.embedding_size": 3,
        "model.generator_width": 1,
        "model.head": "projection",
    }
    values |= {"model.discriminator_width": 1, "train.global_batch": 16, "precision": "float64"}
    values |= {"objective.regularizers": "orthogonal"}
    config = schema.build(Config, values)
    [start] = train_variant(values | {"optimizer.learning_rate": 0.0}, (0,))
    start["generator/embedding/kernel"][:] = 0.5  # Fresh, it is orthogonal, and would add nothing.
    [after] = train_variant(values | {"optimizer.learning_rate": 0.0}, (1,), start=start)
    kernels = [
        value for name, value in start.items() if name.startswith("generator/") and name.endswith("kernel")
        and name != "generator/embedding/kernel"
    ]  # fmt: skip
    assert len(kernels) > 10
    place = [key for _, key in measured_keys(config)].index("loss/orthogonal")
    expected = 1e-4 * sum(off_diagonal(kernel) for kernel in kernels)
    assert after["report_totals"][place] == pytest.approx(expected, rel=1e-9)
    assert off_diagonal(start["generator/embedding/kernel"]) > 1e-3


def test_lecam_pulls_real_logits_down_and_fake_ones_up():
    weights, real, fake, *_ = numbers()
    seen = Stub(a=0 * weights["a"], b=0.0, c=np.full(N, 0.2))
    with tf.GradientTape() as tape:
        value = LeCam().penalty(seen, "discriminator")
    # Real logits are 0.2 and should be under -0.3, fake ones -0.2 and should be over 0.4.
    np.testing.assert_allclose(tape.gradient(value, seen.weights["c"]), np.full(N, 2 * 0.5 + 2 * 0.6), rtol=1e-6)


def test_mirror_and_shift_at_the_edges():
    images = np.arange(2 * 4 * 4).reshape(2, 4, 4, 1).astype(np.float64)
    for mirrored, shift, expected in (
        (0.5, 0.5, images),
        (0.49, 0.5, images[:, :, ::-1]),
        (0.9, 0.0, images[:, [2, 1, 0, 1]][:, :, [2, 1, 0, 1]]),
        (0.9, 1 - 2**-24, images[:, [2, 3, 2, 1]][:, :, [2, 3, 2, 1]]),
    ):
        draws = seeds.Draws(
            lambda kind, name, shape, m=mirrored, s=shift: tf.fill([2], np.float32(m if name == "mirrored" else s))
        )
        assert np.array_equal(penalties.mirror_and_shift(tf.constant(images), 0.5, draws), expected)


@pytest.mark.parametrize(
    ("k", "everywhere", "expected"),
    [
        (1, [1, 4, 3, 2], [0, 4, 0, 0]),
        (3, [1, 4, 3, 2], [0, 4 / 3, 4 / 3, 4 / 3]),
        (4, [1, 4, 3, 2], [1, 1, 1, 1]),
        (2, [3, 1, 3, 4, 3], [5 / 4, 0, 5 / 4, 5 / 4, 5 / 4]),
        (2.4, [1, 4, 3, 2], [0, 2, 2, 0]),
        (2.6, [1, 4, 3, 2], [0, 4 / 3, 4 / 3, 4 / 3]),
        (2, [-80, 80, np.inf, 0], [0, 2, 2, 0]),
    ],
)
def test_top_k_weights(k, everywhere, expected):
    logits = tf.constant(everywhere, tf.float32)
    weights = penalties.top_k_weights(logits, logits, tf.constant(k, tf.float64))
    assert weights.dtype == tf.float32
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    mine = penalties.top_k_weights(logits[1:3], logits, tf.constant(k, tf.float64))
    np.testing.assert_allclose(mine, expected[1:3], rtol=1e-6)


def test_top_k_of_the_global_batch_on_a_schedule():
    """From 10 of 10 to 2 in 2 kimg, of which half is over: 6 count. No gradient goes through the choice."""
    seen = Stub(a=np.zeros(SHAPE), b=0.0, c=-EXTREME / 2)  # Fake logits here are EXTREME / 2, elsewhere EXTREME.
    with tf.GradientTape() as tape:
        weights = TopK(schedule("linear:10:2:2")).weigh_fakes(seen)
    assert tape.gradient(weights, seen.weights["c"]) is None
    # In order 80, 40, 5, 2.5, 0 here and 0 there: six, the last two of them equal.
    np.testing.assert_allclose(weights, np.array([0, 0, 1, 1, 1]) * 10 / 6, rtol=1e-6)
    for name in REGULARIZERS.parts:
        if name != "top_k":
            assert part(name).weigh_fakes(seen) is None


def test_weights_are_cut_after_an_update():
    base = {"data.source": "digits", "model.width": 4, "train.global_batch": 16, "precision": "float64"}
    base |= {"optimizer.name": "sgd", "optimizer.learning_rate": 0.1}
    cut = base | {"objective.regularizers": "weight_clip", "objective.weight_clip.limit": 0.05}
    _, free = train_variant(base, (0, 1))
    before, after = train_variant(cut, (0, 1))
    for name in before:
        if name.startswith("discriminator/"):
            assert np.array_equal(after[name], np.clip(free[name], -0.05, 0.05)), name
        elif name.startswith("generator/"):
            assert np.array_equal(after[name], free[name]), name
    assert np.abs(before["discriminator/logit/kernel"]).max() > 0.05
    assert np.abs(after["generator/project/kernel"]).max() > 0.05
    for name in REGULARIZERS.parts:
        changed = part(name).project(tf.constant([-5.0, 0.001, 5.0]))
        assert (changed is None) == (name != "weight_clip")
    np.testing.assert_allclose(WeightClip().project(tf.constant([-5.0, 0.001, 5.0])), [-0.01, 0.001, 0.01])
