"""An index in shards, each an index folder of its own, searched by processes that share them. Knows nothing of images.

    shards.json     the names of the shards, in the order of their rows
    shard-00000/    an index folder, and so on

Rows are numbered through all shards, and what the shards find is merged exactly: equal distances in the order of rows.
"""

# n rows, q queries, k neighbors

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigr_repr.retrieval.codes.filters import Filter
from bigr_repr.retrieval.index.folder import MANIFEST
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.scan import Scanned, nearest_of
from bigr_repr.retrieval.stores.base import CodeBatch, Finish, Header, Hits
from bigr_repr.system import files
from bigr_repr.system.threads import cores

LIST: Final = "shards.json"
_FORMAT: Final = 1
_REMEDY: Final = "build it again: bigr-repr index build --shards"


def shard_folders(folder: Path) -> list[Path]:
    """The shards of a folder.  Raises FileNotFoundError if it holds none, ValueError for a damaged list."""
    path = folder / LIST
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no shards here ({LIST}); {_REMEDY}")
    try:
        record = json.loads(path.read_bytes())
        names = record["shards"]
        if record["format"] != _FORMAT or not names or not all(isinstance(name, str) for name in names):
            raise ValueError("no list of shards")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); {_REMEDY}") from error
    if wrong := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{path}: damaged ({wrong[0]!r:.60} is no shard); {_REMEDY}")
    return [folder / name for name in names]


def write_list(folder: Path, names: Sequence[str]) -> None:
    """Make these the shards of a folder."""
    with files.replacing(folder / LIST) as file:
        file.write(json.dumps({"format": _FORMAT, "shards": list(names)}).encode())


class FilterAsText:
    """A Dialect of what needs none: filters as JSON."""

    def expression(self, chosen: Filter, schema: pa.Schema) -> str:
        """A filter as text."""
        return json.dumps(dataclasses.asdict(chosen))

    @staticmethod
    def filter(text: str | None) -> Filter | None:
        """The inverse."""
        if text is None:
            return None
        record = json.loads(text)
        return Filter(**{**record, "ids": None if record["ids"] is None else tuple(record["ids"])})


class ShardStore:
    """See Store. folder: of shards. processes: that search them, each on its share of the cores; 1: this one."""

    dialect: Any = FilterAsText()

    def __init__(self, folder: Path, processes: int = 1) -> None:
        self.place, self._folder, self._processes = str(folder), folder, processes

    def check(self, header: Header, k: int = 1) -> None:
        """Shards hold all that an index does."""

    def write(self, header: Header, batches: Iterator[CodeBatch], finish: Finish) -> None:
        """Raises ValueError: shards are built, not pushed to."""
        raise ValueError(f"{self.place} is an index in shards, which is not pushed to: {_REMEDY}")

    def open(self) -> ShardTable:
        """See Store."""
        return ShardTable(shard_folders(self._folder), self._processes, self.place)


class ShardTable:
    """See StoreTable. Shards are dealt out to the processes in runs of about equal numbers."""

    def __init__(self, folders: Sequence[Path], processes: int, place: str) -> None:
        self._shards = [HammingIndex.load(folder) for folder in folders]
        self.starts = list(accumulate(map(len, self._shards), initial=0))
        first = self._shards[0]
        for folder, shard in zip(folders, self._shards, strict=True):
            if _make(shard) != _make(first):
                raise ValueError(f"{folder} is not of the make of the other shards; {_REMEDY}")
        manifests = b"".join((folder / MANIFEST).read_bytes() for folder in folders)
        self.version = hashlib.sha256(manifests).hexdigest()
        self.header = Header(
            n_bits=first.n_bits, count=self.starts[-1], kind=first.settings.kind, lists=None,
            provenance=first.provenance, binarizer=first.binarizer,
            columns=None if first.rows.columns is None else first.rows.columns.schema,
        ).to_json()  # fmt: skip
        self._workers = [
            ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=(run.tolist(), number, processes))
            for number, run in enumerate(np.array_split([str(folder) for folder in folders], processes))
            if processes > 1 and len(run)
        ]

    def search(self, codes: NDArray[np.uint8], k: int, effort: int | None, where: str | None = None) -> list[Hits]:
        """See StoreTable."""
        asked = (np.ascontiguousarray(codes), k, effort, where)
        if self._workers:
            waiting: list[Future[list[Scanned]]] = [worker.submit(_search_own, *asked) for worker in self._workers]
            found = [each for answer in waiting for each in answer.result()]
        else:
            found = [search_shard(shard, *asked) for shard in self._shards]
        numbered = [
            Scanned(np.where(rows < 0, -1, rows + start), distances)
            for (rows, distances), start in zip(found, self.starts, strict=False)
        ]
        rows, distances = nearest_of(numbered, k)
        answers = []
        for near, far in zip(rows, distances, strict=True):
            held = near[near >= 0].tolist()
            answers.append((held, [self._id(row) for row in held], far[near >= 0].tolist()))
        return answers

    def read(self, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.uint8]]:
        """See StoreTable."""
        placed = [self._placed(row) for row in rows.tolist()]
        return [self._id(row) for row in rows.tolist()], np.stack([shard.rows.codes[at] for shard, at in placed])

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.shutdown(cancel_futures=True)

    def _placed(self, row: int) -> tuple[HammingIndex, int]:
        number = bisect_right(self.starts, row) - 1
        return self._shards[number], row - self.starts[number]

    def _id(self, row: int) -> str:
        shard, at = self._placed(row)
        return str(shard.ids[at].as_py())


def search_shard(
    shard: HammingIndex, codes: NDArray[np.uint8], k: int, effort: int | None, where: str | None
) -> Scanned:
    """The nearest rows of one shard, by its own numbers, at most k."""
    if not len(shard):
        return Scanned(np.full((len(codes), 0), -1, np.int64), np.full((len(codes), 0), -1, np.int32))
    found = shard.find(codes, min(k, len(shard)), effort=effort, where=FilterAsText.filter(where))
    return Scanned(found.rows, found.distances)


def _make(shard: HammingIndex) -> tuple[Any, ...]:
    """What codes of one index must have in common."""
    fitted = shard.binarizer and shard.binarizer.to_safetensors()
    return shard.n_bits, shard.provenance, fitted, shard.rows.column_names


# ---- in the processes

_own: list[HammingIndex] = []


def _begin(folders: Sequence[str], number: int, processes: int) -> None:
    """Open shards, and keep to a share of the cores, so that processes do not wait for each other."""
    if hasattr(os, "sched_setaffinity") and cores() >= processes:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[number::processes])
    _own[:] = [HammingIndex.load(folder) for folder in folders]


def _search_own(codes: NDArray[np.uint8], k: int, effort: int | None, where: str | None) -> list[Scanned]:
    return [search_shard(shard, codes, k, effort, where) for shard in _own]
