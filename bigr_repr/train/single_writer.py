"""Lets a single process at a time write to a folder. Knows nothing of what is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bigr_repr.system.files import locked


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Lock a folder, which is created, for writing. Raises RuntimeError while another process writes to it."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: another process is writing to this folder; wait for it, or choose another"
    with locked(folder, busy):
        yield
