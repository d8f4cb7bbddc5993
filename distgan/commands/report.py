"""`distgan report`: one or several runs as a page of HTML that opens from the disk, without a server or a network."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distgan import __version__, files, schema
from distgan import config as configs
from distgan.commands import trained
from distgan.config import Config
from distgan.errors import UserError
from distgan.evaluation.protocols import METRICS
from distgan.schema import option, split_names
from distgan.tracking import curves, evaluations, panels
from distgan.training import checkpoint
from distgan.training.run_dir import read_config, read_starts

PAGE = Path(__file__).with_name("report_page")
_MOST_POINTS = 1000  # Of a curve: two a pixel of a wide chart.
_MOST_POINTS_IN_ALL = 120_000  # About 30 bytes each.
_MOST_GRIDS = 200
_GRID_PIXELS = 768
_JPEG_QUALITY = 80
# What a card says of who is judged. Scores whose cards differ in anything else are not shown in one chart.
_JUDGED = ("checkpoint", "trained_on")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to show."""

    run_dir: str = option("", "the run, or several with commas between")
    out: str = option("", "a new HTML file")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory holds."""

    name: str
    path: Path
    config: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, float]]
    evaluations: Sequence[Mapping[str, Any]]


def run(options: Options) -> int:
    """Writes the page, and prints its size."""
    paths = [Path(name) for name in split_names(options.run_dir)]
    if not paths:
        raise UserError("--run_dir is missing: a run, or several with commas between")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"--run_dir={options.run_dir} names a run twice")
    if not options.out:
        raise UserError("--out is missing: a new HTML file")
    trained.check_new(options.out)
    runs = [open_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    pictures: list[str] = []
    content = describe(runs, pictures)
    text = page(content, pictures)
    with trained.writing(Path(options.out)) as temporary:
        temporary.write_text(text, encoding="utf-8")
    size, without = len(text.encode()), len(page(content, []).encode())
    print(f"{size:>12,} bytes  {options.out} ({without:,} without its {len(pictures)} pictures)")
    return 0


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where two have one name."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def open_run(path: Path, name: str) -> Run:
    """Reads a run directory.

    Raises:
      UserError: it holds no run, or one without rows.
    """
    config = read_config(path)
    if not config:
        raise UserError(f"--run_dir={path} holds no run")
    try:
        rows = curves.read_rows(path / "metrics.jsonl")
        scored = [
            {**each, "scores": {name: curves.finite(value) for name, value in each["scores"].items()}}
            for each in sorted(evaluations.read(path), key=lambda each: each["images_seen"])
        ]
    except OSError as error:
        raise UserError(f"--run_dir={path} cannot be read: {error.strerror}") from None
    if not rows:
        raise UserError(f"--run_dir={path} has no rows in metrics.jsonl yet")
    return Run(name, path, config, read_starts(path), rows, scored)


def page(content: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The whole page."""
    title = ", ".join(each["name"] for each in content["runs"])
    parts = {
        "title": html.escape(title),
        "style": (PAGE / "report.css").read_text(),
        "script": (PAGE / "report.js").read_text(),
        "content": _json(content),
        "pictures": _json(pictures),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], (PAGE / "report.html").read_text())


def _json(content: Any) -> str:
    """JSON without NaN and infinities, and within which no text can end the script element."""
    finite = json.loads(json.dumps(content), parse_constant=lambda name: None)
    return json.dumps(finite, separators=(",", ":")).replace("<", "\\u003c")


def describe(runs: Sequence[Run], pictures: list[str]) -> dict[str, Any]:
    """What the page shows, as JSON; adds the pictures that it refers to by their number to `pictures`."""
    protocols = _protocols(runs)
    several = len(protocols) > 1
    lines = [_points(run, protocols, several) for run in runs]
    most = max(2, min(_MOST_POINTS, _MOST_POINTS_IN_ALL // sum(len(each) for each in lines)))
    keys = dict.fromkeys(key for each in lines for key in each)
    return {
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "version": __version__,
        "defaults": schema.flatten(Config()),
        "lower_is_better": _directions(runs),
        "protocols": [json.loads(each) for each in protocols],
        "sections": [
            {"title": section, "panels": [each for panel, here in found for each in _panel(panel, here)]}
            for section, found in panels.arrange(keys).items()
        ],
        "runs": [
            {
                **_run(run, protocols),
                **_curves(points, most),
                **_pictures(run, pictures, _MOST_GRIDS // len(runs)),
            }
            for run, points in zip(runs, lines, strict=True)
        ],
    }


def _protocol(evaluation: Mapping[str, Any]) -> str:
    """How an evaluation was done, whoever was judged."""
    cards = {
        name: {key: value for key, value in card.items() if key not in _JUDGED and value != ""}
        for name, card in evaluation["cards"].items()
    }
    return json.dumps(cards, sort_keys=True)


def _protocols(runs: Sequence[Run]) -> list[str]:
    """Every way in which a run was evaluated, in the order of their first use."""
    return list(dict.fromkeys(_protocol(each) for run in runs for each in run.evaluations))


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def _points(run: Run, protocols: Sequence[str], several: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The run's curves: scores from its evaluations, which say how they were got, and all else from its rows."""
    found = curves.points(run.rows)
    if protocols:
        found = {key: value for key, value in found.items() if not key.startswith("eval/")}
    scores = []
    for each in run.evaluations:
        suffix = f" ({_letter(protocols.index(_protocol(each)))})" if several else ""
        values = {f"eval/{name}{suffix}": value for name, value in each["scores"].items()}
        scores.append({"progress/images_seen": each["images_seen"], **values})
    more = curves.points(scores)
    more.pop("progress/images_seen", None)
    found.pop("progress/images_seen")
    return {**found, **more}


def _panel(panel: panels.Panel, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The charts of a panel: one, or one for each protocol of its scores."""
    by_protocol: dict[str, list[str]] = {}
    for key in keys:
        by_protocol.setdefault(key.partition(" ")[2], []).append(key)
    for protocol, here in by_protocol.items():
        yield {"title": f"{panel.title} {protocol}".strip(), "keys": here, "log": panel.log}


def _directions(runs: Sequence[Run]) -> dict[str, bool]:
    """Which scores are better when lower, of the metrics whose best is known."""
    found = {}
    for name in dict.fromkeys(name for run in runs for each in run.evaluations for name in each["cards"]):
        if name in METRICS.parts:
            part = schema.choose(METRICS, name).options
            found[part.main] = part.lower_is_better
    return found


def _run(run: Run, protocols: Sequence[str]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for row in run.rows:
        last.update(row)
    return {
        "name": run.name,
        "path": str(run.path),
        "num_rows": len(run.rows),
        "total_images": configs.images(max(0.0, curves.finite(run.config.get("train.total_kimg"), 0.0))),
        "last": {key: curves.shorten(value) for key, value in last.items()},
        "config": run.config,
        "starts": run.starts,
        "restarts": curves.restarts(run.rows),
        "diverged": sorted(path.name for path in run.path.glob("diverged-*.json")),
        "evaluations": [
            {
                "images_seen": each["images_seen"],
                "scores": {name: curves.shorten(value) for name, value in each["scores"].items()},
                "protocol": protocols.index(_protocol(each)),
            }
            for each in run.evaluations
        ],
        "checkpoints": list(_checkpoints(run.path / "checkpoints")),
    }


def _checkpoints(folder: Path) -> Iterator[dict[str, Any]]:
    best = checkpoint.best_images_seen(folder)
    for path in checkpoint.whole(folder):
        try:
            files = [each.stat() for each in path.iterdir()]
        except FileNotFoundError:
            continue  # A run that goes on has removed it meanwhile.
        yield {
            "images_seen": int(path.name),
            "bytes": sum(each.st_size for each in files),
            "written": max(each.st_mtime for each in files),
            "best": int(path.name) == best,
        }


def _curves(points: Mapping[str, tuple[np.ndarray, np.ndarray]], most: int) -> dict[str, Any]:
    """Every curve, with the number of its x values among those that the run's curves share."""
    axes: dict[tuple[int, ...], int] = {}
    series = {}
    for key, (xs, ys) in points.items():
        curve = curves.thin(xs, ys, most)
        axis = axes.setdefault(tuple(curve.pop("x")), len(axes))
        series[key] = {"axis": axis, **curve}
    return {"axes": [list(axis) for axis in axes], "series": series}


def _pictures(run: Run, pictures: list[str], most: int) -> dict[str, Any]:
    """The run's grids of samples, at most so many, and its grid of real images."""
    folder = run.path / "samples"
    kimgs = {path: float(path.stem) for path in folder.glob("*.png") if re.fullmatch(r"\d+(\.\d+)?", path.stem)}
    grids = sorted(kimgs, key=lambda path: kimgs[path])
    if len(grids) > most:
        grids = [
            grids[number] for number in np.unique(np.linspace(0, len(grids) - 1, max(most, 1)).round().astype(int))
        ]
    samples = []
    for path in grids:
        if (number := _embed(path, pictures)) is not None:
            samples.append({"kimg": kimgs[path], "picture": number})
    reals = folder / "reals.png"
    return {"samples": samples, "reals": _embed(reals, pictures) if reals.exists() else None}


def _embed(path: Path, pictures: list[str]) -> int | None:
    """Adds a picture as JPEG in base64; None where it can't be read, as one that is being written."""
    try:
        with files.open_regular(path) as file, Image.open(file) as opened:
            picture = opened.convert("L" if opened.mode in ("1", "L") else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    picture.thumbnail((_GRID_PIXELS, _GRID_PIXELS))
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=_JPEG_QUALITY)
    pictures.append(base64.b64encode(data.getvalue()).decode())
    return len(pictures) - 1
