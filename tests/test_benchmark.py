"""`distgan benchmark` runs and prints what it measured; what the figures are is not for a test on a busy machine."""

import json
import re
import sys
import time

import psutil
import pytest
from conftest import distgan, finish, launch, start

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


GRAPH = ("benchmark", *SMALL, "--what=graph")


@pytest.fixture(scope="module")
def graph_alone():
    return json.loads(distgan(*GRAPH)[0])


def test_graph(graph_alone):
    projection = graph_alone["projection"]
    assert "projection" in projection["note"]
    assert projection["step_seconds"] == {
        "launch_bound": pytest.approx(graph_alone["kernels"] * 5e-6, abs=1e-9),
        "memory_bound": pytest.approx(graph_alone["bytes"] / 2039e9, abs=1e-9),
        "compute_bound": pytest.approx(graph_alone["flops"] / 19.5e12, abs=1e-9),
    }
    assert projection["bound_by"] == "launch_bound"
    assert graph_alone["arithmetic_intensity"] == round(graph_alone["flops"] / graph_alone["bytes"], 3)
    assert graph_alone["collectives"] == []
    assert not graph_alone["without_formula"]
    assert not graph_alone["of_unknown_shape"]


@pytest.mark.parametrize(
    ("launcher", "flags"),
    [(None, ("--strategy=mirrored", "--runtime.logical_cpus=2")), ("horovod", ()), ("multiworker", ())],
    ids=("mirrored", "horovod", "multiworker"),
)
def test_graph_of_two_replicas(graph_alone, launcher, flags):
    """Each works on half of the images, and hands over its gradients, what it measured, and the batch norms' moments."""
    command = [sys.executable, "-m", "distgan", *GRAPH, *flags, "--launch_us=1000"]
    out = "".join(finish(process)[0] for process in launch(launcher, 2, command))
    result = json.loads(re.sub(r"^\[\d\]<stdout>:", "", out, flags=re.MULTILINE))
    assert result["replicas"] == 2
    for kind in ("convolution", "matmul"):
        assert result["flops_by_kind"][kind] == graph_alone["flops_by_kind"][kind] / 2
    parameters = sum(int(count.replace(",", "")) for count in re.findall(r": ([\d,]+) parameters", dry_run()))
    sizes = {each["bytes"]: each["times"] for each in result["collectives"]}
    assert max(sizes) == 4 * (parameters + 8)  # Eight numbers are measured of a step.
    assert sizes[max(sizes)] == 1
    assert sum(sizes.values()) == 1 + 2 * 3  # Three batch norms, forward and backward.
    launches = result["kernels"] + sum(sizes.values())
    assert result["projection"]["step_seconds"]["launch_bound"] == pytest.approx(launches * 1e-3)


def dry_run():
    made_up = ("--data.source=synthetic", "--data.resolution=32")
    out, err = distgan("train", *SMALL, *made_up, "--dry_run")
    return out + err
