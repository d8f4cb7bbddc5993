"""What the GPUs of this host do, read from NVIDIA's library; nothing where there is none."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def _library() -> Any:
    """The library, started; None without an NVIDIA driver, or without the package `nvidia-ml-py`."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def use() -> dict[str, float]:
    """Of all GPUs of this host: mean utilization in percent, memory of the fullest in GiB, watts together."""
    library = _library()
    if library is None:
        return {}
    try:
        found = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
        if not found:
            return {}
        busy = [library.nvmlDeviceGetUtilizationRates(each).gpu for each in found]
        used = [library.nvmlDeviceGetMemoryInfo(each).used for each in found]
        watts = [library.nvmlDeviceGetPowerUsage(each) / 1000 for each in found]
    except library.NVMLError:
        return {}
    return {
        "gpu_utilization": sum(busy) / len(busy),
        "gpu_memory_gb": max(used) / 2**30,
        "gpu_power_watts": sum(watts),
    }
