"""Folders for temporary files that do not outlive their process for long. Knows nothing of what is in them."""

from __future__ import annotations

import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from bigr_repr.system.files import locked

_PREFIX: Final = "bigr-repr-"
_NEW: Final = 60.0  # seconds in which a folder that nobody holds may be one that is just being made


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder in the system's folder for temporary files (TMPDIR), of this user only, which is removed at the end.

    A killed process cannot remove its own: the next call does. Raises OSError where no folder can be made.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError, RuntimeError):  # another user's, in use, or removed by someone else meanwhile
            _remove_left(old)
    made = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
    with made as name, locked(Path(name), f"{name}: in use"):
        yield Path(name)


def _remove_left(folder: Path) -> None:
    """Remove a folder that no process holds."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or time.time() - found.st_mtime < _NEW:
        return
    with locked(folder, f"{folder}: in use") as held:
        if held is not None:  # None: this system cannot tell
            shutil.rmtree(folder)
