"""What tests share: the command line, in this process or in one of its own."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distgan import cli
from distgan.runtime import devices

REPOSITORY = Path(__file__).parent.parent
# These files measure time limits: how fast a signal is answered, a run ends, or a late worker is noticed. launch/test.sh runs
# them after all others, which keep the machine busy.
TIMED = (
    "test_elastic",
    "test_ends",
    "test_heartbeat",
    "test_limits",
    "test_moved",
    "test_signals",
    "test_streams",
    "test_survive",
)
SMALL = ("--model.width=4", "--train.global_batch=16", "--tracking.wandb=disabled")


def environment():
    """This process' environment, with the repository's root importable, and no W&B of the user's."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "TF_CONFIG"))}
    return clean | {"PYTHONPATH": str(REPOSITORY)}


def start(*words, **more):
    """`distgan` in a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    return subprocess.Popen([sys.executable, "-m", "distgan", *map(str, words)], **(pipes | more))


def free_ports(count):
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def clusters(addresses, indices=None):
    """TF_CONFIG of each worker."""
    indices = range(len(addresses)) if indices is None else indices
    tasks = [{"type": "worker", "index": index} for index in indices]
    return [json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks]


def local_addresses(count):
    """`host:port` of workers of this machine."""
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


def launch(launcher, workers, command, env=None, **more):
    """Starts a command by itself, as the workers of `multiworker` (one process each), or under horovodrun (one process)."""
    env = env or environment()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | more
    if launcher is None:
        return [subprocess.Popen(command, env=env, **pipes)]
    if launcher == "horovod":
        words = [str(Path(sys.executable).with_name("horovodrun")), "--gloo", "-np", str(workers)]
        return [subprocess.Popen([*words, *command], env=env, **pipes)]
    configs = clusters(local_addresses(workers))
    return [subprocess.Popen(command, env=env | {"TF_CONFIG": each}, **pipes) for each in configs]


def finish(process, code=0, seconds=300):
    """Waits for a process' end; returns what it wrote to stdout and stderr."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == code, f"exit code {process.returncode}, not {code}\n{out}\n{err}"
    return out, err


def finish_all(processes, code=0, seconds=300):
    """Waits for the end of all of them; returns what each wrote to stderr."""
    try:
        return [finish(process, code, seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def distgan(*words, code=0, seconds=300):
    """Runs `distgan` to its end in a process of its own."""
    return finish(start(*words), code, seconds)


def rows(run_dir):
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def numbers(row):
    """A row without times, speeds and memory, and without the count of restarts."""
    varying = ("time/", "workers/", "throughput/", "memory/", "progress/restarts")
    return {key: value for key, value in row.items() if not key.startswith(varying)}


def pytest_configure():
    """Tests send signals to processes of their own, which must not inherit from `nohup` or a script that they ignore them."""
    for each, usual in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(each) == signal.SIG_IGN:
            signal.signal(each, usual)


def pytest_addoption(parser):
    doc = "the whole of everything, which takes long: N faults at random moments (30)"
    parser.addoption("--soak", nargs="?", const=30, default=0, type=int, metavar="N", help=doc)


@pytest.fixture(scope="session")
def soak(request):
    """How many faults at random moments --soak asks for; 0 without it."""
    return request.config.getoption("--soak")


@pytest.hookimpl(tryfirst=True)  # Before pytest chooses by markers.
def pytest_collection_modifyitems(config, items):
    """Marks the tests of TIMED files, and leaves the long ones to `bash launch/test.sh --soak`."""
    for item in items:
        if item.path.stem in TIMED:
            item.add_marker(pytest.mark.timed)
    if not config.getoption("--soak"):
        long = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session", autouse=True)
def _quiet_tensorflow():
    devices.silence(0)


@pytest.fixture
def refused(capsys):
    """Runs a command that must end with exit code 2 and one line on stderr, which it returns."""

    def run(*words):
        assert cli.main([str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if "distgan:" in line]
        assert len(lines) == 1, err
        assert "Traceback" not in err
        return lines[0]

    return run


@pytest.fixture
def said():
    """The lines of the log."""
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    handler, log = Handler(), logging.getLogger("distgan")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(handler)
    log.setLevel(level)
