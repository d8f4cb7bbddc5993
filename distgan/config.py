"""What belongs to a run, as frozen dataclasses of options (`schema`); a part's own are declared beside the part."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from distgan import schema
from distgan.schedules import Schedule, schedule
from distgan.schema import Part, option, part, parts, section


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The real images."""

    source: Part = part("digits", "distgan.data:SOURCES", "where the images come from")
    path: str = option("", "file of the source, where it needs one", may_change=True)
    resolution: int = option(0, "side of the square images in pixels; 0 keeps the source's own", minimum=0)
    channels: int = option(
        0,
        "1 gray, 3 colour, 4 with alpha; 0 is 1 where a sample of the files is all gray, otherwise 3, and of arrays their own",
        choices=(0, 1, 3, 4),
        may_change=True,
    )
    bits: int = option(
        0,
        "bits in use of images with 16, the upper 8 of which are taken; 0 is the fewest that hold the values of a sample",
        choices=(0, 8, 10, 12, 14, 16),
        may_change=True,
    )
    fit: str = option("crop", "how images that are not square become so", choices=("crop", "pad", "stretch"))
    resample: str = option("lanczos", "filter that resizes", choices=("lanczos", "box"))
    background: str = option("white", "colour behind transparency and padding: a name, or #rrggbb")
    on_error: str = option(
        "fail",
        "an unreadable image ends the run, or the next image number takes its place, for up to 1 % of the images",
        choices=("fail", "skip"),
    )
    threads: int = option(0, "that read and decode images; 0 is one a CPU", minimum=0, may_change=True)
    cache_dir: str = option("", "where long lists of files are kept; by default ~/.cache/distgan", may_change=True)
    flip: bool = option(False, "mirror each image left to right with probability 1/2, drawn by image number")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The two networks."""

    name: Part = part("dcgan", "distgan.models:MODELS", "generator and discriminator")
    conditional: bool = option(False, "both networks are told the class of each image")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What the networks minimize."""

    loss: Part = part("non_saturating", "distgan.objectives:LOSSES", "adversarial loss, on logits")
    regularizers: tuple[Part, ...] = parts(
        "distgan.objectives:REGULARIZERS", "what is added to it, with commas between"
    )
    augmentation: Part = part("none", "distgan.objectives:AUGMENTATIONS", "of all images that the discriminator sees")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates; both networks have one such optimizer each."""

    name: Part = part("adam", "distgan.training.optimizers:OPTIMIZERS", "update rule")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, batch and cadence. A kimg is 1,000 real images shown to the discriminator."""

    total_kimg: float = option(100.0, "length of the run", above=0, may_change=True)
    global_batch: int = option(64, "images per update over all replicas", minimum=1)
    accumulation_steps: int = option(
        1, "micro-batches per update on each replica, to save memory", minimum=1, may_change=True
    )
    update_order: str = option(
        "simultaneous",
        "both networks from one forward pass, or the discriminator first",
        choices=("simultaneous", "alternating"),
    )
    discriminator_updates: int = option(1, "discriminator updates per generator update (alternating)", minimum=1)
    generator_batch_multiple: int = option(
        1, "global batches of fakes that a generator update learns from (alternating)", minimum=1
    )
    fake_labels: str = option(
        "data",
        "classes of generated images: as often as in the data, all alike, or paired with the real images' "
        "(--model.conditional)",
        choices=("data", "uniform", "paired"),
    )
    freeze_discriminator: int = option(
        0, "layers nearest the image that keep their weights (Mo et al. 2020; with --init_from)", minimum=0
    )
    clip_norm: float = option(0.0, "limit of each network's global gradient norm; 0 is none", minimum=0)
    loss_limit: float = option(
        0.0,
        "a loss or mean logit further from 0 than this is taken for divergence, as one that is not finite; 0 is none",
        minimum=0,
        may_change=True,
    )
    report_kimg: float = option(1.0, "images between two rows of metrics.jsonl", above=0, may_change=True)
    sample_kimg: float = option(10.0, "images between two sample grids; 0 is none", minimum=0, may_change=True)

    def requires(self) -> Iterator[str]:
        """Yields what is wrong with the combination."""
        if self.update_order == "simultaneous" and self.discriminator_updates != 1:
            yield (
                f"--train.discriminator_updates={self.discriminator_updates} needs --train.update_order=alternating: "
                "simultaneous updates both networks once"
            )
        if self.update_order == "simultaneous" and self.generator_batch_multiple != 1:
            yield (
                f"--train.generator_batch_multiple={self.generator_batch_multiple} needs --train.update_order=alternating: "
                "simultaneous takes both updates from one batch of fakes"
            )


@dataclasses.dataclass(frozen=True)
class EmaConfig:
    """The exponential moving average of the generator, which the samples come from."""

    halflife_kimg: Schedule = option(schedule(10.0), "images after which a weight counts half", minimum=0)
    rampup: float = option(
        0.05, "the half-life is at most this share of the images seen (Karras et al. 2020); 0 is none", minimum=0
    )
    statistics: str = option(
        "average",
        "batch norm of the averaged generator: its moving statistics averaged along, or worked out anew by its own weights "
        "before it draws (standing statistics; Brock et al. 2019)",
        choices=("average", "standing"),
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Scores along the run, and of `distgan evaluate`."""

    metrics: tuple[Part, ...] = parts(
        "distgan.evaluation.protocols:METRICS",
        "scores, with commas between; the first one tells the best checkpoint",
        default="fid",
        may_change=True,
    )
    every_kimg: float = option(
        0.0, "images between two evaluations while training; 0 is none", minimum=0, may_change=True
    )
    extractor: Part = part(
        "auto", "distgan.evaluation.features:EXTRACTORS", "network whose features are compared", may_change=True
    )
    seed: int = option(0, "of the fakes", minimum=0, may_change=True)
    truncation: float = option(
        0.0, "latents are cut to [-truncation, truncation]; 0 is none", minimum=0, may_change=True
    )

    def requires(self) -> Iterator[str]:
        """Yields what is wrong with the combination."""
        if self.every_kimg and not self.metrics:
            yield f"--evaluation.every_kimg={self.every_kimg:g} needs --evaluation.metrics, which names none"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the whole state is saved."""

    every_kimg: float = option(10.0, "images between two checkpoints", above=0, may_change=True)
    keep: int = option(3, "newest checkpoints to keep", minimum=1, may_change=True)
    snapshot_kimg: float = option(
        0.0,
        "images between two copies of the state in memory, which a stop in the midst of a step saves; 0 is as often as 0.5 % of "
        "the time allow",
        minimum=0,
        may_change=True,
    )
    on_error: str = option(
        "continue",
        "what a full or failing disk comes to: train on and try again at the next save, or stop",
        choices=("continue", "fail"),
        may_change=True,
    )
    grace_seconds: float = option(
        0.0,
        "how long after SIGTERM a step may take to end before the last copy in memory is saved instead; 0 is 30, or 2 under "
        "horovodrun, which kills its workers after 4.5",
        minimum=0,
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
    """The machine."""

    logical_cpus: int = option(1, "split the CPU into this many devices, one replica each", minimum=1, may_change=True)
    cpu_threads: int = option(
        0, "threads a worker computes with on the CPU; 0 is one a core", minimum=0, may_change=True
    )
    workers: int = option(
        1, "number of workers, where the launcher gives only an index (Kubernetes, Slurm)", minimum=1, may_change=True
    )
    peers: str = option("", "host:port of the workers: a pattern as run-{index}.run:2222, or a list", may_change=True)
    control_port: int = option(
        0,
        "primary's port for what is not a collective; 0 is any (horovod), or 1000 above TensorFlow's (multiworker)",
        minimum=0,
        maximum=65535,
        may_change=True,
    )
    secret_file: str = option(
        "",
        "file with a secret that all workers know, without which nobody joins them; launch/*.sh make one",
        may_change=True,
    )
    join_timeout_seconds: float = option(
        600.0, "how long to wait for all workers at the start", above=0, may_change=True
    )
    hang_timeout_seconds: float = option(
        300.0,
        "stop if no step ends in this time, or a worker is silent; ten times as long to compile",
        above=0,
        may_change=True,
    )
    compression: str = option(
        "none", "of gradients on the wire between Horovod ranks", choices=("none", "fp16"), may_change=True
    )
    reduction_groups: int = option(
        1,
        "reductions a phase's gradients are dealt to, which may overlap its backward pass (horovod)",
        minimum=1,
        may_change=True,
    )
    check_desync: bool = option(True, "compare all workers' weights at each report, bit by bit", may_change=True)
    heartbeat: str = option(
        "", "file that is touched each second while the worker gets on, for a cluster's probe", may_change=True
    )
    profile_steps: str = option("", "FIRST:LAST steps to trace for TensorBoard's profiler, as 100:110", may_change=True)

    def profile_range(self) -> range:
        """The steps to trace; empty where none are asked for."""
        first, _, last = self.profile_steps.partition(":")
        return range(int(first), int(last)) if self.profile_steps else range(0)

    def requires(self) -> Iterator[str]:
        """Yields what is wrong with the values."""
        try:
            good = not self.profile_steps or 0 <= self.profile_range().start < self.profile_range().stop
        except ValueError:
            good = False
        if not good:
            yield f"--runtime.profile_steps={self.profile_steps} is not FIRST:LAST with 0 <= FIRST < LAST, as 100:110"


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
    """Where numbers go besides metrics.jsonl."""

    wandb: str = option(
        "auto",
        "Weights & Biases: auto is online where a key is found, offline otherwise",
        choices=("auto", "online", "offline", "disabled"),
        may_change=True,
    )
    wandb_project: str = option("distgan", "project of the W&B run", may_change=True)
    wandb_entity: str = option("", "user or team of the W&B run; empty is the key's own", may_change=True)
    wandb_key_file: str = option("", "file that holds the W&B key and nothing else", may_change=True)
    wandb_checkpoints: str = option(
        "none",
        "checkpoints that become W&B artifacts, and exports with them",
        choices=("none", "best", "all"),
        may_change=True,
    )
    wandb_artifacts: str = option(
        "copy",
        "artifacts are uploaded, or refer to files where they lie",
        choices=("copy", "reference"),
        may_change=True,
    )
    wandb_init_seconds: float = option(
        30.0, "how long W&B's server may take at the start before the run goes on offline", above=0, may_change=True
    )
    wandb_finish_seconds: float = option(
        120.0, "how long uploads may take at the end; 15 s after a signal", above=0, may_change=True
    )
    tensorboard: bool = option(False, "TensorBoard's event files too, in RUN_DIR/tensorboard", may_change=True)


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    preset: str = option("", "start from a named config, see `distgan presets`", may_change=True)
    run_dir: str = option("", "where the run is written; by default runs/PRESET", may_change=True)
    strategy: str = option(
        "auto",
        "single device, mirrored over this machine's GPUs (or logical CPUs), multiworker, or horovod",
        choices=("auto", "single", "mirrored", "multiworker", "horovod"),
        may_change=True,
    )
    init_from: str = option("", "run directory whose weights this run starts from, in networks of the same sizes")
    seed: int = option(0, "every random number follows from it and the image numbers", minimum=0)
    precision: str = option(
        "float32",
        "of the networks; under mixed_ weights, losses, penalties and reductions stay float32",
        choices=("float32", "mixed_bfloat16", "mixed_float16", "float64"),
    )
    jit_compile: bool = option(False, "compile forward and backward passes with XLA", may_change=True)
    deterministic: bool = option(False, "the same bits in every run on the same machine; slower", may_change=True)
    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    objective: ObjectiveConfig = section(ObjectiveConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    train: TrainConfig = section(TrainConfig)
    ema: EmaConfig = section(EmaConfig)
    evaluation: EvaluationConfig = section(EvaluationConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    runtime: RuntimeConfig = section(RuntimeConfig)
    tracking: TrackingConfig = section(TrackingConfig)


def images(kimg: float) -> int:
    """Thousands of images as a whole number of images."""
    return round(kimg * 1000)


def problems(config: Config) -> list[str]:
    """What is wrong with a combination of values, from every section and chosen part that has a `requires`."""
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if hasattr(value, "requires"):
            found += list(value.requires())
    for options in schema.chosen(config):
        if hasattr(options, "requires"):
            found += list(options.requires(config))
    return found


def misfits(config: Config, image_shape: tuple[int, int, int]) -> list[str]:
    """What of the networks and augmentations does not go with images [H, W, C]; a user's own part may leave `fits` out."""
    found = []
    for options in (config.model.name.options, config.objective.augmentation.options):
        if hasattr(options, "fits"):
            found += list(options.fits(image_shape))
    return found
