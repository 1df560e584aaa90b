"""One picture in a file that holds many. Knows nothing of kinds of files."""

from __future__ import annotations

from typing import Final, NamedTuple

# In place of a start: a member that is listed and cannot be read, and why.
SPARSE: Final = -1
NOWHERE: Final = -2
REASONS: Final = {
    SPARSE: "a sparse member cannot be read in place; write the tar file without -S",
    NOWHERE: "a link to nothing in the tar file",
}


class Member(NamedTuple):
    """A picture in a container. start: a Parquet file's row, size being None, or where a tar member's bytes begin.

    start < 0: it cannot be read, for one of REASONS. name: of the member, or the row's number; may hold surrogate
    escapes. label: what the container says it is, if that.
    """

    name: str
    start: int
    size: int | None
    label: str | None
