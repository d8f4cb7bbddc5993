"""Rows as curves of few points, in which a spike of a single row can still be seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distgan.tracking import json_lines

_DIGITS = 5
_LARGEST = 1e150  # Larger values are drawn as if they were not finite: differences and products of them would not be.


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl, oldest first; NaN where a value was not finite. Lines that are no rows are passed over.

    Raises:
      OSError: the file cannot be read.
    """
    return [
        {key: finite(value) for key, value in row.items() if value is None or json_lines.is_number(value)}
        for row in json_lines.read(path, json_lines.is_row)
    ]


def finite(value: Any, otherwise: float = math.nan) -> float:
    """A number of a file, if it is one, finite and not far from any that a run has."""
    return value if json_lines.is_number(value) and abs(value) <= _LARGEST else otherwise


def points(rows: Iterable[Mapping[str, float]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images seen and values by key, float64 [N] each: of the rows that have the key."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for key, value in row.items():
            xs, ys = found.setdefault(key, ([], []))
            xs.append(row["progress/images_seen"])
            ys.append(value)
    return {key: (np.array(xs, float), np.array(ys, float)) for key, (xs, ys) in found.items()}


def thin(xs: np.ndarray, ys: np.ndarray, most: int) -> dict[str, list[Any]]:
    """A curve in at most `most` groups of neighbouring rows, as JSON holds it.

    Returns:
      `x`, the middle of each group; `mean` of its finite values, None where there are none; `low` and `high`, its extremes,
      only where a group has several rows; `bad`, the numbers of the groups that hold a value that is not finite.
    """
    count = min(len(xs), most)
    starts = np.linspace(0, len(xs), count + 1).astype(int)[:-1]
    sizes = np.diff([*starts, len(xs)])
    finite = np.isfinite(ys)
    finite_counts = np.add.reduceat(finite.astype(int), starts)
    # Divided before they are added, so that the sum of large values is no infinity.
    shares = np.where(finite, ys, 0) / np.repeat(np.maximum(finite_counts, 1), sizes)
    empty = finite_counts == 0
    curve: dict[str, list[Any]] = {
        "x": [round(float(x)) for x in np.add.reduceat(xs, starts) / sizes],
        "mean": _plain(np.add.reduceat(shares, starts), empty),
    }
    if count < len(xs):
        curve["low"] = _plain(np.minimum.reduceat(np.where(finite, ys, np.inf), starts), empty)
        curve["high"] = _plain(np.maximum.reduceat(np.where(finite, ys, -np.inf), starts), empty)
    curve["bad"] = np.flatnonzero(finite_counts < sizes).tolist()
    return curve


def _plain(values: np.ndarray, empty: np.ndarray) -> list[float | None]:
    return [None if none else shorten(value) for value, none in zip(values.tolist(), empty.tolist(), strict=True)]


def shorten(value: float) -> float | int | None:
    """A number as JSON takes it, in five digits unless it is a whole one; None where it is not finite.

    >>> shorten(0.123456789), shorten(120.0), shorten(float("nan"))
    (0.12346, 120, None)
    """
    if not math.isfinite(value):
        return None
    if value == int(value) and abs(value) < 1e9:
        return int(value)
    return float(f"{value:.{_DIGITS}g}")


def restarts(rows: Sequence[Mapping[str, float]]) -> list[int]:
    """The images seen of the last row before each restart."""
    found = []
    for before, row in zip(rows, rows[1:], strict=False):
        if row.get("progress/restarts", 0) > before.get("progress/restarts", 0):
            found.append(round(before["progress/images_seen"]))
    return found
