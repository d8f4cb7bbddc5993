"""Any flag of any command with any odd value: taken, or refused in one line.

Flags are those of the commands' options, values the edges of each type, one flag or two at a time. Only the command line is
read and the config checked: nothing is opened or built.
"""

import dataclasses
import importlib
import random

import pytest

from distgan import cli, schema
from distgan.config import Config, problems
from distgan.errors import UserError
from distgan.schedules import Schedule

NUMBERS = (
    "0",
    "-0.0",
    "1",
    "-1",
    "1.5",
    "1e3",
    "1e400",
    "1e-400",
    "nan",
    "inf",
    "-inf",
    "",
    " 3 ",
    "1,5",
    "0x10",
    "1_0",
    "abc",
)
VALUES = {
    bool: ("true", "FALSE", "1", "0", "", "maybe", "nan"),
    int: (*NUMBERS, "9" * 20, "-" + "9" * 400, "\u0661"),
    float: (*NUMBERS, "9" * 400, "\u0661"),
    str: ("", "a", "~", "a b", "=", "--x", "../..", "nan", "\u00fc", "\udcff", "\0", "a" * 5000, "gs://bucket/x"),
    Schedule: (
        *NUMBERS,
        "linear:1",
        "linear:1:2",
        "linear:1:nan",
        "linear:1:2:0",
        "linear:1:2:-1",
        "cosine:",
        "a:1:2",
        "linear:1:2:3:4",
    ),
}
CASES, SHARES = 2000, 8
CONFIG = [field.name for field in dataclasses.fields(Config)]


def values(entry, chance):
    """A value for a flag."""
    if entry.table:
        names = list(entry.table.parts)
        return chance.choice(
            [*names, *names[:1], "", "nothing", ":", "a:b", "a:", ",", f"{names[0]},{names[0]}", f"{names[0]},"]
        )
    if entry.limits.get("choices"):
        return chance.choice([*map(str, entry.limits["choices"]), "", "NONE", "nan", "-1"])
    return chance.choice(VALUES[entry.type])


def read(command, words):
    """As the command line does, up to where something would be opened."""
    module = importlib.import_module(cli.COMMANDS[command][0])
    options, _ = cli.parse(module, words)
    if all(hasattr(options, name) for name in CONFIG):
        problems(Config(**{name: getattr(options, name) for name in CONFIG}))
    assert schema.build(type(options), schema.flatten(options)) == options


def outcome(command, words):
    """What a command line is refused with; empty where it is taken."""
    try:
        read(command, words)
    except UserError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{command} {words}") from error
    return ""


@pytest.mark.parametrize("share", range(SHARES))
def test_odd_values(share):
    chance, refused = random.Random(share), 0
    for _ in range(CASES // SHARES):
        command = chance.choice(list(cli.COMMANDS))
        entries = list(schema.entries(importlib.import_module(cli.COMMANDS[command][0]).Options()))
        chosen = chance.sample(entries, min(len(entries), chance.choice((1, 2))))
        words = [f"--{entry.name}={values(entry, chance)}" for entry in chosen]
        line = outcome(command, words)
        refused += bool(line)
        named = any(f"--{entry.name}" in line or f"--no{entry.name}" in line for entry in chosen)
        assert not line or named, (command, words, line)
        assert "\n" not in line
        assert len(line) < 1000
    assert refused
