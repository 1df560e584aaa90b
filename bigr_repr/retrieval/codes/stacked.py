"""Concatenates arrays without copying them. Knows nothing of search or files."""

# n rows of all arrays

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["StackedRows", "stacked"]


class StackedRows:
    """An array-like view of the rows of several arrays: sliced forward, taken or copied on demand."""

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self._parts = list(parts)
        self.starts = np.array(list(accumulate(map(len, parts), initial=0)))
        self._rows = int(self.starts[-1])
        first = self._parts[0]
        self.shape, self.dtype, self.ndim = (self._rows, *first.shape[1:]), first.dtype, first.ndim
        self.nbytes = sum(part.nbytes for part in parts)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        if isinstance(rows, slice):
            return self._between(*rows.indices(len(self)))
        if isinstance(rows, int | np.integer):
            return self.take(np.asarray(range(len(self))[int(rows)]))
        listed = np.asarray(rows)
        return self.take(np.flatnonzero(listed) if listed.dtype == np.bool_ else listed)

    def take(self, rows: Any, axis: int = 0, out: None = None, mode: str = "raise") -> NDArray[Any]:
        """As numpy.take along the first axis.  Raises IndexError for a row out of range."""
        wanted = np.asarray(rows, np.int64)
        wanted = wanted + len(self) * (wanted < 0)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"a row outside 0..{len(self) - 1}")
        number = np.searchsorted(self.starts, wanted, "right") - 1
        taken = np.empty((*wanted.shape, *self.shape[1:]), self.dtype)
        for each in np.unique(number).tolist():
            here = number == each
            taken[here] = self._parts[each][wanted[here] - self.starts[each]]
        return taken

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.concatenate([np.asarray(part) for part in self._parts]).astype(dtype or self.dtype, copy=False)

    def _between(self, start: int, stop: int, step: int) -> NDArray[Any]:
        """A slice; a view if within one array.  Raises ValueError for a step below 1."""
        if step < 1:
            raise ValueError(f"step={step} must be at least 1: rows of several arrays are sliced forward only")
        bounds = zip(self._parts, self.starts.tolist(), strict=False)
        pieces = [part[max(0, start - low) : max(0, stop - low)] for part, low in bounds if low < stop]
        held = [piece for piece in pieces if len(piece)] or [self._parts[0][:0]]
        return (held[0] if len(held) == 1 else np.concatenate(held))[::step]


def stacked(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """Concatenated arrays; None if they are missing."""
    held = [part for part in parts if part is not None]
    return cast("NDArray[Any]", StackedRows(held)) if held else None
