"""Which rows of an index to search: an expression, a pattern of paths, a list of ids. Knows no index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Filter", "as_filter"]

_MOST_IDS: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Rows that pass all that is given.

    where: an expression over the columns that the index keeps, and `path`, in SQL's words: = != < <= > >=, in (…),
    between … and …, like "a%", ilike, is null, and, or, not, brackets; text in quotes, `odd name` in backquotes. As in
    SQL, a null passes no comparison. match: a pattern of paths: * is any text, slashes too, ? any character; a path is
    its own pattern. ids: the only ones.

    Raises ValueError for an expression that cannot be read, or too many ids.
    """

    where: str | None = None
    match: str | None = None
    ids: tuple[str, ...] | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.where is not None:
            from bigr_repr.retrieval.codes.where import parse_where

            parse_where(self.where)
        if self.ids is not None:
            object.__setattr__(self, "ids", tuple(self.ids))
            if len(self.ids) > _MOST_IDS:
                raise ValueError(f"ids: {len(self.ids):,} are more than {_MOST_IDS:,}; filter by a column that is kept")


def as_filter(where: str | Filter | None) -> Filter | None:
    """What a search's `where` means; None: all rows."""
    found = Filter(where=where) if isinstance(where, str) else where
    return None if found == Filter() else found
