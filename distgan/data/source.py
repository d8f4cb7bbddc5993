"""The contract of a source: images by index.

A source part is a frozen dataclass with a method `open(data)` that returns an `Images`. To add one, write the dataclass and
a line in `distgan.data.SOURCES`; your own is named `my_package.my_module:MySource`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from distgan.config import DataConfig
from distgan.data import labels as label_rules
from distgan.data import survey
from distgan.data.pixels import BadImage, Facts, decode, plain, square, to_channels
from distgan.data.survey import Entries
from distgan.errors import UserError

log = logging.getLogger("distgan")

_BYTES_PER_CALL = 2**18


class Images(Protocol):
    """An open data set with random access.

    It can have more: `looks_plain` and `encoded`, as `Encoded` has; `no_classes`, why it has labels and no classes; and
    `earlier_fingerprint`, by which earlier versions knew it.
    """

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
    """Identifies the pixels and labels: equal for equal data, wherever and in whatever files it lies."""
    images_per_call: int
    """How many images `read` is best asked for at once, from several threads."""

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A new array of images, uint8 [N, H, W, C], and labels, int32 [N] (zeros where there are none), at int64 [N] indices.

        Raises:
          BadImage: one of them cannot be read; names it.
        """
        ...


def earlier_fingerprint(images: Images) -> str:
    """By which earlier versions knew the images; empty where they made other pixels of them."""
    return getattr(images, "earlier_fingerprint", "")


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
    no_classes: str = ""
    """Why labels that there were are none of classes."""

    @classmethod
    def of(cls, name: str, images: np.ndarray, labels: np.ndarray | None, fit: DataConfig) -> InMemory:
        """Checks arrays, and makes squares of them: uint8 [N, H, W] or [N, H, W, C], integer [N].

        What is done to images of the user's, at `fit.path`, goes to the log.

        Raises:
          UserError: a wrong dtype or shape, a label that is none, or no image.
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
            if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (count,):
                raise UserError(
                    f"{name}: labels must be integers [{count}] from 0, not {labels.dtype} {list(labels.shape)}"
                )
            labels = label_rules.checked(labels, lambda index: f"{name}: image {index}")
        if fit.channels not in (0, channels):
            images = np.stack([to_channels(image, fit.channels, fit.background) for image in images])
        if height != width or fit.resolution not in (0, height):
            images = np.stack([square(image, fit) for image in images])
        no_classes = label_rules.not_classes(labels)
        made = cls(name, np.ascontiguousarray(images), None if no_classes else labels, no_classes=no_classes)
        if fit.path:
            facts = Facts(height, width, channels < 3, channels in (2, 4), False, 0)
            survey.say(name, list(survey.notes([facts] * count, fit, made.shape)))
            _say_of_labels(name, no_classes)
        return made

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

    @functools.cached_property
    def fingerprint(self) -> str:
        pixels = survey.digest(self.images[index] for index in survey.sample(self.num_images))
        return survey.fingerprint(self.num_images, self.shape, self.labels, pixels)

    @functools.cached_property
    def earlier_fingerprint(self) -> str:
        digest = hashlib.sha256(str(self.images.shape).encode())
        digest.update(self.images.data)
        if self.labels is not None:
            digest.update(self.labels.data)
        return digest.hexdigest()[:16]

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images[indices], _at(self.labels, indices)


def _say_of_labels(name: str, no_classes: str) -> None:
    if no_classes:
        log.info("%s: it has no classes: %s", name, no_classes)


def _at(labels: np.ndarray | None, indices: np.ndarray) -> np.ndarray:
    return np.zeros(len(indices), np.int32) if labels is None else labels[indices]


def _count(labels: np.ndarray | None, num_classes: int) -> np.ndarray:
    return np.bincount(labels if labels is not None else [], minlength=num_classes)[:num_classes].astype(np.int64)


class Encoded:
    """Images that are decoded when they are read."""

    images_per_call = 8

    def __init__(
        self,
        name: str,
        entries: Entries,
        labels: np.ndarray | None,
        data: DataConfig,
        label_names: Sequence[str] = (),
        earlier: Callable[[], str] = lambda: "",
    ):
        """Looks at a sample of the images, for the shape of all and who they are; what is done to them goes to the log.

        Args:
          name: for messages.
          entries: the encoded images.
          labels: int32 [N], or None.
          data: how images are fitted.
          label_names: of the classes, where they have names.
          earlier: the fingerprint by which earlier versions knew them.

        Raises:
          UserError: none of them can be read.
        """
        self.name, self.entries, self.label_names = name, entries, label_names
        self.num_images = len(entries)
        self.no_classes = label_rules.not_classes(labels, label_names)
        """Why labels that there were are none of classes."""
        self.labels = None if self.no_classes else labels
        self.num_classes = 0 if self.labels is None else max(int(self.labels.max()) + 1, len(label_names))
        self.label_counts = _count(self.labels, self.num_classes)
        surveyed = survey.survey(name, entries, data)
        self.shape = surveyed.shape
        self.looks_plain = surveyed.looks_plain
        """Whether the first readable image is `plain`: where not, as in all that are resized, `encoded` is not worth a try."""
        self.fingerprint = survey.fingerprint(self.num_images, self.shape, self.labels, surveyed.digest)
        self.data = dataclasses.replace(data, channels=self.shape[2], bits=surveyed.bits)
        self._given, self._earlier = data, earlier
        survey.say(name, surveyed.notes)
        _say_of_labels(name, self.no_classes)

    @functools.cached_property
    def earlier_fingerprint(self) -> str:
        """Empty where they made other pixels of them: by the first image's channels, and the upper 8 of 16 bits."""
        if self.data.bits != 16:
            return ""
        if not self._given.channels:
            try:
                if decode(self.entries.fetch(0), self._given, 0).shape != self.shape:
                    return ""
            except BadImage:
                pass
        return self._earlier()

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.empty((len(indices), *self.shape), np.uint8)
        for place, index in enumerate(indices.tolist()):
            pixels[place] = self._image(index)
        return pixels, _at(self.labels, indices)

    def encoded(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray] | None:
        """The bytes and labels (int32 [N]) of images that are all `plain`, at int64 [N] indices; None if one is not."""
        several: list[bytes] = []
        for index in indices.tolist():
            try:
                data = self.entries.fetch(index)
            except BadImage:  # `read` meets it again, and names it.
                return None
            if not plain(data, self.shape):
                return None
            several.append(data)
        return several, _at(self.labels, indices)

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
