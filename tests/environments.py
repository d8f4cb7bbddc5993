"""Virtual environments of their own, which tests need besides the one they run in.

Each is installed once (2 GB), and kept where launch/install_horovod.sh keeps its wheels.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from conftest import REPOSITORY
from filelock import FileLock

PYTHONS = ("3.11", "3.12", "3.13")
_INSTALL_SECONDS = 1200
_OLDEST = ("3.11", "2.20")


def interpreter(version):
    """A Python of a version, as `3.13`, that starts and can make environments; None where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    kept = sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    # What lies on the path may be pyenv's stand-in for one that is not chosen, which does not start.
    for program in (sys.executable, f"python{version}", *map(str, kept)):
        code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
        try:
            done = subprocess.run([program, "-c", code], capture_output=True, text=True, timeout=60)
        except FileNotFoundError:
            continue
        if done.stdout.strip() == version:
            return program
    return None


def missing():
    """The interpreters that tests/test_versions.py needs and that are not there."""
    return [f"python{version}" for version in PYTHONS if interpreter(version) is None]


@functools.cache
def tensorflow_alone():
    """The interpreter of an environment with this TensorFlow and nothing of distgan: what a SavedModel must be content with."""
    return _environment("alone", sys.executable, [f"tensorflow=={metadata.version('tensorflow')}"])


@functools.cache
def pair(python, tensorflow):
    """The interpreter of an environment with what distgan needs, and Horovod, for versions of Python and TensorFlow.

    The oldest pair has the oldest of every package that pyproject.toml allows, others the newest.
    """
    needs = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    if (python, tensorflow) == _OLDEST:
        needs = [need.partition(",")[0].replace(">=", "==") for need in needs]
    name = f"python-{python}-tensorflow-{tensorflow}"
    return _environment(name, interpreter(python), [*needs, f"tensorflow=={tensorflow}.*"], horovod=True)


def _environment(name, python, packages, horovod=False):
    """Makes the environment where it is not there as a whole."""
    builder = REPOSITORY / "launch" / "install_horovod.sh"
    version = subprocess.run([python, "-VV"], check=True, capture_output=True, text=True).stdout
    parts = [version, *packages, *([builder.read_text()] if horovod else [])]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distgan"
    place = cache / f"{name}-{key}"
    whole, found = place / "whole", place / "bin" / "python"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock", timeout=_INSTALL_SECONDS):
        # A link to a Python that is gone does not exist.
        if not (whole.exists() and found.exists()):
            shutil.rmtree(place, ignore_errors=True)
            _run([python, "-m", "venv", place])
            # Compiling all of it would take longer than the rest.
            _run([found, "-m", "pip", "install", "--quiet", "--no-compile", "--retries=1", *packages])
            if horovod:
                _run(["bash", builder], {"VIRTUAL_ENV": str(place)})
            whole.touch()
    return found


def _run(command, more=None):
    limits = {"timeout": _INSTALL_SECONDS, "env": os.environ | (more or {})}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **limits)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
    assert done.returncode == 0, f"{command} failed: {lines[-5:] or done.stdout[-500:]}"
