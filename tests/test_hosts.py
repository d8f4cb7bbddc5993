"""Several hosts for real: training over ssh and over TCP, and what a lost, a stopped and a cut-off worker come to."""

import json
import os
import re
import signal
import sys
import time

import pytest
from conftest import REPOSITORY, SMALL, clusters, environment, finish_all, rows
from hosts import SSH_PORT, Hosts, missing

from distgan.training import checkpoint

HANG_SECONDS = 12
WORDS = [*SMALL, "--train.global_batch=24", "--train.report_kimg=0.096", "--checkpoint.every_kimg=0.096"]
WORDS += ["--train.sample_kimg=0", f"--runtime.hang_timeout_seconds={HANG_SECONDS}"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    lacks = missing()
    assert not lacks, f"hosts of our own need {', '.join(lacks)}"
    with Hosts(tmp_path_factory.mktemp("hosts"), 3) as found:
        yield found


def start_horovod(hosts, names, words):
    """The launcher on host1, as a user calls it."""
    places = ",".join(f"{name}:1" for name in names)
    options = ["-np", len(names), "-H", places, "--network-interfaces", "eth0", "-p", SSH_PORT]
    script = REPOSITORY / "launch" / "horovod.sh"
    return [hosts.start("host1", "bash", script, *options, "--", "train", *words, env=environment())]


def start_multiworker(hosts, names, words):
    """The program on every host, as a cluster calls it."""
    configs = clusters([f"{name}:2000" for name in names])
    command = [sys.executable, "-m", "distgan", "train", *words]
    return [
        hosts.start(name, *command, env=environment() | {"TF_CONFIG": each})
        for name, each in zip(names, configs, strict=True)
    ]


def checkpoint_after(hosts, processes, seen):
    """Waits for a checkpoint of more than `seen` images; returns its images."""
    folder, end = hosts.own("host1") / "checkpoints", time.monotonic() + 120
    while time.monotonic() < end:
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        newest = max(folder.glob("[0-9]*"), default=None)
        if newest and int(newest.name) > seen:
            return int(newest.name)
        time.sleep(0.2)
    raise AssertionError(f"no checkpoint after {seen} images")


def ended(processes, begun, limit):
    """All have ended within a limit, not well; returns what they wrote."""
    texts = []
    for process in processes:
        _, err = process.communicate(timeout=max(1, begun + limit - time.monotonic()))
        assert process.returncode not in (0, None), err
        texts.append(err)
    assert "Traceback" not in "".join(texts)
    return "".join(texts)


@pytest.mark.parametrize("start", [start_horovod, start_multiworker], ids=["horovod", "multiworker"])
def test_hosts_train_and_survive(hosts, start):
    for name in hosts.names:
        hosts.empty(name)
    words = [*WORDS, f"--run_dir={hosts.run_dir}"]
    all_three, two = hosts.names, hosts.names[:2]
    finish_all(start(hosts, all_three, [*words, "--train.total_kimg=0.192"]))
    assert {path.name for path in hosts.own("host3").iterdir()} == {"log.2.txt"}
    log = (hosts.own("host1") / "log.txt").read_text()
    assert "global batch 24 = 3 replicas x 8 x 1 accumulation steps" in log
    assert "done: 0.192 kimg" in log

    def lose(fault, limit, stopped=False):
        """Runs two hosts until a checkpoint, brings a fault on the second, and returns how it (or the first) ended."""
        before = rows(hosts.own("host1"))[-1]["progress/images_seen"]
        processes = start(hosts, two, [*words, "--train.total_kimg=1000"])
        try:
            checkpoint_after(hosts, processes, before)
            begun = time.monotonic()
            fault()
            return ended(processes[:1] if stopped else processes, begun, limit)
        finally:
            hosts.kill_trainers()
            for process in processes:
                process.kill()
                process.communicate()

    text = lose(lambda: hosts.signal("host2", signal.SIGKILL), 30)
    if start is start_multiworker:
        assert "rank 1 on host2: ended without a word (killed, or crashed)" in text
    text = lose(lambda: hosts.signal("host2", signal.SIGSTOP), 3 * HANG_SECONDS, stopped=True)
    assert re.search("not heard from for .* s: rank 1 on host2", text)
    text = lose(lambda: hosts.link("host2", "down"), 3 * HANG_SECONDS)
    hosts.link("host2", "up")
    assert "rank 1 on host2" in text

    saved = checkpoint.newest(hosts.own("host1") / "checkpoints").info["images_seen"]
    total = saved + 96
    finish_all(start(hosts, two, [*words, f"--train.total_kimg={total / 1000}"]))
    log = (hosts.own("host1") / "log.txt").read_text()
    assert f"goes on at {saved / 1000:g} of {total / 1000:g} kimg" in log
    # After a host less, a host more.
    total += 96
    finish_all(start(hosts, all_three, [*words, f"--train.total_kimg={total / 1000}"]))
    # Nothing lost and nothing twice, over six starts.
    assert [row["progress/images_seen"] for row in rows(hosts.own("host1"))] == list(range(96, total + 1, 96))
    starts = json.loads((hosts.own("host1") / "config.json").read_text())
    assert len(starts["starts"]) == 6
    assert os.listdir(hosts.own("host3")) == ["log.2.txt"]
