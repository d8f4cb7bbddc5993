"""What the README's two commands for GPUs install: distgan[gpu], and Horovod with NCCL; and the image's stages for GPUs.

It takes several GB, and half an hour where nothing is cached, so `bash launch/test.sh --soak` alone runs it. It needs a CUDA
toolkit and Open MPI, and no GPU: what a GPU does with all this, no test here can say. Horovod's wheel is built where none of the
same ingredients is cached.
"""

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import image
import pytest
import tensorflow as tf
import toolkit
from conftest import REPOSITORY
from packaging.requirements import Requirement
from test_image import memory, slim_base  # noqa: F401  (memory is a fixture)

pytestmark = pytest.mark.soak
CUDA = tf.sysconfig.get_build_info()["cuda_version"]
NO_PATHS = {name: value for name, value in os.environ.items() if name not in ("LD_LIBRARY_PATH", "PYTHONPATH")}
REDUCE = """
import horovod.tensorflow as hvd, numpy as np, tensorflow as tf
hvd.init()
rank = hvd.rank()
total = hvd.grouped_allreduce([tf.range(5.0) * (rank + 1), tf.fill([2, 3], 10.0 ** rank)], op=hvd.Sum)
np.testing.assert_array_equal(total[0], [0, 3, 6, 9, 12])
np.testing.assert_array_equal(total[1], np.full([2, 3], 11))
print("reduced over", hvd.size(), "ranks")
"""


class Packages:
    """A virtual environment with distgan[gpu] and Horovod."""

    def __init__(self, folder):
        self.venv = folder / "venv"
        own = {"VIRTUAL_ENV": str(self.venv), "PATH": f"{self.venv}/bin:{os.environ['PATH']}"}
        self.environment = NO_PATHS | own

    @property
    def site(self):
        return next(self.venv.glob("lib/python*/site-packages"))

    @property
    def horovod(self):
        """Horovod's library."""
        return next(self.site.glob("horovod/tensorflow/mpi_lib*.so"))

    def run(self, *words, seconds=900, **variables):
        """A command that must succeed; returns what it wrote."""
        done = self.finished(*words, seconds=seconds, **variables)
        return done.stdout + done.stderr

    def finished(self, *words, seconds=900, **variables):
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environment | variables,
            cwd=self.venv,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def python(self, script):
        """What a script prints; TensorFlow 2.21 writes notes to stderr at its import."""
        return self.finished("python", "-c", script, TF_CPP_MIN_LOG_LEVEL="3").stdout


@pytest.fixture(scope="module")
def packages():
    """Not below /tmp, which the stages of the image do not see."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # noqa: S108
        Path(folder).chmod(0o755)
        installed = Packages(Path(folder))
        subprocess.run([sys.executable, "-m", "venv", installed.venv], check=True)
        pip = ("python", "-m", "pip", "install", "--quiet", "--no-compile")
        same = f"tensorflow[and-cuda]=={tf.__version__}"
        installed.run(*pip, "-e", f"{REPOSITORY}[gpu]", same, seconds=3000)
        script = REPOSITORY / "launch/install_horovod.sh"
        print(installed.run("bash", script, *toolkit.options(CUDA), seconds=3000))
        yield installed


def test_libraries(packages):
    """Every CUDA library of TensorFlow's list opens, and lies where TensorFlow's run path looks for it."""
    names = packages.python("from distgan.runtime import cuda; print(*cuda.library_names())").split()
    assert len(names) == 7
    tensorflow = packages.site / "tensorflow"
    libraries = [tensorflow / f"libtensorflow_{each}.so.2" for each in ("framework", "cc")]  # Both open some.
    paths = [each for library in libraries for each in run_path(library)]
    folders = [Path(each.replace("$ORIGIN", str(tensorflow))).resolve() for each in paths]
    for name in names:
        found = [folder / name for folder in folders if (folder / name).exists()]
        assert found, f"{name} is in none of {folders}"
        packages.run("python", "-c", f"import ctypes; ctypes.CDLL({str(found[0])!r})")


def test_doctor(packages):
    line = next(line for line in packages.run("distgan", "doctor").splitlines() if line.startswith("GPUs: "))
    assert line.startswith("GPUs: none (no NVIDIA driver (libcuda.so.1))") if no_driver() else "none" not in line


def no_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False


def test_training(packages, tmp_path):
    words = ("--model.width=4", "--train.global_batch=16", "--train.total_kimg=0.16", "--tracking.wandb=disabled")
    output = packages.run("distgan", "train", f"--run_dir={tmp_path / 'run'}", *words, CUDA_VISIBLE_DEVICES="")
    assert "done" in output


def test_horovod_library(packages):
    """It finds NCCL and all its symbols without LD_LIBRARY_PATH, in this environment."""
    assert run_path(packages.horovod) == ["$ORIGIN/../../nvidia/nccl/lib", "$ORIGIN/../../tensorflow"]
    resolved = packages.run("ldd", "-r", packages.horovod)
    assert "undefined symbol" not in resolved
    nccl = re.search(r"libnccl\.so\.2 => (\S+)", resolved)[1]
    assert Path(nccl).resolve() == packages.site.resolve() / "nvidia/nccl/lib/libnccl.so.2"


def test_horovod_built(packages):
    """Its NCCL is the installed one, of the range that TensorFlow names."""
    script = "import horovod.tensorflow as hvd; print(hvd.nccl_built(), hvd.cuda_built(), hvd.gloo_built())"
    nccl, cuda, gloo = packages.python(script).split()
    major, minor, patch = int(nccl) // 10000, int(nccl) // 100 % 100, int(nccl) % 100
    named = next(Requirement(each) for each in metadata.requires("tensorflow") if each.startswith("nvidia-nccl"))
    assert f"{major}.{minor}.{patch}" in named.specifier
    version = "from importlib import metadata; print(metadata.version('nvidia-nccl-cu12'))"
    assert packages.python(version).strip().startswith(f"{major}.{minor}.{patch}")
    assert (cuda, gloo) == ("True", "True")


def test_two_ranks(packages):
    output = packages.run("horovodrun", "--gloo", "-np", "2", "python", "-c", REDUCE, CUDA_VISIBLE_DEVICES="")
    assert output.count("reduced over 2 ranks") == 2


def test_image(packages, memory):  # noqa: F811
    """The stages of k8s/Dockerfile for GPUs, with this machine's toolkit in place of the image that is CUDA's."""
    text = (REPOSITORY / "k8s/Dockerfile").read_text()
    base = re.search(r"^ARG CUDA_IMAGE=(\S+)", text, re.MULTILINE)[1]
    copied = re.search(r"--from=cuda /(\S+)", text)[1]
    (memory / "cuda-image" / copied).parent.mkdir(parents=True)
    (memory / "cuda-image" / copied).symlink_to(toolkit.HOME.resolve())
    caches = {name: os.environ[name] for name in ("XDG_CACHE_HOME",) if name in os.environ}

    def before_run(stage):
        stage.environment |= caches
        slim_base(stage)
        if stage.top.name == "build":
            venv = stage.top / "opt/distgan/.venv"
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            site = next(venv.glob("lib/python*/site-packages"))
            own = (
                "pip",
                "setuptools",
                "_distutils",
                "distutils",
                "pkg_resources",
                "horovod",
                "distgan",
                "__editable__",
            )
            for each in packages.site.iterdir():
                if not each.name.startswith(own):
                    (site / each.name).symlink_to(each)

    arguments = {"ACCELERATOR": "gpu", "HOROVOD_OPTIONS": " ".join(toolkit.options(CUDA)[1:])}
    final, log = image.build(memory, arguments, before_run, {base: memory / "cuda-image"})
    assert len(log) == text.count("\nRUN ")
    doctor = log[-1][1]
    assert re.search(r"Horovod: 0\.28.*operations gloo, nccl", doctor), doctor
    assert "no NVIDIA driver" in doctor or not no_driver(), doctor
    assert "LD_LIBRARY_PATH" not in final.environment
    library = "/opt/distgan/.venv/lib/python3.*/site-packages/horovod/tensorflow/mpi_lib*.so"
    code, resolved = final.enter(["bash", "-c", f"ldd -r {library}"], {})
    assert code == 0
    assert "undefined symbol" not in resolved
    assert re.search(r"libnccl\.so\.2 => /opt/distgan/\.venv/", resolved), resolved


def test_horovod_with_mpi(packages):
    """The same with MPI beside NCCL; last, as it takes the other one's place."""
    script = REPOSITORY / "launch/install_horovod.sh"
    assert "works with" in packages.run("bash", script, "--mpi", *toolkit.options(CUDA), seconds=3000)
    test_horovod_library(packages)
    mpirun = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2")
    output = packages.run(*mpirun, "python", "-c", REDUCE, CUDA_VISIBLE_DEVICES="")
    assert output.count("reduced over 2 ranks") == 2


def run_path(library):
    """The folders that a library's run path names."""
    read = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    return [folder for each in re.findall(r"(?:RUNPATH|RPATH).*\[(.*)\]", read) for folder in each.split(":")]
