"""Opens TensorFlow on this machine as a config asks for it, and says what was found."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from distgan.config import Config
from distgan.errors import UserError
from distgan.runtime import topology

if TYPE_CHECKING:
    from distgan.runtime.base import Runtime


def open_runtime(config: Config) -> Runtime:
    """The runtime of a run; call it before anything else touches TensorFlow.

    Raises:
      UserError: TensorFlow was started in this process with other devices.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    chosen = topology.choose(config.strategy, len(gpus), config.runtime.logical_cpus)
    with quiet():
        _split_cpu(tf, config.runtime.logical_cpus)
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        set_precision(config.precision)
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        if chosen.strategy == "single":
            from distgan.runtime.base import Runtime

            return Runtime(chosen)
        from distgan.runtime.distribute import DistributedRuntime

        devices = tf.config.list_logical_devices("GPU" if gpus else "CPU")
        return DistributedRuntime(chosen, tf.distribute.MirroredStrategy([device.name for device in devices]))


def set_precision(precision: str) -> None:
    """Makes networks that are built from now on of this precision."""
    import keras

    keras.config.set_floatx("float64" if precision == "float64" else "float32")
    keras.config.set_dtype_policy(precision)


def gpu_names() -> list[str]:
    """The GPUs that TensorFlow sees, by their product names."""
    import tensorflow as tf

    details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    return [detail.get("device_name", "unknown GPU") for detail in details]


def memory() -> dict[str, float]:
    """Peak memory so far in GiB: of this process, and of the fullest GPU where there is one."""
    import resource

    import tensorflow as tf

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB.
    peaks = {"host_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    gpus = [tf.config.experimental.get_memory_info(gpu.name[-5:]) for gpu in tf.config.list_logical_devices("GPU")]
    if gpus:
        peaks["device_peak_gb"] = max(info["peak"] for info in gpus) / 2**30
    return peaks


def silence(verbosity: int) -> None:
    """Keeps TensorFlow's start-up notes off the terminal, unless `verbosity` is above 0; call it before the import."""
    if verbosity:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with quiet():
        import tensorflow as tf

        tf.config.list_physical_devices()  # Without a GPU, CUDA complains at the first look for one.
    tf.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back what native code writes to stderr; shows it after all if the block fails."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") == "0":
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)


def _split_cpu(tf: Any, parts: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    wanted = [tf.config.LogicalDeviceConfiguration()] * parts
    current = tf.config.get_logical_device_configuration(cpu) or wanted[:1]
    if len(current) == parts:
        return
    try:
        tf.config.set_logical_device_configuration(cpu, wanted)
    except RuntimeError:
        raise UserError(
            f"--runtime.logical_cpus={parts} comes too late: TensorFlow already runs with {len(current)}"
        ) from None
