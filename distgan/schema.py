"""Options as fields of dataclasses: every field has a type, a default, a doc and its limits.

The command line's flags, `config.json`, `--help` and the checks on resume all follow from these fields. A field that holds a
part (a model, a loss, ...) is chosen by name; the part's own options, declared beside the part, stand next to it:
`model.name` and `model.width`, `data.source=synthetic` and `data.synthetic.num_images`.
What has such fields is written as one flat mapping from dotted names to values, the names of the flags.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from distgan import registry
from distgan.errors import UserError
from distgan.schedules import Schedule

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Part:
    """A chosen part: its name and the dataclass instance with its options (None where it has none)."""

    name: str
    options: Any = None


def option(
    default: Any,
    doc: str,
    *,
    choices: tuple[Any, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    may_change: bool = False,
) -> Any:
    """A field with its doc and limits.

    Args:
      default: the value, whose type is the field's.
      doc: one line for `--help`.
      choices: the allowed values.
      minimum: the inclusive lower limit of a number.
      maximum: the inclusive upper limit of a number.
      above: the exclusive lower limit of a number.
      may_change: whether a run may go on with another value; false for all that changes its curve.
    """
    limits = {"choices": choices, "minimum": minimum, "maximum": maximum, "above": above}
    return dataclasses.field(default=default, metadata={"doc": doc, "may_change": may_change, "limits": limits})


def part(default: str, table: str, doc: str, *, may_change: bool = False) -> Any:
    """A field that holds a `Part`, by default the one called `default` of the table at `module:attribute`."""
    return dataclasses.field(
        default_factory=lambda: choose(registry.locate(table), default),
        metadata={"doc": doc, "may_change": may_change, "limits": {}, "table": table},
    )


def parts(table: str, doc: str, *, default: str = "", may_change: bool = False) -> Any:
    """A field that holds any number of parts of the table at `module:attribute`, by default those named, with commas between."""
    return dataclasses.field(
        default_factory=lambda: tuple(choose(registry.locate(table), name) for name in split_names(default)),
        metadata={"doc": doc, "may_change": may_change, "limits": {}, "table": table},
    )


def section(cls: type) -> Any:
    """A field that holds another dataclass of fields."""
    return dataclasses.field(default_factory=cls)


def choose(table: registry.Table, name: str) -> Part:
    """The part called `name` with its default options."""
    cls = registry.options_class(table, name)
    return Part(name, cls() if cls else None)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One field of a config under its dotted name: what a flag needs to know."""

    name: str
    type: type
    value: Any
    doc: str
    may_change: bool
    limits: Mapping[str, Any]
    table: registry.Table | None = None
    many: bool = False
    """Whether it names any number of parts, with commas between."""
    optional: bool = False
    """Whether it may be empty, which is None."""

    def allowed(self) -> str:
        """The allowed values in words."""
        if self.table:
            names = ", ".join(self.table.parts)
            return (
                f"any of {names}, or module:attribute, with commas"
                if self.many
                else f"one of {names}, or module:attribute"
            )
        if self.limits.get("choices"):
            return f"one of {', '.join(map(str, self.limits['choices']))}"
        words = [_TYPE_NAMES[self.type]]
        if self.limits.get("minimum") is not None:
            words.append(f"at least {self.limits['minimum']}")
        if self.limits.get("above") is not None:
            words.append(f"above {self.limits['above']}")
        if self.limits.get("maximum") is not None:
            words.append(f"at most {self.limits['maximum']}")
        return ", ".join(words) + (", or nothing" if self.optional else "")

    def parse(self, text: Any) -> Any:
        """The value of a word of the command line or of a JSON value; raises ValueError naming what is allowed."""
        if self.optional and text in (None, ""):
            return None
        if self.table:
            self._check_names(str(text))
            return str(text)
        try:
            value = _read(self.type, text)
        except ValueError:
            raise ValueError(f"is not {self.allowed()}") from None
        limits = self.limits
        if limits.get("choices") and value not in limits["choices"]:
            raise ValueError(f"is not {self.allowed()}")
        low, high, above = limits.get("minimum"), limits.get("maximum"), limits.get("above")
        for number in (value.start, value.end) if isinstance(value, Schedule) else (value,):
            inside = low is None or number >= low
            if not (inside and (high is None or number <= high) and (above is None or number > above)):
                raise ValueError(f"is not {self.allowed()}")
        return value

    def _check_names(self, text: str) -> None:
        names = split_names(text) if self.many else [text]
        for name in names:
            module, _, attribute = name.partition(":")
            if name not in self.table.parts and not (module and attribute):  # type: ignore[union-attr]
                which = f": {name!r}" if self.many else ""
                raise ValueError(
                    f"is not a {self.table.kind}{which}{registry.suggestion(name, self.table.parts)}"  # type: ignore[union-attr]
                )
        if len(set(names)) < len(names):
            raise ValueError(f"names a {self.table.kind} twice")  # type: ignore[union-attr]

    @property
    def plain(self) -> Any:
        """The value as JSON and a flag hold it."""
        if isinstance(self.value, Schedule):
            return self.value.start if self.value.is_constant else str(self.value)
        return self.value


def split_names(text: str) -> list[str]:
    """The names in a list with commas.

    >>> split_names("r1, lecam"), split_names("")
    (['r1', 'lecam'], [])
    """
    return [name.strip() for name in text.split(",") if name.strip()]


_TYPE_NAMES: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Schedule: "a number, or linear:FROM:TO[:KIMG] or cosine:...",
}


def _read(kind: type, text: Any) -> Any:
    if kind is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        if str(text).lower() not in words:
            raise ValueError
        return words[str(text).lower()]
    if kind is Schedule:
        value = Schedule.parse(str(text))
        numbers = [value.start, value.end]
    else:
        value = kind(str(text))
        numbers = [value] if kind is float else []
    if not all(math.isfinite(number) for number in numbers) or (kind is str and "\0" in str(value)):
        raise ValueError
    return value


def entries(config: Any, prefix: str = "") -> Iterator[Entry]:
    """Every field of a config and of the parts it chose, in order, as entries with their current values."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name
        if _is_section(field, value):
            yield from entries(value, name + ".")
            continue
        if not field.init:
            continue
        # A plain field of a user's own part is an option without limits.
        doc, limits = field.metadata.get("doc", f"of {type(config).__name__}"), field.metadata.get("limits", {})
        may_change = field.metadata.get("may_change", False)
        if "table" in field.metadata:
            table = registry.locate(field.metadata["table"])
            many = isinstance(value, tuple)
            chosen = value if many else (value,)
            names = ",".join(each.name for each in chosen)
            yield Entry(name, str, names, doc, may_change, limits, table, many)
            for each in chosen:
                if each.options is not None:
                    yield from entries(each.options, _options_prefix(prefix, field.name, each.name))
        else:
            kinds = typing.get_args(hints[field.name]) or (hints[field.name],)
            if kinds[0] not in _TYPE_NAMES:
                allowed = ", ".join(kind.__name__ for kind in _TYPE_NAMES)
                raise UserError(
                    f"{type(config).__name__}: the option {field.name!r} is of type {kinds[0]}, not of {allowed}"
                )
            yield Entry(name, kinds[0], value, doc, may_change, limits, optional=type(None) in kinds)


def _is_section(field: Any, value: Any) -> bool:
    """Whether a field holds other options, and is none itself."""
    return not field.metadata and dataclasses.is_dataclass(value) and not isinstance(value, Schedule)


def _options_prefix(prefix: str, field: str, part_name: str) -> str:
    """`model.` beside a field called `name`, and beside `extractor`; `data.synthetic.` beside others."""
    return prefix if field in ("name", "extractor") else f"{prefix}{part_name.split(':')[-1]}."


def build(cls: type[C], values: Mapping[str, Any], prefix: str = "") -> C:
    """A config from a flat mapping; names that it lacks keep their defaults.

    Raises:
      UserError: a value that is not allowed, named by its flag.
    """
    config = cls()
    known = {entry.name: entry for entry in entries(config, prefix)}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        name, value = prefix + field.name, getattr(config, field.name)
        if not field.init:
            continue
        if _is_section(field, value):
            value = build(type(value), values, name + ".")
        elif name in values or "table" in field.metadata:
            entry = known[name]
            try:
                value = entry.parse(values.get(name, entry.value))
            except ValueError as error:
                raise UserError(f"--{name}={values[name]} {error}") from None
            if entry.table:
                chosen = tuple(
                    _build_part(entry, each, values, _options_prefix(prefix, field.name, each))
                    for each in (split_names(value) if entry.many else [value])
                )
                value = chosen if entry.many else chosen[0]
        config = dataclasses.replace(config, **{field.name: value})  # type: ignore[type-var]
    return config


def _build_part(entry: Entry, name: str, values: Mapping[str, Any], prefix: str) -> Part:
    try:
        cls = registry.options_class(entry.table, name)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"--{entry.name}: {error}") from error
    return Part(name, build(cls, values, prefix) if cls else None)


def flatten(config: Any) -> dict[str, Any]:
    """The flat mapping of a config, or of other options: of a run's: what config.json holds; `build` is its inverse."""
    return {entry.name: entry.plain for entry in entries(config)}


def chosen(config: Any) -> Iterator[Any]:
    """The options of every part that was chosen."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _is_section(field, value):
            yield from chosen(value)
        elif "table" in field.metadata:
            yield from (
                each.options for each in (value if isinstance(value, tuple) else (value,)) if each.options is not None
            )
