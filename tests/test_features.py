"""Extractors: what they give, that it depends on the image alone, and what they say of files that are missing or wrong."""

import dataclasses
import hashlib
import http.server
import io
import random
import subprocess
import sys
import tarfile
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.python.eager import context

from distgan import registry, schema
from distgan.config import DataConfig
from distgan.data.arrays import Digits, Synthetic
from distgan.data.pixels import BadImage
from distgan.data.source import InMemory
from distgan.errors import UserError
from distgan.evaluation import inception
from distgan.evaluation.applications import KerasApplication
from distgan.evaluation.classifier import Classifier
from distgan.evaluation.features import CHUNK, EXTRACTORS, Features, default_extractor, to_rgb
from distgan.evaluation.inception import Inception
from distgan.runtime.devices import set_precision

FEATURES, CLASSES = 2048, 7
RNG = np.random.default_rng(0)


def random_images(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


@pytest.fixture
def restored():
    yield
    set_precision("float32")


# The contract.


def test_channels():
    gray, alpha = np.full((1, 1, 1, 1), 100, np.uint8), np.full((1, 1, 1, 1), 51, np.uint8)
    colours = np.array([0, 100, 255], np.uint8).reshape(1, 1, 1, 3)
    assert to_rgb(gray).tolist() == [[[[100, 100, 100]]]]
    assert to_rgb(colours).tolist() == colours.tolist()
    # A fifth of the image's, four fifths of white.
    assert to_rgb(np.concatenate([gray, alpha], -1)).tolist() == [[[[224, 224, 224]]]]
    assert to_rgb(np.concatenate([colours, alpha], -1)).tolist() == [[[[204, 224, 255]]]]


def test_users_own(tmp_path):
    name = "parts:Averages"
    part = schema.choose(EXTRACTORS, name).options
    found = dataclasses.replace(part, bands=3).open(None, tmp_path)
    images = random_images(CHUNK + 3, 6, 5, 4)
    features, probabilities = found(images)
    assert features.shape == (CHUNK + 3, 9)
    assert features.dtype == np.float32
    assert probabilities is None
    np.testing.assert_allclose(features[-1, :3], to_rgb(images)[-1, :2].mean((0, 1)), rtol=1e-6)
    assert found(images[:0])[0].shape == (0, 9)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 5), np.uint8)]
)
def test_wrong_images(images, tmp_path):
    with pytest.raises(ValueError, match="images must be uint8"):
        registry.resolve(EXTRACTORS, "parts:Averages")().open(None, tmp_path)(images)


def test_a_network_that_gives_what_it_does_not_say():
    with pytest.raises(ValueError, match=r"wrong gave \[64, 1\], not \[64, 2\]"):
        Features("wrong", "", 2, 0, "none", lambda pixels: (np.zeros((CHUNK, 1)), None))(random_images(1, 2, 2, 1))


def test_devices_share_a_call():
    where, together = [], threading.Barrier(2)

    def chunk(pixels):
        together.wait(timeout=20)  # Until the other device works, too.
        where.append(context.context().device_name[-5:])
        return pixels[:, 0, 0, :1], None

    images = random_images(5 * CHUNK + 1, 2, 2, 1)
    features, _ = Features("", "", 1, 0, "none", chunk, ("CPU:0", "CPU:1"))(images)
    assert sorted(where) == ["CPU:0"] * 3 + ["CPU:1"] * 3
    np.testing.assert_array_equal(features[:, 0], images[:, 0, 0, 0])


def test_full_float32_within():
    seen = []

    def chunk(pixels):
        seen.append(tf.config.experimental.tensor_float_32_execution_enabled())
        return np.zeros((CHUNK, 1)), None

    before = tf.config.experimental.tensor_float_32_execution_enabled()
    Features("", "", 1, 0, "none", chunk)(random_images(1, 2, 2, 1))
    assert seen == [False]
    assert tf.config.experimental.tensor_float_32_execution_enabled() == before


def test_help_needs_no_tensorflow():
    code = (
        "import sys; from distgan import schema; from distgan.evaluation.features import EXTRACTORS\n"
        "for name in EXTRACTORS.parts: schema.choose(EXTRACTORS, name)\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_default():
    digits = Digits().open(DataConfig())
    assert default_extractor(digits) == "classifier"
    assert default_extractor(dataclasses.replace(digits, labels=None)) == "inception"
    assert default_extractor(Synthetic(num_images=1).open(DataConfig(resolution=128))) == "inception"


def same_whatever_the_batch(features, images):
    """The bits of every image's features, and the probabilities, in calls of other sizes."""
    whole, likely = features(images)
    for size in (1, 3, CHUNK, CHUNK + 1):
        found, those = features(images[:size])
        np.testing.assert_array_equal(found, whole[:size])
        if likely is not None:
            np.testing.assert_array_equal(those, likely[:size])
    np.testing.assert_allclose(features(images[::-1])[0], whole[::-1], rtol=1e-5, atol=1e-5)
    return whole, likely


# Inception.


@pytest.fixture(scope="module")
def weights():
    draw = np.random.default_rng(1)
    return {
        "kernel": draw.normal(size=(8, 8, 3, FEATURES)).astype(np.float32) / 14,
        "mean": draw.normal(size=FEATURES).astype(np.float32),
        "variance": draw.uniform(1, 2, FEATURES).astype(np.float32),
        "beta": draw.normal(size=FEATURES).astype(np.float32),
        "gamma": draw.uniform(1, 2, FEATURES).astype(np.float32),
        "softmax": draw.normal(size=(FEATURES, CLASSES)).astype(np.float32) / 45,
    }


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "scaled"])
def graph(request, weights):
    """A frozen graph with the names of Inception's, its batches of 1, its way of resizing and its batch norm."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as built:
        pixels = v1.placeholder(tf.uint8, [None, None, 3], "DecodeJpeg")
        image = tf.expand_dims(tf.cast(pixels, tf.float32), 0, name="ExpandDims")
        resized = v1.image.resize_bilinear(image, [299, 299], name="ResizeBilinear")
        x = tf.multiply(tf.subtract(resized, 128.0, name="Sub"), 1 / 128, name="Mul")
        x = tf.nn.conv2d(x, tf.constant(weights["kernel"]), 37, "VALID", name="conv")
        for name in ("mean", "variance", "beta", "gamma"):
            tf.constant(weights[name], name=f"batchnorm/{name}")
        x = tf.nn.relu(tf.identity(x, name="batchnorm"))
        pool = tf.nn.avg_pool2d(x, 8, 1, "VALID", name="pool_3")
        flat = tf.reshape(pool, tf.constant([1, FEATURES]), name="pool_3/_reshape")
        logits = tf.matmul(flat, tf.constant(weights["softmax"]), name="softmax/logits/MatMul")
        tf.nn.softmax(logits + 1.0, name="softmax")
    found = built.as_graph_def(add_shapes=True)
    norm = next(node for node in found.node if node.name == "batchnorm")
    norm.op = "BatchNormWithGlobalNormalization"
    norm.input.extend(f"batchnorm/{name}" for name in ("mean", "variance", "beta", "gamma"))
    norm.attr["variance_epsilon"].f, norm.attr["scale_after_normalization"].b = 0.001, request.param
    found.versions.producer = 8
    return request.param, found.SerializeToString()


def expected(weights, scaled, resized):
    """In float64, of images [N, 299, 299, 3] in [0, 255]."""
    x = (resized.astype(np.float64) - 128) / 128
    patches = np.lib.stride_tricks.sliding_window_view(x, (8, 8), axis=(1, 2))[:, ::37, ::37]
    x = np.einsum("nhwcij,ijcd->nhwd", patches, weights["kernel"].astype(np.float64), optimize=True)
    x = (x - weights["mean"]) / np.sqrt(weights["variance"] + 0.001)
    x = np.maximum(x * (weights["gamma"] if scaled else 1) + weights["beta"], 0)
    features = x.mean((1, 2))
    powers = np.exp(features @ weights["softmax"].astype(np.float64))
    return features, powers / powers.sum(1, keepdims=True)


def bilinear(image):
    """TensorFlow 1's: place i of 299 is at i * size / 299, between the pixels before and after it."""
    for axis in (0, 1):
        size = image.shape[axis]
        place = np.arange(299) * (size / 299)
        before = place.astype(int)
        part = (place - before).reshape([-1 if each == axis else 1 for each in range(3)])
        after = np.minimum(before + 1, size - 1)
        image = image.take(before, axis) * (1 - part) + image.take(after, axis) * part
    return image


def bicubic(image):
    planes = [Image.fromarray(np.float32(image[..., c])).resize((299, 299), Image.Resampling.BICUBIC) for c in range(3)]
    return np.clip(np.stack(planes, -1), 0, 255)


@pytest.mark.parametrize(("mode", "resize"), [("tensorflow", bilinear), ("clean", bicubic)])
def test_inception(mode, resize, graph, weights, tmp_path):
    scaled, data = graph
    path = tmp_path / "graph.pb"
    path.write_bytes(data)
    found = Inception(inception_path=str(path), resize=mode).open(None, tmp_path)
    assert (found.size, found.num_classes, found.resize) == (FEATURES, CLASSES, mode)
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    for shape in ((3, 20, 33, 3), (1, 310, 320, 1)):
        images = random_images(*shape)
        resized = np.stack([resize(image.astype(np.float64)) for image in to_rgb(images)])
        for value, wanted in zip(found(images), expected(weights, scaled, resized), strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)


def test_inception_whatever_the_batch(graph, tmp_path):
    path = tmp_path / "graph.pb"
    path.write_bytes(graph[1])
    same_whatever_the_batch(Inception(inception_path=str(path)).open(None, tmp_path), random_images(CHUNK + 2, 8, 8, 3))


def archive_of(data, name="classify_image_graph_def.pb"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def served(graph, monkeypatch):
    """The archive of the graph, at an address of this machine; how often it was asked for."""
    data, asked = archive_of(graph[1], "./classify_image_graph_def.pb"), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    monkeypatch.setattr(inception, "_URL", f"http://127.0.0.1:{server.server_port}/inception.tgz")
    monkeypatch.setattr(inception, "_ARCHIVE_BYTES", len(data))
    yield asked
    server.shutdown()
    server.server_close()


def test_downloaded_once_and_noted(served, graph, tmp_path):
    cache, archive = tmp_path / "new" / "cache", "inception-2015-12-05.tgz"
    for _ in range(2):
        assert Inception().open(None, cache).sha256 == hashlib.sha256(graph[1]).hexdigest()
    assert len(served) == 1
    assert (cache / f"{archive}.sha256").read_text().startswith(hashlib.sha256(graph[1]).hexdigest())
    assert not list(cache.glob("*.tmp"))
    # Another graph in its place is refused, and said in a line.
    other = tf.compat.v1.GraphDef.FromString(graph[1])
    other.node.add(name="more", op="NoOp")
    (cache / archive).write_bytes(archive_of(other.SerializeToString()))
    with pytest.raises(
        UserError, match=r"not what was used first: its graph has SHA-256 \w{12}, not \w{12}; remove .*sha256"
    ):
        Inception(inception_path=str(cache / archive)).open(None, cache)
    # So is one of another size, before it is read.
    (cache / archive).write_bytes(b"cut")
    with pytest.raises(UserError, match="has 3 bytes, not"):
        Inception().open(None, cache)


def test_wrong_download(served, monkeypatch, tmp_path):
    monkeypatch.setattr(inception, "_ARCHIVE_BYTES", 17)
    with pytest.raises(UserError, match="bytes came, not 17"):
        Inception().open(None, tmp_path)
    assert not list(tmp_path.glob("*.tgz"))


def test_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(inception, "_URL", "http://127.0.0.1:9/inception.tgz")
    with pytest.raises(
        UserError, match=r"cannot be downloaded \(.*\): put it at .*tgz, or name it by --evaluation"
    ) as raised:
        Inception().open(None, tmp_path)
    assert "\n" not in str(raised.value)


def wrong_files(data):
    graph = tf.compat.v1.GraphDef.FromString(data)
    kept = [node for node in graph.node if node.name != "pool_3"]
    del graph.node[:]
    graph.node.extend(kept)
    foreign = graph.SerializeToString()
    next(node for node in kept if node.name == "pool_3/_reshape").name = "pool_3"
    graph = tf.compat.v1.GraphDef(node=kept)
    return {
        "missing": (None, "cannot be read"),
        "text": (b"not a graph at all", "is not classify_image_graph_def.pb"),
        "empty": (b"", "lacks ExpandDims, pool_3, softmax/logits/MatMul"),
        "foreign": (foreign, "lacks pool_3"),
        "unlike": (graph.SerializeToString(), "is not the Inception graph"),
        "cut": (archive_of(data)[:-1000], "cannot be read"),
        "archive": (archive_of(data, "other.pb"), "lacks classify_image_graph_def.pb"),
    }


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "foreign", "unlike", "cut", "archive"])
def test_wrong_graph(kind, graph, tmp_path):
    data, words = wrong_files(graph[1])[kind]
    path = tmp_path / "graph"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=words) as raised:
        Inception(inception_path=str(path)).open(None, tmp_path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)
    assert not list(tmp_path.glob("*.sha256"))


# The classifier.


@pytest.fixture(scope="module")
def digits():
    return Digits().open(DataConfig(resolution=16))


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """On nine tenths of the digits; the images are those it has not seen."""
    tenth = np.arange(digits.num_images) % 10 == 0
    seen = InMemory("digits", digits.images[~tenth], digits.labels[~tenth])
    return Classifier().open(seen, tmp_path_factory.mktemp("cache")), digits.images[tenth], digits.labels[tenth]


def test_classifier(trained):
    features, images, labels = trained
    found, likely = same_whatever_the_batch(features, images)
    assert found.shape == (180, 64)
    assert (features.size, features.num_classes, features.resize) == (64, 10, "lanczos to 16x16")
    np.testing.assert_allclose(likely.sum(1), 1, rtol=1e-5)
    assert np.mean(likely.argmax(1) == labels) > 0.97
    assert (found.std(0) > 1e-3).all()  # None is dead.


def test_other_sizes(trained):
    features, images, _ = trained
    assert features(images[:2, :10, :12])[0].shape == (2, 64)
    np.testing.assert_array_equal(features(images.repeat(3, axis=-1))[0], features(images)[0])


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "float64"])
def test_trained_alike(precision, digits, restored, tmp_path):
    """Whatever the state of Keras and of generators, which it leaves alone."""
    plain = Classifier(classifier_kimg=1).open(digits, tmp_path / "first")
    set_precision(precision)
    tf.random.set_seed(5)
    random.seed(5)
    wanted = tf.random.uniform([2]).numpy(), random.random(), np.random.get_state()[1].tolist()
    tf.random.set_seed(5)
    random.seed(5)
    again = Classifier(classifier_kimg=1).open(digits, tmp_path / "second")
    assert again.sha256 == plain.sha256
    np.testing.assert_array_equal(again(digits.images[:5])[0], plain(digits.images[:5])[0])
    assert keras.config.dtype_policy().name == precision
    np.testing.assert_array_equal(tf.random.uniform([2]).numpy(), wanted[0])
    assert (random.random(), np.random.get_state()[1].tolist()) == wanted[1:]


def test_kept(digits, tmp_path, monkeypatch):
    part = Classifier(classifier_kimg=0.1)
    first = part.open(digits, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    written = file.stat().st_mtime_ns
    assert part.open(digits, tmp_path).sha256 == first.sha256
    assert file.stat().st_mtime_ns == written
    # Other options and other data have a file of their own; a damaged one is made anew.
    others = InMemory("digits", digits.images, digits.labels[::-1].copy())
    assert (
        len(
            {
                first.sha256,
                Classifier(classifier_kimg=0.2).open(digits, tmp_path).sha256,
                part.open(others, tmp_path).sha256,
            }
        )
        == 3
    )
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    file.write_bytes(file.read_bytes()[:-5])
    assert part.open(digits, tmp_path).sha256 == first.sha256


def test_one_of_several_processes_trains(tmp_path):
    code = (
        "import sys, pathlib\nfrom distgan.config import DataConfig\nfrom distgan.data.arrays import Digits\n"
        "from distgan.evaluation import classifier\n"
        "train = classifier._train\n"
        "classifier._train = lambda *those: print('trains', flush=True) or train(*those)\n"
        "images = Digits().open(DataConfig(resolution=8))\n"
        "print(classifier.Classifier(classifier_kimg=1).open(images, pathlib.Path(sys.argv[1])).sha256)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0].split() for process in processes]
    assert sum("trains" in words for words in said) == 1
    assert said[0][-1] == said[1][-1]


def test_unreadable_images_are_left_out(tmp_path):
    class Holes(InMemory):
        def read(self, indices):
            if (indices % 50 == 7).any():
                raise BadImage("hole")
            return super().read(indices)

    images = Synthetic(num_images=120, native_resolution=8).open(DataConfig())
    indices = np.arange(120)
    pixels, labels = images.read(indices)
    holes = Holes("holes", pixels, labels)
    assert Classifier(classifier_kimg=0.1).open(holes, tmp_path).num_classes == 10


@pytest.mark.parametrize("images", [None, InMemory("plain", random_images(4, 8, 8, 3), None)])
def test_labels_are_needed(images, tmp_path):
    with pytest.raises(UserError, match="learns from labels of two classes or more, and .* has none: use inception"):
        Classifier().open(images, tmp_path)


def test_unwritable_cache(digits, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(.*\): choose another --data.cache_dir"):
        Classifier().open(digits, tmp_path / "file" / "cache")


# Keras' applications.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Weights of a small network, with and without its classes; its features and probabilities of an image."""
    folder = tmp_path_factory.mktemp("weights")
    whole = keras.applications.MobileNet(weights=None)
    # He et al.'s scale: with Keras' own the features would be around 1e-19.
    shapes = [weight.shape for weight in whole.get_weights()]
    fans = [shape[0] * shape[1] * (1 if shape[-1] == 1 else shape[2]) if len(shape) == 4 else 0 for shape in shapes]
    whole.set_weights(
        [
            RNG.normal(size=weight.shape) * np.sqrt(2 / fan) if fan else weight
            for weight, fan in zip(whole.get_weights(), fans, strict=True)
        ]
    )
    whole.save(folder / "whole.keras")
    whole.save_weights(folder / "whole.weights.h5")
    headless = keras.applications.MobileNet(weights=None, include_top=False, pooling="avg", input_shape=(224, 224, 3))
    headless.set_weights(whole.get_weights()[: len(headless.get_weights())])
    headless.save_weights(folder / "headless.weights.h5")
    images = random_images(1, 224, 224, 3)
    pixels = keras.applications.mobilenet.preprocess_input(images.astype(np.float32))
    return folder, images, headless(pixels, training=False).numpy(), whole(pixels, training=False).numpy()


@pytest.mark.parametrize("file", ["whole.keras", "whole.weights.h5", "headless.weights.h5"])
def test_keras(file, saved, restored, tmp_path):
    folder, images, features, probabilities = saved
    set_precision("mixed_bfloat16")
    found = KerasApplication("MobileNet", str(folder / file)).open(None, tmp_path)
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert (found.size, found.num_classes) == (1024, 0 if "headless" in file else 1000)
    assert found.resize == "bilinear with antialias to 224x224"
    those, likely = found(images)
    np.testing.assert_allclose(those, features, rtol=1e-3, atol=1e-4 * features.std())
    if likely is not None:
        np.testing.assert_allclose(likely, probabilities, rtol=1e-3, atol=1e-4 * probabilities.std())


@pytest.mark.parametrize(
    ("model", "file", "words"),
    [
        ("MobileNet", "", "needs --evaluation.keras_weights=FILE"),
        ("MobileNet", "nothing.keras", "cannot be read: No such file"),
        ("MobilNet", "whole.keras", "is not in keras.applications; did you mean 'MobileNet'?"),
        ("MobileNetV2", "whole.weights.h5", "does not fit MobileNetV2"),
    ],
)
def test_wrong_keras(model, file, words, saved, tmp_path):
    weights = str(saved[0] / file) if file else ""
    with pytest.raises(UserError) as raised:
        KerasApplication(model, weights).open(None, tmp_path)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
