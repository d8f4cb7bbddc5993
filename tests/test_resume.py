"""Stopping is free: runs that are killed, stopped, moved to other replicas end like one that never was."""

import itertools
import random
import signal
import time

import numpy as np
import pytest
from conftest import SMALL, distgan, finish, numbers, rows, start

from distgan.training import checkpoint

STEPS = 1000
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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    distgan("train", f"--run_dir={run_dir}", *RUN, length(STEPS))
    return run_dir


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


def test_sigkill_at_five_moments(undisturbed, tmp_path):
    draw = random.Random(0)
    run_dir = tmp_path / "killed"
    words = ("train", f"--run_dir={run_dir}", *RUN, length(STEPS))
    saves = run_dir / "checkpoints"
    for kill in itertools.count():
        process = start(*words)
        before = len(rows(run_dir)) if (run_dir / "metrics.jsonl").exists() else 0
        until(process, lambda known=before: len(rows_so_far(run_dir)) > known)
        if kill == 2:
            # In the midst of a save: its temporary directory is there.
            until(process, lambda: any(saves.glob(".tmp-0*")))
        else:
            time.sleep(draw.uniform(0, 0.4))
        assert process.poll() is None, "the run was over before it was killed"
        process.kill()
        process.communicate()
        if kill == 4:
            break
    distgan(*words)
    assert_same_bits(undisturbed, run_dir)
    found = rows(run_dir)
    assert [numbers(row) for row in found] == [numbers(row) for row in rows(undisturbed)]
    assert found[-1]["progress/restarts"] == 5
    seen = [row["progress/images_seen"] for row in found]
    assert seen == sorted(set(seen))


def until(process, happened):
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, "the run was over before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def rows_so_far(run_dir):
    path = run_dir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_exits_75(undisturbed, tmp_path, sent):
    run_dir = tmp_path / "stopped"
    words = ("train", f"--run_dir={run_dir}", *RUN, length(STEPS), "--checkpoint.every_kimg=100")
    process = start(*words)
    while not rows_so_far(run_dir):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(sent)
    _, err = finish(process, 75)
    assert f"stopped by {sent.name} at" in err
    assert "start it again to go on" in err
    assert 0 < state(run_dir).info["images_seen"] < STEPS * 16
    _, err = distgan(*words)
    assert "goes on at" in err
    assert_same_bits(undisturbed, run_dir)


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
    time.sleep(0.2)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert time.monotonic() - sent < 3


def test_other_number_of_replicas(tmp_path):
    """A checkpoint of one replica goes on with two, and the other way round, within rounding."""
    exact = (
        *SMALL,
        "--precision=float64",
        "--optimizer.name=sgd",
        "--optimizer.learning_rate=0.05",
        "--train.sample_kimg=0",
    )
    for name, first, second in (("one", 1, 1), ("up", 1, 2), ("down", 2, 1)):
        words = ("train", f"--run_dir={tmp_path / name}", *exact)
        distgan(*words, length(5), f"--runtime.logical_cpus={first}")
        _, err = distgan(*words, length(10), f"--runtime.logical_cpus={second}")
        assert f"{second} replicas" in err
    for name in ("up", "down"):
        for key, array in state(tmp_path / "one").arrays.items():
            np.testing.assert_allclose(state(tmp_path / name).arrays[key], array, rtol=1e-9, atol=1e-12, err_msg=key)


def test_checkpoints_are_kept_by_number(tmp_path):
    distgan("train", f"--run_dir={tmp_path}", *RUN, length(20), "--checkpoint.keep=2")
    assert [path.name for path in checkpoint.whole(tmp_path / "checkpoints")] == ["000000000288", "000000000320"]


def test_damaged_checkpoint_is_passed_over(tmp_path):
    words = ("train", f"--run_dir={tmp_path}", *RUN)
    distgan(*words, length(20))
    whole = state(tmp_path)
    file = tmp_path / "checkpoints" / "000000000320" / "discriminator.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    _, err = distgan(*words, length(20))
    assert (
        "000000000320 is damaged (discriminator.safetensors has another SHA-256): going back to the one before" in err
    )
    assert "goes on at 0.288 of 0.32 kimg" in err
    again = state(tmp_path)
    assert all(np.array_equal(whole.arrays[name], again.arrays[name]) for name in whole.arrays)
