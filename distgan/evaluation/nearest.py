"""The real image that lies nearest to a generated one: whether a generator copies what it has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_BLOCK_BYTES = 2**26  # Of real images in float64 at a time.


class Nearest(NamedTuple):
    """Of N images the nearest of a data set, each."""

    images: np.ndarray
    """uint8 [N, H, W, C]; mirrored where that is nearer."""
    indices: np.ndarray
    """int64 [N]: in the data set."""
    distances: np.ndarray
    """float64 [N]: root of the mean square of the pixels' differences, in levels (0 to 255)."""


def nearest(
    samples: np.ndarray, read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], num_images: int, flip: bool
) -> Nearest:
    """The nearest images to samples (uint8 [N, H, W, C]), looked for block by block.

    Args:
      samples: the generated images.
      read: real images (uint8 [M, H, W, C]) at indices (int64 [B]), with the indices of those that could be read (int64 [M]).
      num_images: in the data set.
      flip: whether their mirror images are real ones too.
    """
    size = samples[0].size
    flat = samples.reshape(-1, size).astype(np.float64)
    best, indices, images = np.full(len(samples), np.inf), np.zeros(len(samples), np.int64), np.zeros_like(samples)
    per_block = max(1, _BLOCK_BYTES // (8 * size))
    for first in range(0, num_images, per_block):
        found, places = read(np.arange(first, min(first + per_block, num_images)))
        if not len(found):
            continue
        for real in (found, found[:, :, ::-1]) if flip else (found,):
            others = real.reshape(-1, size).astype(np.float64)
            # |a|^2 - 2 a.b + |b|^2: whole numbers below 2^53, so exact.
            squares = (flat**2).sum(1)[:, None] - 2 * flat @ others.T + (others**2).sum(1)
            closest = squares.argmin(1)
            least = squares[np.arange(len(samples)), closest]
            nearer = least < best
            best[nearer], indices[nearer], images[nearer] = (
                least[nearer],
                places[closest[nearer]],
                real[closest[nearer]],
            )
    return Nearest(images, indices, np.sqrt(best / size))
