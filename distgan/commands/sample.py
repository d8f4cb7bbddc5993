"""`distgan sample`: images from a run's generator."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from distgan import config as configs
from distgan.config import Config, option, section
from distgan.data.source import Description
from distgan.errors import UserError
from distgan.runtime import devices
from distgan.training.run_dir import read_config

_FORMATS = (".png", ".npz")


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Which images."""

    count: int = option(64, "how many", minimum=1)
    seed: int = option(0, "the same seed gives the same images from the same weights", minimum=0)
    label: str = option("", "name or number of the one class to draw; by default each in turn (conditional runs)")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to draw from where."""

    run_dir: str = option("", "the run")
    out: str = option(
        "",
        "a new .png (grid) or .npz (images, uint8 [N,H,W,C]; of conditional runs labels, int32 [N], and label_names); "
        "by default a grid in --run_dir",
    )
    sample: SampleOptions = section(SampleOptions)
    verbosity: int = option(0, "1 shows TensorFlow's own log", minimum=0, maximum=1)


def run(options: Options) -> int:
    """Writes the images and prints where."""
    directory = Path(options.run_dir)
    values = read_config(directory) if options.run_dir else {}
    if not values:
        raise UserError(f"--run_dir={options.run_dir} holds no run")
    if options.out and not options.out.endswith(_FORMATS):
        raise UserError(f"--out={options.out} ends in none of {', '.join(_FORMATS)}")
    if options.out and Path(options.out).exists():
        raise UserError(f"--out={options.out} exists")
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise UserError(f"--out={options.out} lies in a folder that does not exist")
    devices.silence(options.verbosity)

    from distgan.evaluation.sampling import Sampler, save_grid
    from distgan.training import checkpoint
    from distgan.training.state import build_network

    config = dataclasses.replace(configs.build(Config, values), strategy="single")
    devices.open_runtime(config)
    saved = checkpoint.newest(directory / "checkpoints")
    if saved is None:
        raise UserError(f"--run_dir={options.run_dir} has no checkpoint yet")
    description = Description.from_json(saved.info)
    label = _find_label(options.sample.label, config, description)
    generator = build_network(config, description, "generator", "generator_ema")
    for variable in generator.variables:
        variable.assign(saved.arrays[variable.path])
    sampler, numbers = Sampler(config, generator, description), range(options.sample.count)
    images, labels = sampler(options.sample.seed, numbers, label), sampler.labels(numbers, label)

    kimg = saved.info["images_seen"] // 1000
    out = Path(options.out) if options.out else directory / f"sample-{kimg:06d}-seed{options.sample.seed}.png"
    try:
        if out.suffix == ".npz":
            arrays: dict[str, Any] = {"images": images}
            if config.model.conditional:
                arrays |= {"labels": labels, "label_names": np.array(description.label_names, str)}
            np.savez_compressed(out, **arrays)
        else:
            save_grid(images, out, sampler.captions(labels))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    print(f"{len(images)} images at {kimg} kimg: {out}")
    return 0


def _find_label(label: str, config: Config, description: Description) -> int | None:
    """The class that --sample.label names, None where it names none.

    Raises:
      UserError: there is no such class.
    """
    if not label:
        return None
    if not config.model.conditional:
        raise UserError(f"--sample.label={label}: the run is not conditional")
    names = [description.label_name(each) for each in range(len(description.label_counts))]
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise UserError(f"--sample.label={label} is none of {', '.join(names[:20])}{', ...' if names[20:] else ''}")
