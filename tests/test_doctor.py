"""`distgan doctor`: what it says of checkpoints is what a restart does; the self-test passes here, and fails where it should."""

import os
import socket
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import SMALL, environment, finish, launch

from distgan import cli, schema
from distgan.config import Config
from distgan.runtime.base import Runtime
from distgan.training import checkpoint
from distgan.training.checkpoint import Checkpoint
from distgan.training.run_dir import RunDir


def test_run(tmp_path, capsys, refused):
    values = dict(word[2:].split("=") for word in SMALL) | {"train.total_kimg": 3.0}
    RunDir(tmp_path, schema.build(Config, values), "data").close()
    folder = tmp_path / "checkpoints"

    def told():
        assert cli.main(["doctor", f"--run_dir={tmp_path}"]) == 0
        return capsys.readouterr().out.splitlines()

    assert told() == ["a restart begins at 0 of 3 kimg: there is no checkpoint"]
    for seen in (1000, 2000, 3000):
        arrays = {"generator/w": np.ones(seen, np.float32), "step": np.array(seen)}
        checkpoint.write(folder, Checkpoint(arrays, {"images_seen": seen}), keep=9, best=seen == 1000)
    assert told()[-1] == "a restart has nothing left to do: 3 of 3 kimg are done"
    with (folder / "000000003000" / "generator.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    (folder / "000000002000" / "run.safetensors").unlink()
    (folder / ".tmp-000000004000").mkdir()
    first, *others, last = told()
    assert first.startswith(".tmp-000000004000: 0 bytes")
    assert first.endswith("not finished, is removed at the next save")
    assert [line.split(", ", 3)[3] for line in others] == [
        "verified, the best",
        "DAMAGED ([Errno 2] No such file or directory: "
        f"'{folder / '000000002000' / 'run.safetensors'}'), is set aside at a restart",
        "DAMAGED (generator.safetensors has another SHA-256), is set aside at a restart",
    ]
    assert last == f"a restart goes on at 1 of 3 kimg, from {folder / '000000001000'}"
    assert checkpoint.newest(folder, repair=True).images_seen == 1000
    assert [line.rpartition(", ")[2] for line in told()[1:4]] == [
        "the best",
        "set aside as damaged",
        "set aside as damaged",
    ]
    (folder / "000000001000" / "manifest.json").write_text("{}")
    assert "none of its checkpoints is whole" in refused("doctor", f"--run_dir={tmp_path}")
    assert "config.json is not there" in refused("doctor", f"--run_dir={tmp_path / 'nowhere'}")


def assert_passed(text, replicas):
    lines = text.splitlines()
    assert sum(f" over {replicas} replicas: exact, " in line for line in lines) == 3
    assert sum("two training steps in float32" in line for line in lines) == 1
    assert lines[-1].split("verdict: ")[1].startswith("ok, in ")
    for private in (socket.gethostname(), os.path.expanduser("~"), os.getcwd()):
        assert private not in text


def test_selftest_on_one_device(capsys):
    assert cli.main(["doctor", "--selftest"]) == 0
    assert_passed(capsys.readouterr().out, 1)


@pytest.mark.parametrize(("launcher", "flags"), [(None, ["--runtime.logical_cpus=2"]), ("horovod", [])])
def test_selftest_on_two_replicas(launcher, flags):
    command = [sys.executable, "-m", "distgan", "doctor", "--selftest", *flags]
    [process] = launch(launcher, 2, command, environment())
    assert_passed(finish(process)[0], 2)


def test_selftest_finds_a_wrong_sum(capsys, monkeypatch):
    right = Runtime.sum

    def wrong(self, tensors, name):
        return [tensor * (2 if type(self) is Runtime else 1) for tensor in right(self, tensors, name)]

    monkeypatch.setattr(Runtime, "sum", wrong)
    assert cli.main(["doctor", "--selftest"]) == 1
    out, err = capsys.readouterr()
    assert "WRONG" in out
    assert "verdict: FAILED" in out
    [line] = [line for line in err.splitlines() if "distgan:" in line]
    assert "the sum of 32 MiB over 1 replicas is wrong on rank 0" in line
    assert "two training steps differ from the CPU's by " in line


def test_selftest_names_the_check_that_broke(capsys, monkeypatch):
    def broken(self, tensors, name):
        raise tf.errors.InternalError(None, None, "Graph execution error:\n\nNCCL: unhandled system error")

    monkeypatch.setattr(Runtime, "sum", broken)
    assert cli.main(["doctor", "--selftest"]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "distgan:" in line]
    assert line.startswith(
        "distgan: selftest failed: the sum over replicas: Graph execution error: NCCL: unhandled system"
    )
