"""The residual networks: sizes by arithmetic, layers by numpy, gradients by differences, and the same in every precision."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_layers import make_pass

from distgan import config, registry, schema
from distgan.models import MODELS
from distgan.models.biggan import Biggan
from distgan.models.layers import BatchNorm, ConditionalBatchNorm
from distgan.models.residual import AveragePool, Head, Residual, SelfAttention, Upsample
from distgan.models.resnet import Resnet
from distgan.models.spectral import Conv, Dense, Embedding, Kernels, divide_by_norm

TINY = {
    "resnet": Resnet(latent_size=12, generator_width=16, discriminator_width=16),
    "biggan": Biggan(latent_size=60, embedding_size=6, generator_width=4, discriminator_width=4),
}


@pytest.fixture
def policy():
    """Sets Keras' policy as `--precision` does, for one test."""
    before = keras.config.floatx(), keras.config.dtype_policy()

    def choose(name):
        keras.config.set_floatx("float64" if name == "float64" else "float32")
        keras.config.set_dtype_policy(name)

    yield choose
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def build(model, kind, shape=(16, 16, 3), num_classes=0, name=None, seed=0):
    keras.utils.set_random_seed(seed)
    network = getattr(model, kind)(shape, num_classes, name or kind)
    size = shape if kind == "discriminator" else (model.latent_size,)
    network(tf.zeros([1, *size], keras.config.floatx()), labels=tf.zeros([1], tf.int32))
    return network


def normal(*shape, seed=0, dtype=np.float32):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), dtype)


def layers_of(network, kind):
    """All layers of a kind, however deep."""
    return [layer for layer in network._flatten_layers() if isinstance(layer, kind)]


def num_parameters(network):
    return sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)


# Sizes


def conv(inputs, outputs, size=3):
    return size * size * inputs * outputs + outputs


def test_resnet_has_the_papers_size():
    block = 2 * conv(256, 256) + conv(256, 256, 1)
    first, last = 129 * 4 * 4 * 256, 2 * 256 + conv(256, 3)
    assert num_parameters(build(Resnet(), "generator", (32, 32, 3))) == first + 3 * (block + 2 * 512) + last
    conditional = Resnet(head="projection")
    tables = 3 * 2 * 2 * 10 * 256
    assert num_parameters(build(conditional, "generator", (32, 32, 3), 10)) == first + 3 * block + tables + last
    head = 128 + 1
    blocks = conv(3, 128) + conv(128, 128) + conv(3, 128, 1) + conv(128, 128, 1) + 3 * 2 * conv(128, 128)
    assert num_parameters(build(Resnet(), "discriminator", (32, 32, 3))) == blocks + head
    assert num_parameters(build(conditional, "discriminator", (32, 32, 3), 10)) == blocks + head + 10 * 128


def test_biggan_has_the_papers_size():
    model = Biggan(head="projection", attention=16)

    def attention(channels):
        return 2 * channels * channels // 8 + 2 * channels * channels // 2 + 1

    maps = 2 * 2 * (20 + 128) * 384
    block = 2 * conv(384, 384) + conv(384, 384, 1) + maps
    expected = 10 * 128 + 21 * 4 * 4 * 384 + 3 * block + attention(384) + 2 * 384 + conv(384, 3)
    assert num_parameters(build(model, "generator", (32, 32, 3), 10)) == expected
    blocks = conv(3, 192) + conv(192, 192) + conv(3, 192, 1) + conv(192, 192, 1) + 3 * 2 * conv(192, 192)
    expected = blocks + attention(192) + 192 + 1 + 10 * 192
    assert num_parameters(build(model, "discriminator", (32, 32, 3), 10)) == expected


@pytest.mark.parametrize(
    ("name", "side"), [("resnet", 16), ("resnet", 32), ("resnet", 48), ("resnet", 64), ("resnet", 128)]
    + [("biggan", 16), ("biggan", 32), ("biggan", 64), ("biggan", 128)],
)  # fmt: skip
def test_every_resolution(name, side):
    attention = {16: 8, 32: 16, 48: 24, 64: 32, 128: 64}[side]
    model = dataclasses.replace(TINY[name], head="projection", attention=attention)
    assert not list(model.fits((side, side, 1)))
    generator, discriminator = (build(model, kind, (side, side, 1), 3) for kind in ("generator", "discriminator"))
    labels = tf.constant([0, 2])
    images = generator(10 * normal(2, model.latent_size), labels=labels)
    assert images.shape == (2, side, side, 1)
    assert 0 < np.abs(images).max() <= 1
    assert discriminator(images, labels=labels).shape == (2, 1)
    names = [layer.name for layer in discriminator.layers]
    assert names[:3] == ["block1", "attention", "block2"]
    assert names[-1] == "head"
    for network in (generator, discriminator):
        attended = layers_of(network, SelfAttention)
        assert [layer.name for layer in attended] == ["attention"]


def test_widths_at_larger_resolutions():
    def widths(network):
        return [layer.main[-2 if layer.main[-1].name.startswith("average") else -1].units for layer in
                network.layers if isinstance(layer, Residual)]  # fmt: skip

    sixteenth = Resnet(generator_width=16, discriminator_width=8)
    assert widths(build(sixteenth, "generator", (64, 64, 3))) == [32, 16, 8, 4]
    assert widths(build(sixteenth, "discriminator", (64, 64, 3))) == [4, 8, 16, 32, 64]
    assert widths(build(sixteenth, "generator", (48, 48, 3))) == [16, 8, 4]
    assert widths(build(sixteenth, "discriminator", (128, 128, 3))) == [4, 8, 16, 32, 64, 64]
    assert widths(build(Biggan(generator_width=2, latent_size=12), "generator", (128, 128, 3))) == [32, 16, 8, 4, 2]


# What does not go together


def test_what_does_not_fit():
    (line,) = Resnet().fits((24, 24, 3))
    assert "--data.resolution=24 is none of 16, 32, 48, 64, 128, which --model.name=resnet" in line
    (line,) = Resnet(attention=32).fits((32, 32, 3))
    assert "--model.attention=32" in line
    assert "8 and 16 are" in line
    (line,) = Biggan().fits((16, 16, 1))
    assert "--model.latent_size=80 does not split into 3 chunks" in line
    assert "--model.latent_size=60" in line


@pytest.mark.parametrize("name", ["resnet", "biggan"])
def test_heads_need_classes(name):
    def problems(**values):
        flat = {"model.name": name} | {f"model.{key}": value for key, value in values.items()}
        chosen = schema.build(config.Config, flat)
        return list(chosen.model.name.options.requires(chosen))

    assert not problems()
    assert not problems(conditional=True, head="auxiliary")
    assert "--model.head=projection needs --model.conditional" in problems(head="projection")[0]
    assert "use --model.head=projection or --model.head=auxiliary" in problems(conditional=True)[0]


def test_only_batch_norm_mixes_images():
    x = normal(3, 16, 16, 3)
    for norm, mixes in (("spectral", False), ("none", False), ("batch", True)):
        model = dataclasses.replace(TINY["resnet"], discriminator_norm=norm)
        assert model.batch_dependent == mixes
        network = build(model, "discriminator")
        whole, part = network(x, context=make_pass())[:2], network(x[:2], context=make_pass())
        assert np.allclose(whole, part, atol=1e-4) != mixes


# Initial weights


def test_xavier_keeps_the_variance():
    kernels = Kernels(spectral=False)
    for inputs, outputs, gain in ((64, 64, np.sqrt(2)), (3, 128, np.sqrt(2)), (64, 32, 1.0)):
        layer = kernels.conv(outputs, 3, "conv", gain=gain)
        inside = layer(normal(16, 18, 18, inputs))[:, 1:-1, 1:-1].numpy()
        expected = gain * np.sqrt(2 * inputs / (inputs + outputs))  # fan_in times the kernel's variance
        assert inside.std() == pytest.approx(expected, rel=0.05)
    convs = layers_of(build(Resnet(), "discriminator", (32, 32, 3)), Conv)
    stds = {layer.path.partition("/")[2]: layer.kernel.numpy().std() for layer in convs}
    assert stds["block2/conv1"] == pytest.approx(np.sqrt(2 * 2 / (18 * 128)), rel=0.02)
    assert stds["block2/skip"] == pytest.approx(np.sqrt(2 / (2 * 128)), rel=0.02)


def test_biggan_begins_orthogonal():
    model = dataclasses.replace(TINY["biggan"], head="projection")
    for kind in ("generator", "discriminator"):
        for layer in layers_of(build(model, kind, num_classes=5), (Conv, Dense, Embedding)):
            matrix = layer.kernel.numpy().reshape(-1, layer.units)
            product = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
            np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-5)
            assert layer.spectral == (not layer.path.endswith("generator/embedding"))


@pytest.mark.parametrize("name", ["resnet", "biggan"])
def test_paths_are_unique_and_do_not_depend_on_what_was_built_before(name):
    model = dataclasses.replace(TINY[name], head="auxiliary", attention=8)
    for kind in ("generator", "discriminator"):
        first, second = (build(model, kind, num_classes=3) for _ in range(2))
        other = build(model, kind, num_classes=3, seed=1)
        paths = [variable.path for variable in first.variables]
        assert len(set(paths)) == len(paths)
        assert paths == [variable.path for variable in second.variables]
        for one, two in zip(first.variables, second.variables, strict=True):
            np.testing.assert_array_equal(one, two)
        differing = {v.path for v, o in zip(first.variables, other.variables, strict=True) if not np.array_equal(v, o)}
        assert {path for path in paths if path.endswith("/u") and "logit" not in path} <= differing


# Spectral norm


def test_power_iteration_finds_the_largest_singular_value():
    kernel = normal(3, 3, 8, 12, dtype=np.float64)
    u = normal(12, seed=1, dtype=np.float64)
    for _ in range(300):
        normalized, u = divide_by_norm(kernel, 0.3 * u)
    exact = np.linalg.svd(kernel.numpy().reshape(72, 12), compute_uv=False)[0]
    np.testing.assert_allclose(normalized * exact, kernel, rtol=1e-9)


def test_one_iteration_for_all_passes_that_share_a_memo():
    layer = Dense(5, initializer="glorot_uniform", spectral=True, name="dense")
    x, (weights, u) = normal(4, 7), (None, None)
    layer.build(x.shape)
    weights, u = layer.kernel.numpy(), layer.u.numpy()
    first = make_pass()
    second = dataclasses.replace(first, updates=[])
    outputs = [layer(x, context=made) for made in (first, second)]
    ((variable, value, momentum),) = first.updates
    assert variable is layer.u
    assert momentum == 0
    assert not second.updates
    v = weights @ u / np.linalg.norm(weights @ u)
    following = weights.T @ v / np.linalg.norm(weights.T @ v)
    np.testing.assert_allclose(value, following, rtol=1e-5)
    expected = x.numpy() @ weights / (v @ weights @ following)
    for output in outputs:
        np.testing.assert_allclose(output, expected, rtol=1e-4)
    # At inference the same, whatever the length of u: a generator's average has an average of several u.
    np.testing.assert_array_equal(layer.u, u)
    layer.u.assign(0.5 * u)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4)


def test_gradient_takes_the_singular_vectors_for_constants():
    kernel, u = normal(6, 4, dtype=np.float64), normal(4, seed=1, dtype=np.float64)
    upstream = normal(6, 4, seed=2, dtype=np.float64)
    with tf.GradientTape() as tape:
        tape.watch([kernel, u])
        normalized, following = divide_by_norm(kernel, u)
        value = tf.reduce_sum(normalized * upstream) + tf.reduce_sum(following)
    found, none = tape.gradient(value, [kernel, u])
    assert none is None
    w, u, upstream = kernel.numpy(), u.numpy(), upstream.numpy()
    v = w @ u / np.linalg.norm(w @ u)
    following = w.T @ v / np.linalg.norm(w.T @ v)
    sigma = v @ w @ following
    expected = upstream / sigma - np.sum(upstream * w) / sigma**2 * np.outer(v, following)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["resnet", "biggan"])
def test_a_training_pass_changes_nothing_and_observes_every_u(name):
    model = dataclasses.replace(TINY[name], attention=8)
    network = build(model, "discriminator")
    before = [variable.numpy() for variable in network.variables]
    made = make_pass()
    network(normal(2, 16, 16, 3), context=made)
    for variable, old in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(variable, old)
    observed = [update.variable.path for update in made.updates]
    assert sorted(observed) == sorted(variable.path for variable in network.non_trainable_variables)


# Layers against numpy


def test_enlarging_has_the_gradients_of_repeating():
    x, weights = normal(2, 3, 4, 5, dtype=np.float64), normal(2, 6, 8, 5, seed=1, dtype=np.float64)

    def derivatives(enlarge):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = enlarge(x)
                value = tf.reduce_sum(weights * y**3)
            first = inner.gradient(value, x)
            penalty = tf.reduce_sum(first**2)
        return y, first, outer.gradient(penalty, x)

    expected = derivatives(lambda x: tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2))
    for one, two in zip(derivatives(Upsample(dtype="float64")), expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)
    np.testing.assert_allclose(AveragePool(dtype="float64")(expected[0]), x, rtol=1e-12)


@pytest.mark.parametrize("name", ["resnet", "biggan"])
def test_cheaper_skips_are_the_papers(name):
    """The 1x1 convolution of a skip, before it enlarges or after it averages, gives the numbers of the paper's order."""
    for kind in ("generator", "discriminator"):
        block = next(b for b in layers_of(build(TINY[name], kind), Residual) if len(b.skip) == 2)
        kernel = next(layer for layer in block.skip if isinstance(layer, Conv))
        (resize,) = (layer for layer in block.skip if layer is not kernel)
        kernel.bias.assign(normal(kernel.units))
        x = normal(2, 8, 8, kernel.kernel.shape[2])
        orders = [kernel(resize(x)), resize(kernel(x))]
        np.testing.assert_allclose(*orders, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet", "biggan"])
def test_conditional_batch_norm(name):
    network = build(TINY[name], "generator", num_classes=3)
    layer = layers_of(network, ConditionalBatchNorm)[0]
    layer.gain.kernel.assign(normal(*layer.gain.kernel.shape, seed=1))
    layer.bias.kernel.assign(normal(*layer.bias.kernel.shape, seed=2))
    channels = layer.moving_mean.shape[0]
    x = 3 + 2 * normal(4, 5, 5, channels)
    labels = tf.constant([2, 0, 0, 1]) if name == "resnet" else normal(4, layer.gain.kernel.shape[0], seed=3)
    made = make_pass()
    found = layer(x, labels=labels, context=made)
    values = x.numpy().astype(np.float64)
    mean, variance = values.mean((0, 1, 2)), values.var((0, 1, 2))
    tables = [layer.gain.kernel.numpy(), layer.bias.kernel.numpy()]
    if name == "resnet":
        gain, bias = (table[labels.numpy()] for table in tables)
    else:
        gain, bias = (
            labels.numpy() @ divide_by_norm(tf.constant(table), part.u.value)[0].numpy()
            for table, part in zip(tables, (layer.gain, layer.bias), strict=True)
        )
    normalized = (values - mean) / np.sqrt(variance + 1e-4)
    np.testing.assert_allclose(found, normalized * (1 + gain[:, None, None]) + bias[:, None, None], atol=1e-4)
    statistics = {update.variable.path: update for update in made.updates if update.momentum}
    assert [update.momentum for update in statistics.values()] == [0.9, 0.9]
    np.testing.assert_allclose(statistics[layer.moving_mean.path].value, mean, rtol=1e-4)
    np.testing.assert_allclose(statistics[layer.moving_variance.path].value, variance, rtol=1e-4)


def test_new_classes_begin_alike_and_do_not_stay_so():
    network = build(TINY["resnet"], "generator", num_classes=2)
    latents = tf.repeat(normal(1, 12), 2, axis=0)
    images = network(latents, labels=tf.constant([0, 1])).numpy()
    np.testing.assert_array_equal(images[0], images[1])
    layer = layers_of(network, ConditionalBatchNorm)[0]
    layer.bias.kernel.assign(normal(*layer.bias.kernel.shape))
    images = network(latents, labels=tf.constant([0, 1])).numpy()
    assert not np.allclose(images[0], images[1], atol=1e-3)


def test_unconditional_networks_do_not_look_at_labels():
    for model in TINY.values():
        for kind, size in (("generator", (model.latent_size,)), ("discriminator", (16, 16, 3))):
            network = build(model, kind)
            x = normal(2, *size)
            np.testing.assert_array_equal(network(x), network(x, labels=tf.constant([1, 0])))
            assert not layers_of(network, Embedding)


def test_biggan_splits_the_latent():
    """A chunk beyond the first moves its block's norms alone, so that the map before it stays."""
    network = build(TINY["biggan"], "generator", num_classes=3)
    assert [norm.gain.kernel.shape[0] for norm in layers_of(network, ConditionalBatchNorm)] == [20 + 6] * 4
    assert network.get_layer("project").kernel.shape[0] == 20
    labels, latents = tf.constant([1]), normal(1, 60).numpy()
    before = network(latents, labels=labels).numpy()
    for chunk in range(3):
        moved = latents.copy()
        moved[:, 20 * chunk] += 1
        assert not np.allclose(network(moved, labels=labels), before, atol=1e-5)


def test_self_attention():
    layer = SelfAttention(Kernels(spectral=False))
    x = normal(2, 4, 6, 16)
    np.testing.assert_array_equal(layer(x), x)
    layer.gain.assign(0.7)
    theta, phi, g, out = (
        getattr(layer, name).kernel.numpy()[0, 0].astype(np.float64) for name in ("theta", "phi", "g", "out")
    )
    assert [kernel.shape for kernel in (theta, phi, g, out)] == [(16, 2), (16, 2), (16, 8), (8, 16)]
    values = x.numpy().astype(np.float64)

    def pooled(maps):
        return maps.reshape(2, 2, 2, 3, 2, -1).max((2, 4)).reshape(2, 6, -1)

    scores = (values @ theta).reshape(2, 24, -1) @ pooled(values @ phi).transpose(0, 2, 1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = values + 0.7 * (weights @ pooled(values @ g) @ out).reshape(values.shape)
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_heads(pool):
    x, labels = normal(3, 4, 4, 6), tf.constant([1, 0, 4])
    features = getattr(np.maximum(x.numpy(), 0), pool)((1, 2))
    projection = Head("projection", 5, Kernels(spectral=True), pool)
    found = projection(x, labels=labels)
    dense, table = (
        divide_by_norm(layer.kernel.value * 1, layer.u.value)[0].numpy()
        for layer in (projection.logit, projection.embedding)
    )
    expected = features @ dense + (features * table[labels.numpy()]).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    auxiliary = Head("auxiliary", 5, Kernels(spectral=False), pool)
    found = auxiliary(x, labels=labels)
    expected = [features @ auxiliary.logit.kernel.numpy(), features @ auxiliary.classifier.kernel.numpy()]
    np.testing.assert_allclose(found, np.concatenate(expected, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(auxiliary(x, labels=labels + 1), found)


# Whole networks


def penalty(network, images, labels, context=None):
    """The sum of the logits and their squared gradients, as a penalty on gradients would have it."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = network(images, labels=labels, context=context)
    return tf.reduce_sum(logits[:, 0]) + tf.reduce_sum(tape.gradient(logits, images) ** 2)


@pytest.mark.parametrize("head", ["projection", "auxiliary"])
@pytest.mark.parametrize("name", ["resnet", "biggan"])
def test_second_order_gradients_are_those_of_differences(name, head, policy):
    policy("float64")
    model = dataclasses.replace(TINY[name], head=head, attention=8)
    network = build(model, "discriminator", num_classes=3)
    layers_of(network, SelfAttention)[0].gain.assign(0.5)
    for layer in layers_of(network, (Conv, Dense, Embedding)):
        # Where u is the singular vector itself, to take it for a constant makes no difference.
        layer.u.assign(np.linalg.svd(layer.kernel.numpy().reshape(-1, layer.units))[2][0])
    images, labels = normal(2, 16, 16, 3, dtype=np.float64), tf.constant([0, 2])
    variables = [variable.value for variable in network.trainable_variables]
    with tf.GradientTape() as tape:
        value = penalty(network, images, labels)
    gradients = tape.gradient(value, variables)
    directions = [normal(*variable.shape, seed=seed, dtype=np.float64) for seed, variable in enumerate(variables)]
    slope = sum(
        tf.reduce_sum(gradient * direction)
        for gradient, direction in zip(gradients, directions, strict=True)
        if gradient is not None
    )
    step, values = 1e-6, []
    for sign in (1, -2):
        for variable, direction in zip(variables, directions, strict=True):
            variable.assign_add(sign * step * direction)
        values.append(penalty(network, images, labels))
    assert float(slope) == pytest.approx(float(values[0] - values[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("name", ["resnet", "biggan"])
def test_xla_gives_the_same(name, policy):
    policy("float64")  # In float32 rounding decides which way a ReLU or a maximum goes.
    model = dataclasses.replace(TINY[name], head="projection", attention=8)
    networks = {kind: build(model, kind, num_classes=3) for kind in ("generator", "discriminator")}
    for network in networks.values():
        layers_of(network, SelfAttention)[0].gain.assign(0.5)
    latents, labels = normal(4, model.latent_size, dtype=np.float64), tf.constant([0, 1, 2, 2])

    def work():
        made = {kind: make_pass() for kind in networks}
        with tf.GradientTape() as tape:
            images = networks["generator"](latents, labels=labels, context=made["generator"])
            value = penalty(networks["discriminator"], images, labels, made["discriminator"])
        variables = [variable.value for network in networks.values() for variable in network.trainable_variables]
        updates = [update.value for each in made.values() for update in each.updates]
        return images, value, tape.gradient(value, variables), updates

    plain, compiled = (tf.function(work, jit_compile=jit, autograph=False)() for jit in (False, True))
    for one, two in zip(tf.nest.flatten(plain), tf.nest.flatten(compiled), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-9 * max(1, np.abs(one).max()))


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16", "float64"])
@pytest.mark.parametrize("name", ["resnet", "biggan"])
def test_precisions(name, precision, policy):
    policy("float32")
    model = dataclasses.replace(TINY[name], head="projection", attention=8)
    x, labels = normal(4, model.latent_size), tf.constant([0, 1, 2, 2])
    outputs = []
    for each in ("float32", precision):
        policy(each)
        generator, discriminator = (build(model, kind, num_classes=3) for kind in ("generator", "discriminator"))
        dtype = keras.config.floatx()
        assert {variable.dtype for variable in generator.variables + discriminator.variables} == {dtype}
        with tf.GradientTape() as tape:
            images = generator(tf.cast(x, dtype), labels=labels, context=make_pass())
            value = penalty(discriminator, images, labels, make_pass())
        gradients = tape.gradient(value, [v.value for v in generator.trainable_variables])
        assert images.dtype == value.dtype == dtype
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        outputs.append(images.numpy())
    # A float64 network begins with other numbers.
    if precision != "float64":
        np.testing.assert_allclose(*outputs, atol=0.1)


def test_batch_norms_are_summed_under_names_of_their_own():
    names = []
    made = make_pass(total=lambda tensor, layer: names.append(layer) or tensor)
    for model in TINY.values():
        network = build(model, "generator")
        network(normal(2, model.latent_size), context=made)
        assert sorted(names) == sorted(layer.path for layer in layers_of(network, BatchNorm))
        assert len(set(names)) == len(names) == 5
        names.clear()


def test_the_table_has_them():
    for name, model in TINY.items():
        assert registry.resolve(MODELS, name) is type(model)
