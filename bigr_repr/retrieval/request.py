"""What a search asks of an index, and the answer of an index of any kind. Knows nothing of pictures or servers."""

# q queries, k neighbors, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from bigr_repr.retrieval.codes.regions import Region
from bigr_repr.retrieval.index.grouping import Grouped, group_hits
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.neighbors import Found, Within
from bigr_repr.retrieval.stores.base import StoreIndex

__all__ = ["AnyIndex", "Asked", "QueryCodes", "SearchRequest", "codes_are_tokens"]

AnyIndex: TypeAlias = HammingIndex | StoreIndex


class QueryCodes(NamedTuple):
    """Queries in the form of an index's rows. codes: uint8 (q, bytes).

    tokens: the tokenizer's codes, uint8 (q, bytes); vectors: float32 (q, D); None if unknown.
    """

    codes: NDArray[np.uint8]
    tokens: NDArray[np.uint8] | None = None
    vectors: NDArray[Any] | None = None


class Asked(Within, total=False):
    """How to search, in addition to Within.

    rescore, region, effort: as in HammingIndex.rescored, search_region and search. weights: one per query, to combine
    all into one, as in find_together; a negative one favors rows far from its query. group: hits that differ from a
    nearer one in at most this many bits are listed under it. deepest: only so many of the nearest hits are grouped.
    """

    rescore: int
    region: Region | None
    effort: int | None
    weights: Sequence[float] | None
    group: int | None
    deepest: int | None


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """A search for the k nearest rows; see Asked. within: restrictions of the search.

    Raises ValueError for what excludes each other.
    """

    k: int
    within: Within
    rescore: int = 0
    region: Region | None = None
    effort: int | None = None
    weights: Sequence[float] | None = None
    group: int | None = None
    deepest: int | None = None

    @classmethod
    def of(cls, k: int, asked: Asked) -> SearchRequest:
        """The request from keyword arguments."""
        narrowed: dict[str, Any] = {name: asked[name] for name in Within.__annotations__ if name in asked}  # type: ignore[literal-required]
        others: dict[str, Any] = {name: value for name, value in asked.items() if name not in narrowed}
        return cls(k=k, within=cast("Within", narrowed), **others)

    def __post_init__(self) -> None:
        if self.weights is not None and self.effort is not None:
            raise ValueError("several pictures as one query are compared with all rows: leave effort out")
        if self.region is not None and self.rescore:
            raise ValueError("a region is compared only by bits: leave rescore out")

    def answer(self, index: AnyIndex, queries: QueryCodes) -> Grouped:
        """The hits of each query, or of all combined; without group, members is empty.

        Raises ValueError for what the index or the queries lack, or numbers out of range.
        """
        if self.group is None:
            return Grouped(self._found(index, queries, self.k, self.within), [])
        whole: Within = {**self.within, "offset": 0}
        return group_hits(
            index, lambda depth: self._found(index, queries, depth, whole), self.k, self.group,
            offset=self.within.get("offset", 0), deepest=self.deepest,
        )  # fmt: skip

    def _found(self, index: AnyIndex, queries: QueryCodes, k: int, within: Within) -> Found:
        codes = queries.codes if self.region is None else _tokens_of(index, queries)
        if self.rescore and queries.vectors is None:
            raise ValueError(
                "this query has no vector, which rescoring needs: search by picture, or by id in an index built with "
                "vectors"
            )
        if self.weights is not None:
            if isinstance(index, StoreIndex):
                raise ValueError("a store compares one code at a time: combine several in the index folder instead")
            from bigr_repr.retrieval.index.combined import find_together

            return find_together(
                index, codes, self.weights, k, region=self.region, vectors=queries.vectors, rescore=self.rescore,
                **within,
            )  # fmt: skip
        if self.region is not None:
            return index.find_region(codes, self.region, k, **within)
        if queries.vectors is not None and self.rescore:
            return index.find_rescored(codes, queries.vectors, k, rescore=self.rescore, effort=self.effort, **within)
        return index.find(codes, k, effort=self.effort, **within)


def codes_are_tokens(index: AnyIndex) -> bool:
    """Whether the searched codes are the tokenizer's, so that they can be decoded."""
    return isinstance(index, HammingIndex) and index.has_tokens and index.rows.tokens is None


def _tokens_of(index: AnyIndex, queries: QueryCodes) -> NDArray[np.uint8]:
    """The queries' tokenizer codes, which regions are compared by."""
    index.token_layout()  # raises
    if queries.tokens is not None:
        return queries.tokens
    if not codes_are_tokens(index):
        raise ValueError("a region needs the query's tokenizer code: search by picture or id")
    return queries.codes
