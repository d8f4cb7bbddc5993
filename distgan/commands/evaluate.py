"""`distgan evaluate`: scores of a run's generator against its data, or of two sets of images; and results side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distgan import files, registry, schema
from distgan.commands import trained
from distgan.config import Config, DataConfig, EvaluationConfig, RuntimeConfig
from distgan.data.contract import open_source
from distgan.data.source import Description, Images, earlier_fingerprint
from distgan.errors import UserError
from distgan.runtime import devices, topology
from distgan.schema import option, section
from distgan.tracking import console, evaluations
from distgan.tracking.console import log
from distgan.training.run_dir import read_config

_LARGEST_BYTES = 2**26  # Of a result.

USAGE = " [RESULT ...]"
MAX_WORDS = 100
_SOURCES = {".zip": "zip", ".npz": "npz"}
_SHARED = ("data.", "evaluation.", "runtime.", "strategy")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to judge, against what."""

    run_dir: str = option("", "the run whose generator is judged, against the run's data")
    checkpoint: str = option("newest", "of the run: newest, best (after an evaluation), or the number of images seen")
    weights: str = option("ema", "of the generator: averaged, or as trained", choices=("ema", "raw"))
    real: str = option("", "images that --fake is compared with: a folder, .zip, .npz, or shards of distgan prepare")
    fake: str = option("", "images to judge instead of a run's generator")
    out: str = option("", "a new JSON file for the result")
    strategy: str = option("auto", "shares the work", choices=("auto", "single", "mirrored", "multiworker", "horovod"))
    data: DataConfig = section(DataConfig)
    evaluation: EvaluationConfig = section(EvaluationConfig)
    runtime: RuntimeConfig = section(RuntimeConfig)
    verbosity: int = option(0, "1 shows TensorFlow's own log", minimum=0, maximum=1)


def base(preset: str, run_dir: str) -> dict[str, Any]:
    """The run's own data and evaluation."""
    values = read_config(Path(run_dir)) if run_dir else {}
    return {
        **{name: value for name, value in values.items() if name.startswith(("data.", "evaluation."))},
        "run_dir": run_dir,
    }


def run(options: Options, *results: str) -> int:
    """Prints the scores, or ranks earlier results."""
    if results:
        print("\n".join(_ranked([_read(Path(name)) for name in results])))
        return 0
    if options.out:
        trained.check_new(options.out)
    if bool(options.run_dir) == bool(options.real and options.fake):
        raise UserError("evaluate needs --run_dir, or --real and --fake")
    values = read_config(Path(options.run_dir)) if options.run_dir else {}
    if options.run_dir and not values:
        raise UserError(f"--run_dir={options.run_dir} holds no run")
    asked = {name: value for name, value in schema.flatten(options).items() if name.startswith(_SHARED)}
    config = schema.build(Config, {**values, **asked})
    problems = list(_problems(options, config))
    if problems:
        raise UserError("; ".join(problems))
    workers = topology.find_workers(topology.read_environment(), config.runtime.workers, config.runtime.peers)
    console.start_log(show=workers is None or workers.rank == 0)
    devices.silence(options.verbosity)
    line = devices.connect(config, workers)
    with line.together():
        runtime = devices.open_runtime(config, workers, line)
        line.at("evaluating", 0, patient=True)
        result = _of_run(options, config, runtime) if options.run_dir else _of_sets(options, config, runtime)
        if result:
            _tell(options, result)
        runtime.close()
    return 0


def _problems(options: Options, config: Config) -> Iterator[str]:
    if not config.evaluation.metrics:
        yield "--evaluation.metrics names none"
    for part in config.evaluation.metrics:
        if options.fake and part.options.labelled:
            yield f"--evaluation.metrics={part.name} compares classes, which --fake={options.fake} is not asked to be of"
        else:
            yield from part.options.requires(config)


def _of_run(options: Options, config: Config, runtime: Any) -> dict[str, Any] | None:
    from distgan.evaluation import evaluator
    from distgan.evaluation.sampling import Sampler
    from distgan.training import checkpoint, scores

    images = open_source(config.data)
    folder = Path(options.run_dir) / "checkpoints"
    saved = checkpoint.Checkpoint({}, {})
    if runtime.topology.is_primary:
        saved = checkpoint.find(folder, options.checkpoint, "checkpoint")
    info = runtime.control.gather(dict(saved.info))[0]
    description = Description.from_json(info)
    trained_on = info["data_fingerprint"]
    if trained_on != images.fingerprint and trained_on == earlier_fingerprint(images):
        trained_on = images.fingerprint
    if trained_on != images.fingerprint:
        log.info("%s: other images than the run was trained on (--data.source and --data.path choose)", images.name)
    with runtime.scope():
        generator = trained.build_generator(options.run_dir, config, description, options.weights, saved.arrays)
    runtime.broadcast([variable.value for variable in generator.variables])
    extractor = scores.open_extractor(config, images, runtime)
    sampler = Sampler(config, generator, description)
    facts = {
        "weights": options.weights,
        "statistics": config.ema.statistics,
        "checkpoint": info["images_seen"],
        "trained_on": trained_on,
    }
    result = evaluator.evaluate(
        config.evaluation.metrics,
        evaluator.of_images(images, runtime, config.data.on_error),
        evaluator.of_generator(sampler, runtime, config.evaluation, description.label_counts),
        extractor,
        runtime,
        scores.cache_dir(config),
        facts,
    )
    if result is None:
        return None
    found = scores.as_json(result, info["images_seen"])
    scores.append(Path(options.run_dir), found)
    return found


def _of_sets(options: Options, config: Config, runtime: Any) -> dict[str, Any] | None:
    from distgan.evaluation import evaluator
    from distgan.training import scores

    reals, fakes = (_open_set(path, flag, config) for path, flag in ((options.real, "real"), (options.fake, "fake")))
    if reals.shape != fakes.shape:
        sizes = ("x".join(map(str, images.shape)) for images in (reals, fakes))
        log.info(
            "--real has images of %s and --fake of %s: --data.resolution and --data.channels make them alike", *sizes
        )
    result = evaluator.evaluate(
        config.evaluation.metrics,
        evaluator.of_images(reals, runtime, config.data.on_error),
        evaluator.of_images(fakes, runtime, config.data.on_error),
        scores.open_extractor(config, reals, runtime),
        runtime,
        scores.cache_dir(config),
        {},
    )
    return scores.as_json(result, 0) if result else None


def _open_set(path: str, flag: str, config: Config) -> Images:
    """Images at a path, by the source that its kind asks for.

    Raises:
      UserError: there are none.
    """
    place = Path(path)
    source = "tfrecord" if (place / "manifest.json").exists() else _SOURCES.get(place.suffix, "folder")
    values = {**schema.flatten(Config()), "data.source": source, "data.path": path}
    chosen = schema.build(Config, values).data
    try:
        return open_source(dataclasses.replace(config.data, source=chosen.source, path=path))
    except UserError as error:
        raise UserError(f"--{flag}: {error}") from None


def _tell(options: Options, result: Mapping[str, Any]) -> None:
    from distgan.training import scores

    for name, value in result["scores"].items():
        print(f"{name:<24} {value:.6g}")
    cards = {name: {key: value for key, value in card.items() if value != ""} for name, card in result["cards"].items()}
    first, *others = cards.values()
    shared = {key: value for key, value in first.items() if all(card.get(key) == value for card in others)}
    print("  all: " + _spell(shared))
    for name, card in cards.items():
        if own := {key: value for key, value in card.items() if key not in {*shared, "metric"}}:
            print(f"  {name}: " + _spell(own))
    for name, value in result["costs"].items():
        print(f"  {name}: {value:.2f}")
    if options.out:
        with trained.writing(Path(options.out)) as temporary:
            temporary.write_text(scores.to_json(result, indent=1) + "\n")


def _spell(card: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in card.items())


def _read(path: Path) -> dict[str, Any]:
    """An earlier result: a file of --out, or the last of a run directory.

    Raises:
      UserError: it is none.
    """
    try:
        found = _last(path) if path.is_dir() else evaluations.from_json(files.read_text(path, _LARGEST_BYTES))
        return {"name": str(path), "scores": dict(found["scores"]), "cards": dict(found["cards"])}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} holds no result of distgan evaluate: {error}") from None


def _last(run_dir: Path) -> dict[str, Any]:
    if not (found := evaluations.read(run_dir)):
        raise ValueError(f"{evaluations.NAME} has no line")
    return found[-1]


# What may differ between results that are compared: who is judged.
_JUDGED = ("fake", "checkpoint", "trained_on", "weights")


def _ranked(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table, best first by the first metric.

    Raises:
      UserError: two results were not got in the same way.
    """
    from distgan.training.scores import sort_key

    first, *others = results
    for other in others:
        if lacking := first["cards"].keys() ^ other["cards"].keys():
            told = f"{', '.join(sorted(lacking))} in one of them alone"
            raise UserError(f"{first['name']} and {other['name']} can't be ranked: {told}")
        for metric in first["cards"]:
            one, two = (each["cards"][metric] for each in (first, other))
            keys = [
                key for key in sorted(one.keys() | two.keys()) if key not in _JUDGED and one.get(key) != two.get(key)
            ]
            if keys:
                told = ", ".join(f"{key} is {one.get(key)} and {two.get(key)}" for key in keys)
                raise UserError(f"{first['name']} and {other['name']} can't be ranked by {metric}: {told}")
    metric = next(iter(first["cards"]))
    part = schema.choose(registry.locate("distgan.evaluation.protocols:METRICS"), metric).options
    ordered = sorted(results, key=lambda each: sort_key(each["scores"][part.main], part.lower_is_better))
    names = list(first["scores"])
    width = max(len(each["name"]) for each in results)
    lines = [f"{'':<{width}}  " + "  ".join(f"{name:>12}" for name in names)]
    for each in ordered:
        lines.append(f"{each['name']:<{width}}  " + "  ".join(f"{each['scores'][name]:>12.6g}" for name in names))
    return lines
