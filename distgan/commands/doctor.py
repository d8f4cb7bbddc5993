"""`distgan doctor`: what this machine can do."""

from __future__ import annotations

import dataclasses
import os
import platform

from distgan.config import option
from distgan.runtime import devices
from distgan.training.run_dir import versions


@dataclasses.dataclass(frozen=True)
class Options:
    """How to look."""

    verbosity: int = option(0, "1 shows TensorFlow's own log", minimum=0, maximum=1)


def run(options: Options) -> int:
    """Prints one line a finding; returns 0 when a training run can start."""
    for package, version in versions().items():
        print(f"{package}: {version}")
    print(f"machine: {platform.platform()}, {os.cpu_count()} CPUs")
    devices.silence(options.verbosity)
    names = devices.gpu_names()
    print(f"GPUs: {', '.join(names) if names else 'none'}")

    from distgan.tracking.wandb_run import has_key

    print(f"W&B key: {'yes' if has_key() else 'no (runs are tracked offline)'}")
    return 0
