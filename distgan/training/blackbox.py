"""What is known about a step that diverged: enough to work it out again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distgan.tracking import json_lines
from distgan.training.phases import measured_keys, phases
from distgan.training.step import is_limited, layer_paths

if TYPE_CHECKING:
    from distgan.training.loop import Run

_ROWS = 100


def write(run: Run, evidence: np.ndarray) -> str:
    """Saves the evidence of a step (float64, see `compile_steps`) as `diverged-IMAGES.json`; returns what happened, in words."""
    seen, limit = run.images_seen, run.config.train.loss_limit
    keys = measured_keys(run.config)
    paths = [(phase.name, path) for phase in phases(run.config) for path in layer_paths(run.state, phase)]
    measured, norms = evidence[: len(keys)], evidence[len(keys) :]
    found = [name for name, value in zip(keys, measured, strict=True) if not np.isfinite(value)]
    beyond = [] if found else [n for n, v in zip(keys, measured, strict=True) if is_limited(n[1]) and abs(v) > limit]
    phase, key = (found or beyond)[0]
    what = "was not finite" if found else f"was beyond --train.loss_limit={limit:g}"
    last = seen + run.images_per_step - 1
    content = {
        "step": seen // run.images_per_step,
        "images_seen": seen,
        "phase": phase,
        "key": key,
        "what": what,
        "values": _by_phase(keys, measured),
        "gradient_norms": _by_phase(paths, norms),
        "image_numbers": [seen, last],
        # Latents, labels, augmentation and dropout of an image follow from the seed, the phase and its number.
        "seed": run.config.seed,
        "reports": _last_rows(run.path / "metrics.jsonl"),
    }
    path = run.path / f"diverged-{seen:012d}.json"
    told = f"{key} {what} in phase {phase} of step {content['step']} (images {seen} to {last}); the weights are those before it"
    try:
        path.write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        return f"{told}, the evidence cannot be written to {path}: {error.strerror}"
    return f"{told}, the evidence is in {path}"


def _by_phase(names: Any, values: np.ndarray) -> dict[str, dict[str, Any]]:
    """JSON has no infinity and no NaN: they are written as text."""
    found: dict[str, dict[str, Any]] = {}
    for (phase, name), value in zip(names, values.tolist(), strict=True):
        found.setdefault(phase, {})[name] = value if math.isfinite(value) else repr(value)
    return found


def _last_rows(path: Path) -> list[Any]:
    try:
        return list(json_lines.read(path, json_lines.is_row))[-_ROWS:]
    except OSError:
        return []
