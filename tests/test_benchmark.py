"""`distgan benchmark` runs and prints what it measured; what the figures are is not for a test on a busy machine."""

import json
import time

import psutil
import pytest
from conftest import distgan, finish, start

SMALL = ("--preset=cifar10-dcgan", "--model.width=4", "--train.global_batch=16")


@pytest.mark.parametrize(
    ("flags", "keys"),
    [
        (("--what=step", "--blocks=2", "--block_seconds=0.1"), ("ratio", "images_per_second", "blocks")),
        (
            (
                "--what=parts",
                "--blocks=1",
                "--block_seconds=0.1",
                "--objective.regularizers=r1",
                "--objective.r1.interval=2",
            ),
            ("milliseconds", "whole_step"),
        ),
        (("--what=startup",), ("seconds_to_first_step",)),
        (("--what=tracking", "--blocks=2", "--block_seconds=0.1"), ("offline_of_disabled", "hung_of_disabled")),
        (("--what=memory",), ("peak_gib", "estimated_replica_gib")),
        (
            ("--what=metrics", "--metrics_count=300", "--metrics_size=20"),
            ("frechet", "frechet_sqrtm", "kernel", "precision_recall", "precision_recall_matrices"),
        ),
        (("--what=checkpoint", "--blocks=1"), ("ratio", "held_up_ms_per_save", "megabytes", "mb_per_second")),
        (("--what=data", "--blocks=1", "--block_seconds=0.5"), ("sources",)),
    ],
)
def test_benchmark(flags, keys):
    out, _ = distgan("benchmark", *SMALL, *flags)
    result = json.loads(out)
    assert result["preset"] == "cifar10-dcgan"
    assert all(result[key] for key in keys)


def test_tracking_leaves_no_process():
    """Stopped while it measures, W&B's processes, which stand still in turn, end with it."""
    process = start("benchmark", *SMALL, "--what=tracking", "--blocks=1000", "--block_seconds=0.1")
    watched, end = psutil.Process(process.pid), time.monotonic() + 120
    while not any(child.status() == psutil.STATUS_STOPPED for child in watched.children(recursive=True)):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    children = watched.children(recursive=True)
    process.terminate()
    finish(process, 130)
    assert psutil.wait_procs(children, timeout=60)[1] == []
