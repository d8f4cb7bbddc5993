"""Opens TensorFlow on this machine as a config asks for it, and says what was found."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.abc
import importlib.util
import math
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from distgan import files
from distgan.config import Config
from distgan.errors import UserError
from distgan.runtime import credentials, gpus, topology
from distgan.runtime.control import Control, Deadline, Group, Heartbeat, Line, listen, narrowest
from distgan.runtime.hub import PATIENCE, Limits

if TYPE_CHECKING:
    from distgan.runtime.base import Runtime

_SHORTEST_SECRET = 16
_CONTROL_PORT_OFFSET = 1000  # From the primary's port for TensorFlow to its port for the line between workers.


def connect(config: Config, workers: topology.Workers | None) -> Control:
    """The line to the other workers of a run, where a launcher has started several.

    Call it before anything that may go wrong, so that one worker's error reaches all.

    Raises:
      UserError: the line's port is in use, --runtime.heartbeat cannot be written, --runtime.secret_file not be read, or
        Horovod is not installed.
      Ended: not all workers came.
    """
    limits, heartbeat = _limits(config), _heartbeat(config)
    control = _connect(config, workers, limits)
    control.heartbeat = heartbeat
    return control


def _heartbeat(config: Config) -> Heartbeat | None:
    path = config.runtime.heartbeat
    return Heartbeat(path, _limits(config)) if path else None


def _connect(config: Config, workers: topology.Workers | None, limits: Limits) -> Control:
    if workers is None or config.strategy not in ("auto", workers.strategy):
        return Control()
    port = config.runtime.control_port
    if workers.strategy == "horovod":
        _set_devices(config, workers)
        _limit_horovod(limits)
        from distgan.runtime import horovod

        return horovod.connect(workers, limits, port, _secret(config))
    host, _, own = workers.addresses[0].rpartition(":")
    port = port or int(own) + _CONTROL_PORT_OFFSET
    secret = _secret(config)
    hosts = [address.rpartition(":")[0] for address in workers.addresses]
    server = listen(port, narrowest(hosts)) if workers.rank == 0 else None
    job = hashlib.sha256(",".join(workers.addresses).encode()).hexdigest()[:16]
    return Line(job, secret, workers.rank, len(workers.addresses), limits, [(host, port)], server).join()


def _secret(config: Config) -> str:
    """What --runtime.secret_file holds, or else what the launcher has made; empty where there is neither.

    Raises:
      UserError: it cannot be read, or is no secret.
    """
    path = config.runtime.secret_file
    if not path:
        return credentials.job_secret()
    try:
        secret = files.read_text(path, most_bytes=credentials.LARGEST).strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"--runtime.secret_file={path} cannot be read: {why}") from None
    if len(secret) < _SHORTEST_SECRET:
        raise UserError(
            f"--runtime.secret_file={path} holds {len(secret)} characters, and a secret has at least {_SHORTEST_SECRET}: "
            "openssl rand -hex 32 makes one"
        )
    return secret


def in_groups(config: Config, workers: topology.Workers | None, work: Callable[[Group], None]) -> None:
    """Calls `work` with the workers of a run; with each group of them where they are elastic.

    What ends it on one worker ends it on all, with one message and one exit code.

    Raises:
      UserError, Ended: see `connect`.
    """
    if workers and workers.elastic and config.strategy in ("auto", workers.strategy):
        _set_devices(config, workers)
        _limit_horovod(_limits(config))
        os.environ.setdefault("HOROVOD_LOG_LEVEL", "fatal")  # What it says of a lost worker is said in a line of ours.
        from distgan.runtime import elastic

        elastic.run(work, workers, _limits(config), config.runtime.control_port, _secret(config), _heartbeat(config))
        return
    control = connect(config, workers)
    with control.together():
        work(Group(workers, control))


def _limit_horovod(limits: Limits) -> None:
    """Makes Horovod's wait for a worker, of 30 s, longer than all of ours, so that it is the line that says who is missing."""
    seconds = math.ceil(limits.join_seconds + PATIENCE * limits.hang_seconds)
    os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(seconds))


def _limits(config: Config) -> Limits:
    return Limits(config.runtime.join_timeout_seconds, config.runtime.hang_timeout_seconds)


def open_runtime(config: Config, workers: topology.Workers | None = None, control: Control | None = None) -> Runtime:
    """The runtime of a run; call it before anything else touches TensorFlow.

    Raises:
      UserError: TensorFlow was started in this process with other devices, or they do not go with the strategy.
    """
    import tensorflow as tf

    control = control or Control()
    num_gpus = len(tf.config.list_physical_devices("GPU"))
    chosen = topology.choose(config.strategy, num_gpus, config.runtime.logical_cpus, workers, _cuda_visible_devices())
    with quiet():
        _set_devices(config, workers, only_first=chosen.strategy == "single")
    if not control.elastic:  # Elastic workers do not all come here at the same time.
        topology.check_gpus(control.gather((socket.gethostname(), gpus.uuids(_gpu_numbers(), _cuda_visible_devices()))))
    set_precision(config.precision)
    # On the gradient of LeakyReLU after a biased convolution this pass fails half-way, says so on stderr, and gains nothing.
    tf.config.optimizer.set_experimental_options({"remapping": False})
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    if chosen.strategy == "single":
        from distgan.runtime.base import Runtime

        return Runtime(chosen, control)
    if chosen.strategy == "horovod":
        from distgan.runtime.horovod import HorovodRuntime

        return HorovodRuntime(chosen, control, config.runtime.compression, config.runtime.reduction_groups)
    from distgan.runtime.distribute import DistributedRuntime, multi_worker_strategy

    if chosen.strategy == "multiworker":
        limits = _limits(config)
        _check_port(chosen)
        control.gather("ready for TensorFlow's server")
        with Deadline(limits.join_seconds, "TensorFlow's servers of all workers to answer"), quiet():
            return DistributedRuntime(chosen, control, multi_worker_strategy(chosen, num_gpus, limits))
    with quiet():
        devices = tf.config.list_logical_devices("GPU" if num_gpus else "CPU")
    if len(devices) != chosen.num_replicas:
        raise UserError(
            f"TensorFlow computes on {len(devices)} of the {num_gpus} GPUs ({', '.join(gpu_names())}), as it leaves out those "
            "that are much smaller: hide these by CUDA_VISIBLE_DEVICES, or lower TF_MIN_GPU_MULTIPROCESSOR_COUNT"
        )
    with quiet():
        strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
    return DistributedRuntime(chosen, control, strategy)


def _check_port(chosen: topology.Topology) -> None:
    """TensorFlow's server shares a port with whoever else shares it, so a port in use is found here."""
    port = int(chosen.addresses[chosen.rank].rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # As after a run that has just ended.
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"port {port} of {chosen.addresses[chosen.rank]} cannot be used: {error.strerror}"
            ) from None


def _set_devices(config: Config, workers: topology.Workers | None, only_first: bool = False) -> None:
    """Which GPUs this worker computes on, and into how many devices the CPU is split; before TensorFlow starts.

    Args:
      config: of the run.
      workers: a Horovod rank takes one GPU; none, where there are fewer than ranks, which is refused later, on all at once.
      only_first: whether the first GPU is enough.

    Raises:
      UserError: TensorFlow has already opened other devices.
    """
    import tensorflow as tf

    gpus_here = tf.config.list_physical_devices("GPU")
    chosen = gpus_here[:1] if only_first else gpus_here
    if gpus_here and workers and workers.strategy == "horovod" and config.strategy in ("auto", "horovod"):
        try:
            chosen = [gpus_here[topology.own_gpu(workers, len(gpus_here), _cuda_visible_devices())]]
        except UserError:
            chosen = []
    try:
        for gpu in gpus_here:
            tf.config.experimental.set_memory_growth(gpu, True)
        if gpus_here:
            tf.config.set_visible_devices(chosen, "GPU")
    except RuntimeError as error:
        raise UserError(f"TensorFlow has already opened this host's GPUs in another way ({error})") from None
    _split_cpu(tf, config.runtime.logical_cpus)
    threads = config.runtime.cpu_threads
    if threads and tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def _cuda_visible_devices() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def set_precision(precision: str) -> None:
    """Makes networks that are built from now on of this precision."""
    import keras

    keras.config.set_floatx("float64" if precision == "float64" else "float32")
    keras.config.set_dtype_policy(precision)


def gpu_names() -> list[str]:
    """The GPUs that this worker computes on, by their product names."""
    import tensorflow as tf

    details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.get_visible_devices("GPU")]
    return [detail.get("device_name", "unknown GPU") for detail in details]


def unused_gpus() -> str:
    """Why the GPUs of this host are not computed on, where it has NVIDIA's and TensorFlow sees none; else empty."""
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU") or not gpus.count():
        return ""
    visible = _cuda_visible_devices()
    if visible is not None and not gpus.visible(visible):
        return (
            f"CUDA_VISIBLE_DEVICES={visible} hides the {gpus.count()} NVIDIA GPUs of this host: it computes on the CPU"
        )
    return (
        f"TensorFlow sees none of the {gpus.count()} NVIDIA GPUs of this host, and computes on the CPU: install CUDA's libraries "
        "by pip install 'distgan[gpu]'; --verbosity=1 shows what it lacks"
    )


def _gpu_numbers() -> list[int]:
    """The indices of this worker's GPUs, as CUDA counts the GPUs that the process sees."""
    import tensorflow as tf

    return [int(gpu.name.rpartition(":")[2]) for gpu in tf.config.get_visible_devices("GPU")]


def gpu_figures() -> gpus.Figures:
    """What this worker's GPUs do at this moment."""
    return gpus.figures(_gpu_numbers(), _cuda_visible_devices())


def gpu_memory_bytes() -> int | None:
    """The memory of the smallest of this worker's GPUs; None where it has none, or NVIDIA's library does not tell."""
    return gpus.memory_bytes(_gpu_numbers(), _cuda_visible_devices())


def memory() -> dict[str, float]:
    """Peak memory so far in GiB: of this process, and of the fullest of its GPUs where it has one."""
    import resource

    import tensorflow as tf

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB.
    peaks = {"host_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    # GPU:0 of /device:GPU:0; among several workers' it is this one's all the same.
    names = {gpu.name.rpartition("device:")[2] for gpu in tf.config.list_logical_devices("GPU")}
    if names:
        used = [tf.config.experimental.get_memory_info(name) for name in sorted(names)]
        peaks["device_peak_gb"] = max(info["peak"] for info in used) / 2**30
    return peaks


def silence(verbosity: int) -> None:
    """Keeps TensorFlow's start-up notes off the terminal, unless `verbosity` is above 0; call it before the import."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0" if verbosity else os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2")
    if verbosity:
        return
    with quiet():
        import tensorflow as tf

        tf.config.list_physical_devices()  # Without a GPU, CUDA complains at the first look for one.
    tf.get_logger().setLevel("ERROR")


# TensorFlow 2.21 writes some lines at its import whatever TF_CPP_MIN_LOG_LEVEL says.
_NOTES = re.compile(rb"^(WARNING: All log messages before absl::InitializeLog|[IW]\d{4} \d\d:\d\d:).*\n", re.MULTILINE)


def without_notes(text: bytes) -> bytes:
    r"""What was written to stderr, less the lines that TensorFlow logs.

    >>> without_notes(b"mine\nI0000 00:00:1795696909.068221   23348 port.cc:153] oneDNN custom\nalso mine\n")
    b'mine\nalso mine\n'
    """
    return _NOTES.sub(b"", text)


class QuietImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Keeps the notes of TensorFlow's import off stderr, whoever imports it: put it first in sys.meta_path."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Takes TensorFlow's own place, once."""
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: Any) -> Any:
        """As the loader does that it stands for."""
        return self.loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        """As the loader does that it stands for, quietly."""
        module.__spec__.loader = module.__loader__ = self.loader
        with quiet(without_notes):
            self.loader.exec_module(module)


@contextlib.contextmanager
def quiet(shown: Callable[[bytes], bytes] | None = None) -> Iterator[None]:
    """Holds back what native code writes to stderr; shows it after all if the block fails.

    Where `shown` is given, what it makes of the text is shown in either case.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") == "0":
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    failed = True
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            text = held.read()
            _write(shown(text) if shown else text if failed else b"")


def _write(text: bytes) -> None:
    while text:
        text = text[os.write(2, text) :]


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
