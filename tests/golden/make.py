"""Makes the golden numbers anew: `python tests/golden/make.py [losses|graphs]`. Say in the commit why they changed."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

FILE = Path(__file__).parent / "digits-dcgan.json"
KEYS = ("loss/discriminator", "loss/generator", "d_logits/real_mean", "d_logits/fake_mean")
GRAPHS_FILE = Path(__file__).parent / "graphs.json"
LAZY_FLOAT16 = ("--precision=mixed_float16", "--objective.regularizers=r1", "--objective.r1.interval=4")
GRAPHS = {
    "digits-dcgan": ("--preset=digits-dcgan",),
    "cifar10-dcgan": ("--preset=cifar10-dcgan",),
    "digits-dcgan, r1 every 4 steps, float16": ("--preset=digits-dcgan", *LAZY_FLOAT16),
}
COUNTS = ("kernels", "fusible", "host_transfers", "host_ops", "py_functions", "flops", "bytes")


def first_steps():
    """The first 20 steps of digits-dcgan, a row each."""
    with tempfile.TemporaryDirectory() as run_dir:
        flags = [
            f"--run_dir={run_dir}",
            "--preset=digits-dcgan",
            "--train.total_kimg=1.28",
            "--train.report_kimg=0.064",
        ]
        flags += ["--tracking.wandb=disabled", "--train.sample_kimg=0"]
        subprocess.run([sys.executable, "-m", "distgan", "train", *flags], check=True, capture_output=True)
        lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [{key: json.loads(line)[key] for key in KEYS} for line in lines]


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
        write(FILE, first_steps())
    if "graphs" in asked:
        write(GRAPHS_FILE, {name: graph_counts(flags) for name, flags in GRAPHS.items()})
