"""wandb_run.json: which run at W&B a run directory is, and how far it has come there."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distgan import files
from distgan.tracking import json_lines

log = logging.getLogger("distgan")

NAME = "wandb_run.json"
_LARGEST_BYTES = 2**20


def read(run_dir: Path) -> dict[str, Any]:
    """What the file says; nothing where there is none, or where it is damaged."""
    try:
        content = json.loads(files.read_bytes(run_dir / NAME, _LARGEST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or not isinstance(content.get("id"), str) or not content["id"]:
        return {}
    place = content.get("high_water_images")
    return {**content, "high_water_images": place if json_lines.is_number(place) else -1}


def write(run_dir: Path, content: Mapping[str, Any]) -> None:
    """Writes it anew; a damaged one is set aside. A disk that does not take it is only told of."""
    path = run_dir / NAME
    try:
        if path.exists() and not read(run_dir):
            log.warning("%s is damaged: kept as %s", path, files.set_aside(path).name)
        files.write_whole(path, json.dumps(content).encode() + b"\n")
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error.strerror)
