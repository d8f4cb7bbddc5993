"""`distgan benchmark --what=checkpoint`: what saving beside the training costs it, and how fast states are saved and restored."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distgan.config import CheckpointConfig
from distgan.training import checkpoint
from distgan.training.checkpoint import Checkpoint
from distgan.training.saving import Saver, Snapshots

_STEPS_PER_SAVE = 50
_CALL_SECONDS = 1.0  # As in training.


def saving_costs(advance: Callable[[int], None], state: Any, global_batch: int, blocks: int) -> dict[str, Any]:
    """Throughput with a save every 50 steps against none, in alternating blocks; megabytes per second of each way.

    Args:
      advance: trains a number of steps.
      state: what is trained, and saved.
      global_batch: images in a step.
      blocks: of 50 steps, of each kind.
    """
    with tempfile.TemporaryDirectory() as folder:
        snapshots = Snapshots(lambda: Checkpoint(state.arrays(), {"images_seen": int(state.images_seen.numpy())}))
        saver = Saver(lambda: Path(folder), CheckpointConfig(), snapshots)
        advance(1)
        start = time.perf_counter()
        advance(8)
        per_call = max(1, min(_STEPS_PER_SAVE, int(_CALL_SECONDS / ((time.perf_counter() - start) / 8))))

        def block(saves: bool) -> float:
            """Images per second of 50 steps, as the training makes them."""
            start = time.perf_counter()
            if saves:
                saver.save()
            done = 0
            while done < _STEPS_PER_SAVE:
                steps = min(per_call, _STEPS_PER_SAVE - done)
                advance(steps)
                done += steps
                if saves:
                    snapshots.refresh()
            rate = _STEPS_PER_SAVE * global_batch / (time.perf_counter() - start)
            saver.wait()
            return rate

        rates: dict[bool, list[float]] = {False: [], True: []}
        for number in range(blocks):
            for saves in (False, True) if number % 2 else (True, False):
                rates[saves].append(block(saves))
        ratios = [with_saves / without for with_saves, without in zip(rates[True], rates[False], strict=True)]
        return {
            "images_per_second": {"without": _median(rates[False]), "a_save_every_50_steps": _median(rates[True])},
            "ratio": round(statistics.median(ratios), 4),
            "ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
            "held_up_ms_per_save": round(1000 * saver.held_seconds / blocks, 2),
            "blocks": blocks,
            **_rates(Path(folder), snapshots.take(), state),
        }


def _rates(folder: Path, taken: Checkpoint, state: Any) -> dict[str, Any]:
    """Megabytes per second: saved, restored, and the same bytes copied; medians of five."""
    where = checkpoint.write(folder / "timed", taken, keep=1)
    size = sum(path.stat().st_size for path in where.iterdir()) / 1e6

    def save(number: int) -> None:
        checkpoint.write(folder / f"save{number}", taken, keep=1)

    def restore(_: int) -> None:
        state.load(checkpoint.read(where).arrays)

    def copy(number: int) -> None:
        target = folder / f"copy{number}"
        target.mkdir()
        for path in where.iterdir():
            shutil.copy(path, target)
            with (target / path.name).open("rb+") as file:
                checkpoint.force(file)

    def rate(act: Callable[[int], None]) -> float:
        seconds = []
        for number in range(5):
            start = time.perf_counter()
            act(number)
            seconds.append(time.perf_counter() - start)
        return round(size / statistics.median(seconds), 1)

    return {
        "megabytes": round(size, 2),
        "mb_per_second": {"save": rate(save), "restore": rate(restore), "copy": rate(copy)},
    }


def _median(rates: list[float]) -> float:
    return round(statistics.median(rates), 1)
