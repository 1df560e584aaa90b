"""Dataclasses of options with self-describing fields, shared by Python, command line and web page.

A field made by `option` carries an `Option`: its help, default in words, choices and range. Knows no single option.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

from bigr_repr.config import require

_KEY = "option"
_Kind = TypeVar("_Kind", bound=type)


@dataclass(frozen=True, kw_only=True)
class Option:
    """The description of one field.

    help: one sentence.  usual: the default in words, if the value alone does not tell.  choices: the allowed values.
    least, most: the inclusive range of a number.  remedy: an addition to error messages.
    name, kind, optional, switch: filled in by `options_of`, like a missing `usual`; optional: None is allowed; switch:
    a boolean flag.
    """

    help: str
    usual: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    remedy: str = ""
    name: str = ""
    kind: type = object
    optional: bool = False
    switch: bool = False

    @property
    def range(self) -> str:
        """The allowed range, in words."""
        kind = "a whole number" if self.kind is int else "a number"
        if self.least is None:
            return kind
        if self.most is None:
            return f"{kind} of at least {self.least:g}"
        return f"{kind} in {self.least:g}..{self.most:g}".replace("e-0", "e-").replace("e+0", "e")

    def check(self, value: Any) -> None:
        """Raise ValueError, naming field, value and remedy, for an invalid value."""
        if value is None and self.optional:
            return
        if self.choices:
            rule, ok = f"choose one of {', '.join(self.choices)}", value in self.choices
        elif self.kind is bool:
            rule, ok = "it must be True or False", isinstance(value, bool)
        elif self.kind is str:
            rule, ok = "it must be text", isinstance(value, str)
        else:
            rule = f"it must be {self.range}"
            ok = isinstance(value, Integral if self.kind is int else Real) and not isinstance(value, bool)
            ok = ok and (self.least is None or self.least <= value) and (self.most is None or value <= self.most)
        require(ok, self.name, value, f"{rule}; {self.remedy}" if self.remedy else rule)


_FOUND: dict[type, types.MappingProxyType[str, Option]] = {}


def option(default: Any, help: str, **says: Any) -> Any:
    """A dataclass field with an `Option`."""
    return dataclasses.field(default=default, metadata={_KEY: Option(help=help, **says)})


def is_documented(kind: type) -> bool:
    """Whether the fields of a dataclass describe themselves."""
    return all(_KEY in each.metadata for each in dataclasses.fields(kind))


def options_of(kind: type) -> types.MappingProxyType[str, Option]:
    """The options of a dataclass, by name."""
    if kind in _FOUND:
        return _FOUND[kind]
    hints, found = typing.get_type_hints(kind), {}
    for each in dataclasses.fields(kind):
        alternatives = set(typing.get_args(hints[each.name])) or {hints[each.name]}
        (plain,) = alternatives - {types.NoneType}
        said, default = each.metadata[_KEY], each.default
        found[each.name] = dataclasses.replace(
            said,
            name=each.name,
            kind=plain,
            optional=types.NoneType in alternatives,
            switch=default is False,
            usual=said.usual or _in_words(default),
        )
    return _FOUND.setdefault(kind, types.MappingProxyType(found))


def _in_words(default: Any) -> str:
    """A self-explanatory default; "" for None and for a switch."""
    if default is None or isinstance(default, bool):
        return "yes" if default else ""
    return f"{default}".removesuffix(".0")


def check_options(options: Any) -> None:
    """Check every field of a dataclass of options. Raises ValueError.

    Numbers of NumPy become Python's, which JSON accepts, too.
    """
    for name, each in options_of(type(options)).items():
        value = getattr(options, name)
        each.check(value)
        if isinstance(value, Real) and not isinstance(value, int | float):
            object.__setattr__(options, name, int(value) if isinstance(value, Integral) else float(value))


def documented(kind: _Kind) -> _Kind:
    """A decorator that adds the fields' descriptions to the docstring."""
    lines = [f"    {name}: {each.help}" for name, each in options_of(kind).items()]
    kind.__doc__ = "\n".join([kind.__doc__ or "", *lines])
    return kind
