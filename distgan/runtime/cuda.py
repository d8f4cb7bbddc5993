"""Why TensorFlow sees no GPU: what it needs of CUDA, and what of that this machine has not."""

from __future__ import annotations

import ctypes
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path

NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def library_names() -> list[str]:
    """File names of the CUDA libraries that TensorFlow opens when it finds a GPU, by the versions in its own headers."""
    import tensorflow as tf

    header = Path(tf.sysconfig.get_include(), "third_party/gpus/cuda/cuda_config.h").read_text()
    versions = dict(re.findall(r'#define TF_(\w+)_VERSION "(\d+)"', header))
    names = ("CUDART", "CUPTI", "CUBLAS", "CUFFT", "CUSOLVER", "CUSPARSE", "CUDNN")
    return [f"lib{name.lower()}.so.{versions[name]}" for name in names]


def find_library(name: str) -> Path | None:
    """Where NVIDIA's packages have put a library, or None."""
    return next(Path(sysconfig.get_path("purelib")).glob(f"nvidia/*/lib/{name}"), None)


def explain(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> str:
    """What stands between TensorFlow and a GPU, in one line; empty where nothing is found to be missing.

    Args:
      load: opens a shared library by its name, or raises OSError.
    """
    import tensorflow as tf

    if not tf.sysconfig.get_build_info()["is_cuda_build"]:
        return "this TensorFlow is built without CUDA"
    absent = [name for name in library_names() if find_library(name) is None and not _opens(name, load)]
    libraries = f"no {', '.join(absent)}: pip install 'distgan[gpu]' brings them" if absent else ""
    return "; ".join(filter(None, (_driver_problem(load), libraries)))


def _driver_problem(load: Callable[[str], ctypes.CDLL]) -> str:
    if not _opens("libcuda.so.1", load):
        return "no NVIDIA driver (libcuda.so.1)"
    code = load("libcuda.so.1").cuInit(0)
    if code == NO_DEVICE:
        return "the NVIDIA driver shows no GPU to this process (CUDA_VISIBLE_DEVICES may hide them)"
    return f"the NVIDIA driver does not start (cuInit: error {code})" if code else ""


def _opens(name: str, load: Callable[[str], ctypes.CDLL]) -> bool:
    try:
        load(name)
    except OSError:
        return False
    return True
