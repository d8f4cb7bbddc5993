"""Workers that come and go: the run goes on in the same processes, and is the run of one worker."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, SMALL, distgan, environment, finish, rows

from distgan.training import checkpoint

STEPS = 600
RUN = [*SMALL, "--precision=float64", "--optimizer.name=sgd", "--train.report_kimg=0.16", "--train.sample_kimg=0"]
RUN += [f"--train.total_kimg={STEPS * 0.016}", "--checkpoint.every_kimg=1.6", "--checkpoint.snapshot_kimg=0.016"]


class Job:
    """launch/elastic.sh at work; what it says is read as it comes."""

    def __init__(self, options, words, env=None):
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
        command = ["bash", str(REPOSITORY / "launch" / "elastic.sh"), *options, "--", "train", *words]
        env = environment() | {"PATH": path, "PYTHONPATH": paths} | (env or {})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen([str(word) for word in command], env=env, **pipes)
        self.run_dir = next(word for word in map(str, words) if word.startswith("--run_dir="))
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self.trainers().values():
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()

    @property
    def text(self):
        return "".join(self.lines)

    def wait_for(self, what, seconds=300):
        """Waits until something is true."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, self.text
            assert self.process.poll() is None, self.text
            time.sleep(0.05)

    def wait_until_told(self, pattern):
        self.wait_for(lambda: re.search(pattern, self.text))

    def finish(self, code, seconds=300):
        assert self.process.wait(seconds) == code, self.text
        self.reader.join(10)
        return self.text

    def trainers(self):
        """Host -> process number of each trainer of the run."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().decode().split("\0")
                hosts = re.findall(r"HOROVOD_HOSTNAME=([^\0]*)", (folder / "environ").read_bytes().decode())
            except OSError:
                continue
            if "python" in words[0] and self.run_dir in words and hosts:
                found[hosts[0]] = int(folder.name)
        return found

    def primary(self):
        """The host of the worker that writes the run directory, if one does at the moment."""
        rows = Path(self.run_dir.removeprefix("--run_dir="), "metrics.jsonl")
        for host, pid in self.trainers().items():
            if any(os.path.realpath(link) == str(rows) for link in Path(f"/proc/{pid}/fd").iterdir()):
                return host
        return None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run of one worker."""
    path = tmp_path_factory.mktemp("undisturbed")
    distgan("train", *RUN, f"--run_dir={path}")
    return path


def test_workers_come_and_go(tmp_path, undisturbed):
    run_dir, hosts, gate = tmp_path / "run", tmp_path / "hosts", tmp_path / "gate"
    hosts.write_text("127.1\n127.01 slots=1  # the second slot\n")
    words = [*RUN, f"--run_dir={run_dir}", "--data.source=parts:Gated", "--data.threads=1"]
    options = ["--max-np", "3", "-np", "2", "--hostfile", hosts, "--blacklist-cooldown-range", "1", "2"]
    with Job(options, words, {"DISTGAN_TEST_GATE": str(gate)}) as job:
        job.wait_for(lambda: (run_dir / "metrics.jsonl").exists() and rows(run_dir))
        os.kill(job.trainers()["127.01"], signal.SIGKILL)
        job.wait_until_told(r"lost rank [01] on 127\.01; 1 worker goes on at [\d.]+ kimg after [\d.]+ s\n")
        job.wait_until_told(r"workers were added or removed; 2 workers go on at")
        with hosts.open("a") as file:
            file.write("127.001:1\n")
        job.wait_until_told(r"workers were added or removed; 3 workers go on at")
        job.wait_until_told(r"global batch 16 = \(2 replicas x 5 \+ 1 x 6\) x 1 accumulation steps")
        before = len(rows(run_dir))
        job.wait_for(lambda: len(rows(run_dir)) > before)
        gone = job.primary()
        hosts.write_text("".join(f"{host}\n" for host in ("127.1", "127.01", "127.001") if host != gone))
        job.wait_until_told(r"(?s)3 workers go on at.*removed; 2 workers go on at")
        job.wait_for(lambda: job.primary() not in (gone, None) and gone not in job.trainers())
        gate.touch()
        text = job.finish(0)
    for noise in ("Traceback", "Error", "horovod/common", "Killed", "exit with status", "terminate called"):
        assert noise not in text
    assert [row["progress/images_seen"] for row in rows(run_dir)] == list(range(160, 16 * STEPS + 1, 160))
    one, other = (checkpoint.newest(path / "checkpoints").arrays for path in (undisturbed, run_dir))
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert np.allclose(array, other[name], rtol=1e-8, atol=1e-12), name
    for mine, theirs in zip(rows(run_dir), rows(undisturbed), strict=True):
        assert mine["loss/discriminator"] == pytest.approx(theirs["loss/discriminator"], rel=1e-8)


def test_a_signal_saves_and_a_stopped_worker_ends_all(tmp_path):
    words = [*RUN, f"--run_dir={tmp_path / 'run'}", "--data.source=parts:Gated", "--data.threads=1"]
    words += ["--runtime.hang_timeout_seconds=8"]
    with Job(["-np", "2"], words, {"DISTGAN_TEST_GATE": str(tmp_path / "gate")}) as job:
        job.wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and rows(tmp_path / "run"))
        job.process.send_signal(signal.SIGTERM)
        text = job.finish(75)
    assert "distgan: stopped by SIGTERM at" in text
    assert "Traceback" not in text
    saved = checkpoint.newest(tmp_path / "run" / "checkpoints").images_seen
    with Job(["-np", "2"], words, {"DISTGAN_TEST_GATE": str(tmp_path / "gate")}) as job:
        job.wait_until_told(f"goes on at {saved / 1000:g} of")
        job.wait_for(lambda: rows(tmp_path / "run")[-1]["progress/images_seen"] > saved)
        primary = job.primary()
        [(host, pid)] = [found for found in job.trainers().items() if found[0] != primary]
        os.kill(pid, signal.SIGSTOP)
        text = job.finish(1)
    assert re.search(rf"distgan: not heard from for \d+ s: rank 1 on {host} ", text)


def test_a_mistake_is_not_tried_again(tmp_path):
    words = [*SMALL, f"--run_dir={tmp_path}", "--train.accumulation_steps=16"]
    with Job(["-np", "2"], words) as job:
        text = job.finish(2)
    [line] = [line for line in text.splitlines() if line.startswith("distgan: ")]
    assert "2 workers cannot share the 1 images of a micro-batch (--train.global_batch=16, " in line
    assert "Traceback" not in text


def discovered(path, code=0):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    script = str(REPOSITORY / "launch" / "discover_hosts.sh")
    return finish(subprocess.Popen(["bash", script, str(path)], **pipes), code, 10)


def test_discovery(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\nhost1 slots=4\n\n  host2:2  # two\nhost3\nhost4 slots=0\n10.0.0.5 slots = 8\n")
    assert discovered(path)[0].split() == ["host1:4", "host2:2", "host3:1", "10.0.0.5:8"]
    path.write_text("host1 slots=4\nhost2 slots=two\n")
    assert 'hosts:2: "host2 slots=two" is not host slots=N or host:N' in discovered(path, 1)[1]
    path.write_text("# none\n")
    assert discovered(path)[0] == ""
