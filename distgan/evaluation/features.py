"""The contract of an extractor: images to the features that scores compare.

An extractor part is a frozen dataclass of options with a method `open(images, cache_dir)` that returns `Features`. To add one,
write the dataclass and a line in `EXTRACTORS`; your own is named `my_package.my_module:MyExtractor`. (A name cannot carry an
option, as `keras:ResNet50` would: names with a colon are such paths. It is `--evaluation.keras_model=ResNet50`.)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distgan import files
from distgan.data.source import Images
from distgan.errors import UserError
from distgan.registry import Table
from distgan.schema import choose, option

EXTRACTORS = Table(
    "extractor",
    {
        "auto": "distgan.evaluation.features:Auto",
        "inception": "distgan.evaluation.inception:Inception",
        "classifier": "distgan.evaluation.classifier:Classifier",
        "keras": "distgan.evaluation.applications:KerasApplication",
    },
    offers=("open",),
)

CHUNK = 64
"""Images that a network sees at once, always: so the number of images in a call changes no rounding."""
_SMALL_PIXELS = 64  # The side up to which images are small.
_LOCK_SECONDS = 1800  # Another process of this host may be training or downloading the same file.


class Extractor(Protocol):
    """A chosen extractor with its options."""

    def open(self, images: Images | None, cache_dir: Path) -> Features:
        """The features; `images` are the run's real images, which some learn from, and files are kept in `cache_dir`.

        Raises:
          UserError: what is missing or wrong with a file, or with the images.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Auto:
    """`classifier` for small images with labels, otherwise `inception`; see `default_extractor`."""

    inception_path: str = option("", "inception-2015-12-05.tgz or its .pb, where it is taken", may_change=True)
    resize: str = option(
        "tensorflow", "of inception, where it is taken", choices=("tensorflow", "clean"), may_change=True
    )

    def open(self, images: Images, cache_dir: Path) -> Features:
        options = choose(EXTRACTORS, default_extractor(images)).options
        own = {name: value for name, value in vars(self).items() if hasattr(options, name)}
        return dataclasses.replace(options, **own).open(images, cache_dir)


@dataclasses.dataclass(frozen=True)
class Features:
    """An open extractor. What is said of it here goes into a score's protocol, so that unlike scores are never compared."""

    name: str
    """Of the network."""
    sha256: str
    """Of the network's file or weights."""
    size: int
    """D: features of an image."""
    num_classes: int
    """K: classes that it gives probabilities of; 0 where it gives none."""
    resize: str
    """How images come to the network's size."""
    chunk: Callable[[np.ndarray], tuple[Any, Any]]
    """The network, on RGB images uint8 [CHUNK, H, W, 3]: features [CHUNK, D], probabilities [CHUNK, K] (or None).

    Where there are several devices it is called from a thread for each."""
    devices: Sequence[str] = ("",)
    """TensorFlow's names of those that share a call's chunks; the empty one is where TensorFlow puts it."""

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Features float32 [N, D] and class probabilities float32 [N, K] (or None) of images uint8 [N, H, W, 1 to 4].

        Gray is repeated, and what is transparent is laid on white. An image's features do not depend on the others of its
        call: the network works on `CHUNK` images at a time, the last of which may be blank.

        Raises:
          ValueError: images of another dtype or shape, or a network that gives another number of values than it says.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or not 1 <= images.shape[-1] <= 4:
            raise ValueError(f"images must be uint8 [N, H, W, 1 to 4], not {images.dtype} {list(images.shape)}")
        features = np.empty((len(images), self.size), np.float32)
        probabilities = np.empty((len(images), self.num_classes), np.float32) if self.num_classes else None

        def on_device(device: int) -> None:
            import tensorflow as tf

            with tf.device(self.devices[device]):
                for first in range(device * CHUNK, len(images), len(self.devices) * CHUNK):
                    part = to_rgb(images[first : first + CHUNK])
                    whole = np.zeros((CHUNK, *part.shape[1:]), np.uint8)
                    whole[: len(part)] = part
                    for values, found in zip((features, probabilities), self.chunk(whole), strict=True):
                        if values is not None:
                            values[first : first + CHUNK] = self._checked(found, values.shape[1])[: len(part)]

        with _full_float32(), ThreadPoolExecutor(len(self.devices)) as pool:
            list(pool.map(on_device, range(len(self.devices))))
        return features, probabilities

    def _checked(self, found: Any, size: int) -> np.ndarray:
        values = np.asarray(found)
        if values.shape != (CHUNK, size):
            raise ValueError(f"{self.name} gave {list(values.shape)}, not {[CHUNK, size]}")
        return values


def default_extractor(images: Images) -> str:
    """The extractor for images when none is asked for: `classifier` for small ones with labels, otherwise `inception`.

    Small is a side of at most 64 pixels. There a classifier of the very data needs no download and tells its classes apart
    better than ImageNet's; but scores that shall be compared with published ones need `inception`.
    """
    return "classifier" if images.num_classes > 1 and max(images.shape[:2]) <= _SMALL_PIXELS else "inception"


def to_rgb(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 1 to 4] -> uint8 [N, H, W, 3]: gray repeated, and what is transparent laid on white, as people see it."""
    colours, alpha = (images, None) if images.shape[-1] % 2 else (images[..., :-1], images[..., -1:].astype(np.uint16))
    if alpha is not None:
        colours = ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.broadcast_to(colours, (*images.shape[:3], 3))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock on a file of the cache, so that of several processes one makes it.

    Raises:
      UserError: the folder cannot be written, or another process holds the lock for too long.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(path.name + ".lock"), timeout=_LOCK_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"another process has held {lock.lock_file} for {_LOCK_SECONDS} seconds") from None
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        yield
    finally:
        lock.release()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there only when it is whole.

    Raises:
      UserError: it cannot be written.
    """
    try:
        files.write_whole(path, data)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written ({error.strerror}): choose another --data.cache_dir")


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Without TensorFloat-32, whose 10 bits would make scores depend on the GPU."""
    import tensorflow as tf

    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
