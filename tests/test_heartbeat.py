"""The file that a cluster's probe looks at: fresh while a worker gets on, and not when it is stuck."""

import time

import pytest
from conftest import SMALL, distgan

from distgan import schema
from distgan.config import Config
from distgan.errors import UserError
from distgan.runtime import devices


def test_heartbeat(tmp_path):
    path = tmp_path / "heartbeat"
    values = {
        "runtime.heartbeat": str(path),
        "runtime.hang_timeout_seconds": 0.1,
        "runtime.join_timeout_seconds": 0.1,
    }
    control = devices.connect(schema.build(Config, values), None)

    def age():
        return time.time() - path.stat().st_mtime

    for _ in range(3):
        control.at("training", 1, patient=True)
        time.sleep(0.8)
    assert age() < 1.6
    control.at("training", 2)
    time.sleep(3)
    assert age() > 2
    with pytest.raises(UserError, match="--runtime.heartbeat=/nowhere/file cannot be written"):
        devices.connect(schema.build(Config, values | {"runtime.heartbeat": "/nowhere/file"}), None)


def test_heartbeat_of_a_run(tmp_path):
    words = [
        *SMALL,
        "--train.total_kimg=0.032",
        f"--run_dir={tmp_path}/run",
        f"--runtime.heartbeat={tmp_path}/heartbeat",
    ]
    distgan("train", *words)
    assert (tmp_path / "heartbeat").exists()
