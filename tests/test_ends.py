"""What is done ends: nothing is waited for behind a run's last row, and what must be is said."""

import os
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY, SMALL, environment, finish, start

from distgan.runtime.control import waiting_for


def test_iterators_end(soak):
    """TensorFlow's tuning, where it is on, holds up one in eight for seconds."""
    env = environment() | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(REPOSITORY / "tests" / "iterators.py"), *(("20", "30") if soak else ("8", "6"))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    seconds = [float(line) for line in done.stdout.split()]
    assert len(seconds) >= 16
    assert max(seconds) < 1, seconds


@pytest.mark.parametrize("words", [(), ("--runtime.logical_cpus=2",)], ids=["single", "mirrored"])
def test_runs_end(tmp_path, soak, words):
    for number in range(10 if soak else 1):
        run_dir = tmp_path / str(number)
        process = start("train", *SMALL, *words, "--train.total_kimg=0.32", f"--run_dir={run_dir}")
        finish(process)
        assert time.time() - os.stat(run_dir / "metrics.jsonl").st_mtime < 2


def test_what_is_waited_for_is_said(said):
    with waiting_for("a moment"):
        time.sleep(0.1)
    with waiting_for("paint to dry"):
        time.sleep(2.3)
    assert said == ["waiting for paint to dry"]
