"""A run's generator as a checkpoint holds it, and new files that are there only when they are whole."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distgan import schema
from distgan.config import Config, misfits
from distgan.data.source import Description
from distgan.errors import UserError
from distgan.training.run_dir import read_config

WEIGHTS = {"ema": "generator_ema", "raw": "generator"}
"""The generators of a checkpoint: the averaged one, and the one that is trained."""


def open_run(run_dir: str) -> Config:
    """The config of a run, on a single device.

    Raises:
      UserError: there is no run.
    """
    values = read_config(Path(run_dir)) if run_dir else {}
    if not values:
        raise UserError(f"--run_dir={run_dir} holds no run")
    return dataclasses.replace(schema.build(Config, values), strategy="single")


def build_generator(
    run_dir: str, config: Config, description: Description, weights: str, arrays: Mapping[str, np.ndarray]
) -> Any:
    """The generator with the `weights` (of WEIGHTS) of a checkpoint's arrays; without any, with fresh ones.

    Raises:
      UserError: the checkpoint is of another generator than the config's.
    """
    from distgan.training.state import assign, build_network

    name = WEIGHTS[weights]
    problems = misfits(config, description.image_shape)
    if config.model.conditional and not description.label_counts:
        problems.append("--model.conditional needs labels, and its images had none")
    if problems:
        raise UserError(f"--run_dir={run_dir}: the checkpoint does not go with config.json: {'; '.join(problems)}")
    generator = build_network(config, description, "generator", name)
    own = {path: array for path, array in arrays.items() if path.startswith(f"{name}/")}
    try:
        if arrays:
            assign({variable.path: variable for variable in generator.variables}, own)
    except ValueError as error:
        raise UserError(f"--run_dir={run_dir}: the checkpoint does not go with config.json: {error}") from None
    return generator


def check_new(out: str) -> None:
    """Checks --out.

    Raises:
      UserError: it exists, or the folder for it does not.
    """
    if os.path.lexists(out):
        raise UserError(f"--out={out} exists")
    if not Path(out).absolute().parent.is_dir():
        raise UserError(f"--out={out} lies in a folder that does not exist")


@contextlib.contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A temporary path beside `out`, for a file or folder that gets its name when the block ends well.

    Raises:
      UserError: the disk is full or not writable, or `out` is there by now.
    """
    temporary = out.with_name(f".tmp-{os.getpid()}-{out.name}")
    try:
        yield temporary
        if os.path.lexists(out):
            raise UserError(f"--out={out} exists: another process has made it meanwhile")
        temporary.rename(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)
