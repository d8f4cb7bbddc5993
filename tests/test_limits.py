"""Workers that come late or stand still are waited for as long as our limits say, and then named: no library is less patient."""

import os
import signal
import sys
import time

import pytest
from launched import Launched

from distgan.runtime import devices
from distgan.runtime.hub import PATIENCE, Limits


@pytest.mark.parametrize("limits", [Limits(600, 300), Limits(5, 300), Limits(3600, 20), Limits(0.5, 0.1)])
def test_horovod_waits_longer(monkeypatch, limits):
    monkeypatch.setenv("HOROVOD_GLOO_TIMEOUT_SECONDS", "")
    monkeypatch.delenv("HOROVOD_GLOO_TIMEOUT_SECONDS")
    devices._limit_horovod(limits)
    assert int(os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"]) >= max(limits.join_seconds, PATIENCE * limits.hang_seconds)


def late(folder, rank, seconds):
    """A folder with a `distgan` that begins late on one Horovod rank."""
    folder.mkdir()
    (folder / "distgan").write_text(
        f"#!{sys.executable}\nimport os, sys, time\n"
        f"time.sleep({seconds} * (os.environ.get('HOROVOD_RANK') == '{rank}'))\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'distgan', *sys.argv[1:]])\n"
    )
    (folder / "distgan").chmod(0o755)
    return folder


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.soak)])
def test_who_does_not_come_is_named(tmp_path, rank):
    words = ["--runtime.join_timeout_seconds=4"]
    with Launched("horovod", tmp_path / "run", *words, programs=late(tmp_path / "programs", rank, 600)) as job:
        said = job.ends(1)
    [line] = [line for line in said.splitlines() if line.startswith("distgan: ")]
    who = "rank 1 waited 4 s for rank 0" if rank == 0 else "waited 4 s for rank 1 of 2 workers"
    assert line == f"distgan: {who} (--runtime.join_timeout_seconds)"


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_a_late_rank_trains(tmp_path, rank):
    with Launched("horovod", tmp_path / "run", programs=late(tmp_path / "programs", rank, 40)) as job:
        job.until_rows(1)
        os.kill(job.process.pid, signal.SIGTERM)
        job.ends_saved(75)


@pytest.mark.soak
@pytest.mark.parametrize("launcher", ["horovod", "multiworker", "elastic"])
def test_a_rank_stands_still_for_a_while(tmp_path, launcher):
    with Launched(launcher, tmp_path / "run") as job:
        job.until_rows(3)
        for pid in job.workers():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(40)
            before = job.rows()
            os.kill(pid, signal.SIGCONT)
            job.until_rows(before + 3)
        os.kill(job.process.pid, signal.SIGTERM)
        job.ends_saved(75)
