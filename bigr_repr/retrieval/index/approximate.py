"""FAISS's approximate binary indexes behind one interface: train, add, search, remove, write, read. Knows no ids.

Searches may run concurrently; adding and removing need exclusive access.
"""

# n rows (stored codes), q queries, k neighbors

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from bigr_repr.retrieval.codes.dropped_rows import stored_rows
from bigr_repr.retrieval.index.distinct import Groups, find_distinct
from bigr_repr.retrieval.index.recall import SelfCheck, check_recall
from bigr_repr.retrieval.index.scan import Scanned, nearest_of, scan, without_gone
from bigr_repr.retrieval.index.settings import IndexSettings
from bigr_repr.retrieval.index.workers import omp_threads, on_all_cores, query_parts
from bigr_repr.system.files import naming
from bigr_repr.system.threads import cores

_CHUNK: Final = 64 << 20  # bytes of codes handed to FAISS at a time
_TRAIN: Final = 160 << 20  # maximum bytes of float32 for the clustering; FAISS clusters bits as numbers
_TRAIN_ROWS_A_LIST: Final = 32
_ROUNDS: Final = 10
_LIMITS = threading.Lock()  # FAISS's limits on what a file may request are global


class Approximate:
    """An approximate index over the rows of a code array, numbered 0, 1, … in order.

    FAISS holds every distinct code once. groups: which rows have which code; None: all rows are distinct.
    """

    def __init__(
        self,
        settings: IndexSettings,
        structure: Any,
        order: NDArray[np.int64] | None = None,
        groups: Groups | None = None,
    ) -> None:
        self.settings, self._faiss, self._order, self.groups = settings, structure, order, groups
        self._flips = threading.Lock()

    @classmethod
    def build(cls, settings: IndexSettings, codes: NDArray[np.uint8]) -> Approximate:
        """Train on a sample of the distinct ones of codes (n, bytes), n >= 1, and add them all."""
        distinct = find_distinct(codes)
        if len(distinct.firsts) == len(codes):
            return cls._of_distinct(settings, codes, None)
        return cls._of_distinct(settings, codes[distinct.firsts], Groups(distinct.of_row))

    @classmethod
    def _of_distinct(cls, settings: IndexSettings, codes: NDArray[np.uint8], groups: Groups | None) -> Approximate:
        bits = 8 * codes.shape[1]
        order = None
        if settings.kind == "ivf":
            settings, structure = _trained_lists(settings, codes)
        elif settings.kind == "hnsw":
            structure = faiss.IndexBinaryHNSW(bits, settings.links)
            structure.hnsw.efConstruction = settings.build_effort
        else:
            settings, structure = _tables(settings, len(codes), bits)
            order = _balanced_first(codes, settings)
        built = cls(settings, structure, order, groups)
        built._add(codes)
        return built

    @property
    def distinct(self) -> int:
        """Number of distinct codes."""
        return int(self._faiss.ntotal)

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.distinct if self.groups is None else len(self.groups.of_row)

    @property
    def efforts(self) -> Iterable[int]:
        """Search efforts worth trying, cheapest first; the last is the maximum."""
        if self.settings.kind == "hash":
            return range(4)
        most = self.settings.lists if self.settings.kind == "ivf" else max(16, min(4096, self.distinct))
        steps = [1 << i for i in range(0 if self.settings.kind == "ivf" else 4, 23)]
        return [*(step for step in steps if step < (most or 1)), most or 1]

    def add(self, codes: NDArray[np.uint8]) -> None:
        """Append rows."""
        before = self._of_row
        self._regroup(np.concatenate([before, self._numbered(codes)]))

    def _numbered(self, codes: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The number of each code; new ones are added."""
        new = find_distinct(codes)
        wanted = np.ascontiguousarray(codes[new.firsts])
        # A graph may miss a code that it contains. It then gets a second node, which is harmless.
        effort = {"ivf": 1, "hnsw": 64, "hash": 0}[self.settings.kind]
        found = self.search_distinct(wanted, 1, effort)
        numbers = np.where(found.distances[:, 0] == 0, found.rows[:, 0], -1)
        fresh = np.flatnonzero(numbers < 0)
        numbers[fresh] = self.distinct + np.arange(len(fresh))
        self._add(wanted[fresh])
        return numbers[new.of_row]

    @property
    def _of_row(self) -> NDArray[np.int64]:
        """The number of each row's code."""
        return np.arange(self.distinct) if self.groups is None else self.groups.of_row

    def _regroup(self, of_row: NDArray[np.int64]) -> None:
        plain = len(of_row) == self.distinct and np.array_equal(of_row, np.arange(self.distinct))
        self.groups = None if plain else Groups(of_row)

    def _add(self, codes: NDArray[np.uint8]) -> None:
        step = max(1, _CHUNK // codes.shape[1])
        with omp_threads(cores()):
            for start in range(0, len(codes), step):
                self._faiss.add(self._arranged(codes[start : start + step]))

    def search(self, queries: NDArray[np.uint8], k: int, effort: int) -> Scanned:
        """Like scan.scan, but may miss nearer codes. Unfilled places hold -1."""
        found = self.search_distinct(queries, k, effort)
        return found if self.groups is None else self.groups.expand(found, k)

    def search_with_tail(self, codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int, effort: int) -> Scanned:
        """search() among codes (n, bytes), which begin with this index's rows; all later rows are compared.

        codes may have gaps: rows dropped since.
        """
        stored, gaps = stored_rows(codes)
        tail = stored[self.count :]

        def search(most: int) -> Scanned:
            found = self.search(queries, most, effort)
            if not len(tail):
                return found
            near = scan(tail, queries, min(most, len(tail)))
            return nearest_of([found, Scanned(near.rows + self.count, near.distances)], most)

        return search(k) if gaps is None else without_gone(search, k, gaps)

    def search_distinct(self, queries: NDArray[np.uint8], k: int, effort: int) -> Scanned:
        """search() among the distinct codes, by number."""
        parts = [(np.ascontiguousarray(queries[part]), k, effort) for part in query_parts(len(queries))]
        found = on_all_cores(self._search, parts)
        if not found:
            return Scanned(np.empty((0, k), np.int64), np.empty((0, k), np.int32))
        distances = np.concatenate([pair[0] for pair in found])
        rows = np.concatenate([pair[1] for pair in found])
        if rows.size and rows.max() >= self.distinct:
            raise ValueError("the index is damaged: it refers to rows that it does not contain; build it again")
        distances = np.where(rows < 0, np.iinfo(np.int32).max, distances)
        order = np.lexsort((rows, distances), axis=1)
        rows, distances = (np.take_along_axis(a, order, axis=1) for a in (rows, distances))
        return Scanned(rows, np.where(rows < 0, -1, distances))

    def check(self, codes: NDArray[np.uint8]) -> SelfCheck:
        """Compare with exact search; codes: of all rows. Chooses an effort if the settings have none."""
        distinct = codes if self.groups is None else codes[self.groups.firsts]
        return check_recall(distinct, self.search_distinct, self.efforts, self.settings)

    def _search(self, queries: NDArray[np.uint8], k: int, effort: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        if self.settings.kind == "hash":  # FAISS reads the number of flips from the index, not from the call
            with self._flips:
                self._faiss.nflip = min(effort, self.settings.hash_bits or 0)
                return self._faiss.search(self._arranged(queries), k)  # type: ignore[no-any-return]
        if self.settings.kind == "ivf":
            most = max(1, min(effort, self.settings.lists or 1))
            params = faiss.SearchParametersIVF(nprobe=most)
        else:
            params = faiss.SearchParametersHNSW(efSearch=max(effort, k, 1))
        return self._faiss.search(queries, k, params=params)  # type: ignore[no-any-return]

    def moved(self, rows_of: NDArray[np.int64], codes: NDArray[np.uint8]) -> Approximate:
        """The index of codes (n, bytes), where row i is row rows_of[i] of this one, or new where that is -1.

        Consumes this index. Lists are edited; graphs and tables cannot remove codes, so they are rebuilt if any go.
        """
        stay, new = np.flatnonzero(rows_of >= 0), np.flatnonzero(rows_of < 0)
        used, numbers = np.unique(self._of_row[rows_of[stay]], return_inverse=True)
        if len(used) < self.distinct:
            if self.settings.kind != "ivf" or not len(used):
                return Approximate.build(self.settings, codes)
            self._forget_all_but(used)
        of_row = np.empty(len(codes), np.int64)
        of_row[stay] = numbers
        if len(new):
            of_row[new] = self._numbered(np.ascontiguousarray(codes[new]))
        self._regroup(of_row)
        return self

    def numbers_of(self, rows: NDArray[np.int64], codes: NDArray[np.uint8]) -> NDArray[np.int64]:
        """This index's numbers for rows of codes (see search_with_tail); -1 for -1, and for rows that it lacks."""
        gaps = stored_rows(codes)[1]
        stored = rows if gaps is None else np.where(rows < 0, -1, gaps.places(rows))
        return np.where(stored < self.count, stored, -1)

    def settled(self, codes: NDArray[np.uint8]) -> tuple[Approximate, NDArray[np.uint8]]:
        """The index of exactly the rows of codes (see search_with_tail), and these rows; may consume this index."""
        if stored_rows(codes)[1] is None and len(codes) == self.count:
            return self, codes
        plain = np.asarray(codes)
        return self.moved(self.numbers_of(np.arange(len(plain)), codes), plain), plain

    def _forget_all_but(self, used: NDArray[np.int64]) -> None:
        """Keep only the codes with these numbers, ascending, which become 0, 1, …"""
        numbers = np.full(self.distinct, -1, np.int64)
        numbers[used] = np.arange(len(used))
        self._faiss.remove_ids(np.flatnonzero(numbers < 0))
        for rows in self._lists():
            rows[:] = numbers[rows]

    def write(self, path: Path) -> bool:
        """Write FAISS's file; False if there is none because loading rebuilds the index from the codes."""
        if self.settings.kind == "hash":
            return False
        with naming(path):
            faiss.write_index_binary(self._faiss, str(path))
        return True

    @classmethod
    def read(
        cls, settings: IndexSettings, path: Path, count: int, n_bytes: int, groups: Groups | None = None
    ) -> Approximate:
        """Read a file written by write(), without trusting its contents: an index of `count` distinct codes.

        Raises ValueError that names the file.
        """
        remedy = "build the index again"
        try:
            with _LIMITS:
                before = faiss.get_deserialization_vector_byte_limit()
                faiss.set_deserialization_vector_byte_limit(path.stat().st_size)
                try:
                    structure = faiss.read_index_binary(str(path))
                finally:
                    faiss.set_deserialization_vector_byte_limit(before)
        except (RuntimeError, MemoryError) as error:
            raise ValueError(f"{path}: damaged, FAISS cannot read it; {remedy}") from error
        wanted = {"ivf": faiss.IndexBinaryIVF, "hnsw": faiss.IndexBinaryHNSW}[settings.kind]
        if not isinstance(structure, wanted) or structure.ntotal != count or structure.d != 8 * n_bytes:
            raise ValueError(f"{path}: not the {settings.kind} index of {count} codes of {n_bytes} bytes; {remedy}")
        read = cls(settings, structure, groups=groups)
        if not read._sound():
            raise ValueError(f"{path}: damaged, it refers to rows outside the index; {remedy}")
        return read

    def _sound(self) -> bool:
        """Whether all row numbers in it are valid."""
        if self.settings.kind == "ivf":
            lists = self._faiss.nlist == self.settings.lists == self._faiss.quantizer.ntotal
            return lists and all(rows.min() >= 0 and rows.max() < self.distinct for rows in self._lists())
        graph = self._faiss.hnsw
        links = faiss.vector_to_array(graph.neighbors)
        offsets = faiss.vector_to_array(graph.offsets).astype(np.int64)
        return bool(
            -1 <= graph.entry_point < self.distinct
            and (not links.size or (links.min() >= -1 and links.max() < self.distinct))
            and len(offsets) == self.distinct + 1
            and (np.diff(offsets) >= 0).all()
            and offsets[-1] <= links.size
            and faiss.downcast_IndexBinary(self._faiss.storage).ntotal == self.distinct
        )

    def _lists(self) -> Iterable[NDArray[np.int64]]:
        """The row numbers in each non-empty list, to read or to change."""
        lists = self._faiss.invlists
        for number in range(self._faiss.nlist):
            if size := lists.list_size(number):
                yield faiss.rev_swig_ptr(lists.get_ids(number), size)

    def _arranged(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._order is None:
            return np.ascontiguousarray(codes)
        return np.packbits(np.unpackbits(codes, axis=1)[:, self._order], axis=1)


def _trained_lists(settings: IndexSettings, codes: NDArray[np.uint8]) -> tuple[IndexSettings, Any]:
    count, bits = len(codes), 8 * codes.shape[1]
    most = max(1, _TRAIN // (4 * bits))
    lists = settings.lists or max(1, min(round(2 * count**0.5), min(count, most) // 8))
    if lists > count:
        raise ValueError(f"lists={lists} is more than the {count} distinct codes; leave lists out, or ask for fewer")
    rows = min(count, most, max(_TRAIN_ROWS_A_LIST * lists, 1024))
    random = np.random.default_rng(settings.seed)
    sample = codes[np.sort(random.choice(count, max(rows, lists), replace=False))]
    coarse = faiss.IndexBinaryFlat(bits)
    structure = faiss.IndexBinaryIVF(coarse, bits, lists)
    structure.own_fields = True
    coarse.this.disown()
    structure.cp.min_points_per_centroid = 1  # the sample is as large as memory allows: suppress the warning
    structure.cp.niter, structure.cp.seed = _ROUNDS, settings.seed
    with omp_threads(cores()):
        structure.train(np.ascontiguousarray(sample))
    return replace(settings, lists=lists), structure


def _tables(settings: IndexSettings, count: int, bits: int) -> tuple[IndexSettings, Any]:
    tables = min(settings.tables, bits)
    most = min(32, bits // tables)
    key = settings.hash_bits or max(1, min(most, round(np.log2(max(2, count)))))
    if key > most:
        raise ValueError(f"hash_bits={key}: {tables} tables of {bits} bits allow at most {most}; ask for fewer")
    structure = faiss.IndexBinaryMultiHash(bits, tables, key) if tables > 1 else faiss.IndexBinaryHash(bits, key)
    return replace(settings, hash_bits=key, tables=tables), structure


def _balanced_first(codes: NDArray[np.uint8], settings: IndexSettings) -> NDArray[np.int64]:
    """An order of the bits with the most balanced ones in front, where FAISS takes its keys from."""
    random = np.random.default_rng(settings.seed)
    sample = codes[np.sort(random.choice(len(codes), min(len(codes), 4096), replace=False))]
    imbalance = np.abs(np.unpackbits(sample, axis=1).mean(axis=0) - 0.5)
    order = np.argsort(imbalance, kind="stable")
    keys = (settings.hash_bits or 1) * settings.tables
    # Twice as many candidates as needed, so that neighboring, correlated bits spread over the tables.
    front = random.permutation(order[: min(len(order), 2 * keys)])
    return np.concatenate([front, order[len(front) :]])
