"""Options that several commands share, and dataclasses of options as options of the command line. Knows no command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import typer

from bigr_repr.sampling.fields import Option, options_of

Parameters = dict[str, inspect.Parameter]


class Group(NamedTuple):
    """Options that stand together: a command gets one value, which `build` makes of theirs."""

    parameters: Parameters
    build: Callable[[dict[str, Any]], Any]


def declared(function: Callable[..., None]) -> Parameters:
    """The parameters of a function, which is only there to state them."""
    return dict(inspect.signature(function, eval_str=True).parameters)


def fields_of(
    kind: type, *, panel: str | None = None, flags: Mapping[str, tuple[str, ...]] | None = None
) -> Parameters:
    """The fields of a dataclass of options as parameters of a command; what is not given is None.

    flags: names on the command line, where these are not the fields' own.
    """
    return {
        name: inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if each.kind is bool else None,
            annotation=_annotation(each, (flags or {}).get(name, (f"--{name.replace('_', '-')}",)), panel),
        )
        for name, each in options_of(kind).items()
    }


def _annotation(each: Option, flags: tuple[str, ...], panel: str | None) -> Any:
    checks: dict[str, Any] = {"min": 1} if each.kind is int else {}
    if each.choices:
        checks["metavar"] = "|".join(each.choices) if len(each.choices) < 4 else each.name.upper()
    # Rich takes square brackets in help texts for markup, unless they are escaped.
    note = rf" \[default: {each.usual}]" if each.usual else ""
    says = typer.Option(*flags, help=f"{each.help.removesuffix('.')}{note}.", rich_help_panel=panel, **checks)
    if each.kind is bool:
        return Annotated[bool, says]
    kind: Any = StrEnum(each.name, list(each.choices)) if each.choices else each.kind
    return Annotated[kind | None, says]


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as the library takes them: text for choices."""
    return {name: str(value) if isinstance(value, StrEnum) else value for name, value in values.items()}


def takes(**groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: adds the options of groups to a command, whose parameters of their names get what they build."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [each for name, each in declared(command).items() if name not in groups]
        parameters = own + [each for group in groups.values() for each in group.parameters.values()]
        keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            built = {
                name: group.build(plain({option: values.pop(option) for option in group.parameters}))
                for name, group in groups.items()
            }
            command(**values, **built)

        run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in keywords}
        return run

    return decorate
