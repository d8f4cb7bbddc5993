"""`distgan export`: a run's generator for others, with a card that says what it is."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distgan import schema
from distgan.commands import trained
from distgan.data.source import Description
from distgan.errors import UserError, printable
from distgan.runtime import devices
from distgan.schema import option, section
from distgan.tracking import evaluations
from distgan.tracking.wandb_sink import log_export
from distgan.training import checkpoint
from distgan.training.run_dir import versions

if TYPE_CHECKING:
    from distgan.evaluation.sampling import Sampler

_GRID_IMAGES = 64
_PRIVATE = ("run_dir", "data.path", "data.cache_dir", "init_from")  # Paths of the machine that trained.


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Which generator."""

    checkpoint: str = option("newest", "newest, best (after an evaluation), or the number of images seen")
    weights: str = option("ema", "the averaged generator, or the one that is trained", choices=tuple(trained.WEIGHTS))


@dataclasses.dataclass(frozen=True)
class Options:
    """What to export from where."""

    run_dir: str = option("", "the run")
    out: str = option("", "a new folder: saved_model/, generator.keras, samples.png and README.md, the model's card")
    export: ExportOptions = section(ExportOptions)
    verbosity: int = option(0, "1 shows TensorFlow's own log", minimum=0, maximum=1)


def run(options: Options) -> int:
    """Writes the folder, and prints what lies in it and how it was checked."""
    config = trained.open_run(options.run_dir)
    if not options.out:
        raise UserError("--out is missing: a new folder for the generator")
    trained.check_new(options.out)
    saved = checkpoint.find(Path(options.run_dir) / "checkpoints", options.export.checkpoint, "export.checkpoint")
    scores = evaluations.read(Path(options.run_dir))
    devices.silence(options.verbosity)
    devices.open_runtime(config)

    from distgan.evaluation import export
    from distgan.evaluation.sampling import Sampler, save_grid

    description, weights = Description.from_json(saved.info), options.export.weights
    generator = trained.build_generator(options.run_dir, config, description, weights, saved.arrays)
    sampler = Sampler(config, generator, description)
    out = Path(options.out)
    with trained.writing(out) as folder:
        folder.mkdir()
        numbers = range(_GRID_IMAGES)
        save_grid(sampler(0, numbers), folder / "samples.png", sampler.captions(sampler.labels(numbers)))
        export.save_graph(sampler, folder / "saved_model")
        export.save_keras(sampler, folder / "generator.keras")
        differences = export.check_graph(sampler, folder / "saved_model")
        checks = [_tell(name, difference) for name, difference in differences.items()]
        card = "\n".join(_card(sampler, saved.info, weights, scores, checks)) + "\n"
        (folder / "README.md").write_text(card)
    for path in sorted(out.iterdir()):
        print(f"{sum(each.stat().st_size for each in _files(path)):>12,} bytes  {path}")
    for check in checks:
        print(check)
    log_export(config.tracking, Path(options.run_dir), out, saved.images_seen)
    return 0


def _tell(signature: str, difference: Any) -> str:
    """How a check came out.

    Raises:
      RuntimeError: the images differ by more than a rounding.
    """
    if difference.levels > 1:
        raise RuntimeError(f"SavedModel, signature {signature}: images differ by {difference.levels} levels")
    equal = f"{difference.equal} images equal to distgan sample's"
    if difference.equal == difference.images:
        return f"SavedModel checked: {equal} (signature {signature})"
    rounded = difference.images - difference.equal
    return f"SavedModel checked: {equal}, {rounded} in which a value is one level off (signature {signature})"


def _files(path: Path) -> list[Path]:
    return [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]


_MARKUP = re.compile(r"([\\`*_{}\[\]()#!|~])")


def plain(text: Any) -> str:
    r"""A text as Markdown that shows it as it is: no link, picture, heading or HTML, and all on one line.

    >>> plain("<img src=x>"), plain("[a](javascript:b)"), plain("# two\nlines")
    ('&lt;img src=x&gt;', '\\[a\\]\\(javascript:b\\)', '\\# two lines')
    """
    line = " ".join(printable(str(text)).split())
    return _MARKUP.sub(r"\\\1", html.escape(line, quote=False))


def _code(text: Any) -> str:
    """A name as code within a line of Markdown."""
    return f"`{' '.join(printable(str(text)).replace('`', chr(39)).split())}`"


def _json(value: Any) -> str:
    """JSON for a block of code, which no text in it can end."""
    return json.dumps(value, indent=1).replace("<", "\\u003c").replace("`", "\\u0060")


def _card(
    sampler: Sampler, info: Mapping[str, Any], weights: str, scores: list[dict[str, Any]], checks: list[str]
) -> Iterator[str]:
    """The lines of README.md."""
    config, description = sampler.config, sampler.description
    height, width, channels = description.image_shape
    classes = f"{sampler.num_classes} classes" if sampler.num_classes else "no classes"
    yield f"# {plain(config.preset or config.model.name.name)}: a generator of {width}x{height} images"
    yield ""
    trained_for = f"{info['images_seen'] / 1000:g} kimg"
    yield f"Network {_code(config.model.name.name)}, trained by distgan for {trained_for} on the data source"
    yield f"{_code(config.data.source.name)}: images {height}x{width}x{channels}, {classes}."
    yield {
        "ema": "The weights are the average over the training (EMA).",
        "raw": "The weights are the trained ones themselves, not their average.",
    }[weights]
    if sampler.standing:
        yield "Its batch norms hold standing statistics, worked out by these weights."
    yield ""
    yield "![64 samples](samples.png)"
    yield ""
    yield "*Samples 0 to 63 of seed 0, not chosen.*"
    yield ""
    yield "## Load it"
    yield ""
    yield from _loading(sampler)
    yield ""
    yield "Checked after it was written, in a process that had TensorFlow alone:"
    yield ""
    yield from (f"- {check}" for check in checks)
    yield ""
    yield "## Scores"
    yield ""
    yield from _score_lines(scores, info["images_seen"], weights)
    yield ""
    yield "## Data"
    yield ""
    yield f"- source: {_code(config.data.source.name)}"
    yield f"- fingerprint of pixels and labels: {_code(info['data_fingerprint'])}"
    # Checkpoints from before export hold only how many there are of each class.
    yield f"- images: {plain(info.get('num_images', sum(description.label_counts)) or 'unknown')}"
    if sampler.num_classes:
        yield "- classes, and the images of each:"
        yield from (
            f"  - {label}: {plain(description.label_name(label))} ({count:,})"
            for label, count in enumerate(description.label_counts)
        )
    yield ""
    yield "## Versions"
    yield ""
    yield from (f"- {name} {version}" for name, version in versions().items())
    yield ""
    yield "## Config"
    yield ""
    yield "```json"
    yield _json({name: value for name, value in schema.flatten(config).items() if name not in _PRIVATE})
    yield "```"


def _loading(sampler: Sampler) -> Iterator[str]:
    """How to draw, as code that works beside the files."""
    size, conditional = sampler.latent_size, bool(sampler.num_classes)
    shape = ",".join(map(str, sampler.description.image_shape))
    labels = ", labels int32 [N]" if conditional else ""
    given = ", labels=labels" if conditional else ""
    yield "With TensorFlow alone, in this folder:"
    yield ""
    yield "```python"
    yield "import tensorflow as tf"
    yield ""
    yield 'draw = tf.saved_model.load("saved_model").signatures'
    yield "seeds, truncation = tf.range(8, dtype=tf.int64), tf.constant(0.7)"
    if conditional:
        yield "labels = tf.zeros([8], tf.int32)"
    yield f"""images = draw["seeds"](seeds=seeds, truncation=truncation{given})["images"]"""
    yield f"""images = draw["latents"](latents=tf.random.normal([8, {size}]){given})["images"]"""
    yield "```"
    yield ""
    yield "| signature | takes | gives |"
    yield "|---|---|---|"
    yield f"| `latents`, `serving_default` | latents float32 [N,{size}]{labels} | images uint8 [N,{shape}] |"
    yield f"| `seeds` | seeds int64 [N], truncation float32 (0: none){labels} | images uint8 [N,{shape}] |"
    yield ""
    yield "Seed s is the image of `distgan sample --sample.seeds=s`. Images are made 64 at a time, whatever N is, so that N"
    yield "changes no value; one alone costs as much as 64. On another device, or with other settings of TensorFlow, a value may"
    yield "round to the next level."
    yield ""
    yield "With distgan installed, as a Keras model whose images are float32 in [-1, 1]:"
    yield ""
    yield "```python"
    yield "import keras"
    yield "import tensorflow as tf"
    yield ""
    yield "import distgan.models.saved  # Keras must know the class that the file names."
    yield ""
    name = sampler.config.model.name.name
    if ":" in name:
        yield f"# safe_mode=False, as this runs code that is not distgan's: {printable(name)}."
    yield f'generator = keras.models.load_model("generator.keras"{", safe_mode=False" if ":" in name else ""})'
    if conditional:
        yield "labels = tf.zeros([8], tf.int32)"
    yield f"images = generator(tf.random.normal([8, {size}]){given})"
    yield "```"


def _score_lines(scores: list[dict[str, Any]], images_seen: int, weights: str) -> Iterator[str]:
    """Those of the checkpoint; where there are none, those of the newest that has some."""
    if weights == "raw":
        yield "None: the averaged generator alone was scored."
        return
    if not scores:
        yield "None were worked out."
        return
    own = [line for line in scores if line["images_seen"] == images_seen]
    line = (own or scores)[-1]
    if not own:
        yield f"None of this checkpoint. These are of the same run's at {line['images_seen'] / 1000:g} kimg."
        yield ""
    yield "| metric | score |"
    yield "|---|---|"
    for name, score in line["scores"].items():
        yield f"| {plain(name)} | {plain(score) if math.isfinite(score) else 'not finite'} |"
    yield ""
    yield "How they were worked out; scores with other cards can't be compared:"
    yield ""
    yield "```json"
    yield _json(line["cards"])
    yield "```"
