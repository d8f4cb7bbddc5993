"""Weights & Biases as a run sees it: a queue, and a process of its own (`wandb_run`) that nothing here ever waits for.

Whatever hangs, fails or leaks there does so elsewhere; at the end it is given so many seconds and no more. Rows are not even
sent: the process takes them from metrics.jsonl, so none is lost and memory does not grow, whatever W&B does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distgan import files
from distgan.config import TrackingConfig
from distgan.errors import UserError
from distgan.runtime import credentials, topology
from distgan.tracking import wandb_file
from distgan.tracking.alerts import Alert, Row
from distgan.tracking.console import log
from distgan.tracking.tracker import Sink

_MOST_WAITING = 1000
_START_SECONDS = 30  # For the process itself, on a busy machine.
_HURRIED_SECONDS = 15  # From a signal to the end.
_LEAVE_SECONDS = 0.5
_FINAL = ("No module named", "WANDB_MODE=disabled")  # What offline would be no better.
_LONGEST_SECONDS = 10**6
_STOPPED = 75
_DIVERGED = 3


def open_wandb(
    tracking: TrackingConfig,
    facts: Mapping[str, Any],
    run_dir: Path,
    restarts: int,
    job_type: str = "train",
    environment: Mapping[str, str] | None = None,
) -> WandbSink | None:
    """The W&B run of a run directory, begun or gone on with; None where it is disabled.

    Args:
      tracking: how.
      facts: for the W&B run's config.
      run_dir: what it is about.
      restarts: starts before this one.
      job_type: W&B's word for what the run is.
      environment: variables for W&B's process, beside this one's.

    Raises:
      UserError: the file that should hold the key cannot be read.
    """
    if tracking.wandb == "disabled":
        return None
    if tracking.wandb_key_file and tracking.wandb != "offline":
        try:
            files.read_text(tracking.wandb_key_file, credentials.LARGEST)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise UserError(f"--tracking.wandb_key_file={tracking.wandb_key_file} cannot be read: {why}") from None
    order = {
        "mode": tracking.wandb,
        **_identity(run_dir, tracking, topology.wandb_run_id(), restarts),
        "run_dir": str(run_dir),
        "config": dict(facts),
        "key_file": tracking.wandb_key_file,
        "init_seconds": tracking.wandb_init_seconds,
        "finish_seconds": tracking.wandb_finish_seconds,
        "by_reference": tracking.wandb_artifacts == "reference",
        "job_type": job_type,
    }
    sink = WandbSink(order, tracking.wandb_checkpoints, environment)
    if restarts:
        sink.alert(Alert("restart", f"start number {restarts + 1} of {run_dir}", "INFO"))
    return sink


def lacks_rows(tracking: TrackingConfig, run_dir: Path, last_images_seen: float) -> bool:
    """Whether W&B, so far as is known, lacks rows of a run, as where it could not be reached or its process was killed."""
    kept = wandb_file.read(run_dir)
    same = (kept.get("entity"), kept.get("project")) == (tracking.wandb_entity, tracking.wandb_project)
    return tracking.wandb != "disabled" and not (same and kept["high_water_images"] >= last_images_seen)


def log_export(tracking: TrackingConfig, run_dir: Path, out: Path, images_seen: int) -> None:
    """Logs what `distgan export` wrote as an artifact, where the run's checkpoints are; in a W&B run of its own.

    W&B's failures are told and end nothing.
    """
    if tracking.wandb_checkpoints == "none" or tracking.wandb == "disabled":
        return
    folder = run_dir / "wandb" / f"export-{out.name}"
    try:
        trained = wandb_file.read(run_dir)["id"]
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"trained_by": trained, "images_seen": images_seen}
        sink = open_wandb(tracking, facts, folder, 0, "export")
    except (OSError, ValueError, KeyError, UserError) as error:
        log.warning("the export is no artifact at W&B: %s", error)
        return
    if sink:
        sink.artifact(out, "distgan-export", ["latest", f"kimg-{images_seen / 1000:g}"], facts)
        sink.close(0)


def _identity(run_dir: Path, tracking: TrackingConfig, given: str, restarts: int) -> dict[str, str]:
    """Id, project and entity, as wandb_run.json keeps them; that of WANDB_RUN_ID, which a sweep agent sets, counts most."""
    kept = wandb_file.read(run_dir)
    wanted = {"entity": tracking.wandb_entity, "project": tracking.wandb_project}
    if any(kept.get(name) != value for name, value in wanted.items()) or (given and kept["id"] != given):
        kept = {"id": given or secrets.token_hex(4), **wanted, "high_water_images": -1}  # A run of its own there.
    kept |= {"mode": tracking.wandb, "restarts": restarts}
    wandb_file.write(run_dir, kept)
    return {name: kept[name] for name in ("id", "project", "entity")}


class WandbSink(Sink):
    """Hands on what it gets; every method returns at once, but for `close`, which has a limit."""

    def __init__(
        self, order: Mapping[str, Any], checkpoints: str = "none", environment: Mapping[str, str] | None = None
    ):
        self.order, self.checkpoints, self.environment = order, checkpoints, environment or {}
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue(_MOST_WAITING)
        self.process: _Process | None = None
        self.deadline = float("inf")
        """Of everything, once the run is closed."""
        self.hurried = threading.Event()
        self.exit_code: int | None = None
        self.left_out = 0
        self.sent = -1
        """Images seen of the last checkpoint that was handed on: a run's last one may be told of twice."""
        self.lines: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        """To be told by the main thread: what others write while a step is compiled is held back."""
        self.thread = threading.Thread(target=self._serve, name="wandb", daemon=True)
        self.thread.start()

    @property
    def stop_asked(self) -> bool:  # type: ignore[override]
        """Whether W&B's stop button was pressed."""
        return self.process is not None and self.process.stop_asked

    def row(self, row: Row) -> None:
        self._speak()
        with contextlib.suppress(queue.Full):  # A later row brings this one along.
            self.messages.put_nowait({"row": {"images_seen": row["progress/images_seen"]}})

    def picture(self, name: str, path: Path, images_seen: int) -> None:
        self._put(picture={"name": name, "path": str(path), "images_seen": images_seen})

    def histogram(self, name: str, counts: np.ndarray, edges: np.ndarray, images_seen: int) -> None:
        content = {"name": name, "counts": counts.tolist(), "edges": edges.tolist(), "images_seen": images_seen}
        self._put(histogram=content)

    def evaluation(self, cards: Mapping[str, Any]) -> None:
        protocols = {name: {k: v for k, v in card.items() if k != "checkpoint"} for name, card in cards.items()}
        self._put(config={"evaluation_cards": protocols})

    def checkpoint(self, path: Path, images_seen: int, best: bool, facts: Mapping[str, Any]) -> None:
        if images_seen != self.sent and (self.checkpoints == "all" or (self.checkpoints == "best" and best)):
            self.sent = images_seen
            aliases = ["latest", f"kimg-{images_seen / 1000:g}", *(["best"] if best else [])]
            self.artifact(path, "distgan", aliases, facts)

    def artifact(self, path: Path, name: str, aliases: list[str], metadata: Mapping[str, Any]) -> None:
        """Takes a folder as the next version of `NAME-ID`, with the run's id."""
        self._put(artifact={"path": str(path), "name": name, "aliases": aliases, "metadata": dict(metadata)})

    def alert(self, alert: Alert) -> None:
        self._put(alert=alert._asdict())

    def move(self, run_dir: Path) -> None:
        self.order = {**self.order, "run_dir": str(run_dir)}
        self._put(move={"run_dir": str(run_dir)})

    def leave(self, exit_code: int) -> None:
        """Its process ends by itself, with this exit code, once it has uploaded what it has."""
        if self.process:
            # By a thread: a process that does not read must hold nobody up.
            teller = threading.Thread(target=self.process.send, args=({"close": exit_code},), daemon=True)
            teller.start()
            teller.join(_LEAVE_SECONDS)

    def close(self, exit_code: int) -> None:
        """Waits for uploads, for at most as long as the config says; 15 s after a signal."""
        if exit_code == _DIVERGED:
            self.alert(
                Alert("diverged", "a loss or a gradient was not finite; the evidence is in the run directory", "ERROR")
            )
        uploads = (1 if self.checkpoints == "none" else 2) * self.order["finish_seconds"]
        seconds = 2 * _START_SECONDS + self.order["init_seconds"] + uploads
        if exit_code == _STOPPED:
            seconds = _HURRIED_SECONDS
            self.hurried.set()
        self.deadline = time.monotonic() + seconds
        self.exit_code = exit_code
        self.thread.join(seconds)
        if self.thread.is_alive():
            self._warn(f"W&B was left after {seconds:g} s; metrics.jsonl has all rows, the next start hands them on")
        if self.process:
            self.process.kill()
        if self.left_out:
            self._warn(f"W&B was too slow for {self.left_out} pictures, histograms or artifacts")
        self._speak()

    def _speak(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                log.log(*self.lines.get_nowait())

    def _say(self, text: str) -> None:
        self.lines.put((logging.INFO, text))

    def _warn(self, text: str) -> None:
        self.lines.put((logging.WARNING, text))

    def _put(self, **message: Any) -> None:
        try:
            self.messages.put_nowait(message)
        except queue.Full:
            self.left_out += 1

    # What follows runs in the thread.

    def _serve(self) -> None:
        process, opened = self._open()
        if "failed" in opened:
            if opened["failed"] != "WANDB_MODE=disabled":
                self._warn(f"W&B is off: {opened['failed']}")
            return
        folder, run_id, offline = opened["folder"], opened["id"], opened["mode"] == "offline"
        where = f"{folder}, upload with: {self._sync_command()}" if offline else opened["url"]
        self._say(f"W&B {opened['mode']}, run {run_id}: {where}")
        self._feed(process)
        done = process.done(self.deadline)
        trouble = done["trouble"] if done else "its process ended early"
        if done and done["lost"]:
            self._warn("W&B's files went with the run directory: the next start hands it all rows")
        elif offline:
            self._say(f"W&B run {run_id} is on this disk; upload with: {self._sync_command()}")
        elif trouble:
            self._warn(f"W&B may lack rows ({trouble}); upload with: wandb sync --include-online {folder}")

    def _open(self) -> tuple[_Process, dict[str, Any]]:
        """A process that has opened the run, offline if need be, or why there is none."""
        process = self.process = _Process(self.order, self.environment, self._warn)
        opened = process.opened(self._init_deadline(), self.hurried)
        if "failed" not in opened or self.order["mode"] == "offline" or opened["failed"].startswith(_FINAL):
            return process, opened
        process.kill()
        if time.monotonic() > self.deadline:
            return process, opened
        self._warn(f"W&B cannot be reached ({opened['failed']}): going on offline")
        process = self.process = _Process(
            {**self.order, "mode": "offline", "fell_back": True}, self.environment, self._warn
        )
        return process, process.opened(self._init_deadline(), threading.Event())

    def _feed(self, process: _Process) -> None:
        while process.alive:
            try:
                process.send(self.messages.get(timeout=0.2))
            except queue.Empty:
                if self.exit_code is not None:
                    process.send({"close": self.exit_code})
                    return

    def _init_deadline(self) -> float:
        return time.monotonic() + _START_SECONDS + self.order["init_seconds"]

    def _sync_command(self) -> str:
        """With every offline part of the run, oldest first, as they belong together."""
        folders = sorted(Path(self.order["run_dir"]).glob(f"wandb/offline-run-*-{self.order['id']}"))
        return f"wandb sync {' '.join(map(str, folders))}"


class _Process:
    """The process, and a thread that reads what it says."""

    def __init__(self, order: Mapping[str, Any], environment: Mapping[str, str], tell: Callable[[str], None]):
        self.tell = tell
        own = Path(order["run_dir"]) / "wandb"
        own.mkdir(parents=True, exist_ok=True)
        folders = {f"WANDB_{name}_DIR": str((own / name.lower()).resolve()) for name in ("CACHE", "DATA", "ARTIFACT")}
        self.errors = own / "distgan-errors.txt"
        with self.errors.open("ab") as errors:
            self.errors_before = errors.tell()
            self.child = subprocess.Popen(
                [sys.executable, "-m", "distgan.tracking.wandb_run"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**credentials.for_tracking(folders), **environment},
                start_new_session=True,  # Signals to the trainer's group are the trainer's to answer.
            )
        self.into: Any = self.child.stdin
        self.out: Any = self.child.stdout
        self.stop_asked = False
        self.said: dict[str, dict[str, Any]] = {}
        self.heard = threading.Condition()
        self.alive = True
        self.send(order)
        threading.Thread(target=self._read, name="wandb answers", daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Waits where the process does not read: only the sink's own thread calls it."""
        try:
            self.into.write(json.dumps(message).encode() + b"\n")
            self.into.flush()
        except OSError:
            self.alive = False

    def opened(self, deadline: float, hurried: threading.Event) -> dict[str, Any]:
        """Mode, id, URL and folder of the run, or why it `failed`."""
        while True:
            with self.heard:
                self.heard.wait_for(lambda: "opened" in self.said or not self.alive, 0.2)
                if "opened" in self.said:
                    return self.said["opened"]
                if not self.alive:
                    return {"failed": self.said.get("failed", self._last_words())}
            if time.monotonic() > deadline or hurried.is_set():
                return {"failed": "no answer"}

    def done(self, deadline: float) -> dict[str, Any] | None:
        """What became of the uploads; None where the process does not say."""
        with self.heard:
            self.heard.wait_for(lambda: not self.alive, min(max(0.0, deadline - time.monotonic()), _LONGEST_SECONDS))
            return self.said.get("done")

    def kill(self) -> None:
        """Ends it, whatever it does."""
        self.child.kill()
        self.child.wait()

    def _read(self) -> None:
        for line in self.out:
            with self.heard:
                self._take(json.loads(line))
                self.heard.notify_all()
        with self.heard:
            self.alive = False
            self.heard.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        if "stop" in message:
            self.stop_asked = True
        elif "trouble" in message:
            self.tell(f"W&B {message['trouble']}")
        else:
            self.said |= message

    def _last_words(self) -> str:
        """The last line of its errors."""
        lines = self.errors.read_bytes()[self.errors_before :].decode(errors="replace").split("\n")
        return next((line.partition(": ")[2] or line for line in reversed(lines) if line.strip()), "its process ended")
