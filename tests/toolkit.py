"""The CUDA toolkit of this machine: what launch/install_horovod.sh takes, from the same place."""

import os
import re
import shutil
import subprocess
from pathlib import Path

HOME = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")


def missing():
    """What this machine lacks of it, and of MPI, in words; empty where nothing is missing."""
    toolkit = [] if (HOME / "bin/nvcc").exists() else [f"a CUDA toolkit in CUDA_HOME ({HOME}/bin/nvcc)"]
    return toolkit + [program for program in ("mpicxx", "mpirun") if not shutil.which(program)]


def version():
    """Its version, as 12.5."""
    text = subprocess.run([HOME / "bin/nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release ([\d.]+)", text)[1]


def options(cuda):
    """Words for install_horovod.sh, for a TensorFlow of some CUDA version: --trial where this toolkit is of another."""
    return ["--gpu", *([] if version().split(".")[0] == cuda.split(".")[0] else ["--trial"])]
