"""Real signals to real processes: any of them, in any order, to any process of a run; and launchers that are killed."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import SMALL, environment, finish, start
from launched import LAUNCHERS, Launched

from distgan import signals

# A worker that has something to save, and answers between two steps of half a second.
WORKER = """
import sys, time
from distgan import signals
signals.hold()
from distgan.errors import Stopped
from distgan.runtime.control import Control
from distgan.training.stopping import Stop
time.sleep(0.2)
try:
    with Stop(Control(), 5).watching() as stop:
        stop.doing = lambda: "step 1"
        print("ready", flush=True)
        end = time.monotonic() + float(sys.argv[1])
        while not stop.asked_by and time.monotonic() < end:
            time.sleep(0.5)
        stop.answer()
        time.sleep(float(sys.argv[2]))
        if stop.asked_by:
            raise Stopped(stop.asked_by)
except Stopped as stopped:
    signals.ignore()
    print(stopped, flush=True)
    time.sleep(0.2)
    sys.exit(75)
"""
TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


def answer(*sent, apart=0.01, seconds=20, saving=0, ready=True, env=None, first=()):
    """Sends signals to a worker; returns its exit code, and what it says."""
    words = [*first, sys.executable, "-c", WORKER, str(seconds), str(saving)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env or environment()}
    with subprocess.Popen(words, **pipes) as process:
        try:
            out = process.stdout.readline() if ready else ""
            for each in sent:
                process.send_signal(each)
                time.sleep(apart)
            more, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, out + more, err


@pytest.mark.parametrize("sent", signals.STOPPING, ids=lambda each: each.name)
def test_each_signal_stops(sent):
    code, out, err = answer(sent)
    assert (code, out.split()) == (75, ["ready", sent.name])
    assert bool(err) == (sent == INT)


def test_any_order_stops():
    """Within a second, or later: the first one counts, also while the state is saved."""
    orders = [(TERM, INT), (INT, INT), (INT, TERM, INT, TERM), (HUP, TERM, signal.SIGUSR1)]
    for sent, apart in [*zip(orders, itertools.repeat(0.01)), ((TERM, HUP, TERM), 1.2), ((TERM, INT), 1.2)]:
        code, out, err = answer(*sent, apart=apart, saving=3)
        assert (code, out.split()[0]) == (75, "ready"), (sent, err)
        assert "Traceback" not in err
        assert err.count("a second Ctrl-C stops at once, unsaved") == (INT in sent)


def test_a_second_interrupt_by_hand_stops_at_once():
    begun = time.monotonic()
    assert answer(INT, INT, apart=1.3, saving=30)[0] == 130
    assert time.monotonic() - begun < 10


def test_nohup_and_the_limit_of_cpu_time():
    code, out, _ = answer(HUP, seconds=1, first=["nohup"])
    assert (code, out.split()) == (0, ["ready"])
    script = "import resource, os, sys; resource.setrlimit(resource.RLIMIT_CPU, (1, 60)); os.execv(sys.argv[1], sys.argv[1:])"
    code = WORKER.replace("time.sleep(0.5)", "sum(range(10**6))")
    done = subprocess.run(
        [sys.executable, "-c", script, sys.executable, "-c", code, "30", "0"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.split()) == (75, ["ready", "SIGXCPU"])


def test_a_worker_ends_with_its_launcher():
    """Of which it hears by its ancestors; a number that is none of them says nothing."""
    ended = 'export DISTGAN_LAUNCHER=$$; "$@" & sleep 2; kill -9 $$'
    assert answer(first=["bash", "-c", ended, "bash"])[0] == -signal.SIGKILL
    code, out, _ = answer(seconds=2, env=environment() | {"DISTGAN_LAUNCHER": str(2**22 + 1)})
    assert (code, out) == (0, "ready\n")


def test_signals_before_the_first_step(tmp_path):
    """While Python imports, and while TensorFlow starts."""
    for moment, sent in ((0.3, INT), (0.6, HUP), (3, TERM)):
        process = start("train", *SMALL, f"--run_dir={tmp_path / str(moment)}", "--train.total_kimg=1000")
        time.sleep(moment)
        process.send_signal(sent)
        _, err = finish(process, 75, 60)
        assert f"distgan: stopped by {sent.name}" in err
        assert "Traceback" not in err


def interrupt(job):
    """As a terminal sends it, to all of the process group; and again, as a launcher and an impatient user do."""
    for sent in (INT, INT, TERM, INT):
        os.killpg(job.process.pid, sent)
        time.sleep(0.05)
    assert "distgan: stopped by SIG" in job.ends_saved(75)


def hang_up(job):
    os.killpg(job.process.pid, HUP)
    assert "distgan: stopped by SIGHUP" in job.ends_saved(75)


def kill_launcher(job):
    os.kill(job.process.pid, signal.SIGKILL)
    assert "distgan: stopped by the end of its launcher" in job.ends_saved(-signal.SIGKILL)


def terminate_all(job):
    """All processes, in the order of their numbers: launcher, horovodrun, ranks."""
    for pid in job.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, TERM)
    job.ends_saved(75)


USUAL = {("multiworker", interrupt), ("horovod", kill_launcher)}


@pytest.mark.parametrize(
    ("launcher", "action"),
    [
        pytest.param(*pair, marks=[] if pair in USUAL else pytest.mark.soak, id=f"{pair[0]}-{pair[1].__name__}")
        for pair in itertools.product(LAUNCHERS, (interrupt, hang_up, kill_launcher, terminate_all))
    ],
)
def test_launchers(tmp_path, launcher, action):
    with Launched(launcher, tmp_path / "run") as job:
        job.until_rows(3)
        action(job)
