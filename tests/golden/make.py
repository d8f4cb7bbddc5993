"""Makes the golden losses anew: `python tests/golden/make.py`. Say in the commit why they changed."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

FILE = Path(__file__).parent / "digits-dcgan.json"
KEYS = ("loss/discriminator", "loss/generator", "d_logits/real_mean", "d_logits/fake_mean")


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


if __name__ == "__main__":
    FILE.write_text(json.dumps(first_steps(), indent=1) + "\n")
