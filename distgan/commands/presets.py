"""`distgan presets`: what can be chosen by name."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator
from typing import Any

from distgan import presets, registry, schema
from distgan.config import Config
from distgan.runtime import devices
from distgan.schema import option

USAGE = " [NAME]"
MAX_WORDS = 1


@dataclasses.dataclass(frozen=True)
class Options:
    """What to list."""

    parts: bool = option(False, "list every model, loss, source, ... with its options")


def run(options: Options, name: str = "") -> None:
    """Prints the presets, one preset whole, or the parts."""
    if options.parts:
        devices.silence(0)
        print("\n".join(_parts()))
    elif name:
        values = presets.preset(name)
        print(inspect.getdoc(presets.PRESETS[name]))
        print(json.dumps(schema.flatten(schema.build(Config, values)), indent=1))
    else:
        for each, function in presets.PRESETS.items():
            print(f"{each:<28} {_summary(function)}")


def _parts() -> Iterator[str]:
    for entry in schema.entries(Config()):
        if not entry.table:
            continue
        yield f"--{entry.name}: {entry.doc}"
        for name in entry.table.parts:
            part = registry.resolve(entry.table, name)
            has_options = isinstance(part, type)
            summaries = [part] if has_options else [getattr(part, field.name) for field in dataclasses.fields(part)]
            yield f"  {name:<16} {' '.join(_summary(each) for each in summaries)}"
            for each in schema.entries(part()) if has_options else ():
                yield f"    {each.name}={'' if each.plain is None else each.plain}  ({each.allowed()}) {each.doc}"


def _summary(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").splitlines()[0]
