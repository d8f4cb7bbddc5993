"""The image: the steps of k8s/Dockerfile for CPUs, executed one by one over this machine's root, and what comes of them.

Left out, as no test here can do it: pulling the base images. The stages for GPUs are in test_gpu_packages.py.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import image
import pytest
from conftest import REPOSITORY


@pytest.fixture
def memory(tmp_path):
    """A disk of its own for the layers: a layer may not lie within a lower one, which this machine's root is."""
    subprocess.run(["mount", "-t", "tmpfs", "layers", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def slim_base(stage):
    """Makes the stage `system` what python:*-slim is: without users."""
    if stage.top.name == "system":
        for name in ("passwd", "group"):
            lines = Path("/etc", name).read_text().splitlines(keepends=True)
            (stage.top / "etc").mkdir(exist_ok=True)
            (stage.top / "etc" / name).write_text("".join(line for line in lines if line.split(":")[2] != "1000"))


def test_image(memory):
    caches = {name: os.environ[name] for name in ("XDG_CACHE_HOME",) if name in os.environ}
    packages = f"{sysconfig.get_path('purelib')}\n"

    def before_run(stage):
        """Spares the download of TensorFlow."""
        stage.environment |= caches
        slim_base(stage)
        if stage.top.name == "build":  # It sees this environment's packages.
            venv = stage.top / "opt/distgan/.venv"
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            (next(venv.glob("lib/python*/site-packages")) / "this_machine.pth").write_text(packages)

    final, log = image.build(memory, {}, before_run)
    commands = [command for command, _ in log]
    assert len(commands) == (REPOSITORY / "k8s" / "Dockerfile").read_text().count("\nRUN ")
    assert commands[-1] == "distgan doctor"
    doctor = log[-1][1]
    assert "Horovod: 0.28" in doctor or "Gloo" in doctor, doctor
    assert final.user == "1000:1000"

    def inside(script):
        return final.enter(["bash", "-c", script], {})

    # What the manifests call is there, for the pods' user, who can write none of it.
    for path in (
        "/usr/bin/tini",
        "/usr/sbin/sshd",
        "/opt/distgan/launch/mpijob.sh",
        "/opt/distgan/launch/stop_ranks.sh",
    ):
        assert inside(f"test -r {path}")[0] == 0, path
    assert inside("command -v distgan")[1].strip() == "/opt/distgan/.venv/bin/distgan"
    assert (
        inside("python -c 'import distgan; print(distgan.__file__)'")[1].strip() == "/opt/distgan/distgan/__init__.py"
    )
    assert inside("id -un")[1].strip() == "distgan"
    assert inside("touch /opt/distgan/x /opt/distgan/.venv/x")[0] != 0
    assert inside("ls /etc/ssh/ssh_host_*")[0] != 0
    # No part of the checkout that runs do not need.
    assert not (final.top / "opt/distgan/tests").exists()
    assert not (final.top / "opt/distgan/.git").exists()


def test_ignored():
    patterns = ["*", "!launch", "!k8s/ssh_config", "**/__pycache__"]
    for path, expected in (
        ("tests/test_image.py", True),
        (".git/config", True),
        ("launch/local.sh", False),
        ("launch/__pycache__/x.pyc", True),
        ("k8s/ssh_config", False),
        ("k8s/Dockerfile", True),
    ):
        assert image.ignored(path, patterns) == expected, path
