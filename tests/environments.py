"""An environment of its own with TensorFlow and nothing of distgan: what a SavedModel must be content with."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from filelock import FileLock

_INSTALL_SECONDS = 600


def tensorflow_alone():
    """Its interpreter. Installed once a version (2 GB), and kept where launch/install_horovod.sh keeps its wheel."""
    version, python = metadata.version("tensorflow"), f"cp{sys.version_info.major}{sys.version_info.minor}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distgan"
    place = cache / f"tensorflow-{version}-{python}-alone"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock", timeout=_INSTALL_SECONDS):
        # A link to a Python that is gone does not exist.
        if not (place / "bin" / "python").exists():
            _install(place, f"tensorflow=={version}")
    return place / "bin" / "python"


def _install(place, package):
    """Makes the environment under another name first, so that it is there only when it is whole."""
    temporary = place.with_name(f"{place.name}.tmp")
    for left_over in (place, temporary):
        shutil.rmtree(left_over, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", temporary], check=True)
    # Compiling all of it would take longer than the rest.
    words = ["--python", temporary, "install", "--quiet", "--no-compile", "--retries=1", package]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words], capture_output=True, text=True, timeout=_INSTALL_SECONDS
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    assert done.returncode == 0, f"pip can't install {package}, which this test needs: {errors[-1:] or done.stderr}"
    temporary.rename(place)
