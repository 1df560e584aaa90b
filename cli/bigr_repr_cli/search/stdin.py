"""Reads queries and ids from standard input and files: one picture, or a list of paths."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_MOST = 256 << 20  # bytes
_SPACES = b"\0\t\n\r"


def read_queries(stream: BinaryIO) -> list[str] | dict[str, bytes]:
    """A picture's encoded bytes under the name "-", or paths, one per line.

    Raises ValueError for nothing, or more than 256 MiB.
    """
    from bigr_repr.images.find import read_list

    data = stream.read(_MOST + 1)
    if not data.strip() or len(data) > _MOST:
        raise ValueError(f"standard input holds {'nothing' if len(data) <= _MOST else 'more than 256 MiB'}")
    if any(
        byte < 32 and byte not in _SPACES for byte in data[:1024]
    ):  # paths never contain these bytes, pictures always do
        return {"-": data}
    return list(read_list(io.BytesIO(data)))


def listed_ids(file: str) -> list[str]:
    """Ids from a file, one per line, as listed in an index, or paths that are not valid UTF-8; -: standard input."""
    from bigr_repr.images.find import read_list

    with sys.stdin.buffer if file == "-" else Path(file).open("rb") as stream:
        return [_as_listed(path) for path in read_list(stream)]


def given_ids(ids: Iterable[str]) -> list[str]:
    """Ids from the command line as listed in an index: those that hold bytes of no valid UTF-8 are escaped."""
    from bigr_repr.images.find import escape_path

    return [escape_path(id) if _holds_bytes(id) else id for id in ids]


def _as_listed(path: str) -> str:
    """A path in the form in which indexes list it, in which it may already be."""
    from bigr_repr.images.find import escape_path, unescape_path

    listed = not _holds_bytes(path) and escape_path(unescape_path(path)) == path
    return path if listed else escape_path(path)


def _holds_bytes(path: str) -> bool:
    """Whether a path holds bytes that are not valid UTF-8, as surrogates."""
    return any("\ud800" <= letter <= "\udfff" for letter in path)
