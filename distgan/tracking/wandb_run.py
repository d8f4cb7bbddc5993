"""The process that speaks to Weights & Biases for a run: started by `wandb_sink`, with messages on stdin and answers on stdout.

The rows it takes from metrics.jsonl: what W&B does not have yet of an earlier start comes first, and nothing comes twice,
however the run was stopped. It ends with the trainer, or soon after.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import netrc
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import wandb
from filelock import FileLock, Timeout
from PIL import Image
from wandb.proto import wandb_internal_pb2

from distgan import files
from distgan.runtime import credentials
from distgan.tracking import json_lines, wandb_file, wandb_log

_MOST_ERRORS = 10
_AXIS = "progress/images_seen"
_STOPPED = 75  # The run's exit code after a signal: it is to be started again.
_PREDECESSOR_SECONDS = 20  # How long to wait for the process of an earlier start.
_CHECK_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Order:
    """What a process is started with."""

    mode: str
    """`auto`, `online` or `offline`."""
    id: str
    project: str
    entity: str
    run_dir: str
    config: Mapping[str, Any]
    key_file: str
    init_seconds: float
    finish_seconds: float
    by_reference: bool
    """Whether artifacts refer to files where they lie."""
    job_type: str = "train"
    fell_back: bool = False
    """Whether it is offline because the server could not be reached, which has to get the rows yet."""


def choose_mode(wanted: str, key_file: str = "") -> str:
    """`online`, `offline` or `disabled`: the option, else WANDB_MODE, else online where a key is found."""
    if wanted != "auto":
        return wanted
    mode = wandb.setup().settings.mode
    if mode != "online":
        return "offline" if mode == "dryrun" else str(mode)
    return "online" if key_file or has_key() else "offline"


def has_key() -> bool:
    """Whether WANDB_API_KEY or a .netrc file holds a key for the server."""
    settings = wandb.setup().settings
    if settings.api_key or credentials.wandb_key():
        return True
    try:
        return netrc.netrc().authenticators(urlsplit(settings.base_url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def main() -> None:
    """Opens the run, follows the messages, and finishes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Whatever else is printed is no answer.

    def answer(**message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # Where the trainer is gone, what it said is still to be done.
            print(json.dumps(message), file=answers, flush=True)

    order = Order(**json.loads(sys.stdin.readline()))
    lock = FileLock(Path(order.run_dir) / ".wandb.lock", timeout=_PREDECESSOR_SECONDS)
    with contextlib.suppress(Timeout, OSError):
        lock.acquire()
    try:
        session = Session(order, answer)
    except Exception as error:
        answer(failed=first_line(error))
        os._exit(1)
    answer(opened={"mode": session.mode, "id": session.run.id, "url": session.url, "folder": session.folder})
    exit_code = 1  # Where the trainer ends without a word.
    for line in sys.stdin:
        message = json.loads(line)
        if "close" in message:
            exit_code = message["close"]
            break
        session.take(message)
    answer(done=session.finish(exit_code))


class Session:
    """A start's part of the W&B run, from init to finish."""

    def __init__(self, order: Order, answer: Any):
        self.order, self.answer = order, answer
        self.directory = Path(order.run_dir)
        self.mode = choose_mode(order.mode, order.key_file)
        if self.mode == "disabled":
            raise ValueError("WANDB_MODE=disabled")
        before = local_images_seen(self.directory, order.id)
        self.run = self._init()
        self.folder = str(Path(self.run.dir).parent)
        self.url = self.run.url or "" if self.mode == "online" else ""
        if self.mode == "online":
            before = self._summary_images_seen()
        self.rows = rows(self.directory / "metrics.jsonl", before)
        self.waiting: dict[str, Any] | None = None
        """The first row that has not been logged."""
        self.beside: list[tuple[int, dict[str, Any]]] = []
        """Pictures and the like by images seen, which go along with the row of the same place."""
        self.artifacts: list[threading.Thread] = []
        self.errors = 0
        self.logged = self.before = before
        self.lost = False
        """Whether what was logged offline was deleted with the run directory."""
        self.count = 0
        self._note(before)

    def _init(self) -> Any:
        order = self.order
        key = (
            files.read_text(order.key_file, credentials.LARGEST).strip()
            if order.key_file and self.mode == "online"
            else None
        )
        # In a sweep project and entity are the agent's to set.
        names = {} if wandb.setup().settings.sweep_id else {"project": order.project, "entity": order.entity or None}
        answer = self.answer
        wanted = {
            "api_key": key,
            "console": "off",
            "disable_git": True,
            "finish_timeout": order.finish_seconds,
            "finish_timeout_raises": True,
            "init_timeout": order.init_seconds,
            "save_code": False,
            "silent": True,
            # A plain function: wandb copies the settings, and a bound method's lock cannot be.
            "stop_fn": lambda: answer(stop=True),
            "x_stats_pid": os.getppid(),
            "x_transaction_log_flush_interval": 2.0,
        }
        run = wandb.init(
            id=order.id,
            mode=self.mode,  # type: ignore[arg-type]
            resume="allow",
            name=self.directory.name,
            job_type=order.job_type,
            config=dict(order.config),
            dir=str(self.directory),
            settings=known_settings(wanted),
            **names,  # type: ignore[arg-type]
        )
        run.define_metric(_AXIS, hidden=True)
        run.define_metric("*", step_metric=_AXIS)
        return run

    def take(self, message: Mapping[str, Any]) -> None:
        """Does what a message asks for."""
        try:
            for kind, content in message.items():
                getattr(self, f"_take_{kind}")(**content)
        except Exception as error:
            self.answer(trouble=f"took no {next(iter(message))}: {first_line(error)}")

    def _take_row(self, images_seen: float) -> None:
        """Logs the rows of metrics.jsonl up to a place on the axis."""
        while row := self.waiting or next(self.rows, None):
            self.waiting = row
            if row[_AXIS] > images_seen:
                return
            self._log_beside(row[_AXIS], row)
            self._log(row)
            self.waiting = None

    def _take_picture(self, name: str, path: str, images_seen: int) -> None:
        with Image.open(path) as picture:
            shown = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
        self._beside(images_seen, {name: wandb.Image(shown, file_type="jpg")})

    def _take_histogram(self, name: str, counts: list[int], edges: list[float], images_seen: int) -> None:
        self._beside(images_seen, {name: wandb.Histogram(np_histogram=(counts, edges))})  # type: ignore[arg-type]

    def _beside(self, images_seen: int, values: dict[str, Any]) -> None:
        """Keeps what stands beside a row, unless an earlier start has shown it."""
        if images_seen > self.logged or (images_seen == 0 and self.logged < 0):
            self.beside.append((images_seen, values))

    def _log_beside(self, images_seen: float, row: dict[str, Any]) -> None:
        """Logs what is kept of places before a row's, and adds to the row what is of its own."""
        earlier: dict[int, dict[str, Any]] = {}
        for place, values in self.beside:
            (row if place == images_seen else earlier.setdefault(place, {})).update(values)
        self.beside = []
        for place, values in sorted(earlier.items()):
            self._log({_AXIS: place, **values})

    def _take_alert(self, title: str, text: str, level: str) -> None:
        self.run.alert(title, text, level=level, wait_duration=3600)

    def _take_move(self, run_dir: str) -> None:
        self.directory = Path(run_dir)
        if self.mode == "offline" and not local_files(self.directory, self.order.id):
            self.lost = True

    def _take_config(self, **values: Any) -> None:
        self.run.config.update(values, allow_val_change=True)

    def _take_artifact(self, **content: Any) -> None:
        """Beside the rows, as it asks the server."""
        self.artifacts.append(threading.Thread(target=self._log_artifact, kwargs=content, daemon=True))
        self.artifacts[-1].start()

    def _log_artifact(self, path: str, name: str, aliases: list[str], metadata: dict[str, Any]) -> None:
        try:
            self._artifact(path, name, aliases, metadata)
        except Exception as error:
            self.answer(trouble=f"took no artifact: {first_line(error)}")

    def _artifact(self, path: str, name: str, aliases: list[str], metadata: dict[str, Any]) -> None:
        artifact = wandb.Artifact(f"{name}-{self.run.id}", type="model", metadata=metadata)
        if self.order.by_reference:
            artifact.add_reference(Path(path).resolve().as_uri())
        else:
            artifact.add_dir(path)
        self.run.log_artifact(artifact, aliases=aliases)

    def _log(self, values: dict[str, Any]) -> None:
        if self.errors >= _MOST_ERRORS:
            return
        try:
            self.run.log(values)
            self.logged, self.errors, self.count = max(self.logged, values[_AXIS]), 0, self.count + 1
        except Exception as error:
            self.errors += 1
            self.answer(trouble=f"took no row: {first_line(error)}")

    def finish(self, exit_code: int) -> dict[str, Any]:
        """Logs what is left and waits for uploads, so long and no longer; returns what became of them."""
        self._take_row(math.inf)
        self._log_beside(math.inf, {})
        trouble, end = "", time.monotonic() + self.order.finish_seconds
        for thread in self.artifacts:
            thread.join(max(0.0, end - time.monotonic()))
        expected = self.run.starting_step + self.count
        path = f"{self.run.entity}/{self.run.project}/{self.run.id}"
        try:
            if exit_code == _STOPPED:
                self.run.mark_preempting()
            self.run.finish(exit_code=exit_code)
            if self.mode == "online":
                trouble = self._missing(path, expected)
        except TimeoutError:
            trouble = f"uploads did not end in {self.order.finish_seconds:g} s"
        except Exception as error:
            trouble = first_line(error)
        self._note(-1 if self.lost else self.before if trouble else self.logged)
        return {"trouble": trouble, "lost": self.lost}

    def _missing(self, path: str, expected: int) -> str:
        """Asks the server how many rows it has: of an answer that is none, wandb-core does not tell."""
        there = (
            wandb.Api(overrides={"entity": path.split("/")[0]}, timeout=_CHECK_SECONDS).run(path).lastHistoryStep + 1
        )
        return f"the server has {there} of {expected} rows" if there < expected else ""

    def _summary_images_seen(self) -> float:
        """The last row's place that the server has; -1 of a new run."""
        return float(self.run.summary.get(_AXIS, -1)) if self.run.resumed else -1

    def _note(self, images_seen: float) -> None:
        """Writes down how far W&B has come, for all that is known."""
        order = self.order
        known = wandb_file.read(self.directory) or {"id": order.id, "project": order.project, "entity": order.entity}
        if order.fell_back:
            images_seen = min(images_seen, known.get("high_water_images", -1))
        wandb_file.write(self.directory, known | {"mode": self.mode, "high_water_images": images_seen})


def known_settings(wanted: Mapping[str, Any]) -> Any:
    """W&B's settings of those names that the installed version knows: `x_` names come and go."""
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in wandb.Settings.model_fields})


def rows(path: Path, after: float) -> Iterator[dict[str, Any]]:
    """The rows of metrics.jsonl beyond a place on the axis, as they come: it goes on after having ended."""
    while not path.exists():
        yield {}
    with path.open("rb") as file:
        while True:
            place = file.tell()
            line = file.readline()
            if not line.endswith(b"\n"):
                file.seek(place)
                yield {}
                continue
            row = json_lines.parse(line, json_lines.is_row)
            if row and row[_AXIS] > after:
                yield {key: math.nan if value is None else value for key, value in row.items()}


def local_files(run_dir: Path, run_id: str) -> list[Path]:
    """W&B's files of all starts of a run, in no order: their names go by clocks, which may have gone back."""
    return list(run_dir.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb"))


def local_images_seen(run_dir: Path, run_id: str) -> float:
    """The last row's place in all local files of a run, or as wandb_run.json has it where none has a row.

    Folders without a row are what a start left that could not reach the server, and removed.
    """
    last = -1.0
    for file in local_files(run_dir, run_id):
        if (here := last_images_seen(file)) < 0:
            shutil.rmtree(file.parent, ignore_errors=True)
        last = max(last, here)
    return last if last >= 0 else wandb_file.read(run_dir).get("high_water_images", -1)


def last_images_seen(path: Path) -> float:
    """The last place on the axis of a local file; -1 where it has none."""
    last = -1.0
    for data in wandb_log.records(path):
        record = wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined]
        for item in record.history.item:
            if (item.key or "/".join(item.nested_key)) == _AXIS:
                last = max(last, float(json.loads(item.value_json)))
    return last


def first_line(error: Exception) -> str:
    """An error in a line."""
    return (str(error) or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    main()
