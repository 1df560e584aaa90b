"""Reads records: JSON texts that hold an object, in files or in pictures. Knows nothing of what they record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What code raises that takes fields from a record of a wrong form.
_WRONG_FORM = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)


def read_record(path: Path, *, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises ValueError, with the file and the remedy, for anything else in it; OSError if it cannot be read.
    """
    with reading_record(path, remedy=remedy) as record:
        return record


@contextmanager
def reading_record(path: Path, *, remedy: str) -> Iterator[dict[str, Any]]:
    """The same for a block that takes fields from the object: what a wrong form makes it raise is named likewise."""
    data = path.read_bytes()
    with usable(path, remedy):
        yield as_object(parsed(data))


@contextmanager
def usable(place: Path | str, remedy: str) -> Iterator[None]:
    """Turn what a record of a wrong form makes a block raise into a ValueError with its place and the remedy."""
    try:
        yield
    except _WRONG_FORM as error:
        raise ValueError(f"{place} cannot be used: {_words(error)}; {remedy}") from error


def parsed(text: str | bytes) -> Any:
    """The content of a JSON text. Raises ValueError for other text, or for one that is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error


def as_object(value: object) -> dict[str, Any]:
    """A parsed value that is an object. Raises ValueError for any other."""
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__} where an object is expected")
    return value


def _words(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no field {error}"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
