"""A sharded index: each shard is an index folder; they are searched together or by processes. Knows no images.

Rows are numbered across all shards, and the shards' hits are merged exactly: ties are in row order.
"""

# n rows, q queries, k neighbors

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import numpy as np
from numpy.typing import NDArray

from bigr_repr.retrieval.codes.filters import Filter
from bigr_repr.retrieval.codes.regions import Region, TokenLayout
from bigr_repr.retrieval.codes.rows import IndexRows
from bigr_repr.retrieval.codes.source import DataSource
from bigr_repr.retrieval.index.neighbors import Found, Within
from bigr_repr.retrieval.index.parts import Parts
from bigr_repr.retrieval.index.scan import Scanned, nearest_of
from bigr_repr.retrieval.index.shard_list import REMEDY

if TYPE_CHECKING:
    from bigr_repr.retrieval.index.shard_workers import Load, ShardWorkers

__all__ = ["Shard", "Shards"]


class Shard(Protocol):
    """The interface of a shard, implemented by HammingIndex."""

    rows: IndexRows
    layout: TokenLayout | None

    def __len__(self) -> int: ...

    @property
    def parts(self) -> Parts: ...

    def to(self, device: str) -> Any: ...

    def find(self, queries: NDArray[np.uint8], k: int, *, effort: int | None, **within: Unpack[Within]) -> Found: ...

    def find_region(self, queries: NDArray[np.uint8], region: Region, k: int, **within: Unpack[Within]) -> Found: ...


class Shards:
    """Opened, compatible shards.

    processes: number that search them, each with its share of the cores and of the shards; 1: this one.
    load: opens a folder in these processes, which have opened theirs when the constructor returns.
    Raises ValueError for an incompatible shard, RuntimeError if a process cannot be started.
    """

    def __init__(self, opened: Sequence[Shard], folders: Sequence[Path], processes: int, load: Load) -> None:
        if processes < 1:
            raise ValueError(f"processes={processes} must be at least 1")
        self._opened = list(opened)
        for folder, shard in zip(folders, opened, strict=True):
            if (found := _make(shard)) != (first := _make(opened[0])):
                differs = next(name for name in first if first[name] != found[name])
                raise ValueError(f"{folder} differs in {differs} from the other shards; {REMEDY}")
        self.starts = np.cumsum([0, *map(len, opened)]).tolist()
        processes = min(processes, len(folders))
        self._workers: ShardWorkers | None = None
        if processes > 1:
            from bigr_repr.retrieval.index.shard_workers import ShardWorkers

            self._workers = ShardWorkers(folders, processes, load)
        self.apart = self._workers is not None

    def __len__(self) -> int:
        return len(self._opened)

    def joined(self) -> Parts:
        """The combined parts: the shards' rows concatenated, without copying."""
        parts = [shard.parts for shard in self._opened]
        first, rows = parts[0], [part.rows for part in parts]
        sources = [part.source for part in parts if part.source is not None]
        checks = [part.self_check for part in parts if part.self_check is not None]
        efforts = {part.settings.effort for part in parts}
        return Parts(
            IndexRows.of_all(rows), first.n_bits,
            first.settings if len(efforts) == 1 else replace(first.settings, effort=None), None, first.binarizer,
            first.layout, first.provenance, min(checks, key=lambda check: check.recall, default=None),
            DataSource.joined(sources) if len(sources) == len(parts) else None,
        )  # fmt: skip

    def nearest(self, queries: NDArray[np.uint8], k: int, effort: int | None, chosen: Filter | None) -> Scanned:
        """The k nearest rows of all shards that pass a filter."""
        found = self._merged(k, _nearest, queries, k, effort, chosen)
        return found if chosen is None else _held(found)

    def in_region(self, queries: NDArray[np.uint8], k: int, region: Region, chosen: Filter | None) -> Scanned:
        """The k nearest rows by the tokenizer's bits inside a region."""
        return _held(self._merged(k, _nearest_in_region, queries, k, region, chosen))

    def to(self, device: str) -> None:
        """See HammingIndex.to.  Raises ValueError for a GPU if processes search."""
        if self._workers is not None and device == "cuda":
            raise ValueError(
                "device='cuda': several processes cannot share a GPU well; open the shards with processes=1"
            )
        for shard in self._opened if self._workers is None else []:
            shard.to(device)

    def close(self) -> None:
        """End the processes."""
        if self._workers is not None:
            self._workers.close()

    def _merged(self, k: int, search: Callable[..., Scanned], *asked: Any) -> Scanned:
        found = self._found(search, asked)
        numbered = [
            Scanned(np.where(rows < 0, -1, rows + start), distances)
            for (rows, distances), start in zip(found, self.starts, strict=False)
        ]
        return nearest_of(numbered, k)

    def _found(self, search: Callable[..., Scanned], asked: tuple[Any, ...]) -> list[Scanned]:
        found = None if self._workers is None else self._workers.search(search, asked)
        return [search(shard, *asked) for shard in self._opened] if found is None else found


def _nearest(shard: Shard, queries: NDArray[np.uint8], k: int, effort: int | None, chosen: Filter | None) -> Scanned:
    if not len(shard):
        return _nothing(queries)
    found = shard.find(queries, min(k, len(shard)), effort=effort, where=chosen)
    return Scanned(found.rows, found.distances)


def _nearest_in_region(
    shard: Shard, queries: NDArray[np.uint8], k: int, region: Region, chosen: Filter | None
) -> Scanned:
    if not len(shard):
        return _nothing(queries)
    found = shard.find_region(queries, region, min(k, len(shard)), where=chosen)
    return Scanned(found.rows, found.distances)


def _held(found: Scanned) -> Scanned:
    """Without the columns that are unfilled for every query, for example if few rows pass a filter."""
    width = int((found.rows >= 0).sum(axis=1).max(initial=0))
    return Scanned(found.rows[:, :width], found.distances[:, :width])


def _nothing(queries: NDArray[np.uint8]) -> Scanned:
    return Scanned(np.full((len(queries), 0), -1, np.int64), np.full((len(queries), 0), -1, np.int32))


def _make(shard: Shard) -> dict[str, Any]:
    """The properties that shards of one index share."""
    parts, vectors = shard.parts, shard.rows.vectors
    return {
        "n_bits": parts.n_bits, "kind": parts.settings.kind, "provenance": parts.provenance, "layout": parts.layout,
        "binarizer": parts.binarizer and parts.binarizer.to_safetensors(), "columns": parts.rows.column_names,
        "ids": parts.rows.id_type, "tokens": parts.rows.tokens is None,
        "vectors": vectors is None or (vectors.dtype.name, vectors.shape[1]),
    }  # fmt: skip
