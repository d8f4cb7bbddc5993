"""Sources that fit in memory: scikit-learn's digits, MNIST, CIFAR-10, an .npz file, and made-up images."""

from __future__ import annotations

import dataclasses
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from distgan import files, seeds
from distgan.config import DataConfig
from distgan.data.source import InMemory
from distgan.errors import UserError
from distgan.schema import option

log = logging.getLogger("distgan")

_DOWNLOAD_SECONDS = 30  # Without an answer for so long a download is given up.
_LOCK_SECONDS = 600  # Another process of this host may be downloading the same file.


@dataclasses.dataclass(frozen=True)
class Digits:
    """The 1,797 handwritten digits, 8x8 gray, that scikit-learn carries (UCI ML, Alpaydin and Kaynak 1998)."""

    native_shape: ClassVar = (8, 8, 1)

    def open(self, data: DataConfig) -> InMemory:
        return InMemory.of("digits", *_digits(), data)


@dataclasses.dataclass(frozen=True)
class Mnist:
    """MNIST's 60,000 training images, 28x28 gray; downloaded once, or --data.path names mnist.npz."""

    native_shape: ClassVar = (28, 28, 1)

    def open(self, data: DataConfig) -> InMemory:
        if data.path:
            images, labels = _npz("mnist", data.path, ("x_train", "y_train")).values()
        else:
            (images, labels), _ = _download("mnist", "mnist.npz", "mnist.npz")
        return InMemory.of("mnist", images, labels, data)


@dataclasses.dataclass(frozen=True)
class Cifar10:
    """CIFAR-10's 50,000 training images, 32x32 colour; downloaded once, or --data.path names an .npz with x_train, y_train."""

    native_shape: ClassVar = (32, 32, 3)

    def open(self, data: DataConfig) -> InMemory:
        if data.path:
            images, labels = _npz("cifar10", data.path, ("x_train", "y_train")).values()
        else:
            (images, labels), _ = _download("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py-target_archive")
        return InMemory.of("cifar10", images, labels.reshape(-1), data)


@dataclasses.dataclass(frozen=True)
class Npz:
    """--data.path names an .npz with `images` (uint8 [N,H,W] or [N,H,W,C]) and, optionally, `labels` (integers [N])."""

    def open(self, data: DataConfig) -> InMemory:
        if not data.path:
            raise UserError("--data.source=npz needs --data.path=FILE.npz")
        arrays = _npz("npz", data.path, ("images",), ("labels",))
        return InMemory.of(data.path, arrays["images"], arrays.get("labels"), data)


@dataclasses.dataclass(frozen=True)
class StackedDigits:
    """Three digits as the planes of a colour image, 1,000 modes: image i is stacked of draws keyed by i.

    As stacked MNIST (Srivastava et al. 2017, "VEEGAN"), of the digits that scikit-learn carries. The label is the number
    that the digits in red, green and blue make.
    """

    num_images: int = option(50000, "how many", minimum=1)

    def open(self, data: DataConfig) -> InMemory:
        images, labels = _digits()
        digits = InMemory.of("digits", images, labels, dataclasses.replace(data, channels=1)).images
        draws = seeds.bits(seeds.key(0, "stacked digits"), np.arange(3 * self.num_images)) % np.uint64(len(digits))
        chosen = draws.astype(np.int64).reshape(self.num_images, 3)
        stacked = np.concatenate([digits[chosen[:, plane]] for plane in range(3)], axis=-1)
        numbers = (labels[chosen] @ np.array([100, 10, 1])).astype(np.int32)
        made = InMemory.of("stacked_digits", stacked, numbers, data)
        return dataclasses.replace(made, labels=numbers, label_names=tuple(f"{number:03}" for number in range(1000)))


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 8, 8] and int64 [1797]."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """Blurred blobs, made up from the image's index: for trials of speed and scale."""

    num_images: int = option(1024, "how many", minimum=1)
    native_resolution: int = option(32, "side in pixels", minimum=4)
    channels: int = option(3, "colour planes", minimum=1, maximum=4)
    num_classes: int = option(10, "labels are the index modulo this; 0 is none", minimum=0)

    def open(self, data: DataConfig) -> InMemory:
        counters = np.arange(self.num_images * 4 * self.channels)
        draws = (seeds.bits(seeds.key(0, "synthetic"), counters) >> np.uint64(40)) / 2**24
        x, y, width, height = draws.reshape(4, self.num_images, 1, 1, self.channels).astype(np.float32)
        axis = (np.arange(self.native_resolution, dtype=np.float32) + 0.5) / self.native_resolution
        distance = (axis[:, None, None] - y) ** 2 + (axis[:, None] - x) ** 2
        images = (np.exp(-distance / (0.005 + 0.05 * width)) * (64 + 191 * height)).astype(np.uint8)
        labels = np.arange(self.num_images) % self.num_classes if self.num_classes else None
        return InMemory.of("synthetic", images, labels, data)


def _npz(name: str, path: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, the needed ones first; others are told of.

    Raises:
      UserError: it is none, or lacks one that is needed.
    """
    try:
        with files.open_regular(path) as file:
            arrays, names = files.read_npz(file, (*needed, *optional))
    except FileNotFoundError:
        raise UserError(f"--data.path={path} does not exist") from None
    except (OSError, files.Damaged) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"--data.path={path} is not a readable .npz file: {why}") from None
    missing = [each for each in needed if each not in arrays]
    if missing:
        there = ", ".join(names) or "nothing"
        raise UserError(f"--data.path={path} lacks {', '.join(missing)} for {name}; it has {there}")
    if others := sorted(set(names) - {*needed, *optional}) if optional else []:
        log.info("%s: passed over, beside images and labels: %s", path, ", ".join(others))
    return arrays


def _download(name: str, published: str, cached: str) -> Any:
    """keras.datasets' arrays, downloaded once per host; `cached` is the name by which Keras keeps the published file."""
    import keras
    from filelock import FileLock, Timeout
    from keras.src.backend.config import keras_home  # Where keras.datasets keeps files; it has no public name.

    load: Callable[[], Any] = getattr(keras.datasets, name).load_data
    folder = Path(keras_home()) / "datasets"
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_SECONDS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock", timeout=_LOCK_SECONDS):
            return load()
    except Timeout:
        raise UserError(f"{name}: another process has held {folder / name}.lock for {_LOCK_SECONDS} seconds") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{name} cannot be downloaded ({reason}); put {published} at {folder / cached}, or name an .npz by --data.path"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
