"""Labels of images: which numbers can be labels, and which labels are classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from distgan.errors import UserError

LARGEST = 2**31 - 1
_EMPTY_CLASSES = (
    1000  # So many classes without an image are no sign of anything: a few images of a long list of classes.
)
_PER_CLASS_IN_USE = 10


def checked(labels: np.ndarray, name: Callable[[int], str]) -> np.ndarray:
    """Integer labels as int32 [N].

    Args:
      labels: integers [N] of any dtype, or Python's own.
      name: of the image at an index, for messages.

    Raises:
      UserError: one is not from 0 to 2^31 - 1.
    """
    wrong = np.flatnonzero((labels < 0) | (labels > LARGEST))
    if len(wrong):
        place = int(wrong[0])
        raise UserError(f"{name(place)}: the label is {labels[place]}, not a whole number from 0 to {LARGEST}")
    return labels.astype(np.int32)


def not_classes(labels: np.ndarray | None, label_names: Sequence[str] = ()) -> str:
    """Why labels (int32 [N]) are not taken for classes: most numbers up to the largest have no image; empty where they are."""
    if labels is None or label_names or not len(labels):
        return ""
    largest, different = int(labels.max()), len(np.unique(labels))
    if largest < _PER_CLASS_IN_USE * different + _EMPTY_CLASSES:
        return ""
    return (
        f"its labels are {different:,} different numbers up to {largest}, which look like ids; number classes from 0 without "
        "gaps, by labels = np.unique(labels, return_inverse=True)[1], or put each in a folder"
    )
