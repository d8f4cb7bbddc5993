"""evaluations.jsonl: a line an evaluation, with the images seen, the scores, and for each metric how they were got."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distgan.tracking import json_lines

log = logging.getLogger("distgan")

NAME = "evaluations.jsonl"


def is_result(content: Mapping[str, Any]) -> bool:
    """Whether an object is an evaluation."""
    scores, cards = content.get("scores"), content.get("cards")
    return (
        isinstance(scores, dict)
        and all(value is None or json_lines.is_number(value) for value in scores.values())
        and isinstance(cards, dict)
        and all(isinstance(card, dict) for card in cards.values())
    )


def is_line(content: Mapping[str, Any]) -> bool:
    """Whether an object is an evaluation of a run."""
    return isinstance(content.get("images_seen"), int) and is_result(content)


def read(run_dir: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, oldest first; a score that was not finite is NaN.

    Damaged lines are passed over; of a file that cannot be read there are none, and the log says so.
    """
    try:
        return [_with_nan(content) for content in json_lines.read(run_dir / NAME, is_line)]
    except OSError as error:
        log.warning("%s cannot be read (%s): its scores are not known", run_dir / NAME, error.strerror)
        return []


def to_plain(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as JSON has it, which knows no infinity: a score that is not finite is null, as in metrics.jsonl."""
    finite = {name: value if math.isfinite(value) else None for name, value in result["scores"].items()}
    return {**result, "scores": finite}


def from_json(text: str) -> dict[str, Any]:
    """The result in a file of its own; a score that was not finite is NaN.

    Raises:
      ValueError: it is something else.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or not is_result(content):
        raise ValueError("it has no scores with cards")
    return _with_nan(content)


def _with_nan(content: Mapping[str, Any]) -> dict[str, Any]:
    return {**content, "scores": {name: math.nan if v is None else v for name, v in content["scores"].items()}}
