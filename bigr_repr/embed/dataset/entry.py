"""One planned input. Independent of how it was found or is read."""

from __future__ import annotations

import os
from typing import NamedTuple

from bigr_repr.images.find import Source, escape_path
from bigr_repr.system.object_store import is_url

_NO_FOLDER = (None, ".")


class Entry(NamedTuple):
    """One input. path: as recorded, escaped to be text; file: an absolute path in the system's encoding, or a URL.

    start, size, label: the part of the file, and its label there, as in bigr_repr.images.Source.
    """

    path: str
    file: str
    start: int | None = None
    size: int | None = None
    label: str | None = None


def same_label(one: str | None, other: str | None) -> bool:
    """Whether two labels of one input are equal; earlier versions wrote "." where a tar member is in no folder."""
    return one == other or (one in _NO_FOLDER and other in _NO_FOLDER)


def as_entry(source: Source) -> Entry:
    """An input in the form that plans store."""
    file = source.file if is_url(source.file) else os.path.abspath(source.file)  # noqa: PTH100 - keeps symbolic links
    return Entry(escape_path(source.path), file, source.start, source.size, source.label)
