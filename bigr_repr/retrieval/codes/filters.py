"""Which rows of an index to search: an expression, a path pattern, or a list of ids. Knows no index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Filter", "as_filter"]

_MOST_IDS: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Rows that satisfy all given conditions.

    where: an expression over the index's columns and `path`, in SQL syntax: = != < <= > >=, in (…), between … and …,
    like "a%", ilike, is null, and, or, not, parentheses; text in quotes, `odd name` in backquotes. As in SQL, null
    fails every comparison. match: a path pattern: * matches any text, including slashes, ? any character; a path
    matches itself. ids: only these.

    Raises ValueError for an invalid expression or too many ids.
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
                raise ValueError(f"ids: {len(self.ids):,} are more than {_MOST_IDS:,}; filter by a kept column")


def as_filter(where: str | Filter | None) -> Filter | None:
    """The filter that a search's `where` stands for; None: all rows."""
    found = Filter(where=where) if isinstance(where, str) else where
    return None if found == Filter() else found
