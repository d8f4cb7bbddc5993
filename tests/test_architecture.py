"""The rooms of the house: imports run one way only, and what each room must not touch."""

import ast
import itertools
from pathlib import Path

import pytest

import distgan

PACKAGE = Path(distgan.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Each room may import from itself and from the rows before its own.
ORDER = [
    {"errors", "signals"},
    {"files", "trust", "registry", "seeds", "schedules", "schema", "config", "presets", "flag_names"},
    {"runtime"},
    {"data", "models", "objectives", "tracking"},
    {"evaluation"},
    {"training"},
    {"commands"},
    {"cli"},
    {"__main__"},
]


def room(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path):
    """The dotted names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def row(name):
    return next(number for number, rooms in enumerate(ORDER) if name in rooms)


@pytest.mark.parametrize("path", [f for f in FILES if f != PACKAGE / "__init__.py"], ids=lambda p: p.stem)
def test_imports_run_one_way(path):
    for name in imports(path):
        package, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if package == "distgan" and other not in (room(path), "__version__"):
            same_row = row(other) == row(room(path)) and row(other) == 1
            assert row(other) < row(room(path)) or same_row, f"{path} imports {name}"


def test_libraries_stay_in_their_rooms():
    homes = {
        "absl": {"cli.py"},
        "wandb": {"tracking/wandb_run.py"},
        "wandb_workspaces": {"tracking/workspace.py"},
        "horovod": {"runtime/horovod.py", "runtime/elastic.py"},
    }
    for path, (library, home) in itertools.product(FILES, homes.items()):
        if str(path.relative_to(PACKAGE)) not in home:
            assert not any(name.partition(".")[0] == library for name in imports(path)), f"{path} imports {library}"
    for path in FILES:
        if room(path) != "runtime":
            assert "tf.distribute" not in ast.unparse(ast.parse(path.read_text())), path


def test_environment_is_read_in_two_places():
    for path in FILES:
        if str(path.relative_to(PACKAGE)) in (
            "cli.py",
            "runtime/credentials.py",
            "runtime/topology.py",
            "runtime/devices.py",
            "runtime/elastic.py",
        ):
            continue
        text = ast.unparse(ast.parse(path.read_text()))
        assert "os.environ" not in text, path
        assert "getenv" not in text, path


def test_no_assorted_files():
    assert not {path.stem for path in FILES} & {"utils", "common", "helpers", "misc"}
