"""Commands whose parameters are dataclasses of options: each field becomes an option. Knows no single command."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

_MISSING = dataclasses.MISSING


def flattened(command: Callable[..., None]) -> Callable[..., None]:
    """The same command for Typer, which knows no dataclasses: their fields, annotated as parameters are, in its place.

    The command is called with one instance of each dataclass.
    """
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if dataclasses.is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation  # type: ignore[assignment]
            parameters += _fields(groups[name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made = {
            name: kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
            for name, kind in groups.items()
        }
        command(**made, **values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def values_of(*groups: Any) -> dict[str, Any]:
    """The fields of several dataclasses by name, as keywords."""
    return {field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}


def _fields(kind: type[Any]) -> list[inspect.Parameter]:
    hints: Mapping[str, Any] = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=inspect.Parameter.empty if field.default is _MISSING else field.default,
        )
        for field in dataclasses.fields(kind)
    ]
