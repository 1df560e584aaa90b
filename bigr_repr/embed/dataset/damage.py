"""Damaged files of a data set: named in errors, and noted next to the plan, so that the next run repairs them.

Independent of their contents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import pyarrow as pa

from bigr_repr.system.files import replacing
from bigr_repr.system.filesystems import StoreError
from bigr_repr.system.object_store import Place

MEND: Final = "repair it by repeating the bigr-repr embed command with --verify"
_NOTED: Final = (
    "repair it by repeating the bigr-repr embed command, which re-embeds its images; --verify checks all files"
)
PART: Final = re.compile(r"part-(\d{5,})\.parquet")  # files of rows, with the number of their unit
_NOTE: Final = "damaged-"
_ELSEWHERE: Final = (ConnectionError, PermissionError, FileNotFoundError, StoreError)  # the file itself may be intact


@contextmanager
def damage_named(file: Place, run: Place | None = None, remedy: str = MEND) -> Iterator[None]:
    """Make pyarrow's errors about a damaged file name the file and the remedy.

    run: the folder in which a damaged part of a data set is noted, if it exists and is writable.
    """
    try:
        yield
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        if getattr(error, "errno", None) or isinstance(error, _ELSEWHERE):
            raise
        if run is not None and note_damage(file, run):
            remedy = _NOTED
        raise ValueError(f"{file}: damaged ({' '.join(str(error).split())[:300]}); {remedy}") from error


def note_damage(file: Place, run: Place) -> bool:
    """Note a part as damaged; returns whether that succeeded."""
    with suppress(OSError):
        if PART.fullmatch(file.name) and run.is_dir():
            with replacing(run / f"{_NOTE}{file.name}"):
                return True
    return False


def noted(run: Place) -> set[int]:
    """Numbers of the units whose parts were found damaged by readers."""
    found = (PART.fullmatch(place.name.removeprefix(_NOTE)) for place in run.glob(f"{_NOTE}part-*.parquet"))
    return {int(match[1]) for match in found if match is not None}


def forget_damage(run: Place) -> None:
    """Remove all such notes."""
    for unit in noted(run):
        (run / f"{_NOTE}part-{unit:05d}.parquet").unlink(missing_ok=True)
