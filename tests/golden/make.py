"""Makes the golden numbers anew: `python tests/golden/make.py [losses|graphs]`. Say in the commit why they changed."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FILE = Path(__file__).parent / "digits-dcgan.json"
KEYS = ("loss/discriminator", "loss/generator", "d_logits/real_mean", "d_logits/fake_mean")
FLAGS = ("--preset=digits-dcgan", "--train.report_kimg=0.064", "--tracking.wandb=disabled", "--train.sample_kimg=0")
"""Of a run whose first 20 steps, `--train.total_kimg=1.28`, are golden."""
GRAPHS_FILE = Path(__file__).parent / "graphs.json"
LAZY_FLOAT16 = ("--precision=mixed_float16", "--objective.regularizers=r1", "--objective.r1.interval=4")
GRAPHS = {
    "digits-dcgan": ("--preset=digits-dcgan",),
    "cifar10-dcgan": ("--preset=cifar10-dcgan",),
    "digits-dcgan, r1 every 4 steps, float16": ("--preset=digits-dcgan", *LAZY_FLOAT16),
}
COUNTS = ("kernels", "fusible", "host_transfers", "host_ops", "py_functions", "flops", "bytes")


def first_steps(run_dir):
    """What of the rows of a run is golden, a row a step."""
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [{key: json.loads(line)[key] for key in KEYS} for line in lines]


def check(run_dir):
    """Compares the rows of a run with the golden ones."""
    found, expected = first_steps(run_dir), json.loads(FILE.read_text())
    assert len(found) == len(expected) == 20
    for row, golden in zip(found, expected, strict=True):
        assert row == pytest.approx(golden, rel=1e-3, abs=1e-3)


def train(run_dir):
    """Trains the 20 steps."""
    command = [sys.executable, "-m", "distgan", "train", f"--run_dir={run_dir}", *FLAGS, "--train.total_kimg=1.28"]
    subprocess.run(command, check=True, capture_output=True)


def graph_counts(flags):
    """What `distgan benchmark --what=graph` counts in a step of a config."""
    words = [sys.executable, "-m", "distgan", "benchmark", "--what=graph", *flags]
    result = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    return {key: result[key] for key in COUNTS}


def write(path, numbers):
    path.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    asked = sys.argv[1:] or ["losses", "graphs"]
    if "losses" in asked:
        with tempfile.TemporaryDirectory() as folder:
            train(folder)
            write(FILE, first_steps(folder))
    if "graphs" in asked:
        write(GRAPHS_FILE, {name: graph_counts(flags) for name, flags in GRAPHS.items()})
