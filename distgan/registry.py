"""Parts by name: `hinge` from a room's table, or `my_package.my_module:thing` from anywhere.

A part is either a frozen dataclass, whose fields are its options, or a plain value without options.
Its room says what else it must offer.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from distgan.errors import UserError, in_one_line


@dataclasses.dataclass(frozen=True)
class Table:
    """The named parts of one kind."""

    kind: str
    """What the parts are, for messages: `loss`."""
    parts: Mapping[str, str]
    """Name -> `module:attribute`."""
    plain: bool = False
    """Whether parts are values without options, so that help need not import those that are listed here."""
    offers: tuple[str, ...] = ()
    """The methods and attributes that every part has. A user's own part that lacks one of them is refused."""


def locate(path: str) -> Any:
    """The object at `module:attribute` of distgan itself."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def resolve(table: Table, name: str) -> Any:
    """The part called `name`: from the table, or a user's own from `module:attribute`.

    Raises:
      UserError: there is no such part, or it is not what a part of this kind must be.
    """
    if name in table.parts:
        return locate(table.parts[name])
    if ":" not in name:
        raise UserError(
            f"unknown {table.kind} {name!r}{suggestion(name, table.parts)}; use module:attribute for your own"
        )
    found = _import(name)
    if not table.plain:
        _check_own(table, name, found)
    return found


def _import(name: str) -> Any:
    """A user's object, from the installed packages, PYTHONPATH or the working directory, in this order."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    module, _, attribute = name.partition(":")
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        raise UserError(
            f"{name}: {module} cannot be imported: {in_one_line(error)}; modules are found on PYTHONPATH and in the working "
            f"directory, {here}"
        ) from error
    if not hasattr(imported, attribute):
        public = [each for each in vars(imported) if not each.startswith("_")]
        raise UserError(f"{name}: {imported.__name__} has no {attribute!r}{suggestion(attribute, public)[:200]}")
    return getattr(imported, attribute)


def _check_own(table: Table, name: str, found: Any) -> None:
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        what = "a class without @dataclasses.dataclass" if isinstance(found, type) else f"a {type(found).__name__}"
        raise UserError(f"{name} is {what}; a {table.kind} is a frozen dataclass, whose fields are its options")
    fields = {field.name: field for field in dataclasses.fields(found)}
    for field in fields.values():
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{name}: the field {field.name!r} needs a default, as every option has one")
    missing = [each for each in table.offers if each not in fields and not hasattr(found, each)]
    if missing:
        raise UserError(f"{name} has no {missing[0]!r}; a {table.kind} has {', '.join(table.offers)}")


def options_class(table: Table, name: str) -> type | None:
    """The dataclass that declares the options of a part; None where it has none."""
    if table.plain and name in table.parts:
        return None
    found = resolve(table, name)
    return None if table.plain else found


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a near name exists, and the names otherwise."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; one of {', '.join(known)}"
