"""The contract of a source: images by index.

A source part is a frozen dataclass with a method `open(data)` that returns an `Images`. To add one, write the dataclass and
a line in `distgan.data.SOURCES`; your own is named `my_package.my_module:MySource`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from distgan.config import DataConfig
from distgan.data.pixels import BadImage, decode, plain, square
from distgan.errors import UserError

log = logging.getLogger("distgan")

_BYTES_PER_CALL = 2**18
_LOOKS = 100  # At how many images to look for one that can be read.


class Images(Protocol):
    """An open data set with random access. One of encoded images can have `looks_plain` and `encoded` too, as `Encoded` has."""

    name: str
    """For messages."""
    num_images: int
    shape: tuple[int, int, int]
    """(H, W, C) of every image, 1 <= C <= 4."""
    num_classes: int
    """0 where there are no labels."""
    label_names: Sequence[str]
    """Of the classes; empty where they have none."""
    label_counts: np.ndarray
    """Images of each class: int64 [K]."""
    fingerprint: str
    """Identifies the pixels and labels: equal for equal data, wherever it lies."""
    images_per_call: int
    """How many images `read` is best asked for at once, from several threads."""

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A new array of images, uint8 [N, H, W, C], and labels, int32 [N] (zeros where there are none), at int64 [N] indices.

        Raises:
          BadImage: one of them cannot be read; names it.
        """
        ...


def readable(images: Images, indices: np.ndarray, on_error: str = "skip") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, labels and indices (int64 [M]) of those of the images that can be read; the log names the others.

    Raises:
      BadImage: one cannot be read, and `on_error` is `fail`.
    """
    if not len(indices):
        return np.zeros((0, *images.shape), np.uint8), np.zeros(0, np.int32), indices
    try:
        return *images.read(indices), indices
    except BadImage as bad:
        if on_error == "fail":
            raise
        if len(indices) == 1:
            log.warning("left out: %s", bad)
            return readable(images, indices[:0])
    halves = [readable(images, half) for half in np.array_split(indices, 2)]
    pixels, labels, those = (np.concatenate(parts) for parts in zip(*halves, strict=True))
    return pixels, labels, those


@dataclasses.dataclass(frozen=True)
class Description:
    """What networks and samples need to know of images; a checkpoint holds it."""

    image_shape: tuple[int, int, int]
    """(H, W, C)."""
    label_counts: tuple[int, ...]
    """Images of each class; empty where there are no labels."""
    label_names: tuple[str, ...]
    """Of the classes; empty where they have none."""

    @classmethod
    def of(cls, images: Images) -> Description:
        """That of an open data set."""
        return cls(images.shape, tuple(images.label_counts.tolist()), tuple(images.label_names))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Description:
        """That of a checkpoint: `dataclasses.asdict` once it went through JSON."""
        height, width, channels = values["image_shape"]
        # Checkpoints from before there were conditional networks hold the shape alone.
        counts, names = values.get("label_counts", ()), values.get("label_names", ())
        return cls((height, width, channels), tuple(counts), tuple(names))

    def label_name(self, label: int) -> str:
        """A class' name, or its number."""
        return self.label_names[label] if label < len(self.label_names) else str(label)


class Source(Protocol):
    """A chosen source with its options."""

    def open(self, data: DataConfig) -> Images:
        """Opens the images at `data.path`, as squares of `data.resolution` (0: as they are).

        Raises:
          UserError: what is missing or wrong with the data.
        """
        ...


@dataclasses.dataclass(frozen=True)
class InMemory:
    """Images that lie in memory as one array."""

    name: str
    images: np.ndarray
    """uint8 [N, H, W, C]."""
    labels: np.ndarray | None
    """int32 [N], or None."""
    label_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, images: np.ndarray, labels: np.ndarray | None, fit: DataConfig) -> InMemory:
        """Checks arrays, and makes squares of them: uint8 [N, H, W] or [N, H, W, C], integer [N].

        Raises:
          UserError: a wrong dtype or shape, or no image.
        """
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise UserError(
                f"{name}: images must be uint8 [N,H,W] or [N,H,W,C], not {images.dtype} {list(images.shape)}"
            )
        if not len(images):
            raise UserError(f"{name}: holds no image")
        images = images.reshape(*images.shape[:3], -1)
        count, height, width, channels = images.shape
        if not (height and width and 1 <= channels <= 4):
            raise UserError(f"{name}: images must have 1 to 4 channels, not {height}x{width}x{channels}")
        if labels is not None:
            if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (count,) or labels.min() < 0:
                raise UserError(
                    f"{name}: labels must be integers [{count}] from 0, not {labels.dtype} {list(labels.shape)}"
                )
            labels = labels.astype(np.int32)
        if height != width or fit.resolution not in (0, height):
            images = np.stack([square(image, fit) for image in images])
        return cls(name, np.ascontiguousarray(images), labels)

    @property
    def num_images(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        _, height, width, channels = self.images.shape
        return height, width, channels

    @property
    def num_classes(self) -> int:
        return 0 if self.labels is None else max(int(self.labels.max()) + 1, len(self.label_names))

    @property
    def label_counts(self) -> np.ndarray:
        return _count(self.labels, self.num_classes)

    @property
    def images_per_call(self) -> int:
        # A call takes about as long for one image as for this many bytes.
        return max(1, _BYTES_PER_CALL // self.images[0].nbytes)

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(str(self.images.shape).encode())
        digest.update(self.images.data)
        if self.labels is not None:
            digest.update(self.labels.data)
        return digest.hexdigest()[:16]

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images[indices], _at(self.labels, indices)


def _at(labels: np.ndarray | None, indices: np.ndarray) -> np.ndarray:
    return np.zeros(len(indices), np.int32) if labels is None else labels[indices]


def _count(labels: np.ndarray | None, num_classes: int) -> np.ndarray:
    return np.bincount(labels if labels is not None else [], minlength=num_classes)[:num_classes].astype(np.int64)


class Entries(Protocol):
    """Encoded images by index, as they lie in files."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """For messages."""
        ...

    def fetch(self, index: int) -> bytes:
        """The encoded image; called from several threads at once.

        Raises:
          BadImage: it is not there any more, or another one than was listed.
        """
        ...


class Encoded:
    """Images that are decoded when they are read."""

    images_per_call = 8
    looks_plain: bool
    """Whether the first readable image is `plain`: where it is not, as in all that are resized, `encoded` is not worth a try."""

    def __init__(
        self,
        name: str,
        entries: Entries,
        labels: np.ndarray | None,
        data: DataConfig,
        fingerprint: str,
        label_names: Sequence[str] = (),
    ):
        """Looks at the first images, for the shape of all.

        Raises:
          UserError: none of them can be read.
        """
        self.name, self.entries, self.labels, self.data = name, entries, labels, data
        self.fingerprint, self.label_names = fingerprint, label_names
        self.num_images = len(entries)
        self.num_classes = 0 if labels is None else max(int(labels.max()) + 1, len(label_names))
        self.label_counts = _count(labels, self.num_classes)
        self.shape = self._first_shape()

    def _first_shape(self) -> tuple[int, int, int]:
        reason = ""
        for index in range(min(self.num_images, _LOOKS)):
            try:
                data = self.entries.fetch(index)
                height, width, channels = decode(data, self.data, self.data.channels).shape
            except BadImage as error:
                reason = reason or f"{self.entries.name(index)}: {error}"
                if self.data.on_error == "fail":
                    break
                continue
            self.looks_plain = plain(data, (height, width, channels))
            return height, width, channels
        raise UserError(f"{self.name} holds no readable image: {reason}")

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.empty((len(indices), *self.shape), np.uint8)
        for place, index in enumerate(indices.tolist()):
            pixels[place] = self._image(index)
        return pixels, _at(self.labels, indices)

    def encoded(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray] | None:
        """The bytes and labels (int32 [N]) of images that are all `plain`, at int64 [N] indices; None if one is not."""
        found: list[bytes] = []
        for index in indices.tolist():
            try:
                data = self.entries.fetch(index)
            except BadImage:  # `read` meets it again, and names it.
                return None
            if not plain(data, self.shape):
                return None
            found.append(data)
        return found, _at(self.labels, indices)

    def _image(self, index: int) -> np.ndarray:
        try:
            found = decode(self.entries.fetch(index), self.data, self.shape[2])
        except BadImage as error:
            raise BadImage(f"{self.entries.name(index)}: {error}") from None
        if found.shape != self.shape:
            height, width = found.shape[:2]
            raise UserError(
                f"{self.entries.name(index)} is {height}x{width} and others are {self.shape[0]}x{self.shape[1]}: choose one "
                "size by --data.resolution"
            )
        return found
