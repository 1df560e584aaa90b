"""Folders for temporary files, removed even after a crash. Knows nothing of what is in them."""

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
_NEW: Final = 60.0  # seconds during which an unlocked folder may be one that is just being created


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder in the system's folder for temporary files (TMPDIR), which is removed at the end.

    If a process is killed, the next call removes its folder. Raises OSError if no folder can be created.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError, RuntimeError):  # another user's, in use, or removed by another process in the meantime
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
