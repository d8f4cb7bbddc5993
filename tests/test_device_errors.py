"""What a GPU's errors come to: one line, an exit code, all workers told, and a restart that goes on."""

import dataclasses
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import tensorflow as tf
from conftest import REPOSITORY, SMALL, environment, finish, finish_all, launch, rows

from distgan import schema
from distgan.cli import COMMANDS, main
from distgan.config import Config
from distgan.data.source import Description
from distgan.errors import Broken, UserError
from distgan.runtime import devices
from distgan.runtime.base import Runtime
from distgan.runtime.control import Control
from distgan.runtime.topology import Topology
from distgan.training import checkpoint, device_errors, estimate
from distgan.training.state import build_state

FAULTS = str(REPOSITORY / "tests" / "faults.py")
GIB = 2**30
OOM = (
    'Graph execution error:\n\nDetected at node Conv2D defined at (most recent call last):\n  File "/me/oom.py", line 8, in f\n\n'
    "OOM when allocating tensor with shape[64,64] and type float on /device:GPU:0 by allocator GPU_0_bfc\n"
    "\t [[{{node Conv2D}}]]\nHint: If you want to see a list of allocated tensors when OOM happens, ..."
)


def run_of(**values):
    """A run on one replica, so far as an error is explained by it."""
    flags = {"model.width": 4, "train.global_batch": 64} | {name.replace("__", "."): v for name, v in values.items()}
    config = schema.build(Config, flags)
    images = config.data.source.options.open(config.data)
    runtime = Runtime(Topology("single", "", 1), Control())
    return SimpleNamespace(config=config, runtime=runtime, state=build_state(config, Description.of(images), runtime))


def explained(run, error):
    stop = SimpleNamespace(doing=lambda: "step 7")
    with pytest.raises((UserError, Broken, type(error))) as raised, device_errors.explained(run, stop):
        raise error
    return raised.value


@pytest.fixture(scope="module")
def run():
    return run_of()


def test_out_of_memory(run, monkeypatch):
    memory = estimate.memory_bytes(run.config, run.state, 64)
    fixed, activations = memory["state"] + memory["gradients"], memory["activations"]
    # The state and the activations of 20 images: micro-batches of 16 are the largest that divide 64 and fit.
    limit = int((fixed + activations * 20 / 64) / 0.9)
    monkeypatch.setattr(devices, "gpu_memory_bytes", lambda: limit)
    error = explained(run, tf.errors.ResourceExhaustedError(None, None, OOM))
    assert isinstance(error, UserError)
    assert error.__cause__ is None
    text = str(error)
    assert text.startswith("out of memory at step 7 (OOM when allocating tensor with shape[64,64]")
    assert "\n" not in text
    assert f"needs {(fixed + activations) / GIB:.2f} GiB for micro-batches of 64 images" in text
    assert f"its GPU has {limit / GIB:.2f}; 16 would fit: --train.accumulation_steps=4 trains the same run" in text
    # An estimate that is below the memory was too low, and half of it is below nine tenths.
    monkeypatch.setattr(devices, "gpu_memory_bytes", lambda: 100 * GIB)
    assert "32 would fit: --train.accumulation_steps=2 " in str(
        explained(run, tf.errors.InternalError(None, None, "CUDA_ERROR_OUT_OF_MEMORY: out of memory"))
    )
    monkeypatch.setattr(devices, "gpu_memory_bytes", lambda: fixed // 2)
    assert "not even an image at a time would fit" in str(
        explained(run, tf.errors.ResourceExhaustedError(None, None, OOM))
    )


def test_largest_micro_batch(run):
    """Against all that divide the batch, tried one by one."""
    memory = {"state": 100, "gradients": 50, "activations": 4800}
    for replicas, steps, limit in ((1, 1, 10**6), (2, 1, 3000), (4, 2, 1000), (4, 2, 500), (1, 1, 160), (2, 1, 400)):
        train = dataclasses.replace(run.config.train, global_batch=96, accumulation_steps=steps)
        now, most = 96 // replicas // steps, 0.9 * min(limit, 4950)
        fitting = [m for m in range(1, now) if (96 // replicas) % m == 0 and 150 + 4800 * m / now <= most]
        expected = 96 // replicas // max(fitting) if fitting else None
        config = dataclasses.replace(run.config, train=train)
        assert device_errors.accumulation_to_fit(config, replicas, memory, limit) == expected


def test_out_of_memory_where_accumulation_is_refused():
    other = run_of(objective__loss="relativistic_average")
    text = str(explained(other, tf.errors.ResourceExhaustedError(None, None, OOM)))
    assert text.endswith("32 would fit: --train.global_batch=32")


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (
            tf.errors.UnimplementedError(
                None, None, "Determinism is not yet supported in GPU implementation of Bincount."
            ),
            UserError,
            "--deterministic cannot be kept on this device: Determinism is not yet supported in GPU implementation of Bincount.",
        ),
        (
            tf.errors.InternalError(None, None, "Graph\n\nNCCL: unhandled system error\n[[x]]"),
            Broken,
            "unhandled system",
        ),
        (tf.errors.UnknownError(None, None, "CUDNN_STATUS_EXECUTION_FAILED"), Broken, "CUDNN_STATUS_EXECUTION_FAILED"),
        (tf.errors.UnimplementedError(None, None, "DNN library is not found."), Broken, "DNN library is not found."),
        (
            tf.errors.InternalError(None, None, "CUDA_ERROR_ILLEGAL_ADDRESS"),
            Broken,
            "failed at step 7 (CUDA_ERROR_ILLEGAL",
        ),
    ],
)
def test_device_errors(run, error, expected, text):
    raised = explained(run, error)
    assert type(raised) is expected
    assert text in str(raised)


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.InvalidArgumentError(None, None, "Incompatible shapes on a cuda device"),
        tf.errors.ResourceExhaustedError(None, None, "Received message larger than max (7 vs. 4)"),
        tf.errors.InternalError(None, None, 'File "/me/cuda.py", line 1\nsomething else'),
        ValueError("NCCL"),
    ],
)
def test_other_errors_stay(run, error):
    assert explained(run, error) is error


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_it_in_one_line(command, monkeypatch, capsys):
    def ends_with(error):
        monkeypatch.setattr(f"{COMMANDS[command][0]}.run", mock.Mock(side_effect=error))

    for error, code, text in (
        (tf.errors.ResourceExhaustedError(None, None, OOM), 2, "out of memory at distgan"),
        (tf.errors.InternalError(None, None, "NCCL: unhandled system error"), 1, "a GPU or a sum over GPUs failed"),
    ):
        ends_with(error)
        assert main([command]) == code
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"distgan: {text}")
    ends_with(ValueError("of our own"))
    with pytest.raises(ValueError, match="of our own"):
        main([command])


def test_one_worker(tmp_path):
    words = ["train", f"--run_dir={tmp_path}", *SMALL, "--train.total_kimg=0.96", "--checkpoint.snapshot_kimg=0.016"]
    seen = 0
    for plan, code, text in (
        ("nccl:step:2", 1, "(unhandled cuda error (NCCL_DEBUG=INFO)); start it again"),
        ("oom:step:2", 2, "8 would fit: --train.accumulation_steps=2 trains the same run with them"),
    ):
        [process] = launch(None, 1, [sys.executable, FAULTS, plan, *words])
        _, err = finish(process, code)
        assert text in err.splitlines()[-1]
        assert "Traceback" not in err
        saved = checkpoint.newest(tmp_path / "checkpoints")  # What was in memory is saved on the way out.
        assert saved.images_seen > seen
        seen = saved.images_seen
        log = (tmp_path / "log.txt").read_text()
        assert "Traceback" in log
        assert "host_peak_gb" in log
    [process] = launch(None, 1, [sys.executable, FAULTS, "", *words])
    finish(process)
    assert rows(tmp_path)[-1]["progress/images_seen"] == 960


@pytest.mark.parametrize(
    ("launcher", "plan", "code", "text"),
    [
        ("multiworker", "oom:step:2@1", 2, "out of memory at step"),
        ("horovod", "nccl:step:2@1", 1, "a GPU or a sum over GPUs failed at step"),
    ],
)
def test_all_workers_are_told(tmp_path, launcher, plan, code, text):
    words = ["train", f"--run_dir={tmp_path}", *SMALL, "--train.total_kimg=1.6"]
    processes = launch(launcher, 2, [sys.executable, FAULTS, plan, *words], env=environment())
    errors = "\n".join(finish_all(processes, code))
    [line] = [line for line in errors.splitlines() if "distgan:" in line]
    assert "rank 1 on " in line
    assert text in line
    assert "Traceback" in (tmp_path / "log.1.txt").read_text()
    finish_all(launch(launcher, 2, [sys.executable, FAULTS, "", *words], env=environment()))
    assert checkpoint.newest(tmp_path / "checkpoints").images_seen == 1600
