"""Stored rows, minus those that an index has dropped since. Knows nothing of search or files.

Removing rows from files would take as long as rewriting the files. Instead, the numbers of dropped rows are recorded,
and the remaining rows are renumbered.
"""

# n rows, s stored rows, g of them dropped

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray


class Gaps:
    """Which of `stored` rows are dropped: int64 (g,), ascending. The others are the rows 0, 1, … of the index.

    Raises ValueError for numbers that are not ascending, or out of range.
    """

    def __init__(self, gone: NDArray[np.int64], stored: int) -> None:
        if len(gone) and (gone[0] < 0 or gone[-1] >= stored or (np.diff(gone) <= 0).any()):
            raise ValueError(f"rows that are gone must be ascending, in 0..{stored - 1}")
        self.gone, self.stored = gone, stored
        self._before = gone - np.arange(len(gone))  # rows of the index before each gap

    def __len__(self) -> int:
        return self.stored - len(self.gone)

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows of the index are stored."""
        return rows + np.searchsorted(self._before, rows, "right")

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the index, given where they are stored; none may be dropped."""
        return places - np.searchsorted(self.gone, places)

    def lost(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some stored rows are dropped."""
        if not len(self.gone):
            return np.zeros(places.shape, np.bool_)
        at = np.searchsorted(self.gone, places).clip(max=len(self.gone) - 1)
        return np.asarray(self.gone[at] == places)

    def more(self, gone: NDArray[np.int64], stored: int) -> Gaps:
        """Gaps with more stored rows, and more of them dropped."""
        return Gaps(np.union1d(self.gone, gone), stored)


class LiveRows:
    """An array-like view of the rows of a stored array that are not dropped: sliced, taken or copied on demand."""

    def __init__(self, stored: NDArray[Any], gaps: Gaps) -> None:
        self.stored, self.gaps = stored, gaps
        self.shape, self.dtype, self.ndim = (len(gaps), *stored.shape[1:]), stored.dtype, stored.ndim
        self.nbytes = stored.nbytes // max(1, len(stored)) * len(gaps)

    def __len__(self) -> int:
        return len(self.gaps)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        if isinstance(rows, slice):
            return self._between(*rows.indices(len(self)))
        if isinstance(rows, int | np.integer):
            return np.asarray(self.stored[self.gaps.places(np.asarray(range(len(self))[int(rows)]))])
        listed = np.asarray(rows)
        return self.take(np.flatnonzero(listed) if listed.dtype == np.bool_ else listed)

    def take(self, rows: Any, axis: int = 0, out: None = None, mode: str = "raise") -> NDArray[Any]:
        """As numpy.take along the first axis."""
        wanted = np.asarray(rows, np.int64)
        return self.stored.take(self.gaps.places(wanted + len(self) * (wanted < 0)), axis=0, mode=mode)  # type: ignore[call-overload, no-any-return]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self._between(0, len(self), 1).astype(dtype or self.dtype, copy=False)

    def _between(self, start: int, stop: int, step: int) -> NDArray[Any]:
        """A slice; a view if it contains no gaps."""
        if stop <= start:
            return self.stored[:0]
        low, high = (int(self.gaps.places(np.asarray(row))) for row in (start, stop - 1))
        gone = self.gaps.gone[np.searchsorted(self.gaps.gone, low) : np.searchsorted(self.gaps.gone, high)]
        block = self.stored[low : high + 1]
        return (np.delete(block, gone - low, axis=0) if len(gone) else block)[::step]


def live_rows(stored: NDArray[Any], gaps: Gaps | None) -> NDArray[Any]:
    """The rows of a stored array that are not dropped; the array itself if there are no gaps."""
    return stored if gaps is None else cast("NDArray[Any]", LiveRows(stored, gaps))


def stored_rows(rows: Any) -> tuple[NDArray[Any], Gaps | None]:
    """The inverse of live_rows."""
    return (rows.stored, rows.gaps) if isinstance(rows, LiveRows) else (rows, None)
