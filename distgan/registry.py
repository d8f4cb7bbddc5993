"""Parts by name: `hinge` from a room's table, or `my_package.my_module:thing` from anywhere.

A part is either a frozen dataclass, whose fields are its options, or a plain value without options.
Its room says what else it must offer.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from distgan.errors import UserError


@dataclasses.dataclass(frozen=True)
class Table:
    """The named parts of one kind."""

    kind: str
    """What the parts are, for messages: `loss`."""
    parts: Mapping[str, str]
    """Name -> `module:attribute`."""
    plain: bool = False
    """Whether the parts listed here have no options, so that help need not import them."""


def locate(path: str) -> Any:
    """The object at `module:attribute`; raises UserError where there is none."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{path!r} cannot be imported: {error}") from error


def resolve(table: Table, name: str) -> Any:
    """The part called `name`: from the table, or from `module:attribute`."""
    if name in table.parts:
        return locate(table.parts[name])
    if ":" in name:
        return locate(name)
    raise UserError(f"unknown {table.kind} {name!r}{suggestion(name, table.parts)}; use module:attribute for your own")


def options_class(table: Table, name: str) -> type | None:
    """The dataclass that declares the options of a part; None where it has none."""
    if table.plain and name in table.parts:
        return None
    found = resolve(table, name)
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a near name exists, and the names otherwise."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; one of {', '.join(known)}"
