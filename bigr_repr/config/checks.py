"""Checks of configuration fields, with errors that name the field, its value and the rule."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any, SupportsIndex, TypeVar

_T = TypeVar("_T")
_SHOWN = 80  # characters of a value in an error
# Upper limits of configuration fields, if not 65 536.
_MOST = {
    "layers": 1024, "heads": 4096, "transcoder_blocks": 1024, "res_blocks": 1024, "in_channels": 64, "grid": 4096,
    "code_bits": 4096, "classes": 10_000_000, "train_timesteps": 1_000_000, "sample_timesteps": 1_000_000,
    "caption_tokens": 4096,
}  # fmt: skip


def require(ok: bool, name: str, value: object, rule: str) -> None:
    """Raise ValueError, naming the field `name`, its value and the rule, unless ok."""
    if not ok:
        said = repr(value)
        said = said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"
        raise ValueError(f"{name}={said} is not allowed: {rule}")


def is_count(value: object) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_counts(config: object, *names: str) -> None:
    """Raise ValueError unless these fields are whole numbers of at least 1 and within their upper limits."""
    for name in names:
        value = getattr(config, name)
        require(is_count(value), name, value, "it must be a whole number of at least 1")
        most = _MOST.get(name, 1 << 16)  # otherwise a few bytes of JSON could fill memory
        require(value <= most, name, value, f"it must be at most {most}")


def from_fields(cls: type[_T], data: Mapping[str, Any], where: str) -> _T:
    """A configuration from plain data, as read from JSON.

    Raises ValueError that names `where`, and unknown or missing fields.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} is a {type(data).__name__} where an object is expected")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - fields.keys()):
        raise ValueError(f"{where} has unknown fields {unknown}; known are {sorted(fields)}")
    if missing := [name for name, field in fields.items() if name not in data and _is_needed(field)]:
        raise ValueError(f"{where} lacks the fields {missing}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is field.default_factory is dataclasses.MISSING


def block_index(layer: SupportsIndex | str, blocks: int, model: str) -> int:
    """The block, 0..blocks-1, that `layer` means: 0-based, negative from the end, or "mid", the middle one.

    NumPy's and other whole numbers count as ints. Raises ValueError for anything else and for a layer out of range.
    """
    if isinstance(layer, str) and layer == "mid":
        return blocks // 2
    number = None if isinstance(layer, str | bool) else _whole(layer)
    if number is None:
        raise ValueError(f'layer={layer!r} is neither a whole number nor "mid"')
    if not -blocks <= number < blocks:
        limit = f"0..{blocks - 1} for {model} (or -{blocks}..-1 from the end)"
        raise ValueError(f"layer={number} is outside {limit}; see: bigr-repr models info NAME")
    return number % blocks


def _whole(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None
