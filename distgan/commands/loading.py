"""What reading costs: distgan's pipeline, a bare loop of the same decoder over all cores, and worker processes, in turn.

The third is how PyTorch's loaders work: processes that open an image by Pillow, turn it to [C, H, W], stack a batch and send
it to the trainer. All read the same files; the first pass over them has warmed the page cache.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import multiprocessing
import os
import resource
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distgan.config import Config, DataConfig, TrainConfig
from distgan.data import index, pipeline, tfrecord
from distgan.data.contract import open_source
from distgan.data.folder import Folder
from distgan.data.source import Description, Encoded
from distgan.data.tfrecord import TfRecord
from distgan.errors import UserError
from distgan.runtime import devices
from distgan.training.state import build_state
from distgan.training.step import compile_steps

_MADE_UP = 1000
_SIDE = 256
_TRAINED_SIDE = 32  # As the networks of cifar10-dcgan take them.
_BATCH = 64
_MANY = 10**8


def loading(config: Config, blocks: int, block_seconds: float) -> dict[str, Any]:
    """Images per second of the three loaders, as medians of alternating blocks; what a step waits; memory of a long order.

    Where --data.path names nothing, 256x256 JPEGs are made up, and read as a folder and as TFRecords.

    Raises:
      UserError: the source's images are no files.
    """
    found = {}
    with _sources(config.data) as sources:
        for name, images in sources.items():
            if not isinstance(images, Encoded):
                raise UserError("--what=data measures sources of encoded images: folder, zip, tfrecord or tfds")
            found[name] = _compare(images, config, blocks, block_seconds)
            small = dataclasses.replace(images.data, resolution=images.data.resolution or _TRAINED_SIDE)
            trained = Encoded(name, images.entries, images.labels, small)
            found[name]["share_of_a_step_waited"] = _waited(trained, config, block_seconds)
    return {"sources": found, "order_of_1e8_images_mib": _order_mib()}


@contextmanager
def _sources(data: DataConfig) -> Iterator[dict[str, Any]]:
    if data.path:
        yield {data.source.name: open_source(data)}
        return
    with tempfile.TemporaryDirectory() as folder:
        files, shards = Path(folder) / "files", Path(folder) / "shards"
        data = dataclasses.replace(data, resolution=0, cache_dir=folder)
        write_images(files, shards)
        yield {
            "folder": Folder().open(dataclasses.replace(data, path=str(files))),
            "tfrecord": TfRecord("image/encoded").open(dataclasses.replace(data, path=str(shards))),
        }


def write_images(files: Path, shards: Path) -> None:
    """Made-up photographs: smooth colours with grain, 256x256 JPEGs, as files and as one shard."""
    from tensorflow.core.example import example_pb2

    random = np.random.default_rng(0)
    files.mkdir()
    shards.mkdir()
    with (shards / "images.tfrecord").open("wb") as shard:
        for number in range(_MADE_UP):
            coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
            grain = random.normal(0, 12, smooth.shape).astype(np.int16)
            file = io.BytesIO()
            Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
            (files / f"{number:06}.jpg").write_bytes(file.getvalue())
            made = example_pb2.Example()
            made.features.feature["image/encoded"].bytes_list.value.append(file.getvalue())
            shard.write(tfrecord.frame(made.SerializeToString()))


def _compare(images: Encoded, config: Config, blocks: int, block_seconds: float) -> dict[str, Any]:
    threads = config.data.threads or (os.cpu_count() or 1)
    rates: dict[str, list[float]] = {}
    with ThreadPoolExecutor(threads) as pool, _processes(images, threads) as processes:
        loaders: dict[str, Callable[[float], float]] = {
            "pipeline": _pipeline(images, config),
            "bare_loop": lambda seconds: _bare(images, pool, threads, seconds),
            "worker_processes": processes,
        }
        for load in loaders.values():
            load(block_seconds / 4)
        for block in range(blocks):
            for name in list(loaders) if block % 2 else reversed(list(loaders)):
                rates.setdefault(name, []).append(loaders[name](block_seconds))
    medians = {name: statistics.median(each) for name, each in rates.items()}
    return {
        "images_per_second": {name: round(rate, 1) for name, rate in medians.items()},
        "of_the_bare_loop": round(medians["pipeline"] / medians["bare_loop"], 4),
        "of_worker_processes": round(medians["pipeline"] / medians["worker_processes"], 4),
        "threads": threads,
        "blocks": blocks,
    }


def _pipeline(images: Encoded, config: Config) -> Callable[[float], float]:
    """Our own, as a training step takes from it."""
    reader = pipeline.Reader(images, config.data, config.seed)
    batches = iter(pipeline.batches(reader, 0, TrainConfig(global_batch=_BATCH), 1, range(1)))

    def load(seconds: float) -> float:
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            next(batches)
            count += _BATCH
        return count / (time.perf_counter() - start)

    return load


def _bare(images: Encoded, pool: ThreadPoolExecutor, threads: int, seconds: float) -> float:
    """Fetch and decode, by TensorFlow or Pillow as the pipeline does, and nothing else."""
    end = time.perf_counter() + seconds

    def decode(first: int) -> int:
        count = 0
        while time.perf_counter() < end:
            place = np.array([(first + count * threads) % images.num_images])
            if found := images.encoded(place):
                pipeline.decoded(found[0][0], images.shape[2])
            else:
                images.read(place)
            count += 1
        return count

    start = time.perf_counter()
    return sum(pool.map(decode, range(threads))) / (time.perf_counter() - start)


@contextmanager
def _processes(images: Encoded, count: int) -> Iterator[Callable[[float], float]]:
    """Batches from worker processes, two waiting for each."""
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue(maxsize=2 * count)
    workers = [
        context.Process(target=_work, args=(images, number, count, queue), daemon=True) for number in range(count)
    ]
    started = False

    def load(seconds: float) -> float:
        nonlocal started
        if not started:
            for worker in workers:
                worker.start()
            started = True
        for worker in workers:
            os.kill(worker.pid or 0, signal.SIGCONT)
        start, taken = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            taken += len(queue.get(timeout=60))
        rate = taken / (time.perf_counter() - start)
        for worker in workers:
            os.kill(worker.pid or 0, signal.SIGSTOP)  # They shall not work while the others are timed.
        return rate

    try:
        yield load
    finally:
        for worker in workers:
            if worker.pid:
                worker.kill()
                worker.join()


def _work(images: Encoded, first: int, count: int, queue: Any) -> None:
    for batch in itertools.count(first, count):
        numbers = [(batch * _BATCH + place) % images.num_images for place in range(_BATCH)]
        pixels = [_chw(images.entries.fetch(number)) for number in numbers]
        queue.put(np.stack(pixels))


def _chw(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def _waited(images: Encoded, config: Config, seconds: float) -> float:
    """The share of a training step's time in which it waits for these images."""
    runtime = devices.open_runtime(config)
    state = build_state(config, Description.of(images), runtime)
    steps = compile_steps(config, state, runtime)
    place = runtime.topology
    reader = pipeline.Reader(images, config.data, config.seed)
    iterator = runtime.distribute(pipeline.batches(reader, 0, config.train, place.num_replicas, place.local_replicas))
    steps.measure(iterator, 2)
    waited, start = 0.0, time.perf_counter()
    while time.perf_counter() - start < 2 * seconds:
        waited += steps.measure(iterator, 1)[1].data
    return round(waited / (time.perf_counter() - start), 4)


def _order_mib() -> float:
    """How much the peak memory grows when a batch is dealt from a shuffled epoch of 10^8 images."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for epoch in range(3):
        index.dataset_indices(np.arange(_BATCH) + epoch * _MANY + _MANY // 2, _MANY, seed=0)
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 2)
