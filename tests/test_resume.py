"""A run that goes on is the run that never stopped; what comes to it from outside is in test_survive.py."""

import signal
import time

import numpy as np
import pytest
from conftest import SMALL, distgan, numbers, rows, start

from distgan.training import checkpoint

RUN = (
    *SMALL,
    "--deterministic",
    "--train.report_kimg=0.048",
    "--train.sample_kimg=0",
    "--checkpoint.every_kimg=0.032",
)


def length(steps):
    return f"--train.total_kimg={steps * 16 / 1000}"


def state(run_dir):
    found = checkpoint.newest(run_dir / "checkpoints")
    assert found is not None
    return found


def assert_same_bits(first, second):
    one, two = state(first), state(second)
    assert one.images_seen == two.images_seen
    assert one.arrays.keys() == two.arrays.keys()
    for name in one.arrays:
        assert np.array_equal(one.arrays[name], two.arrays[name]), name


# What is kept besides weights; ten steps end within the intervals of R1 and of ADA.
KEEPING = (
    "--objective.regularizers=lecam,r1",
    "--objective.r1.interval=4",
    "--objective.augmentation=ada",
    "--objective.ada.start=0.5",
    "--objective.ada.interval=3",
    "--objective.ada.speed_kimg=1",
    "--optimizer.learning_rate=linear:0.001:0:0.3",
    "--optimizer.beta_2=cosine:0.9:0.99:0.2",
    "--ema.halflife_kimg=linear:0.1:1:0.5",
)


@pytest.mark.parametrize("more", [(), KEEPING], ids=["plain", "keeping"])
def test_ten_and_ten_steps_are_twenty(tmp_path, more):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    distgan("train", f"--run_dir={whole}", *RUN, *more, length(20))
    distgan("train", f"--run_dir={halves}", *RUN, *more, length(10))
    middle = state(halves).arrays
    # The run directory knows its config: only what changes is said again.
    distgan("train", f"--run_dir={halves}", length(20))
    assert_same_bits(whole, halves)
    by_place = {row["progress/images_seen"]: numbers(row) for row in rows(halves)}
    for row in rows(whole):
        assert by_place[row["progress/images_seen"]] == numbers(row)
    end = state(halves).arrays
    moved = [name for name in end if name.startswith("kept/") and not np.array_equal(middle[name], end[name])]
    assert len(moved) == (5 if more else 0)


def test_second_interrupt_stops_at_once(tmp_path):
    # A step of many micro-batches takes long, so the first signal waits for its end.
    words = ["train", f"--run_dir={tmp_path / 'run'}", "--tracking.wandb=disabled", "--train.report_kimg=0.001"]
    words += ["--data.source=synthetic", "--data.resolution=64", "--model.width=64", "--train.global_batch=256"]
    process = start(*words)
    while not (tmp_path / "run" / "samples" / "000000.png").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert time.monotonic() - sent < 3


def test_checkpoints_are_kept_by_number(tmp_path):
    distgan("train", f"--run_dir={tmp_path}", *RUN, length(20), "--checkpoint.keep=2")
    assert [path.name for path in checkpoint.whole(tmp_path / "checkpoints")] == ["000000000288", "000000000320"]
