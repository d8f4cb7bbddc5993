"""The Inception network of FID, KID and IS as published: the frozen graph of 2015-12-05 (Szegedy et al. 2016, ImageNet).

Heusel et al. 2017 (TTUR) took its pool_3 for FID, Salimans et al. 2016 its softmax for IS. Inception networks of other
packages have other weights and another last block: their scores are not comparable.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tarfile
import time
import urllib.request
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from distgan.data.source import Images
from distgan.errors import UserError
from distgan.evaluation.features import Features, locked, write_whole
from distgan.schema import option
from distgan.tracking.console import log

_URL = "https://storage.googleapis.com/download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz"
_ARCHIVE_BYTES = 88_931_400
_GRAPH = "classify_image_graph_def.pb"
_SIDE = 299
_SILENCE_SECONDS = 30  # Without an answer for so long a download is given up,
_DOWNLOAD_SECONDS = 1200  # and after so long in any case.
_BLOCK_BYTES = 2**20
# Where images enter: as they are, before the graph's own resizing; or resized and in [-1, 1).
_ENTRIES = {"tensorflow": "ExpandDims", "clean": "Mul"}
_FEATURES, _LOGITS = "pool_3", "softmax/logits/MatMul"


@dataclasses.dataclass(frozen=True)
class Inception:
    """The Inception network of 2015-12-05, with 2,048 features and 1,008 classes; downloaded once (89 MB), or a file of yours.

    Class probabilities leave out the last layer's bias, as scores by this graph do.
    """

    inception_path: str = option(
        "", "inception-2015-12-05.tgz or its .pb; by default in the cache, downloaded once", may_change=True
    )
    resize: str = option(
        "tensorflow",
        "to 299x299, by the graph's own bilinear filter without antialias (as FID's authors), or by Pillow's bicubic (clean-fid)",
        choices=("tensorflow", "clean"),
    )

    def open(self, images: Images | None, cache_dir: Path) -> Features:
        path = Path(self.inception_path) if self.inception_path else _cached(cache_dir / "inception-2015-12-05.tgz")
        data = _graph_bytes(path)
        sha256 = hashlib.sha256(data).hexdigest()
        # Nobody publishes a checksum; so the first graph that works is noted, and another one refused.
        pin = path.with_name(path.name + ".sha256")
        known = pin.read_text().partition(" ")[0].strip() if pin.exists() else sha256
        if sha256 != known:
            raise UserError(
                f"{path} is not what was used first: its graph has SHA-256 {sha256[:12]}, not {known[:12]}; remove {pin} if "
                "that is meant"
            )
        network, size, num_classes = _network(path, data, _ENTRIES[self.resize])
        if not pin.exists():
            try:
                write_whole(pin, f"{sha256}  {_GRAPH}\n".encode())
            except UserError:
                log.warning("%s cannot be written; SHA-256 of the graph is %s", pin, sha256)

        def chunk(pixels: np.ndarray) -> tuple[Any, Any]:
            return network(resize_clean(pixels) if self.resize == "clean" else pixels.astype(np.float32))

        return Features("inception-2015-12-05", sha256, size, num_classes, self.resize, chunk)


def resize_clean(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C] -> float32 [N, 299, 299, C] in [-1, 1): bicubic with antialias, not rounded to levels.

    Parmar et al. 2022, "On aliased resizing and surprising subtleties in GAN evaluation": each channel by Pillow in floats,
    clipped to [0, 255]; then (x - 128) / 128 as in the graph.
    """
    resized = np.empty((len(images), _SIDE, _SIDE, images.shape[-1]), np.float32)

    def one(number: int) -> None:
        for channel in range(images.shape[-1]):
            plane = Image.fromarray(images[number, :, :, channel].astype(np.float32))
            resized[number, :, :, channel] = np.asarray(plane.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(len(images))))
    return (resized.clip(0, 255) - 128) / 128


def _cached(path: Path) -> Path:
    """The archive in the cache, downloaded if it is not there."""
    if not path.exists():
        with locked(path):
            if not path.exists():
                _download(path)
    if path.stat().st_size != _ARCHIVE_BYTES:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes, not {_ARCHIVE_BYTES:,}: remove it to download it anew, or name another "
            "by --evaluation.inception_path"
        )
    return path


def _download(path: Path) -> None:
    log.info("downloading %s", _URL)
    try:
        deadline, blocks = time.monotonic() + _DOWNLOAD_SECONDS, []
        with urllib.request.urlopen(_URL, timeout=_SILENCE_SECONDS) as answer:  # noqa: S310 - the address is a constant
            while block := answer.read(_BLOCK_BYTES):
                blocks.append(block)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no end after {_DOWNLOAD_SECONDS} seconds")
        data = b"".join(blocks)
        if len(data) != _ARCHIVE_BYTES:
            raise OSError(f"{len(data):,} bytes came, not {_ARCHIVE_BYTES:,}")
    except OSError as error:
        raise UserError(
            f"{_URL} cannot be downloaded ({error}): put it at {path}, or name it by --evaluation.inception_path"
        ) from None
    write_whole(path, data)


def _graph_bytes(path: Path) -> bytes:
    """The serialized graph, out of the archive or as it is."""
    try:
        if not tarfile.is_tarfile(path):
            return path.read_bytes()
        with tarfile.open(path) as archive:
            member = next((each for each in archive if PurePosixPath(each.name).name == _GRAPH), None)
            file = archive.extractfile(member) if member else None
            if file is None:
                raise UserError(f"{path} lacks {_GRAPH}")
            return file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _network(path: Path, data: bytes, entry: str) -> tuple[Callable[[np.ndarray], tuple[Any, Any]], int, int]:
    """The graph from `entry` on, float32 [N, H, W, 3] -> features and probabilities; D and K."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(data)
    except DecodeError:
        raise UserError(f"{path} is not {_GRAPH}, nor an archive with it") from None
    missing = [name for name in (entry, _FEATURES, _LOGITS) if name not in {node.name for node in graph.node}]
    if missing:
        raise UserError(f"{path} is not the Inception graph: it lacks {', '.join(missing)}")
    _modernize(graph)

    def run(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Taking the place of `entry`, the images bring their own batch size; what fixes it to 1 (pool_3/_reshape) is not used.
        pool, logits = tf.graph_util.import_graph_def(
            graph, input_map={f"{entry}:0": images}, return_elements=[f"{_FEATURES}:0", _LOGITS], name=""
        )
        features = tf.squeeze(pool, [1, 2])
        return features, tf.nn.softmax(tf.matmul(features, logits.inputs[1]))

    try:
        function = tf.compat.v1.wrap_function(run, [tf.TensorSpec([None, None, None, 3], tf.float32)])
    except (ValueError, IndexError, tf.errors.OpError) as error:
        raise UserError(f"{path} is not the Inception graph: {str(error).splitlines()[0]}") from None
    features, probabilities = function.outputs
    return function, features.shape[1], probabilities.shape[1]


def _modernize(graph: Any) -> None:
    """Makes a graph of 2015 (a GraphDef, in place) one that runs in a function of today."""
    for node in list(graph.node):
        if node.op == "BatchNormWithGlobalNormalization":  # Functions refuse it: it was removed in version 9.
            images, mean, variance, beta, gamma = node.input
            if not node.attr["scale_after_normalization"].b:  # It has a gamma that it does not use.
                gamma = f"{node.name}/ones"
                graph.node.add(name=gamma, op="OnesLike", input=[variance]).attr["T"].CopyFrom(node.attr["T"])
            kind, epsilon = node.attr["T"].type, node.attr["variance_epsilon"].f
            node.op, node.input[:] = "FusedBatchNormV3", [images, gamma, beta, mean, variance]
            node.attr.clear()
            node.attr["T"].type = node.attr["U"].type = kind
            node.attr["epsilon"].f, node.attr["is_training"].b = epsilon, False
