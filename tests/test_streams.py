"""Standard streams that are closed, full, read by nobody, or a terminal that goes away: what ends with what."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest
import wandb_files
from conftest import SMALL, environment, rows, start

CLOSED, FULL = "exec {} >&- 2>&- <&-", "exec {} >/dev/full 2>/dev/full"
TRAIN = (*SMALL[:2], "--tracking.wandb=offline", "--train.total_kimg=1.6", "--train.report_kimg=0.16")


def shell(redirected, *words, **more):
    """`distgan` with its streams as a shell sets them."""
    command = " ".join([sys.executable, "-m", "distgan", *map(str, words)])
    return subprocess.Popen(["bash", "-c", redirected.format(command)], env=environment(), **more)


def on_a_terminal_that_goes(run_dir):
    """The terminal of a run goes away at its first row; other processes keep what they had to say."""
    ours, theirs = os.openpty()
    # A session of its own, so that it gets no SIGHUP: that would be a stop.
    process = start("train", f"--run_dir={run_dir}", *TRAIN, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    threading.Thread(target=read_all, args=(ours,), daemon=True).start()
    while not (run_dir / "metrics.jsonl").exists() or not rows(run_dir):
        assert process.poll() is None
        time.sleep(0.01)
    os.close(ours)
    return process


def read_all(file):
    with contextlib.suppress(OSError):
        while os.read(file, 4096):
            pass


def with_readers_that_leave(run_dir):
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    process = shell("exec {}", "train", f"--run_dir={run_dir}", *TRAIN, **pipes)
    process.stdout.close()
    process.stderr.readline()
    process.stderr.close()
    return process


def test_a_run_that_is_trained_ends_well(tmp_path):
    """Whatever becomes of its streams: with 0, all rows, the whole log, and its W&B run finished."""
    runs = {
        "closed": lambda run_dir: shell(CLOSED, "train", f"--run_dir={run_dir}", *TRAIN),
        "full": lambda run_dir: shell(FULL, "train", f"--run_dir={run_dir}", *TRAIN),
        "pipes": with_readers_that_leave,
        "terminal": on_a_terminal_that_goes,
    }
    processes = {name: begin(tmp_path / name) for name, begin in runs.items()}
    for name, process in processes.items():
        run_dir = tmp_path / name
        assert process.wait(300) == 0, name
        assert [row["progress/images_seen"] for row in rows(run_dir)] == list(range(160, 1601, 160)), name
        log = (run_dir / "log.txt").read_text()
        assert "starts at 0" in log, name
        assert log.splitlines()[-1].endswith(f"done: 1.6 kimg, samples in {run_dir}/samples"), name
        assert "Traceback" not in log, name
        [file] = run_dir.glob("wandb/offline*/*.wandb")
        assert wandb_files.exit_code(file) == 0, name
        assert sum("loss/discriminator" in row for row in wandb_files.history(file)) == 10, name


@pytest.mark.parametrize(
    ("redirected", "words", "code", "said"),
    [
        ("exec {} >&-", "presets", 0, ""),
        ("exec {} >/dev/full", "presets", 2, "distgan: standard output cannot be written: No space left on device\n"),
        ("exec {} >/dev/full", "--version", 2, "distgan: standard output cannot be written: No space left on device\n"),
        ("set -o pipefail; {} | head -1", "presets --parts", 0, ""),
        ("set -o pipefail; {} | true", "help", 0, ""),
        ("exec {} 2>/dev/full", "presets nothing", 2, ""),
        (CLOSED, "presets nothing", 2, ""),
        (FULL, "presets", 2, ""),
        (FULL, "train --nothing", 2, ""),
    ],
)
def test_other_commands(redirected, words, code, said):
    """They end with one line or, where nobody can read it, with the right exit code."""
    process = shell(redirected, *words.split(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _, err = process.communicate(timeout=100)
    assert process.returncode == code, err
    assert err == said
