"""`distgan sample`: images from a run's generator."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distgan.commands import trained
from distgan.config import Config
from distgan.data.contract import open_source
from distgan.data.pixels import BadImage
from distgan.data.source import Description, Images, earlier_fingerprint, readable
from distgan.errors import UserError
from distgan.runtime import devices
from distgan.schema import option, section, split_names
from distgan.training import checkpoint

if TYPE_CHECKING:
    from distgan.evaluation.nearest import Nearest
    from distgan.evaluation.sampling import Sampler

_COUNT, _ROW_COUNT = 64, 8
_MOST_SEED = 2**32 - 1
_MOST_SEEDS = 10**6


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Which images."""

    count: int | None = option(
        None, "how many; by default 64, or 8 with --sample.rows or --sample.interpolate", minimum=1
    )
    seed: int = option(0, "the same seed gives the same images from the same weights", minimum=0)
    seeds: str = option("", "instead of --sample.seed: one image of each of these seeds, as 0-63 or 1,5,10-12")
    label: str = option(
        "", "names or numbers of classes to draw in turn, with commas; by default each (conditional runs)"
    )
    truncation: float = option(
        0.0,
        "cut the latents to this many standard deviations: typical images instead of varied ones; 0 does not",
        minimum=0,
    )
    interpolate: int | None = option(
        None,
        "a row of so many images from each sample (or seed) to the next one, along the arc between their latents",
        minimum=2,
    )
    rows: str = option("", "classes: one row a class, the same latents in each", choices=("", "classes"))
    nearest: bool = option(False, "beside each sample the training image nearest to it, and how far it is in levels")
    checkpoint: str = option("newest", "newest, best (after an evaluation), or the number of images seen")
    weights: str = option("ema", "the averaged generator, or the one that is trained", choices=tuple(trained.WEIGHTS))


@dataclasses.dataclass(frozen=True)
class Options:
    """What to draw from where."""

    run_dir: str = option("", "the run")
    out: str = option(
        "",
        "a new .png (grid), FOLDER/ (000000.png, ... and of conditional runs dataset.json, as --data.source=folder reads it) or "
        ".npz (images, uint8 [N,H,W,C]; of conditional runs labels, int32 [N], and label_names; seeds and nearest images where "
        "asked for); by default a grid under a name in --run_dir that is not taken",
    )
    sample: SampleOptions = section(SampleOptions)
    verbosity: int = option(0, "1 shows TensorFlow's own log", minimum=0, maximum=1)


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """Images in the order of a grid."""

    images: np.ndarray
    labels: np.ndarray
    seeds: np.ndarray | None
    """int64 [N]; None where they are not of one seed each."""
    columns: int
    nearest: Nearest | None


def run(options: Options) -> int:
    """Writes the images and prints where."""
    config = trained.open_run(options.run_dir)
    _check(options)
    if options.out:
        trained.check_new(options.out)
    asked = options.sample
    numbers = (
        read_seeds(asked.seeds)
        if asked.seeds
        else np.arange(asked.count or (_ROW_COUNT if _in_rows(asked) else _COUNT))
    )
    if asked.interpolate and len(numbers) < 2:
        raise UserError(f"--sample.interpolate={asked.interpolate} needs two samples: there is one")
    saved = checkpoint.find(Path(options.run_dir) / "checkpoints", asked.checkpoint, "sample.checkpoint")
    description = Description.from_json(saved.info)
    labels = find_labels(asked.label, config, description)
    if asked.rows and not config.model.conditional:
        raise UserError(f"--sample.rows={asked.rows}: the run is not conditional")
    images = _open_data(options.run_dir, config, saved.info) if asked.nearest else None
    devices.silence(options.verbosity)
    devices.open_runtime(config)

    from distgan.evaluation.sampling import Sampler

    generator = trained.build_generator(options.run_dir, config, description, asked.weights, saved.arrays)
    sampler = Sampler(config, generator, description)
    drawn = _draw(sampler, asked, numbers, labels)
    if images:
        drawn = dataclasses.replace(drawn, nearest=_find_nearest(drawn.images, images, config))

    kimg = saved.info["images_seen"] // 1000
    which = "seeds" if asked.seeds else f"seed{asked.seed}"
    out = Path(options.out) if options.out else _free(Path(options.run_dir), f"sample-{kimg:06d}-{which}")
    with trained.writing(out) as temporary:
        if options.out.endswith("/"):
            _write_folder(temporary, drawn, bool(sampler.num_classes))
        elif out.suffix == ".npz":
            _write_npz(temporary, drawn, description if sampler.num_classes else None)
        else:
            _write_grid(temporary, drawn, sampler)
    print(f"{len(drawn.images)} images at {kimg} kimg: {out}")
    return 0


def read_seeds(text: str) -> np.ndarray:
    """The seeds, int64 [N], that --sample.seeds names.

    >>> read_seeds("1,5,10-12").tolist()
    [1, 5, 10, 11, 12]

    Raises:
      UserError: it is not written so.
    """
    wrong = UserError(
        f"--sample.seeds={text} is no list of seeds from 0 to {_MOST_SEED}, as 0-63 or 1,5,10-12, of {_MOST_SEEDS:,} at most"
    )
    ranges = []
    for word in text.split(","):
        first, dash, last = word.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) <= _MOST_SEED):
            raise wrong
        ranges.append(range(int(first), int(last) + 1))
    if sum(map(len, ranges)) > _MOST_SEEDS:
        raise wrong
    return np.concatenate([np.arange(each.start, each.stop, dtype=np.int64) for each in ranges])


def find_labels(text: str, config: Config, description: Description) -> list[int]:
    """The classes that --sample.label names; all, where it names none; one, 0, of a run without classes.

    Raises:
      UserError: there is no such class.
    """
    if not config.model.conditional:
        if text:
            raise UserError(f"--sample.label={text}: the run is not conditional")
        return [0]
    names = [description.label_name(each) for each in range(len(description.label_counts))]
    # A name may have commas in it.
    words = [text] if text in names else split_names(text)
    for word in words:
        if word not in names and not (word.isdecimal() and int(word) < len(names)):
            allowed = f"{', '.join(names[:20])}{', ...' if names[20:] else ''}"
            raise UserError(f"--sample.label={word} is none of {allowed} (0 to {len(names) - 1})")
    return [names.index(word) if word in names else int(word) for word in words] or list(range(len(names)))


def _free(folder: Path, name: str) -> Path:
    """A picture's path that is not taken: `name.png`, `name-2.png`, ..."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in (folder / f"{each}.png" for each in names) if not path.exists())


def _in_rows(asked: SampleOptions) -> bool:
    return bool(asked.rows or asked.interpolate)


def _check(options: Options) -> None:
    """Refuses what does not go together."""
    asked, out = options.sample, options.out
    if out and not out.endswith((".png", ".npz", "/")):
        raise UserError(f"--out={out} ends in none of .png, .npz, /")
    if asked.seeds and asked.count is not None:
        raise UserError(f"--sample.count={asked.count} does not go with --sample.seeds, which says how many")
    if asked.seeds and asked.seed:
        raise UserError(f"--sample.seed={asked.seed} does not go with --sample.seeds: give one of them")
    if asked.rows and asked.interpolate:
        raise UserError(f"--sample.rows={asked.rows} does not go with --sample.interpolate, which has rows of its own")
    if asked.nearest and out.endswith("/"):
        raise UserError(f"--sample.nearest needs a .png or .npz, not --out={out}")


def _draw(sampler: Sampler, asked: SampleOptions, numbers: np.ndarray, classes: list[int]) -> _Drawn:
    import tensorflow as tf

    from distgan.evaluation.sampling import slerp, truncated

    if asked.seeds:
        latents = sampler.latents_of_seeds(tf.constant(numbers))
        if asked.truncation:
            latents = truncated(latents, tf.constant(asked.truncation))
        latents = latents.numpy()
    else:
        latents = sampler.latents_of(asked.seed, range(len(numbers)), asked.truncation)
    # By the number, not the place, so that a seed's image is the same one in any list.
    labels = np.array(classes, np.int32)[numbers % len(classes)]
    seeds, columns = numbers if asked.seeds else None, 8
    if asked.interpolate:
        pairs = zip(latents, latents[1:], strict=False)
        latents = np.concatenate([slerp(start, end, asked.interpolate) for start, end in pairs])
        labels, seeds, columns = labels[:-1].repeat(asked.interpolate), None, asked.interpolate
    if asked.rows:
        columns = len(numbers)
        labels, latents = np.array(classes, np.int32).repeat(columns), np.tile(latents, (len(classes), 1))
        seeds = np.tile(seeds, len(classes)) if seeds is not None else None
    return _Drawn(sampler.draw(latents, labels), labels, seeds, columns, None)


def _open_data(run_dir: str, config: Config, info: Any) -> Images:
    """The images that the run was trained on.

    Raises:
      UserError: they cannot be opened, or are others now.
    """
    images = open_source(config.data)
    trained_on = info["data_fingerprint"]
    if images.fingerprint != trained_on and earlier_fingerprint(images) != trained_on:
        raise UserError(f"--sample.nearest: {images.name} is not the data that --run_dir={run_dir} was trained on")
    return images


def _find_nearest(samples: np.ndarray, images: Images, config: Config) -> Nearest:
    from distgan.evaluation.nearest import nearest

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            pixels, _, those = readable(images, indices, config.data.on_error)
        except BadImage as bad:
            raise UserError(f"--sample.nearest: {bad}") from None
        return pixels, those

    return nearest(samples, read, images.num_images, config.data.flip)


def _write_grid(path: Path, drawn: _Drawn, sampler: Sampler) -> None:
    from distgan.evaluation.sampling import save_grid

    captions = sampler.captions(drawn.labels)
    if drawn.seeds is not None:
        names = captions or [""] * len(drawn.seeds)
        captions = [f"{seed} {name}".strip() for seed, name in zip(drawn.seeds, names, strict=True)]
    images, columns = drawn.images, drawn.columns
    if drawn.nearest:
        images = np.stack([images, drawn.nearest.images], axis=1).reshape(-1, *images.shape[1:])
        beside = [f"{distance:.1f}" for distance in drawn.nearest.distances]
        pairs = zip(captions or [""] * len(beside), beside, strict=True)
        captions, columns = [word for pair in pairs for word in pair], 2 * columns
    save_grid(images, path, captions, columns)


def _write_npz(path: Path, drawn: _Drawn, description: Description | None) -> None:
    arrays: dict[str, Any] = {"images": drawn.images}
    if description:
        arrays |= {"labels": drawn.labels, "label_names": np.array(description.label_names, str)}
    if drawn.seeds is not None:
        arrays["seeds"] = drawn.seeds
    if drawn.nearest:
        found = drawn.nearest
        arrays |= {"nearest": found.images, "nearest_indices": found.indices, "nearest_distances": found.distances}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _write_folder(path: Path, drawn: _Drawn, labelled: bool) -> None:
    from PIL import Image

    path.mkdir()
    names = [f"{number:06d}.png" for number in range(len(drawn.images))]
    for name, image in zip(names, drawn.images, strict=True):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path / name)
    if labelled:
        labels = list(zip(names, drawn.labels.tolist(), strict=True))
        (path / "dataset.json").write_text(json.dumps({"labels": labels}) + "\n")
