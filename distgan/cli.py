"""The command line: a table of commands, and absl flags generated from each command's options.

A command is a module with a dataclass `Options` and a function `run(options, *words)`. Its flags are the fields of
`Options`, by the dotted names of `schema.entries`, so that an option is written down once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from absl import flags

from distgan import __version__, flag_names, registry, schema, signals, trust
from distgan.errors import Ended, Exit, UserError, printable
from distgan.runtime import credentials, devices
from distgan.runtime.topology import find_workers, read_environment
from distgan.tracking.streams import OutputLost

_OTHERS_WAIT_SECONDS = 3

COMMANDS: Mapping[str, tuple[str, str]] = {
    "train": ("distgan.commands.train", "train; goes on from the newest checkpoint in --run_dir"),
    "sample": ("distgan.commands.sample", "images from a run's generator: a grid PNG, single PNGs or an .npz"),
    "evaluate": (
        "distgan.commands.evaluate",
        "scores of a run's generator, or of two sets of images; results side by side",
    ),
    "export": (
        "distgan.commands.export",
        "a run's generator as a SavedModel, which needs no distgan, and as a .keras file",
    ),
    "presets": ("distgan.commands.presets", "list presets; with a NAME its whole config; with --parts every part"),
    "prepare": ("distgan.commands.prepare", "images, resized once, as TFRecord shards; or --check them"),
    "benchmark": ("distgan.commands.benchmark", "speed, start-up and memory of a preset on this machine, as JSON"),
    "report": ("distgan.commands.report", "one HTML page of one or several runs, which opens from the disk"),
    "dashboard": ("distgan.commands.dashboard", "the workspace of a W&B project"),
    "doctor": ("distgan.commands.doctor", "what this machine can do"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "tensorflow" not in sys.modules and not any(isinstance(each, devices.QuietImport) for each in sys.meta_path):
        sys.meta_path.insert(0, devices.QuietImport())
    try:
        credentials.receive()
        with _without_secrets(words[0] if words else ""):
            code = _run(words)
        sys.stdout.flush()
        return code
    except Exit as error:
        return _end(error)
    except KeyboardInterrupt:
        return 130
    except OutputLost as error:
        return 0 if error.reader_left else _end(UserError(str(error)))
    except Exception as error:
        ending = _explain(error, words[0])
        if ending is None:
            raise
        return _end(ending)


def _without_secrets(command: str) -> contextlib.AbstractContextManager[None]:
    """Keeps keys from what a command starts: only W&B's process, and `dashboard`, need W&B's."""
    if command == "dashboard":
        return contextlib.nullcontext()
    return credentials.holding(all_of_them=command in ("doctor", "export", "report"))


def _end(error: Exit) -> int:
    """Says what a command ends with; returns the exit code."""
    if error.spoken if isinstance(error, Ended) else _speaks_for_all():
        print(f"distgan: {printable(str(error))}", file=sys.stderr)
    return error.code


def _explain(error: Exception, command: str) -> Exit | None:
    """A device's error in one line; None of any other."""
    if "tensorflow" not in sys.modules:
        return None
    from distgan.runtime import device_errors

    remedy = (
        "another process may hold the memory (nvidia-smi tells); with CUDA_VISIBLE_DEVICES= in front the CPU does it"
    )
    return device_errors.explain(error, f"distgan {command}", lambda: remedy)


def _speaks_for_all() -> bool:
    """Whether an error that all Horovod ranks have alike, as a mistake in a flag, is this rank's to tell.

    The others wait a moment: the first to leave has the rest killed, with what they had to say.
    """
    workers = find_workers({name: value for name, value in read_environment().items() if name.startswith("HOROVOD")})
    if workers and workers.rank:
        time.sleep(_OTHERS_WAIT_SECONDS)
    return not (workers and workers.rank)


def _run(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        print(__version__)
        return 0
    if not words or words[0] in ("help", "--help", "-h"):
        print(_overview())
        return 0
    command, *rest = words
    if command not in COMMANDS:
        raise UserError(f"unknown command {command!r}{registry.suggestion(command, COMMANDS)}")
    module = importlib.import_module(COMMANDS[command][0])
    rest, asks_help = _without_help(rest)
    options, positional = parse(module, rest)
    if asks_help:
        print(_help(command, module, options))
        return 0
    if command != "train":  # Which answers them itself.
        signals.release()
    return module.run(options, *positional) or 0


def parse(module: ModuleType, words: Sequence[str]) -> tuple[Any, list[str]]:
    """The options of a command from its words, and the words that are no flags.

    The flags that exist depend on the parts that are chosen, and the defaults on the preset or the run that is gone on
    with; so the words are read twice: first only for what decides about flags, then whole.

    Raises:
      UserError: an unknown flag (with the nearest name), a value that is not allowed, a word too many.
    """
    try:
        words = trust.allow(flags.FlagValues().read_flags_from_files(list(words), force_gnu=True))
    except flags.Error as error:
        raise UserError(str(error)) from None
    base: dict[str, Any] = {}
    if hasattr(module, "base"):
        start, _ = _read_flags(list(schema.entries(module.Options())), words, only=("preset", "run_dir"))
        try:
            base = module.base(start.get("preset", ""), start.get("run_dir", ""))
        except OSError as error:
            raise UserError(f"--run_dir={start['run_dir']:.80}: {error.strerror}") from None
    choices = {}
    for entry in schema.entries(schema.build(module.Options, base)):
        if entry.table:
            choices.update(_read_flags([entry], words, only=(entry.name,))[0])
    chosen = schema.build(module.Options, {**base, **choices})
    given, positional = _read_flags(list(schema.entries(chosen)), words)
    limit = getattr(module, "MAX_WORDS", 0)
    if len(positional) > limit:
        raise UserError(f"unexpected word {positional[limit]!r}; flags are written --name=value")
    return schema.build(module.Options, {**base, **given}), positional


class _Parser(flags.ArgumentParser):
    """Lets absl read a flag by its config entry."""

    def __init__(self, entry: schema.Entry):
        self.entry = entry

    def parse(self, argument: Any) -> Any:
        return self.entry.parse(argument)

    def flag_type(self) -> str:
        return self.entry.type.__name__


def _read_flags(
    entries: list[schema.Entry], words: Sequence[str], only: tuple[str, ...] = ()
) -> tuple[dict[str, Any], list[str]]:
    """The values given for the entries (or for `only` these, passing over all else), and the other words."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    for entry in entries:
        if only and entry.name not in only:
            continue
        if entry.type is bool:
            flags.DEFINE_boolean(entry.name, entry.value, entry.doc, flag_values=values)
        else:
            flags.DEFINE(_Parser(entry), entry.name, entry.plain, entry.doc, flag_values=values)
    try:
        positional = values(["distgan", *words], known_only=bool(only))[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(
            f"unknown flag --{error.flagname}{flag_names.meant(error.flagname, [entry.name for entry in entries])}"
        ) from None
    except flags.IllegalFlagValueError as error:
        raise UserError(str(error).removeprefix("flag ").replace(": ", " ", 1)) from None
    except flags.Error as error:
        raise UserError(str(error)) from None
    return {name: values[name].value for name in values if values[name].present}, positional


def _without_help(words: list[str]) -> tuple[list[str], bool]:
    rest = [word for word in words if word not in ("--help", "-h", "--helpfull")]
    return rest, len(rest) < len(words)


def _overview() -> str:
    lines = ["distgan trains GANs on one device or many, and gives the same run on each.", ""]
    lines += ["usage: distgan COMMAND [--flags]      distgan COMMAND --help", ""]
    lines += [f"  {name:<10} {doc}" for name, (_, doc) in COMMANDS.items()]
    return "\n".join(lines)


def _help(command: str, module: ModuleType, options: Any) -> str:
    lines = [COMMANDS[command][1], "", f"usage: distgan {command}{getattr(module, 'USAGE', '')} [--flags]", ""]
    for entry in schema.entries(options):
        lines.append(f"  --{entry.name}={_spell(entry.plain)}  ({entry.allowed()})")
        lines.append(f"      {entry.doc}")
    if any(entry.name == "run_dir" for entry in schema.entries(options)):
        lines.append(f"  {trust.FLAG}")
        lines.append("      run the code that --run_dir names (module:attribute), though others can write to it")
    lines.append("  --flagfile=FILE")
    lines.append("      read flags from a file, one a line")
    return "\n".join(lines)


def _spell(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
