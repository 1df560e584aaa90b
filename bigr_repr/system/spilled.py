"""Arrays that move to a temporary file when they are large, and sorting them there.

Knows nothing of what the records are. A temporary file has no name and vanishes with the process; it is in the
system's folder for temporary files (TMPDIR).
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bigr_repr.system.files import naming, reserve

IN_MEMORY: Final = 16 << 20  # arrays up to this size in bytes are held in memory
_CHUNK: Final = 8 << 20  # bytes processed at a time
_BUCKETS: Final = 256


class SpilledArray:
    """A one-dimensional array, in memory or, above so many bytes, in a temporary file, to read and write in place.

    Initially all zeros.  Raises OSError, which names the folder, if the disk is full.
    """

    def __init__(self, count: int, dtype: DTypeLike, in_memory: int = IN_MEMORY) -> None:
        kind = np.dtype(dtype)
        self._map: mmap.mmap | None = None
        size = count * kind.itemsize
        if size <= in_memory:
            self.values: NDArray[Any] = np.zeros(count, kind)
            return
        place = Path(tempfile.gettempdir())
        with naming(place), tempfile.TemporaryFile(dir=place) as file:
            reserve(file, size)
            self._map = mmap.mmap(file.fileno(), size)
        self.values = np.frombuffer(self._map, kind)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def spilled(self) -> bool:
        """Whether the array is in a file."""
        return self._map is not None

    def release(self) -> None:
        """Release the memory used by reading and writing; the file keeps its content."""
        if self._map is not None and hasattr(self._map, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def chunks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """The array in pieces of some megabytes, each with its offset; memory is released after each."""
        step = max(1, _CHUNK // self.values.itemsize)
        for start in range(0, len(self.values), step):
            yield start, self.values[start : start + step]
            self.release()


def sorted_by(array: SpilledArray, field: str, in_memory: int = IN_MEMORY) -> SpilledArray:
    """The records sorted by a field of bytes; the sort is stable.

    Large arrays are split by the field's first byte, and each part is sorted separately: the field should be as random
    as a digest.
    """
    if not array.spilled:
        array.values = array.values[np.argsort(array.values[field], kind="stable")]
        return array
    counts = np.zeros(_BUCKETS, np.int64)
    for _, chunk in array.chunks():
        counts += np.bincount(_first_bytes(chunk, field), minlength=_BUCKETS)
    ends = np.cumsum(counts)
    ordered, at = SpilledArray(len(array), array.values.dtype, in_memory), ends - counts
    for _, chunk in array.chunks():
        first = _first_bytes(chunk, field)
        order = np.argsort(first, kind="stable")
        bounds = np.searchsorted(first[order], np.arange(_BUCKETS + 1))
        for bucket, (start, stop) in enumerate(pairwise(bounds)):
            ordered.values[at[bucket] : at[bucket] + stop - start] = chunk[order[start:stop]]
        at += np.diff(bounds)
        ordered.release()
    for start, stop in zip(ends - counts, ends, strict=True):
        share = ordered.values[start:stop]
        share[:] = share[np.argsort(share[field], kind="stable")]
        ordered.release()
    return ordered


def columns_of(array: SpilledArray, in_memory: int = IN_MEMORY) -> dict[str, SpilledArray]:
    """The fields of records, each as an array of its own."""
    names = array.values.dtype.names or ()
    columns = {name: SpilledArray(len(array), array.values.dtype[name], in_memory) for name in names}
    for start, chunk in array.chunks():
        for name, column in columns.items():
            column.values[start : start + len(chunk)] = chunk[name]
            column.release()
    return columns


def _first_bytes(records: NDArray[Any], field: str) -> NDArray[np.uint8]:
    keys = np.ascontiguousarray(records[field])
    return keys.view(np.uint8).reshape(len(keys), -1)[:, 0]
