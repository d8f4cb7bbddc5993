"""`distgan benchmark --what=tracking`: what W&B costs the training, offline and with a server that accepts and never answers."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distgan import config as configs
from distgan.config import Config
from distgan.runtime import topology
from distgan.tracking.tracker import JsonLines, Sink, Tracker
from distgan.tracking.wandb_sink import open_wandb

_CALL_SECONDS = 1.0  # As in training.
_SETTLE_SECONDS = 15  # Until the processes beside the training have started, which is not what is measured.
_NO_KEY = "0" * 40


def tracking_costs(advance: Callable[[int], None], config: Config, blocks: int, block_seconds: float) -> dict[str, Any]:
    """Throughput with a row every --train.report_kimg to each of three trackers, in alternating blocks.

    Args:
      advance: trains a number of steps.
      config: the run.
      blocks: of each kind.
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
        """Images per second of some rows' steps."""
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
        return rows * per_row * batch / (time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder, _hung_server() as url:
        trackers = {}
        for name, mode in {"disabled": "disabled", "offline": "offline", "hung": "online"}.items():
            run_dir = Path(folder) / name
            run_dir.mkdir()
            tracking = dataclasses.replace(
                config.tracking, wandb=mode, wandb_key_file="", wandb_init_seconds=10**6, wandb_finish_seconds=1
            )
            sinks: list[Sink | None] = [JsonLines(run_dir / "metrics.jsonl")]
            with topology.environment(WANDB_BASE_URL=url, WANDB_API_KEY=_NO_KEY):
                sinks.append(open_wandb(tracking, configs.flatten(config), run_dir, 0))
            trackers[name] = Tracker([sink for sink in sinks if sink])
        time.sleep(_SETTLE_SECONDS)
        rates: dict[str, list[float]] = {name: [] for name in trackers}
        for number in range(blocks):
            for name in list(trackers) if number % 2 else reversed(list(trackers)):
                rates[name].append(block(trackers[name]))
        for tracker in trackers.values():
            tracker.close(75)  # As after a signal: it is not what is measured.
    found: dict[str, Any] = {
        "images_per_second": {name: round(statistics.median(each), 1) for name, each in rates.items()}
    }
    for name in ("offline", "hung"):
        ratios = [ours / none for ours, none in zip(rates[name], rates["disabled"], strict=True)]
        found[f"{name}_of_disabled"] = round(statistics.median(ratios), 4)
        found[f"{name}_range"] = [round(min(ratios), 4), round(max(ratios), 4)]
    return {**found, "longest_row_ms": round(1000 * longest, 2), "blocks": blocks, "rows_per_block": rows}


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
