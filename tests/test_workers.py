"""Many workers: what they sum, what they refuse, how they end, and that a run goes on under any strategy."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import (
    REPOSITORY,
    SMALL,
    clusters,
    distgan,
    environment,
    finish,
    finish_all,
    launch,
    local_addresses,
    rows,
    start,
)

from distgan.training import checkpoint

TESTS = str(REPOSITORY / "tests")
WITH_TESTS = environment() | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), TESTS])}
HOROVOD_WORDS = ["-np", "2", "--"]


def script(name, *words, code=0, env=None, seconds=300):
    """Runs a launcher of launch/ to its end."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    command = ["bash", str(REPOSITORY / "launch" / name), *map(str, words)]
    return finish(subprocess.Popen(command, env=(env or environment()) | {"PATH": path}, **pipes), code, seconds)


def told(texts):
    """The messages among what workers wrote."""
    return [line for text in texts for line in text.splitlines() if line.startswith("distgan: ")]


@pytest.mark.parametrize(
    ("launcher", "what"),
    [("horovod", "sums,wire,infinity,overflow,desync"), ("multiworker", "sums,infinity,overflow,desync")],
)
def test_among_workers(tmp_path, launcher, what):
    out = tmp_path / "out"
    command = [sys.executable, f"{TESTS}/workers.py", what, str(out)]
    finish_all(launch(launcher, 2, command, WITH_TESTS))
    assert out.read_text() == "good"


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


def refused_by_all(processes):
    """All end with exit code 2, and one of them says why in one line."""
    texts = finish_all(processes, 2)
    assert "Traceback" not in "".join(texts)
    [line] = told(texts)
    return line


def workers(words, changed=(), indices=(0, 1), addresses=None, env=None):
    """`distgan train` on local workers, of which the second has other words or another environment."""
    configs = clusters(addresses or local_addresses(max(indices) + 1), indices)
    own = [((), {}), (tuple(changed), env or {})] + [((), {})] * (len(indices) - 2)
    return [
        start("train", *words, *more, env=environment() | {"TF_CONFIG": each} | env)
        for each, (more, env) in zip(configs, own, strict=True)
    ]


def test_what_multiworker_refuses(tmp_path, taken):
    words = [*SMALL, f"--run_dir={tmp_path / 'run'}", "--train.total_kimg=0.1"]
    line = refused_by_all(workers(words, ["--seed=1"]))
    assert "rank 1 has another config than rank 0: seed=1 (rank 0: 0)" in line
    assert "two workers have the index 1" in refused_by_all(
        workers(words, indices=(0, 1, 1), addresses=local_addresses(3))
    )
    # Where the line between workers cannot be had, each worker speaks for itself.
    lines = told(finish_all(workers([*words, f"--runtime.control_port={taken}"]), 2))
    assert f"--runtime.control_port={taken} cannot be listened on" in lines[0]
    assert f":{taken} is taken by another program" in lines[1]
    addresses = [*local_addresses(1), f"127.0.0.1:{taken}"]
    assert f"port {taken} of 127.0.0.1:{taken} cannot be used" in refused_by_all(workers(words, addresses=addresses))
    line = refused_by_all(workers([*words, "--train.global_batch=17"]))
    assert "--train.global_batch=17 is not divisible by 2 replicas" in line
    package = tmp_path / "packages" / "keras-0.1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: keras\nVersion: 0.1\n")
    path = os.pathsep.join([str(package.parent), str(REPOSITORY)])
    assert "package keras is 0.1 on rank 1 and" in refused_by_all(workers(words, env={"PYTHONPATH": path}))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_horovod_refuses(tmp_path, taken, refused):
    words = ["train", f"--run_dir={tmp_path / 'run'}", *SMALL]
    _, err = script("horovod.sh", "-np", "3", "--", *words, code=2)
    assert "horovodrun --gloo -np 3" in err
    [line] = told([err])
    assert "--train.global_batch=16 is not divisible by 3 replicas" in line
    _, err = script("horovod.sh", *HOROVOD_WORDS, *words, f"--runtime.control_port={taken}", code=2)
    assert f"--runtime.control_port={taken} cannot be listened on" in told([err])[0]
    _, err = script("horovod.sh", *HOROVOD_WORDS, *words, "--train.global_bath=3", code=2)
    assert "did you mean --train.global_batch?" in told([err])[0]
    assert "needs to be started by horovodrun or mpirun" in refused(*words, "--strategy=horovod")
    package = tmp_path / "packages" / "horovod"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no such build')\n")
    ranks = {
        "HOROVOD_RANK": "0",
        "HOROVOD_SIZE": "2",
        "PYTHONPATH": os.pathsep.join([str(package.parent), str(REPOSITORY)]),
    }
    _, err = finish(start(*words, env=environment() | ranks), 2)
    assert told([err]) == [err.strip()]
    assert "Horovod cannot be imported (no such build)" in err
    assert "bash launch/install_horovod.sh" in err


@pytest.mark.parametrize(
    "launcher", [("horovod.sh", "-np", "2", "--"), ("multiworker.sh", "2")], ids=lambda words: words[0]
)
def test_divergence_ends_all_with_its_code(tmp_path, launcher):
    words = ["train", f"--run_dir={tmp_path}", *SMALL, "--optimizer.name=sgd", "--optimizer.learning_rate=1e18"]
    _, err = script(*launcher, *words, "--train.total_kimg=0.32", code=3)
    [line] = told([err])
    assert "was not finite in phase both" in line
    assert len(list(tmp_path.glob("diverged-*.json"))) == 1


def test_a_signal_to_one_worker_saves_and_stops_all(tmp_path):
    processes = workers([f"--run_dir={tmp_path}", *SMALL, "--train.total_kimg=1000", "--train.report_kimg=0.032"])
    end = time.monotonic() + 120
    while not ((tmp_path / "metrics.jsonl").exists() and rows(tmp_path)):  # The file is there before the first step.
        assert time.monotonic() < end
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    texts = finish_all(processes, 75)
    [line] = told(texts)
    assert "stopped by SIGTERM" in line
    assert "saved; start it again to go on" in line
    assert checkpoint.newest(tmp_path / "checkpoints")


CHAIN = {
    "single": None,
    "multiworker": "multiworker",
    "horovod": "horovod",
    "mirrored": None,
}


def test_a_run_goes_on_under_any_strategy(tmp_path):
    base = [
        "--data.source=parts:SlowOnOne",
        "--precision=float64",
        "--train.report_kimg=0.032",
        "--train.sample_kimg=0",
    ]
    command = [sys.executable, "-m", "distgan", "train", *SMALL, *base]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(launch(None, 1, [*command, f"--run_dir={whole}", "--train.total_kimg=2.048"], WITH_TESTS)[0])
    for number, (strategy, launcher) in enumerate(CHAIN.items(), start=1):
        words = [f"--run_dir={parts}", f"--train.total_kimg={0.512 * number}"]
        words += ["--runtime.logical_cpus=2"] if strategy == "mirrored" else []
        texts = finish_all(launch(launcher, 2, [*command, *words], WITH_TESTS))
        assert f"strategy {strategy} (auto: " in texts[0]
        if launcher == "multiworker":
            assert texts[1].strip() == ""
            assert "strategy multiworker" not in (parts / "log.1.txt").read_text()
    one, other = (checkpoint.newest(path / "checkpoints").arrays for path in (whole, parts))
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert np.allclose(array, other[name], rtol=1e-7, atol=1e-12), name
    assert [row["progress/images_seen"] for row in rows(parts)] == list(range(32, 2049, 32))
    apart = [row for row in rows(parts) if "workers/slowest_rank" in row]
    assert [row["progress/images_seen"] for row in apart] == list(range(544, 1537, 32))
    # Under multiworker; where images were read ahead, as during a compilation or a slow report, there is no wait to see.
    waits = [row["workers/step_ms_slowest"] - row["workers/step_ms_fastest"] for row in apart[4:16]]
    slow = [row for row, wait in zip(apart[4:16], waits, strict=True) if wait > 30]
    assert len(slow) >= 4, waits
    assert all(row["workers/slowest_rank"] == 1 for row in slow), slow
    for row in apart:
        assert row["workers/step_ms_fastest"] <= row["workers/step_ms_mean"] <= row["workers/step_ms_slowest"]


def test_slurm_script(tmp_path):
    """With the programs of Slurm and Horovod replaced by ones that say how they were called."""
    stubs = {
        "scontrol": 'printf "node1\\nnode2\\n"',
        "srun": 'echo "srun $*"; exit 75',
        "horovodrun": 'echo "horovodrun $*; $HOROVOD_START_TIMEOUT s to start"',
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.path.dirname(sys.executable), os.environ["PATH"]])
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_GPUS_ON_NODE": "4", "SLURM_SUBMIT_DIR": str(REPOSITORY)}

    def run(strategy, code):
        env = environment() | slurm | {"PATH": path, "DISTGAN_STRATEGY": strategy}
        command = ["bash", str(REPOSITORY / "launch" / "slurm.sbatch"), "train", "--seed=1"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return finish(subprocess.Popen(command, env=env, **pipes), code)

    out, _ = run("multiworker", 75)
    assert out.startswith("srun --ntasks=2 --ntasks-per-node=1 distgan train --seed=1 --strategy=multiworker")
    assert "--runtime.workers=2 --runtime.peers=node1:12800,node2:12800" in out
    out, _ = run("horovod", 0)
    assert "horovodrun --gloo -np 8 -H node1:4,node2:4" in out
    assert "; 600 s to start" in out
    assert "slurm.sbatch: DISTGAN_STRATEGY=ring" in run("ring", 2)[1]
    # A warning to the batch shell alone, as by --signal=B:USR1@120, reaches the workers as SIGTERM.
    (tmp_path / "srun").write_text("#!/bin/sh\ntrap 'exit 75' TERM\ntouch $0.begun\nwhile :; do sleep 0.1; done\n")
    env = environment() | slurm | {"PATH": path}
    process = subprocess.Popen(["bash", str(REPOSITORY / "launch" / "slurm.sbatch"), "train"], env=env)
    end = time.monotonic() + 20
    while not (tmp_path / "srun.begun").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    finish(process, 75, 20)


def test_what_the_build_for_gpus_needs(tmp_path):
    variables = {"VIRTUAL_ENV": sys.prefix, "CUDA_HOME": str(tmp_path)}
    _, err = script("install_horovod.sh", "--gpu", code=2, env=environment() | variables)
    [line] = err.splitlines()
    assert line.startswith("install_horovod: --gpu needs CUDA_HOME to name a CUDA 12 toolkit with bin/nvcc")


def test_equivalence_of_this_machine():
    out, _ = distgan("doctor", "--equivalence", "--runtime.logical_cpus=2", seconds=900)
    assert "mirrored (auto: 2 logical CPUs found): 2 replicas against one, in float64" in out
    assert out.strip().endswith("verdict: the same run")


def test_benchmarks_of_the_reduction(tmp_path):
    words = ["benchmark", "--preset=cifar10-dcgan", "--model.width=4", "--train.global_batch=16", "--blocks=2"]
    words += ["--block_seconds=0.2", "--runtime.cpu_threads=1"]

    def measured(what, *more):
        out, _ = script("horovod.sh", *HOROVOD_WORDS, *words, f"--what={what}", *more)
        return json.loads(out)

    plain, halved = measured("reduction"), measured("reduction", "--runtime.compression=fp16")
    assert plain["gradient_bytes_per_step"] == 4 * plain["parameters"]
    assert halved["gradient_bytes_per_step"] == 2 * plain["parameters"]
    assert plain["replicas"] == 2
    assert all(rate > 0 for rate in plain["images_per_second"].values())
    links = measured("allreduce")
    assert links["gradient_bytes_per_step"] == 4 * plain["parameters"]
    assert [line["replicas"] for line in links["projection"]] == [8, 64, 256, 1024]
    assert all(0 < line["efficiency"] < 1 for line in links["projection"])
