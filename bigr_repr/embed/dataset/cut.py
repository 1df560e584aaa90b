"""Cuts a list of inputs into units. Independent of files.

Units hold whole row groups of Parquet inputs, so that these are read once; a row group that is too large for one unit
fills consecutive units, all handled by one engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bigr_repr.embed.dataset.entry import Entry, as_entry
from bigr_repr.images.find import Source


class Cut:
    """Cuts a list into units of about equal size, at row group boundaries unless row groups are much larger.

    count: units so far; uneven, continued: as in Plan.
    """

    def __init__(self, size: int) -> None:
        self._size, self.count, self.uneven = size, 0, False
        self.continued: list[tuple[int, int]] = []

    def units(self, sources: Iterable[Source]) -> Iterator[list[Entry]]:
        unit, left = list[Entry](), 0  # left: how many inputs of the row group are still to come
        for source in sources:
            within = 0 if source.together or source.start is None else left
            if source.together:
                full = len(unit) + source.together / 2 > self._size
            else:
                full = len(unit) >= self._size and not 0 < within <= self._size // 2
            if unit and full:
                self.uneven |= len(unit) != self._size
                yield self._next(unit, within > 0)
                unit = []
            left = max(0, (source.together or within) - 1)
            unit.append(as_entry(source))
        if unit:
            self.uneven |= len(unit) > self._size
            yield self._next(unit, False)

    def _next(self, unit: list[Entry], again: bool) -> list[Entry]:
        """Count a unit. again: whether the next one begins in the row group in which this one ends."""
        self.count += 1
        if again:
            joined = self.continued and self.continued[-1][1] == self.count - 1
            first = self.continued.pop()[0] if joined else self.count
            self.continued.append((first, self.count))
        return unit
