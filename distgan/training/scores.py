"""Evaluations along a run: when, of what, and which checkpoint was the best."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distgan.config import Config
from distgan.data.source import Images, earlier_fingerprint
from distgan.evaluation import evaluator
from distgan.evaluation.evaluator import Interrupted, Result
from distgan.evaluation.features import Features
from distgan.evaluation.sampling import Sampler
from distgan.runtime.base import Runtime
from distgan.tracking import evaluations, json_lines
from distgan.tracking.console import log


def cache_dir(config: Config) -> Path:
    """Where networks and statistics that scores need are kept."""
    return Path(config.data.cache_dir or Path.home() / ".cache" / "distgan")


def open_extractor(config: Config, images: Images, runtime: Runtime) -> Features:
    """The chosen extractor on every worker; the primary opens it first, and what that makes others of its host take."""
    extractor = config.evaluation.extractor.options
    if runtime.topology.is_primary:
        opened = extractor.open(images, cache_dir(config))
    runtime.control.gather(None)
    if not runtime.topology.is_primary:
        opened = extractor.open(images, cache_dir(config))
    hashes = runtime.control.gather(opened.sha256)
    if len(set(hashes)) > 1:
        log.warning("the workers' extractors differ in rounding: scores may differ from those of one worker")
    return dataclasses.replace(opened, devices=runtime.devices())


class Evaluations:
    """Scores while training; all workers call it at the same image counts."""

    def __init__(self, config: Config, images: Images, runtime: Runtime, sampler: Sampler, directory: Path | None):
        """Opens the extractor, which may train or download it."""
        self.config, self.runtime, self.sampler = config, runtime, sampler
        self.reals = evaluator.of_images(images, runtime, config.data.on_error)
        self.extractor = open_extractor(config, images, runtime)
        self.data_fingerprint = images.fingerprint
        self.results = [_of_now(result, images) for result in _earlier(directory)] if directory else []
        self.lines = json_lines.Appender(directory / evaluations.NAME) if directory else None

    def __call__(self, seen: int, interrupted: Interrupted, follow: Callable[[], Path]) -> Mapping[str, Any] | None:
        """Evaluates the averaged generator; returns the result on the primary, which may have it from an earlier start.

        Args:
          seen: images seen.
          interrupted: polled between chunks.
          follow: gives the run directory, which may have moved meanwhile.

        Raises:
          GivenUp: interrupted.
        """
        if self.runtime.control.gather(self.has(seen))[0]:
            return next((each for each in self.results if each["images_seen"] == seen), None)
        config = self.config
        facts = {
            "weights": "ema",
            "statistics": config.ema.statistics,
            "checkpoint": seen,
            "trained_on": self.data_fingerprint,
        }
        fakes = evaluator.of_generator(
            self.sampler, self.runtime, config.evaluation, self.sampler.description.label_counts
        )
        result = evaluator.evaluate(
            config.evaluation.metrics,
            self.reals,
            fakes,
            self.extractor,
            self.runtime,
            cache_dir(config),
            facts,
            interrupted,
        )
        if result is None or self.lines is None:
            return None
        found = as_json(result, seen)
        self.results.append(found)
        self.lines.move(follow() / evaluations.NAME)
        self.lines.add(evaluations.to_plain(found))
        told = ", ".join(f"{name} {value:.4g}" for name, value in result.scores.items())
        seconds = sum(
            value for name, value in result.costs.items() if name in ("seconds/real", "seconds/fake", "seconds/metrics")
        )
        log.info("evaluated at %g kimg in %.1f s: %s", seen / 1000, seconds, told)
        return found

    def has(self, seen: int) -> bool:
        """Whether these scores are there; known to the primary."""
        return any(each["images_seen"] == seen for each in self.results)

    def is_best(self, seen: int) -> bool:
        """Whether the first metric of the evaluation at `seen` is better than all before it of the same protocol."""
        part = self.config.evaluation.metrics[0].options
        scored = [each for each in self.results if part.name in each["cards"] and part.main in each["scores"]]
        *before, last = [each for each in scored if each["images_seen"] <= seen]
        alike = [each for each in before if _protocol(each["cards"][part.name]) == _protocol(last["cards"][part.name])]
        *others, value = (sort_key(each["scores"][part.main], part.lower_is_better) for each in (*alike, last))
        return all(value < other for other in others)


def sort_key(score: float, lower_is_better: bool) -> float:
    """A number that is the less the better the score is; one that is not finite is the worst."""
    if not math.isfinite(score):
        return math.inf
    return score if lower_is_better else -score


def _of_now(result: dict[str, Any], images: Images) -> dict[str, Any]:
    """A result with the data's fingerprint in place of the one by which earlier versions knew it."""
    if all(card.get("trained_on") == images.fingerprint for card in result["cards"].values()):
        return result
    earlier = earlier_fingerprint(images)
    return json.loads(json.dumps(result).replace(earlier, images.fingerprint)) if earlier else result


def _protocol(card: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in card.items() if key != "checkpoint"}


def for_row(config: Config, found: Mapping[str, float], best: Mapping[str, Any] | None) -> dict[str, float]:
    """The scores as a row has them, with the first metric's best so far as `eval/fid_best`, which a sweep may aim at."""
    main = config.evaluation.metrics[0].options.main
    row = {f"eval/{name}": value for name, value in found.items()}
    return row | ({f"eval/{main}_best": best["scores"][main]} if best and main in best["scores"] else {})


def as_json(result: Result, images_seen: int) -> dict[str, Any]:
    """A line of evaluations.jsonl, for `to_json`."""
    return {
        "images_seen": images_seen,
        "kimg": images_seen / 1000,
        "scores": dict(result.scores),
        "cards": {name: dict(card) for name, card in result.cards.items()},
        "costs": dict(result.costs),
    }


def append(directory: Path, result: Mapping[str, Any]) -> None:
    """Adds a line to evaluations.jsonl; a full or failing disk is only told of."""
    lines = json_lines.Appender(directory / evaluations.NAME)
    lines.add(evaluations.to_plain(result))
    lines.close()


def to_json(result: Mapping[str, Any], indent: int | None = None) -> str:
    """A result as a file of its own; a score that is not finite is null."""
    return json.dumps(evaluations.to_plain(result), indent=indent, allow_nan=False)


def read(directory: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, see `evaluations.read`."""
    return evaluations.read(directory)


def _earlier(directory: Path) -> list[dict[str, Any]]:
    """The evaluations of earlier starts, in a file that can be added to."""
    with contextlib.suppress(OSError):  # Reading it says so.
        json_lines.mend(directory / evaluations.NAME, evaluations.is_line)
    return evaluations.read(directory)
