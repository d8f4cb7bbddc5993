"""What doctor says of CUDA where no GPU is seen, with stand-ins for the driver; and the versions that the image names."""

import os
import re
import subprocess
import sys
import types

import pytest
import tensorflow as tf
from conftest import REPOSITORY

from distgan.runtime import cuda


def machine(libraries, code=0):
    """A loader that knows some libraries; the driver's cuInit answers with a code."""

    def load(name):
        if name not in libraries:
            raise OSError(name)
        return types.SimpleNamespace(cuInit=lambda flags: code)

    return load


@pytest.fixture
def names(monkeypatch):
    """TensorFlow's list, where no package has put any of it."""
    monkeypatch.setattr(cuda, "find_library", lambda name: None)
    return cuda.library_names()


def test_names(names):
    """By TensorFlow's own build: cuDNN's version stands there too."""
    build = tf.sysconfig.get_build_info()
    assert f"libcudart.so.{build['cuda_version'].split('.')[0]}" in names
    assert f"libcudnn.so.{build['cudnn_version']}" in names


def test_no_driver(names):
    assert cuda.explain(machine(names)) == "no NVIDIA driver (libcuda.so.1)"


def test_nothing(names):
    text = cuda.explain(machine([]))
    assert text.startswith("no NVIDIA driver (libcuda.so.1); no libcudart.so.")
    assert text.endswith(": pip install 'distgan[gpu]' brings them")
    assert "\n" not in text


def test_one_library_missing(names):
    assert cuda.explain(machine(["libcuda.so.1", *names[1:]])).startswith(f"no {names[0]}: pip install")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, ""),
        (100, "the NVIDIA driver shows no GPU to this process (CUDA_VISIBLE_DEVICES may hide them)"),
        (803, "the NVIDIA driver does not start (cuInit: error 803)"),
    ],
)
def test_driver(names, code, text):
    assert cuda.explain(machine(["libcuda.so.1", *names], code)) == text


def test_without_cuda(monkeypatch):
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: {"is_cuda_build": False})
    assert cuda.explain(machine([])) == "this TensorFlow is built without CUDA"


def test_image_names_the_cuda_of_tensorflow():
    dockerfile = (REPOSITORY / "k8s/Dockerfile").read_text()
    version = re.search(r"CUDA_IMAGE=nvidia/cuda:([\d.]+)-devel", dockerfile)[1]
    assert version == tf.sysconfig.get_build_info()["cuda_version"]
    assert re.findall(r"/usr/local/cuda-([\d.]+)", dockerfile) == [version.rpartition(".")[0]]


def install_horovod(tmp_path, *words, release="", architectures=""):
    """Exit code and last line of the script, with a stand-in for a toolkit of some release."""
    compiler = tmp_path / "bin/nvcc"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "release {release}, V" || echo "{architectures}"\n')
    compiler.chmod(0o755)
    done = subprocess.run(
        ["bash", REPOSITORY / "launch/install_horovod.sh", *words],
        env=os.environ | {"CUDA_HOME": str(tmp_path), "VIRTUAL_ENV": sys.prefix, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "toolkit", "line"),
    [
        (["--cpu"], {}, "unknown option --cpu; there are --gpu, --mpi and --trial"),
        (["--trial"], {}, "--trial is about the CUDA toolkit: it goes with --gpu alone"),
        (["--gpu"], {"release": "11.8"}, "--gpu needs CUDA 12, TensorFlow's own; {nvcc} is of CUDA 11.8 (--trial "),
        (
            ["--gpu"],
            {"release": "12.5", "architectures": "compute_35"},
            "{nvcc} knows none of TensorFlow's compute capabilities (60 ",
        ),
    ],
)
def test_install_horovod_refuses(tmp_path, words, toolkit, line):
    code, text = install_horovod(tmp_path, *words, **toolkit)
    assert code == 2
    assert text.startswith("install_horovod: " + line.format(nvcc=tmp_path / "bin/nvcc"))
