"""What metrics cost beside the usual ways: seconds and peak memory, each in a process of its own.

Features are made up, float32 and normal, and making them is part of the time. The usual ways are those of widespread scripts:
all features at once, covariances by `np.cov` and their root by `scipy.linalg.sqrtm`; matrices of all distances.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from distgan.errors import UserError
from distgan.evaluation import metrics
from distgan.runtime import credentials

_BATCH = 1000  # Images that an extractor hands over at once.
_NEIGHBOURS = 3


def metric_costs(count: int, size: int) -> dict[str, Any]:
    """Seconds (of the clock, and of all threads), peak GiB and value of each way: `count` reals and fakes of `size` features.

    Raises:
      UserError: a way failed, as for want of memory.
    """
    fitting = min(count, _distances_that_fit())
    result: dict[str, Any] = {"count": count, "features": size, "cpus": os.cpu_count()}
    for way in _WAYS:
        result[way] = _apart(way, fitting if way == "precision_recall_matrices" else count, size)
    if fitting < count:
        result["precision_recall_matrices"]["note"] = f"{count} images' distances do not fit in half of this memory"
        result[f"precision_recall_at_{fitting}"] = _apart("precision_recall", fitting, size)
    return result


def _distances_that_fit() -> int:
    """How many images' distances, with a sorted copy of them, fit in half of the memory: in thousands, float32."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return math.isqrt(memory // 2 // (2 * 4)) // 1000 * 1000


def _apart(way: str, count: int, size: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "distgan.commands.metric_costs", way, str(count), str(size)]
    child = subprocess.run(words, capture_output=True, text=True, env=credentials.for_child())
    if child.returncode:
        raise UserError(f"{way} of {count} images failed: {(child.stderr.splitlines() or ['killed'])[-1]}")
    return json.loads(child.stdout)


def _measure(way: str, count: int, size: int) -> dict[str, Any]:
    start = time.perf_counter()
    value = _WAYS[way](count, size)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB.
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "count": count,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_gib": round(used.ru_maxrss * unit / 2**30, 3),
        "value": value,
    }


def _batches(count: int, size: int, side: int) -> Iterator[np.ndarray]:
    """Features as an extractor would give them: reals of side 0, fakes of side 1, which differ a little."""
    generator = np.random.default_rng(side)
    for first in range(0, count, _BATCH):
        drawn = generator.standard_normal((min(_BATCH, count - first), size), np.float32)
        yield drawn * np.float32(1 + side / 10)


def _both(count: int, size: int) -> list[np.ndarray]:
    sides = [np.empty((count, size), np.float32) for _ in range(2)]
    for side, features in enumerate(sides):
        for number, batch in enumerate(_batches(count, size, side)):
            features[number * _BATCH : number * _BATCH + len(batch)] = batch
    return sides


def _frechet(count: int, size: int) -> float:
    sums = []
    for side in range(2):
        batches = map(metrics.Moments.of, _batches(count, size, side))
        sums.append(sum(batches, next(batches)))
    return metrics.frechet_distance(*sums)


def _frechet_sqrtm(count: int, size: int) -> float:
    from scipy import linalg  # type: ignore[import-untyped]

    real, fake = _both(count, size)
    offset = np.square(real.mean(0) - fake.mean(0)).sum()
    one, other = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    return float(offset + np.trace(one + other - 2 * linalg.sqrtm(one @ other).real))


def _kernel(count: int, size: int) -> float:
    real, fake = _both(count, size)
    return metrics.kernel_distance(real, fake, subset_size=min(count, 1000))[0]


def _precision_recall(count: int, size: int) -> tuple[float, float]:
    real, fake = _both(count, size)
    return metrics.precision_recall(real, fake, _NEIGHBOURS)


def _precision_recall_matrices(count: int, size: int) -> tuple[float, float]:
    from sklearn.metrics import pairwise_distances

    real, fake = _both(count, size)
    # The nearest of all is the image itself.
    real_radii, fake_radii = (
        np.partition(pairwise_distances(side), _NEIGHBOURS, axis=1)[:, _NEIGHBOURS].copy() for side in (real, fake)
    )
    between = pairwise_distances(real, fake)
    precision, recall = (between <= real_radii[:, None]).any(0), (between <= fake_radii).any(1)
    return float(precision.mean()), float(recall.mean())


_WAYS: Mapping[str, Callable[[int, int], Any]] = {
    "frechet": _frechet,
    "frechet_sqrtm": _frechet_sqrtm,
    "kernel": _kernel,
    "precision_recall": _precision_recall,
    "precision_recall_matrices": _precision_recall_matrices,
}

if __name__ == "__main__":
    name, *sizes = sys.argv[1:]
    print(json.dumps(_measure(name, *map(int, sizes))))
