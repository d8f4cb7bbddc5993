"""What the GPUs of a run do, read from NVIDIA's library; nothing where there is none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Mapping[str, float]]
"""A GPU's UUID -> what it tells: `busy` percent, `used_gb` GiB, `watts`. A part of a GPU (MIG) tells its memory alone."""


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


def count() -> int:
    """NVIDIA's GPUs in this host, whoever may use them."""
    library = _library()
    if library is None:
        return 0
    return _query(library, library.nvmlDeviceGetCount) or 0


def visible(names: str) -> int:
    """How many GPUs CUDA_VISIBLE_DEVICES, as it stands, leaves to a process."""
    library = _library()
    return len(_visible(library, names)) if library else 0


def uuids(numbers: Sequence[int], names: str | None) -> list[str]:
    """The UUIDs of GPUs, or of parts of them (MIG); empty where NVIDIA's library does not tell all of them.

    Args:
      numbers: indices of the GPUs, as CUDA and TensorFlow count the GPUs that this process may use.
      names: CUDA_VISIBLE_DEVICES, None where it is not set.
    """
    gpus = [uuid for _, uuid in _handles(numbers, names)]
    return gpus if len(gpus) == len(numbers) else []


def memory_bytes(numbers: Sequence[int], names: str | None) -> int | None:
    """The memory of the smallest of some GPUs; None where NVIDIA's library does not tell. Arguments as in `uuids`."""
    library = _library()
    totals = [_query(library, library.nvmlDeviceGetMemoryInfo, handle) for handle, _ in _handles(numbers, names)]
    return min((info.total for info in totals if info), default=None)


def figures(numbers: Sequence[int], names: str | None) -> Figures:
    """What GPUs do at this moment, for `host_row`; what one of them does not tell is left out. Arguments as in `uuids`."""
    library = _library()
    return {uuid: dict(_readings(library, handle)) for handle, uuid in _handles(numbers, names)}


def host_row(workers: Iterable[Figures]) -> dict[str, float]:
    """The figures of a host: mean utilization in percent, memory of the fullest GPU in GiB, watts together.

    Args:
      workers: the figures of each worker of the host; a GPU of several workers counts once.

    >>> host_row([{"GPU-a": {"busy": 90.0, "used_gb": 4.0}}, {"GPU-b": {"busy": 70.0, "used_gb": 2.0}}])
    {'gpu_utilization': 80.0, 'gpu_memory_gb': 4.0}
    """
    by_gpu = {uuid: readings for worker in workers for uuid, readings in worker.items()}
    keys: dict[str, tuple[str, Callable[[list[float]], float]]] = {
        "gpu_utilization": ("busy", lambda values: sum(values) / len(values)),
        "gpu_memory_gb": ("used_gb", max),
        "gpu_power_watts": ("watts", sum),
    }
    by_name = {
        name: [readings[key] for readings in by_gpu.values() if key in readings] for name, (key, _) in keys.items()
    }
    return {name: keys[name][1](values) for name, values in by_name.items() if values}


def _readings(library: Any, handle: Any) -> Iterable[tuple[str, float]]:
    queries: dict[str, Callable[[], float]] = {
        "busy": lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu,
        "used_gb": lambda: library.nvmlDeviceGetMemoryInfo(handle).used / 2**30,
        "watts": lambda: library.nvmlDeviceGetPowerUsage(handle) / 1000,
    }
    for key, query in queries.items():
        value = _query(library, query)
        if value is not None:
            yield key, float(value)


def _handles(numbers: Sequence[int], names: str | None) -> list[tuple[Any, str]]:
    """The library's handles of GPUs, and their UUIDs. Arguments as in `uuids`."""
    library = _library()
    if library is None:
        return []
    usable = _visible(library, names)
    handles = [usable[number] for number in numbers if number < len(usable)]
    return [(handle, uuid) for handle in handles if (uuid := _query(library, library.nvmlDeviceGetUUID, handle))]


def _visible(library: Any, names: str | None) -> list[Any]:
    """The handles of the GPUs that CUDA shows a process, in its order; a name that CUDA does not know hides all behind it.

    CUDA counts the fastest first and this library by the bus, which is the same among GPUs of one kind, and elsewhere with
    CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    handles = [_query(library, library.nvmlDeviceGetHandleByIndex, number) for number in range(count())]
    if names is None:
        return handles
    usable = []
    for name in names.split(","):
        handle = _named(library, handles, name.strip())
        if handle is None:
            break
        usable.append(handle)
    return usable


def _named(library: Any, handles: Sequence[Any], name: str) -> Any:
    """The handle of a GPU in CUDA_VISIBLE_DEVICES: a number, the beginning of a UUID, or the UUID of a part (MIG)."""
    if name.isdigit():
        return handles[int(name)] if int(name) < len(handles) else None
    if name.startswith("MIG-"):
        return _query(library, library.nvmlDeviceGetHandleByUUID, name)
    matching = [h for h in handles if name and (_query(library, library.nvmlDeviceGetUUID, h) or "").startswith(name)]
    return matching[0] if len(matching) == 1 else None


def _query(library: Any, function: Callable[..., Any], *args: Any) -> Any:
    """A reading; None where the GPU does not have it, as the power of a part of one (MIG)."""
    try:
        return function(*args)
    except library.NVMLError:
        return None
