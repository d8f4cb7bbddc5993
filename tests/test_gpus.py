"""What differs where there are GPUs, by stand-ins for TensorFlow's list of devices and for NVIDIA's library."""

from types import SimpleNamespace

import pytest
import tensorflow as tf
from conftest import SMALL

from distgan import schema
from distgan.config import Config
from distgan.errors import UserError
from distgan.runtime import devices, distribute, gpus, topology
from distgan.runtime.topology import Workers
from distgan.training.report import nodes

GIB = 2**30


class NVML:
    """NVIDIA's library on a host with GPUs; `parts` are MIG's, and what is in `lacking` no GPU tells."""

    class NVMLError(Exception):
        pass

    def __init__(self, count, parts=(), lacking=()):
        self.names = [f"GPU-{number}{number}{number}-0" for number in range(count)]
        self.parts, self.lacking = parts, lacking

    def _require(self, good):
        if not good:
            raise self.NVMLError

    def nvmlDeviceGetCount(self):
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, number):
        return self.names[number]

    def nvmlDeviceGetHandleByUUID(self, name):
        self._require(name in self.parts)
        return name

    def nvmlDeviceGetUUID(self, handle):
        return handle

    def nvmlDeviceGetUtilizationRates(self, handle):
        self._require("busy" not in self.lacking and handle in self.names)
        return SimpleNamespace(gpu=80 + 10 * self.names.index(handle))

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=(1 + [*self.names, *self.parts].index(handle)) * GIB)

    def nvmlDeviceGetPowerUsage(self, handle):
        self._require("watts" not in self.lacking and handle in self.names)
        return 100_000


@pytest.fixture
def nvml(monkeypatch):
    """Puts NVIDIA's library there."""

    def put(*args, **more):
        monkeypatch.setattr(gpus, "_library", lambda: NVML(*args, **more))

    return put


@pytest.fixture
def host(monkeypatch):
    """Makes TensorFlow see GPUs: `.visible` are those it was told to take, `.growing` those that take memory as they need it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    state = SimpleNamespace(growing=[], peaks={}, opened=False)
    physical_of, logical_of = tf.config.list_physical_devices, tf.config.list_logical_devices

    def make(count, visible=None, logical=None):
        state.gpus = [SimpleNamespace(name=f"/physical_device:GPU:{number}") for number in range(count)]
        state.visible, state.logical = list(state.gpus), logical
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return state

    def take(chosen, kind):
        if state.opened and chosen != state.visible:
            raise RuntimeError("Visible devices cannot be modified after being initialized")
        state.visible = chosen

    def logical(kind):
        if kind != "GPU":
            return logical_of(kind)
        count = len(state.visible) if state.logical is None else state.logical
        return [SimpleNamespace(name=f"/device:GPU:{number}") for number in range(count)]

    config = tf.config
    monkeypatch.setattr(
        config, "list_physical_devices", lambda kind: state.gpus if kind == "GPU" else physical_of(kind)
    )
    monkeypatch.setattr(config, "get_visible_devices", lambda kind: state.visible)
    monkeypatch.setattr(config, "set_visible_devices", take)
    monkeypatch.setattr(config, "list_logical_devices", logical)
    monkeypatch.setattr(config.experimental, "set_memory_growth", lambda gpu, grows: state.growing.append(gpu))
    monkeypatch.setattr(config.experimental, "get_device_details", lambda gpu: {"device_name": f"A100 {gpu.name[-1]}"})
    monkeypatch.setattr(config.experimental, "get_memory_info", lambda name: {"peak": state.peaks[name]})
    return make


def config_of(**values):
    flags = dict(word[2:].split("=") for word in SMALL)
    return schema.build(Config, flags | {name.replace("__", "."): value for name, value in values.items()})


def rank(local_rank, local_size):
    return Workers("horovod", "started by horovodrun", local_rank, local_size, local_rank, local_size)


def test_each_rank_takes_its_own_gpu(host):
    for local_rank in range(4):
        state = host(4)
        devices._set_devices(config_of(), rank(local_rank, 4))
        assert [gpu.name for gpu in state.visible] == [f"/physical_device:GPU:{local_rank}"]
        assert state.growing[-4:] == state.gpus
        assert devices.gpu_names() == [f"A100 {local_rank}"]


def test_launcher_shows_each_rank_its_own_gpu(host):
    for local_rank in range(2):
        state = host(1, visible=str(local_rank))
        devices._set_devices(config_of(), rank(local_rank, 2))
        assert [gpu.name for gpu in state.visible] == ["/physical_device:GPU:0"]
        assert topology.choose("auto", 1, 1, rank(local_rank, 2), visible=str(local_rank)).num_replicas == 2


@pytest.mark.parametrize(
    ("num_gpus", "visible", "message"),
    [
        (2, None, r"4 Horovod ranks on a host with 2 GPUs: start at most one rank a GPU \(-np, -H\)"),
        (1, None, "4 Horovod ranks on a host with 1 GPU: "),
        (3, "0,1,2", "with 3 GPUs: .*, or show each rank its own: CUDA_VISIBLE_DEVICES=0,1,2 here"),
    ],
)
def test_more_ranks_than_gpus(host, num_gpus, visible, message):
    """No rank, not even one that has a GPU, opens any before all are told."""
    for local_rank in range(4):
        state = host(num_gpus, visible=visible)
        devices._set_devices(config_of(), rank(local_rank, 4))
        assert state.visible == []
        with pytest.raises(UserError, match=message):
            topology.choose("auto", num_gpus, 1, rank(local_rank, 4), visible)


def test_two_workers_with_one_gpu(nvml):
    nvml(2)
    one, two = gpus.uuids([0], "0"), gpus.uuids([0], "1")
    assert (one, two) == (["GPU-000-0"], ["GPU-111-0"])
    topology.check_gpus([("a", one), ("a", two), ("b", one), ("c", []), ("c", [])])
    with pytest.raises(UserError, match=r"ranks 0 and 2 on a would both compute on GPU-000-0: .*CUDA_VISIBLE_DEVICES"):
        topology.check_gpus([("a", one), ("b", one), ("a", one)])


def test_single_opens_one_gpu(host):
    state = host(4)
    runtime = devices.open_runtime(config_of(strategy="single"))
    assert [gpu.name for gpu in state.visible] == ["/physical_device:GPU:0"]
    assert runtime.topology.num_replicas == 1


def test_gpus_that_tensorflow_leaves_out(host):
    host(3, logical=2)
    with pytest.raises(
        UserError, match=r"on 2 of the 3 GPUs \(A100 0, A100 1, A100 2\).*TF_MIN_GPU_MULTIPROCESSOR_COUNT"
    ):
        devices.open_runtime(config_of())


def test_gpus_that_are_open_already(host):
    host(4).opened = True
    with pytest.raises(UserError, match="TensorFlow has already opened this host's GPUs"):
        devices._set_devices(config_of(), rank(1, 4))


def test_peak_of_the_fullest_gpu(host):
    host(12).peaks = {f"GPU:{number}": (1 + number) * GIB for number in range(12)}
    assert devices.memory()["device_peak_gb"] == 12
    host(0)
    assert "device_peak_gb" not in devices.memory()


def test_unused_gpus(host, nvml):
    nvml(2)
    host(2)
    assert devices.unused_gpus() == ""
    host(0)
    assert devices.unused_gpus().startswith("TensorFlow sees none of the 2 NVIDIA GPUs of this host")
    assert "distgan[gpu]" in devices.unused_gpus()
    for hidden in ("", "-1", "7"):
        host(0, visible=hidden)
        assert devices.unused_gpus().startswith(f"CUDA_VISIBLE_DEVICES={hidden} hides the 2 NVIDIA GPUs")
    nvml(0)
    assert devices.unused_gpus() == ""


@pytest.mark.parametrize(
    ("visible", "numbers", "expected"),
    [
        (None, [0, 1], ["GPU-000-0", "GPU-111-0"]),
        (None, [3], ["GPU-333-0"]),
        ("2,0", [0, 1], ["GPU-222-0", "GPU-000-0"]),
        (" 3 , GPU-1", [0, 1], ["GPU-333-0", "GPU-111-0"]),
        ("0,9,1", [0], ["GPU-000-0"]),
        ("0,9,1", [0, 1], []),  # What CUDA does not know hides the rest.
        ("MIG-x,1", [0, 1], ["MIG-x", "GPU-111-0"]),
        ("GPU-", [0], []),  # Of several.
        ("", [0], []),
    ],
)
def test_numbers_of_gpus(nvml, visible, numbers, expected):
    nvml(4, parts=["MIG-x"])
    assert gpus.uuids(numbers, visible) == expected


def test_figures(nvml, host):
    host(2)
    nvml(4)
    both = devices.gpu_figures()
    assert gpus.host_row([both]) == {"gpu_utilization": 85, "gpu_memory_gb": 2, "gpu_power_watts": 200}
    # A rank a GPU; a host of one worker; one without a GPU.
    ranks = [("a", gpus.figures([0], "2")), ("a", gpus.figures([0], "3")), ("b", both), ("c", {})]
    assert nodes(ranks) == {
        "node/0/gpu_utilization": 105,
        "node/0/gpu_memory_gb": 4,
        "node/0/gpu_power_watts": 200,
        "node/1/gpu_utilization": 85,
        "node/1/gpu_memory_gb": 2,
        "node/1/gpu_power_watts": 200,
    }
    # A part of a GPU tells its memory alone; the GPU beside it all but its power.
    nvml(1, parts=["MIG-x"], lacking=["watts"])
    assert gpus.host_row([gpus.figures([0, 1], "MIG-x,0")]) == {"gpu_utilization": 80, "gpu_memory_gb": 2}
    host(0)
    assert devices.gpu_figures() == {}


@pytest.mark.parametrize(("num_gpus", "expected"), [(2, "NCCL"), (0, "AUTO")])
def test_workers_sum_by_nccl_where_they_have_gpus(monkeypatch, num_gpus, expected):
    made = {}
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda **options: made.update(options))
    place = topology.Topology("multiworker", "", 2 * max(num_gpus, 1), 0, 2, addresses=("a:1", "b:1"))
    distribute._strategy(place, num_gpus)
    assert made["communication_options"].implementation.value == expected
    assert made["cluster_resolver"].num_accelerators() == {"GPU": num_gpus}


def test_batches_are_fetched_to_the_device(host, monkeypatch):
    """The loop's iterator, in a compiled loop, with a CPU in the GPU's place: all there, in order, on the device."""
    host(1)
    runtime = devices.open_runtime(config_of(strategy="single"))
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [SimpleNamespace(name="/device:CPU:0")])
    numbers = tf.data.Dataset.counter().map(lambda number: (tf.fill([2, 3], tf.cast(number, tf.int32)), number))
    iterator = runtime.distribute(numbers)
    assert not iterator._dataset.options().autotune.enabled
    assert isinstance(iterator._dataset._input_dataset, type(numbers.prefetch(1)))  # Behind the copy, not before it.

    @tf.function
    def total(iterator, count):
        done, sums = tf.constant(0), tf.constant(0, tf.int64)
        while done < count:
            labels, number = next(iterator)
            sums += 10 * tf.cast(tf.reduce_sum(labels), tf.int64) + number
            done += 1
        return sums

    assert total(iterator, tf.constant(5)).numpy() == 61 * sum(range(5))
    assert total(iterator, tf.constant(3)).numpy() == 61 * sum(range(5, 8))
    labels, number = next(iterator)
    assert number.numpy() == 8
    assert labels.device.endswith("CPU:0")
