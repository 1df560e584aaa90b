"""Lets commands take dataclasses of options as parameters: each field becomes an option. Knows no single command.

The fields of a command-line dataclass are annotated like parameters, and may be such dataclasses themselves. A library
dataclass with self-describing fields (see bigr_repr.options) is used as is: its defaults, help texts, choices
and ranges are stated there and nowhere else.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from bigr_repr.options import Option, is_documented, options_of

_OPTION = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True, kw_only=True)
class FieldsOf:
    """In an annotation: the fields of a library dataclass as options; the value is a dict of those given.

    panel: the heading that lists them in the help. flags: command-line names that differ from the fields' names.
    """

    kind: type
    panel: str | None = None
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class _OptionGroup(NamedTuple):
    """Options that `build` combines into one value."""

    parameters: list[inspect.Parameter]
    build: Callable[[dict[str, Any]], Any]


def flattened(command: Callable[..., None]) -> Callable[..., None]:
    """The same command with dataclass parameters replaced by their fields, which is what Typer understands.

    The command is called with one instance of each dataclass.
    """
    parameters, build = _expanded(inspect.signature(command, eval_str=True).parameters.values())

    @functools.wraps(command)
    def run(**values: Any) -> None:
        command(**build(values))

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def values_of(*groups: Any) -> dict[str, Any]:
    """The fields of several dataclasses as keyword arguments."""
    return {each.name: getattr(group, each.name) for group in groups for each in dataclasses.fields(group)}


def _expanded(
    parameters: Iterable[inspect.Parameter],
) -> tuple[list[inspect.Parameter], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Parameters with groups expanded to their options, and a function that rebuilds the groups' values."""
    found: list[inspect.Parameter] = []
    groups: dict[str, _OptionGroup] = {}
    for parameter in parameters:
        group = _group(parameter.annotation)
        found += [parameter.replace(kind=_OPTION)] if group is None else group.parameters
        if group is not None:
            groups[parameter.name] = group

    def build(values: dict[str, Any]) -> dict[str, Any]:
        left, built = dict(values), {}
        for name, group in groups.items():
            built[name] = group.build({each.name: left.pop(each.name) for each in group.parameters})
        return left | built

    return found, build


def _group(annotation: Any) -> _OptionGroup | None:
    """The option group for a parameter with this annotation; None: an ordinary parameter."""
    for note in getattr(annotation, "__metadata__", ()):
        if isinstance(note, FieldsOf):
            return _OptionGroup(_options(note), _given)
    if not (isinstance(annotation, type) and dataclasses.is_dataclass(annotation)):
        return None
    if is_documented(annotation):
        return _OptionGroup(_options(FieldsOf(kind=annotation)), lambda values: annotation(**_given(values)))
    hints = get_type_hints(annotation, include_extras=True)
    parameters, build = _expanded(
        inspect.Parameter(each.name, _OPTION, annotation=hints[each.name], default=_default(each))
        for each in dataclasses.fields(annotation)
    )
    return _OptionGroup(parameters, lambda values: annotation(**build(values)))


def _default(each: dataclasses.Field[Any]) -> Any:
    return inspect.Parameter.empty if each.default is dataclasses.MISSING else each.default


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Given values in the library's form, with text for choices; options not given are left out."""
    known = {name: value for name, value in values.items() if value is not None}
    return {name: str(value) if isinstance(value, StrEnum) else value for name, value in known.items()}


def _options(fields: FieldsOf) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(name, _OPTION, default=None, annotation=_annotation(each, fields))
        for name, each in options_of(fields.kind).items()
    ]


def _annotation(each: Option, fields: FieldsOf) -> Any:
    flag = f"--{each.name.replace('_', '-')}"
    flags = fields.flags.get(each.name, (flag if each.kind is not bool or each.switch else f"{flag}/--no-{flag[2:]}",))
    # If there is a remedy to name, the library checks the range and names it.
    checked = each.kind in (int, float) and not each.remedy
    checks: dict[str, Any] = {"min": each.least, "max": each.most} if checked else {}
    if each.choices:
        checks["metavar"] = "|".join(each.choices) if len(each.choices) < 4 else each.name.upper()
    # Rich treats unescaped square brackets in help texts as markup.
    note = rf" \[default: {each.usual}]" if each.usual else ""
    says = typer.Option(*flags, help=f"{each.help.removesuffix('.')}{note}.", rich_help_panel=fields.panel, **checks)
    kind: Any = StrEnum(each.name, list(each.choices)) if each.choices else each.kind
    return Annotated[kind | None, says]
