"""Opens the images that the flags name. What a user's own source gives is tried first: wrong images train without a word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from distgan.config import DataConfig
from distgan.data.pixels import BadImage
from distgan.data.source import Images
from distgan.errors import UserError


def open_source(data: DataConfig) -> Images:
    """The images of `data.source`, as squares of `data.resolution`.

    Raises:
      UserError: what is missing or wrong with the data, or with what a user's own source makes of them.
    """
    images = data.source.options.open(data)
    if ":" in data.source.name:
        problem = next(_problems(images, data), None)
        if problem:
            raise UserError(f"--data.source={data.source.name}: {problem}")
    return images


def _problems(images: Any, data: DataConfig) -> Iterator[str]:
    """Yields what is wrong with a source's images, the plainest first."""
    for name in (*Images.__annotations__, "read"):
        if not hasattr(images, name):
            yield f"what open() gives, a {type(images).__name__}, has no {name!r} (distgan.data.source.Images says what it has)"
    height, width, channels = shape = tuple(images.shape) if len(images.shape) == 3 else (0, 0, 0)
    if images.num_images < 1 or min(height, width) < 1 or not 1 <= channels <= 4:
        yield f"{images.num_images} images of shape {tuple(images.shape)}, not of (H, W, C) with 1 to 4 channels"
    if height != width or data.resolution not in (0, height):
        wanted = f"squares of --data.resolution={data.resolution}" if data.resolution else "squares"
        yield f"its images are {height}x{width}, not {wanted}"
    if len(images.label_counts) != images.num_classes or sum(images.label_counts) not in (0, images.num_images):
        yield (
            f"label_counts {[int(count) for count in images.label_counts[:10]]} do not go with {images.num_classes} classes of "
            f"{images.num_images} images"
        )
    if not images.fingerprint or not isinstance(images.fingerprint, str):
        yield f"fingerprint is {images.fingerprint!r}, not text that names the pixels and labels"
    indices = np.unique([0, images.num_images // 2, images.num_images - 1])
    try:
        first, again, back = (images.read(each) for each in (indices, indices, indices[::-1]))
    except BadImage:
        return
    pixels, labels = first
    for what, array, dtype, wanted_shape in (
        ("images", pixels, np.uint8, (len(indices), *shape)),
        ("labels", labels, np.int32, (len(indices),)),
    ):
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != wanted_shape:
            found = f"{getattr(array, 'dtype', type(array).__name__)} {list(getattr(array, 'shape', ()))}"
            yield f"read() gives {what} {found}, not {np.dtype(dtype)} {list(wanted_shape)}"
    if labels.min() < 0 or labels.max() >= max(1, images.num_classes):
        yield f"read() gives label {labels.max()}, which is not below the {images.num_classes} classes"
    if not all(np.array_equal(*each) for each in zip(first, again, strict=True)):
        yield "read() gives other pixels or labels for the same indices the second time, so that no run could be repeated"
    if np.shares_memory(pixels, again[0]):
        yield "read() gives the same array twice: several threads read at once, and each needs an array of its own"
    if not all(np.array_equal(one[::-1], other) for one, other in zip(first, back, strict=True)):
        yield "read() does not give images in the order of its indices"
