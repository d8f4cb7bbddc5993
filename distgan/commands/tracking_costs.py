"""`distgan benchmark --what=tracking`: what W&B costs the training, offline and with a server that accepts and never answers."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from distgan import config as configs
from distgan import schema
from distgan.config import Config
from distgan.tracking.tracker import JsonLines, Sink, Tracker
from distgan.tracking.wandb_sink import open_wandb

_CALL_SECONDS = 1.0  # As in training.
_SETTLE_SECONDS = 15  # Until the processes beside the training have started, which is not what is measured.
_NO_KEY = "0" * 40
_MODES = {"disabled": "disabled", "disabled_again": "disabled", "offline": "offline", "hung": "online"}


def tracking_costs(advance: Callable[[int], None], config: Config, blocks: int, block_seconds: float) -> dict[str, Any]:
    """Throughput with a row every --train.report_kimg to each of four trackers, in blocks of changing order.

    W&B's processes run in the blocks of their own tracker alone: what they do between rows is its cost too. The second
    tracker without W&B shows what this machine makes of no difference; W&B's use of the CPU is counted beside.

    Args:
      advance: trains a number of steps.
      config: the run.
      blocks: of each kind, two at least.
      block_seconds: about how long one takes.
    """
    batch = config.train.global_batch
    advance(2)
    start = time.perf_counter()
    advance(8)
    seconds_per_step = (time.perf_counter() - start) / 8
    per_row = max(1, configs.images(config.train.report_kimg) // batch)
    rows = max(1, round(block_seconds / seconds_per_step / per_row))
    per_call = max(1, int(_CALL_SECONDS / seconds_per_step))
    longest = 0.0

    def block(tracker: Tracker) -> float:
        """Seconds of some rows' steps."""
        nonlocal longest
        seen = max(0, tracker.seen_before)
        start = time.perf_counter()
        for _ in range(rows):
            for done in range(0, per_row, per_call):
                advance(min(per_call, per_row - done))
            before = time.perf_counter()
            seen += per_row * batch
            keys = ("loss/discriminator", "loss/generator", "throughput/images_per_second", "d_sign/real")
            tracker.row({"progress/images_seen": seen, **dict.fromkeys(keys, 0.5)})
            longest = max(longest, time.perf_counter() - before)
        return time.perf_counter() - start

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # As Ctrl-C: no process is left stopped.
    with tempfile.TemporaryDirectory() as folder, _hung_server() as url, _killing_children():
        opened = {name: _open(config, Path(folder) / name, mode, url) for name, mode in _MODES.items()}
        cpu_before = {name: _cpu_seconds(processes) for name, (_, processes) in opened.items()}
        seconds: dict[str, list[float]] = {name: [] for name in opened}
        order = np.random.default_rng(0)
        for _ in range(blocks):
            for name in order.permutation(list(opened)):
                tracker, processes = opened[name]
                _each(processes, psutil.Process.resume)
                seconds[name].append(block(tracker))
                _each(processes, psutil.Process.suspend)
        cpu = {name: _cpu_seconds(processes) - cpu_before[name] for name, (_, processes) in opened.items()}
        for tracker, processes in opened.values():
            _each(processes, psutil.Process.resume)
            tracker.close(75)  # As after a signal: it is not what is measured.
    means = {name: statistics.mean(each) for name, each in seconds.items()}
    found: dict[str, Any] = {
        "images_per_second": {name: round(rows * per_row * batch / mean, 1) for name, mean in means.items()}
    }
    for name in (name for name in opened if name != "disabled"):
        ratio = means["disabled"] / means[name]
        found[f"{name}_of_disabled"] = round(ratio, 4)
        found[f"{name}_standard_error"] = round(ratio * _relative_error(seconds["disabled"], seconds[name]), 4)
        found[f"{name}_cpu_percent"] = round(100 * cpu[name] / sum(seconds[name]), 2)
    return {**found, "longest_row_ms": round(1000 * longest, 2), "blocks": blocks, "rows_per_block": rows}


def _open(config: Config, run_dir: Path, mode: str, url: str) -> tuple[Tracker, set[psutil.Process]]:
    """A tracker, and the processes that are its own, suspended."""
    others = _children()
    run_dir.mkdir()
    tracking = dataclasses.replace(
        config.tracking, wandb=mode, wandb_key_file="", wandb_init_seconds=10**6, wandb_finish_seconds=1
    )
    server = {"WANDB_BASE_URL": url, "WANDB_API_KEY": _NO_KEY}
    wandb_run = open_wandb(tracking, schema.flatten(config), run_dir, 0, environment=server)
    sinks: list[Sink | None] = [JsonLines(run_dir / "metrics.jsonl"), wandb_run]
    if wandb_run:
        time.sleep(_SETTLE_SECONDS)
    processes = _children() - others
    _each(processes, psutil.Process.suspend)
    return Tracker([sink for sink in sinks if sink]), processes


@contextmanager
def _killing_children() -> Iterator[None]:
    """Kills what was started in the block and still runs, or stands still, at its end."""
    others = _children()
    try:
        yield
    finally:
        _each(_children() - others, psutil.Process.kill)


def _children() -> set[psutil.Process]:
    """The processes that this one has started, and those that they have."""
    return set(psutil.Process().children(recursive=True))


def _each(processes: set[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            act(process)


def _relative_error(*samples: list[float]) -> float:
    """Of the quotient of the means of two samples, each of two at least."""
    return math.hypot(*(statistics.stdev(each) / statistics.mean(each) / math.sqrt(len(each)) for each in samples))


def _cpu_seconds(processes: set[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes if process.is_running())


@contextmanager
def _hung_server() -> Iterator[str]:
    """A server that accepts and never answers; its URL."""
    held = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                held.append(server.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    for each in held:
        each.close()
