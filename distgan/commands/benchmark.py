"""`distgan benchmark`: what a preset costs on this machine, as JSON.

`step` trains the same networks by distgan and by the shortest hand-written loop, in turn in one process, so that the ratio
holds on a noisy machine. Images are made up in the preset's shape: nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distgan import presets, schema
from distgan.commands.train import open_images
from distgan.config import Config
from distgan.data.arrays import Synthetic
from distgan.data.source import Description
from distgan.errors import UserError
from distgan.objectives.contract import find_loss
from distgan.runtime import credentials, devices, topology
from distgan.schema import Part, option

_STARTUP_LIMIT_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class Options(Config):
    """What to measure, of which run."""

    what: str = option(
        "step",
        "rate beside a hand-written loop; process start to first step; peak memory; rate with and without the "
        "gradients' reduction; reductions by size, with a projection to more replicas; reading and decoding images; a "
        "step's cost by part; metrics beside the usual ways; what saves cost, and how fast they are; what W&B costs, "
        "offline and with a server that hangs; what a step would launch, send, compute and move on a GPU",
        choices=(
            "step",
            "startup",
            "memory",
            "reduction",
            "allreduce",
            "data",
            "parts",
            "metrics",
            "checkpoint",
            "tracking",
            "graph",
        ),
    )
    blocks: int = option(10, "alternating blocks of each loop (step, reduction, checkpoint, tracking)", minimum=1)
    block_seconds: float = option(3.0, "about how long a block takes (step, reduction, tracking)", above=0)
    metrics_count: int = option(50_000, "reals and fakes each (metrics)", minimum=10)
    metrics_size: int = option(2048, "features of an image (metrics)", minimum=1)
    gpu_tflops: float = option(19.5, "10^12 float32 FLOPs per second of the GPU: NVIDIA's A100 (graph)", above=0)
    gpu_gbytes_per_s: float = option(2039.0, "10^9 bytes per second of its memory: A100 with 80 GB (graph)", above=0)
    launch_us: float = option(5.0, "microseconds from one kernel's launch to the next one's (graph)", above=0)
    verbosity: int = option(0, "1 shows TensorFlow's own log", minimum=0, maximum=1)


def base(preset: str, run_dir: str) -> dict[str, Any]:
    """The values that flags stand on."""
    return presets.preset(preset or presets.DEFAULT)


def run(options: Options) -> int:
    """Measures and prints one JSON object."""
    asked = Config(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Config)})
    config = _without_data(asked)
    if options.what == "startup":
        result = _startup(config)
    elif options.what == "metrics":
        from distgan.commands import metric_costs

        result = metric_costs.metric_costs(options.metrics_count, options.metrics_size)
    elif options.what == "data":
        devices.silence(options.verbosity)
        from distgan.commands import loading

        result = loading.loading(asked, options.blocks, options.block_seconds)
    elif options.what in ("reduction", "allreduce", "parts", "graph"):
        return _among_workers(options, config)
    else:
        devices.silence(options.verbosity)
        measures = {"step": _step, "checkpoint": _checkpoint, "memory": _memory, "tracking": _tracking}
        result = measures[options.what](config, options)
    print(json.dumps({"what": options.what, "preset": options.preset, **result}, indent=1))
    return 0


def _among_workers(options: Options, config: Config) -> int:
    """Measures with all workers of the launcher; the primary prints."""
    workers = topology.find_workers(topology.read_environment(), config.runtime.workers, config.runtime.peers)
    devices.silence(options.verbosity)
    line = devices.connect(config, workers)
    with line.together():
        images = open_images(config)
        runtime = devices.open_runtime(config, workers, line)
        train = config.train
        topology.split_batch(train.global_batch, runtime.topology.num_replicas, train.accumulation_steps)
        line.at("measuring", 0, patient=True)
        from distgan.commands import graph, parts, scaling

        if options.what == "graph":
            figures = options.gpu_tflops, options.gpu_gbytes_per_s, options.launch_us
            result = graph.graph(config, images, runtime, *figures)
        elif options.what == "parts":
            result = parts.parts(config, images, runtime, options.blocks, options.block_seconds)
        elif options.what == "reduction":
            result = scaling.reduction(config, images, runtime, options.blocks, options.block_seconds)
        else:
            result = scaling.allreduce(config, images, runtime)
        if runtime.topology.is_primary:
            print(json.dumps({"what": options.what, "preset": options.preset, **result}, indent=1))
        runtime.close()
    return 0


def _without_data(config: Config) -> Config:
    """The config with made-up images in place of a source that might download its own."""
    source = config.data.source.options
    if not hasattr(source, "native_shape"):
        return config
    side, _, channels = source.native_shape
    made_up = Synthetic(native_resolution=config.data.resolution or side, channels=channels)
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, source=Part("synthetic", made_up), path="")
    )


@dataclasses.dataclass(frozen=True)
class _Opened:
    runtime: Any
    images: Any
    state: Any
    advance: Callable[[int], None]
    """Trains a number of steps."""


def _open(config: Config) -> _Opened:
    from distgan.data import pipeline
    from distgan.training.state import build_state
    from distgan.training.step import compile_steps

    images = open_images(config)
    runtime = devices.open_runtime(config)
    found = runtime.topology
    topology.split_batch(config.train.global_batch, found.num_replicas, config.train.accumulation_steps)
    state = build_state(config, Description.of(images), runtime)
    steps = compile_steps(config, state, runtime)
    reader = pipeline.Reader(images, config.data, config.seed)
    dataset = pipeline.batches(reader, 0, config.train, found.num_replicas, found.local_replicas)
    iterator = runtime.distribute(dataset)

    def advance(count: int) -> None:
        ok, _ = steps(iterator, count)
        if not ok.numpy():
            raise UserError("the benchmark's training diverged: choose a smaller --optimizer.learning_rate")

    return _Opened(runtime, images, state, advance)


def _checkpoint(config: Config, options: Options) -> dict[str, Any]:
    from distgan.commands import saving_costs

    opened = _open(config)
    return saving_costs.saving_costs(opened.advance, opened.state, config.train.global_batch, options.blocks)


def _tracking(config: Config, options: Options) -> dict[str, Any]:
    from distgan.commands import tracking_costs

    if options.blocks < 2:
        raise UserError(f"--blocks={options.blocks}: tracking needs two at least, to say how far they differ")
    return tracking_costs.tracking_costs(_open(config).advance, config, options.blocks, options.block_seconds)


def _step(config: Config, options: Options) -> dict[str, Any]:
    train, objective = config.train, config.objective
    if (
        train.update_order != "simultaneous"
        or train.accumulation_steps != 1
        or config.model.conditional
        or objective.regularizers
        or objective.augmentation.name != "none"
        or find_loss(objective.loss.name).opposed
    ):
        raise UserError(
            "--what=step compares with a loop for --train.update_order=simultaneous, --train.accumulation_steps=1, "
            "--nomodel.conditional, no regularizers, no augmentation and no relativistic average; --what=parts measures any"
        )
    opened = _open(config)
    if opened.runtime.topology.num_replicas > 1:
        raise UserError("--what=step compares with a loop for one replica: use --strategy=single")
    loops = {"distgan": opened.advance, "hand_written": _hand_written(config, opened.images)}
    with devices.quiet():
        for loop in loops.values():
            loop(1)
    start = time.perf_counter()
    loops["hand_written"](4)
    steps = max(1, round(options.block_seconds / ((time.perf_counter() - start) / 4)))
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for block in range(options.blocks):
        for name in list(loops) if block % 2 else reversed(list(loops)):
            start = time.perf_counter()
            loops[name](steps)
            rates[name].append(steps * config.train.global_batch / (time.perf_counter() - start))
    ratios = [ours / theirs for ours, theirs in zip(rates["distgan"], rates["hand_written"], strict=True)]
    return {
        "images_per_second": {name: round(statistics.median(each), 1) for name, each in rates.items()},
        "ratio": round(statistics.median(ratios), 4),
        "ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "blocks": options.blocks,
        "steps_per_block": steps,
    }


def _hand_written(config: Config, images: Any) -> Callable[[int], None]:
    """The shortest loop that trains the same networks by Keras' own optimizers: no average, clock, check or report."""
    import keras
    import numpy as np
    import tensorflow as tf

    from distgan.models.layers import Pass
    from distgan.runtime.base import untuned
    from distgan.training.state import build_network

    loss, batch = find_loss(config.objective.loss.name), config.train.global_batch
    generator = build_network(config, Description.of(images), "generator", "generator")
    discriminator = build_network(config, Description.of(images), "discriminator", "discriminator")
    optimizer_type = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[config.optimizer.name.name]
    rates = {name: rate.start for name, rate in config.optimizer.name.options.rates("generator").items()}
    optimizers = [optimizer_type(**rates) for _ in range(2)]
    networks = [generator, discriminator]
    for optimizer, network in zip(optimizers, networks, strict=True):
        optimizer.build(network.trainable_variables)
    pixels, _ = images.read(np.arange(images.num_images))
    data = tf.data.Dataset.from_tensor_slices(pixels).shuffle(len(pixels)).repeat().batch(batch, drop_remainder=True)
    iterator = iter(data.prefetch(2).with_options(untuned()))
    dtype, latent_size = generator.variable_dtype, config.model.name.options.latent_size

    @tf.function
    def steps(count: tf.Tensor) -> None:
        for _ in tf.range(count):
            reals = tf.cast(next(iterator), dtype) / 127.5 - 1
            made = Pass.alone(lambda kind, name, shape: tf.random.uniform([batch, *shape]))
            with tf.GradientTape() as generator_tape, tf.GradientTape() as discriminator_tape:
                fakes = generator(tf.random.normal([batch, latent_size], dtype=dtype), context=made)
                logits = discriminator(reals, context=made)[:, 0], discriminator(fakes, context=made)[:, 0]
                generator_loss = tf.reduce_mean(loss.generator(*logits))
                discriminator_loss = tf.reduce_mean(loss.discriminator(*logits))
            gradients = [
                generator_tape.gradient(generator_loss, generator.trainable_variables),
                discriminator_tape.gradient(discriminator_loss, discriminator.trainable_variables),
            ]
            for optimizer, network, gradient in zip(optimizers, networks, gradients, strict=True):
                optimizer.apply(gradient, network.trainable_variables)
            for moving, value, momentum in made.updates:
                moving.assign(moving + (value - moving) * (1 - momentum))

    return lambda count: steps(tf.constant(count)) and None


def _memory(config: Config, options: Options) -> dict[str, Any]:
    from distgan.training import estimate

    opened = _open(config)
    opened.advance(8)
    train, replicas = config.train, opened.runtime.topology.num_replicas
    micro_batch = topology.split_batch(train.global_batch, replicas, train.accumulation_steps)
    estimated = estimate.memory_bytes(config, opened.state, micro_batch)
    return {
        "peak_gib": {name: round(value, 3) for name, value in devices.memory().items()},
        "estimated_replica_gib": round(sum(estimated.values()) / 2**30, 3),
    }


def _startup(config: Config) -> dict[str, Any]:
    """Runs `distgan train` for a step in a process of its own, and waits for its first row."""
    kimg = config.train.global_batch / 1000
    with tempfile.TemporaryDirectory() as folder:
        changes = {
            "preset": "",
            "run_dir": folder,
            "tracking.wandb": "disabled",
            "train.total_kimg": kimg,
            "train.report_kimg": kimg,
            "train.sample_kimg": 0.0,
        }
        flags = [
            f"--{name}={value}"
            for name, value in {**schema.flatten(config), **changes}.items()
            if value not in ("", None)
        ]
        rows = Path(folder) / "metrics.jsonl"
        start = time.perf_counter()
        with (Path(folder) / "output").open("w+") as output:
            words, environment = [sys.executable, "-m", "distgan", "train", *flags], credentials.for_child()
            child = subprocess.Popen(words, stdout=output, stderr=output, env=environment)
            try:
                while not (rows.exists() and rows.stat().st_size):
                    if child.poll() is not None or time.perf_counter() - start > _STARTUP_LIMIT_SECONDS:
                        output.seek(0)
                        raise UserError(f"the run made no step: {output.read().strip()}")
                    time.sleep(0.01)
                seconds = time.perf_counter() - start
                child.wait(_STARTUP_LIMIT_SECONDS)
            finally:
                child.kill()
    return {"seconds_to_first_step": round(seconds, 2)}
