"""The contract of a source: images by index.

A source part is a frozen dataclass with a method `open(path, resolution)` that returns an `Images`. To add one, write the
dataclass and a line in `distgan.data.SOURCES`; your own is named `my_package.my_module:MySource`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Protocol

import numpy as np
from PIL import Image

from distgan.errors import UserError


class Images(Protocol):
    """An open data set with random access."""

    name: str
    """For messages."""
    num_images: int
    shape: tuple[int, int, int]
    """(H, W, C) of every image, 1 <= C <= 4."""
    num_classes: int
    """0 where there are no labels."""
    fingerprint: str
    """Identifies the pixels and labels: equal for equal data, wherever it lies."""

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [N, H, W, C] images and int32 [N] labels (zeros where there are none) at int64 [N] indices."""
        ...


class Source(Protocol):
    """A chosen source with its options."""

    def open(self, path: str, resolution: int) -> Images:
        """Opens the images, resized to `resolution` squares (0: as they are).

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

    @classmethod
    def of(cls, name: str, images: np.ndarray, labels: np.ndarray | None, resolution: int) -> InMemory:
        """Checks and resizes arrays: uint8 [N, H, W] or [N, H, W, C], integer [N].

        Raises:
          UserError: a wrong dtype or shape, no image, or images that are not square.
        """
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise UserError(
                f"{name}: images must be uint8 [N,H,W] or [N,H,W,C], not {images.dtype} {list(images.shape)}"
            )
        if not len(images):
            raise UserError(f"{name}: holds no image")
        images = images.reshape(*images.shape[:3], -1)
        count, height, width, channels = images.shape
        if height != width or not 1 <= channels <= 4:
            raise UserError(f"{name}: images must be square with 1 to 4 channels, not {height}x{width}x{channels}")
        if labels is not None:
            if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (count,) or labels.min() < 0:
                raise UserError(
                    f"{name}: labels must be integers [{count}] from 0, not {labels.dtype} {list(labels.shape)}"
                )
            labels = labels.astype(np.int32)
        if resolution and resolution != height:
            images = np.stack([resize(image, resolution) for image in images])
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
        return 0 if self.labels is None else int(self.labels.max()) + 1

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(str(self.images.shape).encode())
        digest.update(self.images.data)
        if self.labels is not None:
            digest.update(self.labels.data)
        return digest.hexdigest()[:16]

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = np.zeros(len(indices), np.int32) if self.labels is None else self.labels[indices]
        return self.images[indices], labels


def resize(image: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 [H, W, C] -> uint8 [resolution, resolution, C] by Pillow's Lanczos filter, each channel by itself."""
    planes = [
        np.asarray(Image.fromarray(plane).resize((resolution, resolution), Image.Resampling.LANCZOS))
        for plane in np.moveaxis(image, -1, 0)
    ]
    return np.stack(planes, axis=-1)
