"""Files that hold many pictures, Parquet files and tar shards: lists their members.

Knows nothing of models, plans or decoding. A damaged container yields what comes before the damage, and then
an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bigr_repr.images.find import escape_path
from bigr_repr.images.formats import ImageError
from bigr_repr.images.member import Member, member_errors, require_file
from bigr_repr.images.parquet import PARQUET, USUAL_COLUMNS, Columns, parquet_members
from bigr_repr.images.tar import tar_members

_TAR: Final = (".tar", ".tgz", ".tar.gz")


def is_container(file: str) -> bool:
    """Whether a file is a container of many pictures, judging by its name."""
    return _suffix(file) in _TAR + PARQUET


def is_table(file: str) -> bool:
    """Whether a file is a Parquet file, judging by its name."""
    return _suffix(file) in PARQUET


def _suffix(file: str) -> str:
    """The suffix that identifies a container, in lower case; for a URL, that of its path."""
    name = file.lower()
    if name.startswith(("http://", "https://")):
        name = name.partition("#")[0].partition("?")[0]
    return next((suffix for suffix in _TAR + PARQUET if name.endswith(suffix)), "")


def members(file: str, *, labels: bool = False, columns: Columns = USUAL_COLUMNS) -> Iterator[Member]:
    """The pictures in a container, a local path or a URL, in its order; names need not be unique.

    In a tar shard, these are regular files and links with an image suffix; in a Parquet file, all rows of the picture
    column. labels: also read labels, from the label column (numbers become names where the schema's metadata has them)
    or, as in WebDataset, from the member that has the picture's name up to its first dot and the suffix `.cls`; without
    one, a tar member's label is the name of its folder, if it has one.

    Raises ImageError for a container that is missing, damaged, of another kind or without pictures; everything before
    the damage is yielded first.
    """
    member = None
    with member_errors(file):
        require_file(file)
        found = tar_members(file, labels) if _suffix(file) in _TAR else parquet_members(file, labels, columns)
        for member in found:
            yield member
        if member is None:
            raise ImageError("empty", f"{escape_path(file)}: holds no picture")


def why_unreadable(file: str, columns: Columns = USUAL_COLUMNS) -> ImageError:
    """The reason why listing a container failed."""
    try:
        for _ in members(file, labels=columns.label != USUAL_COLUMNS.label, columns=columns):
            pass
    except ImageError as error:
        return error
    return ImageError(
        "corrupt", f"{escape_path(file)}: was damaged when it was listed, and is intact now; add it with update"
    )
