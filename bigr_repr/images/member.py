"""One picture in a file that holds many, and the errors of such files. Knows nothing of file formats."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from bigr_repr.images.find import escape_path, one_line
from bigr_repr.images.formats import ErrorKind, ImageError
from bigr_repr.system.object_store import is_url

# Special values of start: the member is listed but cannot be read, and why.
SPARSE: Final = -1
NOWHERE: Final = -2
REASONS: Final = {
    SPARSE: "a sparse member cannot be read in place; write the tar file without -S",
    NOWHERE: "a link to nothing in the tar file",
}


class Member(NamedTuple):
    """A picture in a container. start: the row of a Parquet file (size is None), or the offset of a tar member's bytes.

    start < 0: it cannot be read, for one of REASONS. name: the member's name or the row's number; may contain surrogate
    escapes. label: the container's label for it, if any. together: for the first row of a Parquet file's row group,
    the number of members that are read together.
    """

    name: str
    start: int
    size: int | None
    label: str | None
    together: int | None = None


def require_file(file: str) -> None:
    """Raises ImageError for a local path that is not a regular, non-empty file."""
    if is_url(file):
        return
    status = Path(file).stat()
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise ImageError("unreadable", f"{escape_path(file)}: is a folder; name the files in it")
    if not stat.S_ISREG(mode):  # opening a pipe could wait for ever
        raise ImageError("unreadable", f"{escape_path(file)}: is not a regular file; save it as one")
    if not status.st_size:
        raise ImageError("empty", f"{escape_path(file)}: the file is empty; fetch it again")


@contextmanager
def member_errors(file: str) -> Iterator[None]:
    """Turn the errors of container readers into an ImageError."""
    name = one_line(escape_path(file))
    try:
        yield
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing", f"{name}: no such file") from None
    except (OSError, ValueError, tarfile.TarError, pa.ArrowException) as error:
        said = one_line(" ".join(str(error).split()))[:200]
        if isinstance(error, PermissionError | ConnectionError) or getattr(error, "errno", None) or "AWS Error" in said:
            said = getattr(error, "strerror", None) or said
            kind: ErrorKind = "unreachable" if isinstance(error, ConnectionError) else "unreadable"
            raise ImageError(kind, f"{name}: {said.removeprefix(f'{name}: ')}") from error
        raise ImageError("corrupt", f"{name}: the file is damaged; fetch it again ({said})") from error
