"""Scores of a generator, or of two sets of images: the same numbers on any number of replicas and workers.

Fakes have numbers as images have: a chunk of them is drawn by one replica, whichever it is, and an image's features depend on
the image alone. Workers add up moments in float64, and gather features only where a metric takes them; the primary computes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from distgan import files, seeds
from distgan.config import EvaluationConfig
from distgan.data.pipeline import MOST_UNREADABLE
from distgan.data.pixels import BadImage
from distgan.data.source import Images, readable
from distgan.errors import UserError
from distgan.evaluation.features import CHUNK as FEATURES_CHUNK
from distgan.evaluation.features import Features
from distgan.evaluation.metrics import Moments
from distgan.evaluation.protocols import Collected, Metric
from distgan.evaluation.sampling import CHUNK, Sampler, latents_key
from distgan.runtime.base import Runtime
from distgan.schema import Part

log = logging.getLogger("distgan")

_ROWS_PER_PRODUCT = 2048  # Outer products are summed of so many images at once, which costs less than one by one.
_ROWS_PER_SUM = 8192  # Features of so many images are gathered at once, to bound memory.

Interrupted = Callable[[], bool]
"""Called by all workers between chunks; whether to give up."""


class GivenUp(Exception):
    """The evaluation was interrupted, on all workers."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The scores of one evaluation."""

    scores: Mapping[str, float]
    cards: Mapping[str, Mapping[str, Any]]
    """Metric -> how its numbers came about: two with different cards are not to be compared."""
    costs: Mapping[str, float]
    """Seconds and images per second of each stage."""


Round = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Numbers int64 [n] of images, the images uint8 [n, H, W, C], and their classes int32 [n]."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two sides of a comparison: a function that gives its images by chunk, and who they are."""

    count: int
    rounds: Callable[[int], Iterator[Round]]
    """(number of images) -> this worker's share of them, in rounds of which all workers have as many, the last ones of them
    maybe without images."""
    identity: str
    """For the card: what they are."""
    kept_by: str = ""
    """Under which key their statistics may be kept; empty where they are not."""


def of_generator(sampler: Sampler, runtime: Runtime, config: EvaluationConfig, label_counts: Sequence[int]) -> Side:
    """Fakes: image number i of a seed is the same image anywhere; classes are drawn as often as in the data."""
    place, seed, truncation = runtime.topology, config.seed, config.truncation

    def rounds(wanted: int) -> Iterator[Round]:
        key, statistics = latents_key(seed), sampler.statistics()

        @tf.function(autograph=False)
        def draw(first: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
            def of_replica(replica: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                number = first + replica * CHUNK
                labels = tf.zeros([CHUNK], tf.int32)
                if sampler.num_classes:
                    drawn = seeds.uniform(seeds.key(seed, "sample/labels"), number, CHUNK, (1,))[:, 0]
                    labels = seeds.classes(drawn, np.array(label_counts, np.float64))
                return sampler.images(sampler.latents(key, number, truncation), labels, statistics), labels

            return runtime.each(of_replica)

        for first in range(0, wanted, CHUNK * place.num_replicas):
            images, labels = (
                np.concatenate([each.numpy() for each in parts])
                for parts in zip(*draw(tf.constant(first, tf.int64)), strict=True)
            )
            start = first + place.local_replicas.start * CHUNK
            numbers = np.arange(start, start + len(images))
            count = max(0, min(len(images), wanted - start))
            yield numbers[:count], images[:count], labels[:count]

    most = max(part.options.count for part in config.metrics)
    return Side(most, rounds, f"generator, seed {seed}, truncation {truncation or 'none'}")


def of_images(images: Images, runtime: Runtime, on_error: str) -> Side:
    """Images of a data set, in its order and not mirrored.

    One that cannot be read ends the evaluation, or is left out, as `on_error` (of --data.on_error) says.
    """
    place = runtime.topology
    share = FEATURES_CHUNK * len(place.local_replicas)

    def rounds(wanted: int) -> Iterator[Round]:
        left_out = 0
        for start in range(0, wanted, place.world_size * share):
            first = start + place.rank * share
            numbers = np.arange(min(first, wanted), min(first + share, wanted))
            try:
                pixels, labels, those = readable(images, numbers, on_error)
            except BadImage as bad:
                raise UserError(f"{bad} (--data.on_error=skip leaves it out)") from None
            left_out += len(numbers) - len(those)
            if left_out > MOST_UNREADABLE * images.num_images:
                raise UserError(f"{left_out} of {images.num_images} images of {images.name} cannot be read")
            yield those, pixels, labels

    kept_by = images.fingerprint if on_error == "fail" else f"{images.fingerprint}/{on_error}"
    return Side(images.num_images, rounds, f"{images.name}, fingerprint {images.fingerprint}", kept_by)


def evaluate(
    metrics: Sequence[Part],
    real: Side,
    fake: Side,
    extractor: Features,
    runtime: Runtime,
    cache_dir: Path,
    facts: Mapping[str, Any],
    interrupted: Interrupted = lambda: False,
) -> Result | None:
    """The scores of all metrics; None on the workers that are not the primary.

    Args:
      metrics: parts of `METRICS`.
      real: the images that are compared with.
      fake: those that are judged.
      extractor: gives features.
      runtime: shares the work.
      cache_dir: where statistics of the reals are kept.
      facts: what else belongs on every card, as the checkpoint.
      interrupted: polled between chunks.

    Raises:
      UserError: too few images, or a metric that the extractor or the data do not serve.
      GivenUp: interrupted.
    """
    options: list[Metric] = [part.options for part in metrics]
    for part in options:
        _check(part, real, fake, extractor)
    costs: dict[str, float] = {}
    reals = _collect(
        real,
        [(each.needs_real, getattr(each, "real_count", 0)) for each in options],
        extractor,
        runtime,
        costs,
        "real",
        cache_dir,
        interrupted,
    )
    fakes = _collect(
        fake, [(each.needs_fake, each.count) for each in options], extractor, runtime, costs, "fake", None, interrupted
    )
    if not runtime.topology.is_primary:
        return None
    scores: dict[str, float] = {}
    cards = {}
    start = time.perf_counter()
    for part, one, other in zip(options, reals, fakes, strict=True):
        scores |= part.compute(one, other)
        cards[part.name] = {
            **dataclasses.asdict(part),
            "metric": part.name,
            "extractor": extractor.name,
            "extractor_sha256": extractor.sha256,
            "resize": extractor.resize,
            "quantization": "uint8",
            "real": real.identity if part.needs_real else "",
            "real_count": one.count if part.needs_real else 0,
            "fake": fake.identity,
            "count": other.count,
            **facts,
        }
    costs["seconds/metrics"] = time.perf_counter() - start
    return Result(scores, cards, costs)


def _check(part: Metric, real: Side, fake: Side, extractor: Features) -> None:
    needs = part.needs_real | part.needs_fake
    if "probabilities" in needs and not extractor.num_classes:
        raise UserError(
            f"--evaluation.metrics={part.name} needs class probabilities, which {extractor.name} does not give"
        )
    sides = {"reals": real.count if part.needs_real else None, "fakes": min(part.count, fake.count)}
    for name, count in sides.items():
        if count is not None and count < part.smallest:
            raise UserError(
                f"--evaluation.metrics={part.name} needs at least {part.smallest} {name}, there are {count}"
            )


def _collect(
    side: Side,
    wanted: Sequence[tuple[frozenset[str], int]],
    extractor: Features,
    runtime: Runtime,
    costs: dict[str, float],
    name: str,
    cache_dir: Path | None,
    interrupted: Interrupted,
) -> list[Collected]:
    """What each metric wants of a side: fields of `Collected`, of the first so many images (0: all)."""
    counts = [min(count, side.count) if count else side.count for _, count in wanted]
    asked = sorted({(count, field) for (fields, _), count in zip(wanted, counts, strict=True) for field in fields})
    known: dict[tuple[int, str], Any] = {}
    path = _kept_at(cache_dir, side, extractor)
    if path and runtime.topology.is_primary:
        known = _load(path, asked)
    if path and known.keys() >= set(asked):
        _say_where_from(path, name)
    missing = runtime.control.gather([each for each in asked if each not in known])[0]
    missing = [(count, field) for count, field in missing]
    if missing:
        found = _look(side, missing, extractor, runtime, costs, name, interrupted)
        known |= found
        if path and runtime.topology.is_primary:
            _save(path, known)
    return [
        _collected(count, {field: known.get((count, field)) for field in fields})
        for (fields, _), count in zip(wanted, counts, strict=True)
    ]


@functools.cache  # Once a process, however many evaluations there are.
def _say_where_from(path: Path, name: str) -> None:
    log.info("statistics of the %ss are those of an earlier evaluation, kept in %s", name, path)


def _collected(asked: int, values: Mapping[str, Any]) -> Collected:
    """What there is of the first so many images, some of which may have been left out."""
    counts = [
        value.count if isinstance(value, Moments) else len(value) for value in values.values() if value is not None
    ]
    return Collected(min(counts, default=asked), **values)


def _look(
    side: Side,
    asked: Sequence[tuple[int, str]],
    extractor: Features,
    runtime: Runtime,
    costs: dict[str, float],
    name: str,
    interrupted: Interrupted,
) -> dict[tuple[int, str], Any]:
    """Goes through this worker's images once, and adds up what all have seen; whole on every worker."""
    largest = max(count for count, _ in asked)
    fields = {field for _, field in asked}
    moments = {count: Moments.of(np.zeros((0, extractor.size))) for count, field in asked if field == "moments"}
    rows: list[tuple[np.ndarray, dict[str, Any]]] = []
    pending: list[tuple[np.ndarray, np.ndarray]] = []
    start, seconds = time.perf_counter(), 0.0

    def add_moments() -> None:
        for count in moments:
            seen = [features[numbers < count] for numbers, features in pending]
            moments[count] += Moments.of(np.concatenate([np.zeros((0, extractor.size), np.float32), *seen]))
        pending.clear()

    for numbers, images, labels in side.rounds(largest):
        begun = time.perf_counter()
        features, probabilities = extractor(images)
        seconds += time.perf_counter() - begun
        if not np.isfinite(features).all():
            raise UserError(
                f"{extractor.name} gives features that are not finite for {name} images from {numbers[0]} on"
            )
        each = {"features": features, "probabilities": probabilities, "labels": labels, "images": images}
        rows.append((numbers, {field: each[field] for field in fields - {"moments"}}))
        pending.append((numbers, features))
        if sum(len(those) for those, _ in pending) >= _ROWS_PER_PRODUCT:
            add_moments()
        if interrupted():
            raise GivenUp
    add_moments()
    found: dict[tuple[int, str], Any] = {}
    for count, mine in moments.items():
        parts = runtime.total(
            [np.array(mine.count, np.float64), mine.total, mine.outer], f"evaluate/{name}/moments{count}"
        )
        found[count, "moments"] = Moments(int(parts[0]), parts[1], parts[2])
    seen_here = np.zeros(largest, np.int32)
    for numbers, _ in rows:
        seen_here[numbers] = 1
    there = runtime.total([seen_here], f"evaluate/{name}/there")[0] > 0
    for field in sorted(fields - {"moments"}):
        whole = _gather(rows, field, largest, runtime, name)
        found |= {(count, field): whole[:count][there[:count]] for count, one in asked if one == field}
    elapsed = time.perf_counter() - start
    images_per_second = largest / elapsed
    costs |= {
        f"seconds/{name}": elapsed,
        f"seconds/{name}_features": seconds,
        f"images_per_second/{name}": images_per_second,
    }
    return found


def _gather(
    rows: Sequence[tuple[np.ndarray, Mapping[str, Any]]], field: str, count: int, runtime: Runtime, name: str
) -> np.ndarray:
    """A field of all images by number, from the rows that each worker has: others' are zeros in the sum."""
    first = rows[0][1][field]
    whole = np.zeros((count, *first.shape[1:]), first.dtype)
    for numbers, fields in rows:
        whole[numbers] = fields[field]
    if runtime.topology.world_size > 1:
        for start in range(0, count, _ROWS_PER_SUM):
            part = whole[start : start + _ROWS_PER_SUM]
            summed = part if part.dtype != np.uint8 else part.astype(np.int32)
            part[:] = runtime.total([summed], f"evaluate/{name}/{field}{start}")[0]
    return whole


def _kept_at(cache_dir: Path | None, side: Side, extractor: Features) -> Path | None:
    if cache_dir is None or not side.kept_by:
        return None
    name = f"{side.kept_by}/{extractor.name}/{extractor.sha256}/{extractor.resize}"
    return cache_dir / f"statistics-{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz"


def _load(path: Path, asked: Sequence[tuple[int, str]]) -> dict[tuple[int, str], Any]:
    parts = {
        (count, field): [
            f"{count}/{part}" for part in (("count", "total", "outer") if field == "moments" else (field,))
        ]
        for count, field in asked
    }
    kept = files.read_sealed_npz(path, [name for names in parts.values() for name in names])
    found: dict[tuple[int, str], Any] = {}
    for (count, field), names in parts.items():
        if kept.keys() >= set(names):
            number, *others = (kept[name] for name in names)
            found[count, field] = Moments(int(number), *others) if field == "moments" else number
    return found


def _save(path: Path, known: Mapping[tuple[int, str], Any]) -> None:
    arrays: dict[str, Any] = {}
    for (count, field), value in known.items():
        if field == "moments":
            arrays |= {f"{count}/{part.name}": getattr(value, part.name) for part in dataclasses.fields(value)}
        else:
            arrays[f"{count}/{field}"] = value
    try:
        files.write_npz(path, arrays)
    except OSError as error:  # What cannot be kept is worked out again.
        log.warning("statistics of the reals are not kept: %s", error)
