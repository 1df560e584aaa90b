"""Reads queries and ids from standard input and files: one picture, or a list of paths."""

from __future__ import annotations

import io
import sys
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
    """Ids from a file, one per line, as listed in an index; -: from standard input."""
    from bigr_repr.images.find import escape_path, read_list

    with sys.stdin.buffer if file == "-" else Path(file).open("rb") as stream:
        return [escape_path(path) for path in read_list(stream)]
