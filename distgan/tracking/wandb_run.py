"""Weights & Biases: one run that survives restarts, offline where no key is found, and never the end of a training run."""

from __future__ import annotations

import json
import netrc
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import wandb

from distgan.config import TrackingConfig
from distgan.tracking.console import log
from distgan.tracking.tracker import Row

_INIT_SECONDS = 30
_FINISH_SECONDS = 120
_MOST_ERRORS = 10


def choose_mode(wanted: str) -> Any:
    """`online`, `offline` or `disabled`: the option, else WANDB_MODE, else online where a key is found."""
    if wanted != "auto":
        return wanted
    mode = wandb.setup().settings.mode
    if mode != "online":
        return mode
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether WANDB_API_KEY or a .netrc file holds a key for the server."""
    settings = wandb.setup().settings
    if settings.api_key:
        return True
    try:
        return netrc.netrc().authenticators(urlsplit(settings.base_url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def open_wandb(tracking: TrackingConfig, config: Mapping[str, Any], run_dir: Path) -> WandbRun | None:
    """The W&B run of a run directory, begun or gone on with; None where it is disabled or cannot be had."""
    try:
        mode = choose_mode(tracking.wandb)
        if mode == "disabled":
            return None
        run_id = _run_id(run_dir, tracking)
        try:
            run = _init(mode, run_id, tracking, config, run_dir)
        except Exception as error:
            if mode == "offline":
                raise
            log.warning("W&B cannot be reached (%s): going on offline", _first_line(error))
            wandb.teardown()
            mode = "offline"
            run = _init(mode, run_id, tracking, config, run_dir)
        where = run.url if mode == "online" else f"{run_dir / 'wandb'}, upload with: wandb sync {Path(run.dir).parent}"
        log.info("W&B %s, run %s: %s", mode, run_id, where)
        return WandbRun(run)
    except Exception as error:
        log.warning("W&B is off: %s", _first_line(error))
        return None


class WandbRun:
    """A sink that gives up after ten errors in a row rather than disturb the run."""

    def __init__(self, run: Any):
        self.run = run
        self.errors = 0

    def row(self, row: Row) -> None:
        """Logs a report, on the axis of images seen; never waits for the network."""
        self._log(row)

    def picture(self, name: str, path: Path, images_seen: int) -> None:
        """Logs a picture as JPEG."""
        if self.errors < _MOST_ERRORS:
            self._log({"progress/images_seen": images_seen, name: wandb.Image(str(path), file_type="jpg")})

    def close(self, exit_code: int) -> None:
        """Waits at most two minutes for uploads."""
        try:
            if exit_code == 75:
                self.run.mark_preempting()
            self.run.finish(exit_code=exit_code)
        except Exception as error:
            log.warning("W&B did not finish: %s", _first_line(error))

    def _log(self, values: Mapping[str, Any]) -> None:
        if self.errors >= _MOST_ERRORS:
            return
        try:
            self.run.log(dict(values))
            self.errors = 0
        except Exception as error:
            self.errors += 1
            log.warning("W&B took no row: %s", _first_line(error))


def _init(mode: Any, run_id: str, tracking: TrackingConfig, config: Mapping[str, Any], run_dir: Path) -> Any:
    settings = wandb.Settings(
        console="off", init_timeout=_INIT_SECONDS, finish_timeout=_FINISH_SECONDS, silent=True, disable_git=True
    )
    run = wandb.init(
        mode=mode,
        id=run_id,
        resume="allow",
        project=tracking.wandb_project,
        entity=tracking.wandb_entity or None,
        name=run_dir.name,
        config=dict(config),
        dir=str(run_dir),
        settings=settings,
    )
    run.define_metric("progress/images_seen", hidden=True)
    run.define_metric("*", step_metric="progress/images_seen")
    return run


def _run_id(run_dir: Path, tracking: TrackingConfig) -> str:
    path = run_dir / "wandb_run.json"
    if path.exists():
        return json.loads(path.read_text())["id"]
    run_id = secrets.token_hex(4)
    content = {"id": run_id, "project": tracking.wandb_project, "entity": tracking.wandb_entity}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.rename(path)
    return run_id


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
