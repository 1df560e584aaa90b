"""HammingIndex: packed codes with ids, searched by Hamming distance. Knows nothing of images or models."""

# n rows (images), q queries, k neighbors, D features

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from bigr_repr._typing import PathLike
from bigr_repr.codes import check_length
from bigr_repr.retrieval.codes.binarizer import Binarizer
from bigr_repr.retrieval.codes.columns import KeptColumns
from bigr_repr.retrieval.codes.filters import as_filter
from bigr_repr.retrieval.codes.ids import IdValues
from bigr_repr.retrieval.codes.regions import Region, TokenLayout
from bigr_repr.retrieval.codes.rows import IndexRows, packed
from bigr_repr.retrieval.codes.source import DataSource
from bigr_repr.retrieval.index.neighbors import Found, Neighbors, Scope, Within
from bigr_repr.retrieval.index.parts import Parts
from bigr_repr.retrieval.index.reading import load_parts
from bigr_repr.retrieval.index.recall import SelfCheck
from bigr_repr.retrieval.index.rescore import rescorer
from bigr_repr.retrieval.index.scan import Scanned
from bigr_repr.retrieval.index.searcher import RowSearcher
from bigr_repr.retrieval.index.settings import IndexSettings
from bigr_repr.retrieval.index.shard_list import is_sharded, of_one_state, shard_folders
from bigr_repr.retrieval.index.shards import Shards
from bigr_repr.retrieval.index.storage import save_parts

if TYPE_CHECKING:
    from bigr_repr.retrieval.index.approximate import Approximate

__all__ = ["HammingIndex", "Neighbors"]


class HammingIndex:
    """An index of codes searched by Hamming distance, made by `build` or bigr_repr.retrieval.build_index, or loaded.

    Any number of threads may search concurrently; `add` and `remove` need exclusive access. A search uses all available
    cores, even for a single query, and a GPU after `to`.

    settings: kind and parameters. n_bits: length of a code. binarizer: turns features into codes; None for other codes.
    layout: of the tokenizer's codes, if the index has them. provenance: the model, layer and so on behind the codes.
    self_check: accuracy of an approximate index, measured when it was built. source: the data set it was built from.
    shards: of a sharded index, which only update_index and remove_images can change; None: not sharded.
    """

    def __init__(
        self,
        rows: IndexRows,
        n_bits: int,
        settings: IndexSettings,
        approximate: Approximate | None,
        *,
        binarizer: Binarizer | None = None,
        layout: TokenLayout | None = None,
        provenance: Mapping[str, Any] | None = None,
        self_check: SelfCheck | None = None,
        source: DataSource | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.rows, self.n_bits, self.source = rows, n_bits, source
        self.binarizer, self.layout, self.provenance, self.self_check = binarizer, layout, provenance, self_check
        self._searcher = RowSearcher(settings=settings, approximate=approximate, shards=shards)

    @property
    def settings(self) -> IndexSettings:
        """Kind and parameters."""
        return self._searcher.settings

    @property
    def shards(self) -> Shards | None:
        """The shards of a sharded index; None: not sharded."""
        return self._searcher.shards

    @classmethod
    def build(
        cls,
        codes: ArrayLike,
        *,
        ids: IdValues | None = None,
        kind: str | IndexSettings = "flat",
        n_bits: int | None = None,
        bits_per_token: int | None = None,
        vectors: ArrayLike | None = None,
        columns: KeptColumns | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> HammingIndex:
        """Build an index of packed codes, uint8 (n, bytes), in memory.

        ids: n distinct strings or integers; None: 0, 1, … kind: "flat" (exact), "ivf", "hnsw", "hash", or settings for
        more control. n_bits: if the last byte is not full. bits_per_token: for tokenizer codes of square pictures,
        which can be searched by region. vectors: (n, D) numbers, for rescoring. columns: {name: n values} to filter by:
        text, numbers, booleans, dates or times. provenance: of the codes, from codes.provenance.provenance_of, so that
        pictures can be queries.

        An approximate index is compared with exact search: see `self_check`.
        Raises ValueError for codes of a wrong type or shape, and for ids or vectors that do not match them.
        """
        parts = Parts.of_codes(
            codes, ids=ids, settings=IndexSettings(kind=kind) if isinstance(kind, str) else kind, n_bits=n_bits,
            bits_per_token=bits_per_token, vectors=vectors, columns=columns, provenance=provenance,
        )  # fmt: skip
        return cls.of_parts(parts)

    @classmethod
    def of_rows(cls, rows: IndexRows, n_bits: int, settings: IndexSettings, **parts: Any) -> HammingIndex:
        """An index of given rows; parts: as in the constructor. Builds, tunes and checks approximate kinds."""
        return cls.of_parts(Parts.built(rows, n_bits, settings, **parts))

    @classmethod
    def of_parts(cls, parts: Parts) -> HammingIndex:
        """An index from another one's `parts`."""
        return cls(**parts._asdict())

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> pa.Array | pa.ChunkedArray:
        """All ids, in order: large strings or int64; chunked for shards."""
        return self.rows.ids

    def codes_of(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Packed codes (n, bytes) of rows."""
        return self.rows.codes[rows]

    def names_of(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of rows, as text."""
        return [str(id) for id in self.rows.named(rows)]

    @property
    def effort(self) -> int | None:
        """The default search effort; None for a flat index."""
        return self.settings.effort

    # ---- searching

    def search(
        self, queries: ArrayLike, k: int = 10, *, effort: int | None = None, **within: Unpack[Within]
    ) -> Neighbors:
        """The k nearest codes to each query: packed codes, uint8 (q, bytes), or a single one, (bytes).

        effort: of an approximate index, in its kind's unit. Ties are in row order.
        where, radius, offset: see Within. A search with `where` is exact, whatever the kind.
        Raises ValueError for codes of a wrong length, or k outside 1..len(index).
        """
        return self.find(queries, k, effort=effort, **within).neighbors

    def find(self, queries: ArrayLike, k: int = 10, *, effort: int | None = None, **within: Unpack[Within]) -> Found:
        """search(), with row numbers too."""
        scope = self._scope(k, within)
        return self._found(*self._nearest(queries, scope.depth, effort, scope)).cut(scope.radius, scope.offset)

    def search_rows(self, queries: ArrayLike, k: int = 10, *, effort: int | None = None) -> Scanned:
        """search(), returning row numbers: rows (q, k) int64 and distances."""
        return self._nearest(queries, self._scope(k, {}).depth, effort, None)

    def _nearest(self, queries: ArrayLike, k: int, effort: int | None, among: Scope | None) -> Scanned:
        wanted = packed(queries, self.rows.codes.shape[1], "queries")
        check_length(wanted, self.n_bits)
        return self._searcher.nearest(self.rows.codes, wanted, k, effort, among)

    def _scope(self, k: int, within: Within) -> Scope:
        chosen = as_filter(within.get("where"))
        rows = None
        if chosen is not None and self.shards is None:  # shards select their own rows
            rows = self.rows.selected(chosen)
        scope = Scope.of(len(self), k, rows, within.get("radius"), within.get("offset", 0))
        return scope if chosen is None else scope._replace(chosen=chosen, passing=partial(self.rows.passing, chosen))

    def search_vectors(
        self, vectors: ArrayLike, k: int = 10, *, rescore: int = 0, effort: int | None = None, **within: Unpack[Within]
    ) -> Neighbors:
        """The k nearest rows to features (q, D), binarized like the index's.

        rescore: 0: by Hamming distance. r >= 1: the k nearest by cosine, as in rescored(), of the r * k nearest by
        Hamming distance.
        Raises ValueError for an index without a binarizer.
        """
        if self.binarizer is None:
            raise ValueError("this index has no binarizer, because its codes are not made from features; use search")
        codes = self.binarizer.encode(vectors)
        if not rescore:
            return self.search(codes, k, effort=effort, **within)
        return self.rescored(codes, vectors, k, rescore=rescore, effort=effort, **within)

    def rescored(
        self,
        queries: ArrayLike,
        vectors: ArrayLike,
        k: int = 10,
        *,
        rescore: int = 10,
        effort: int | None = None,
        **within: Unpack[Within],
    ) -> Neighbors:
        """The k nearest by cosine to vectors (q, D), among the rescore * k nearest by Hamming distance to queries.

        This is the cosine with the stored vectors of those rows or, if there are none, with what their bits stand for:
        the mean feature value of rows with that bit. radius: a cosine distance.
        Raises ValueError for vectors whose width or number does not match, and for an index of tokenizer bits without
        vectors.
        """
        return self.find_rescored(queries, vectors, k, rescore=rescore, effort=effort, **within).neighbors

    def find_rescored(
        self,
        queries: ArrayLike,
        vectors: ArrayLike,
        k: int = 10,
        *,
        rescore: int = 10,
        effort: int | None = None,
        **within: Unpack[Within],
    ) -> Found:
        """rescored(), with row numbers too."""
        scope = self._scope(k, within)
        order = rescorer(self.rows.vectors, self.rows.codes, self.binarizer, vectors, rescore)
        most = len(self) if scope.rows is None else len(scope.rows)
        shortlist = self._nearest(queries, min(most, rescore * scope.depth), effort, scope).rows
        return self._found(*order(shortlist, scope.depth)).cut(scope.radius, scope.offset)

    def search_region(self, queries: ArrayLike, region: Region, k: int = 10, **within: Unpack[Within]) -> Neighbors:
        """The k nearest by the tokenizer's bits inside a region only; exact, whatever the kind.

        queries: packed tokenizer codes, uint8 (q, bytes) or (bytes).
        Raises ValueError for an index without tokenizer codes, or a region outside the grid.
        """
        return self.find_region(queries, region, k, **within).neighbors

    def find_region(self, queries: ArrayLike, region: Region, k: int = 10, **within: Unpack[Within]) -> Found:
        """search_region(), with row numbers too."""
        tokens = self.tokens
        wanted = packed(queries, tokens.shape[1], "queries")
        scope = self._scope(k, within)
        found = self._searcher.in_region(tokens, wanted, region, self.token_layout(), scope)
        return self._found(*found).cut(scope.radius, scope.offset)

    @property
    def tokens(self) -> NDArray[np.uint8]:
        """The tokenizer's codes of all rows, (n, bytes).  Raises ValueError if the index has none."""
        self.token_layout()
        return self.rows.codes if self.rows.tokens is None else self.rows.tokens

    @property
    def has_tokens(self) -> bool:
        """Whether the index has tokenizer codes, for decoding and searching by region."""
        return self.layout is not None

    def token_layout(self) -> TokenLayout:
        """The layout of the tokenizer's codes.  Raises ValueError if the index has none."""
        if self.layout is None:
            raise ValueError(
                "this index has no tokenizer codes, which regions and decoding need; embed with codes and build it "
                "again"
            )
        return self.layout

    def _found(self, rows: NDArray[np.int64], distances: NDArray[Any]) -> Found:
        return Found(rows, self.rows.named(rows), distances)

    def to(self, device: str) -> HammingIndex:
        """Search on "cpu", "cuda", or "auto": a GPU if there is one and the index is flat and large, else the CPU.

        Regions, and more than 2,048 neighbors (FAISS's limit on GPUs), are always searched on the CPU. Returns self.

        Raises ValueError for "cuda" without a GPU, or for a kind that FAISS cannot search on a GPU.
        """
        self._searcher = self._searcher.on(device, self.rows.codes)
        return self

    # ---- changing

    def add(
        self,
        codes: ArrayLike,
        ids: IdValues,
        *,
        tokens: ArrayLike | None = None,
        vectors: ArrayLike | None = None,
        columns: KeptColumns | None = None,
    ) -> None:
        """Append codes (n, bytes) with new ids, and whatever else the index stores for its rows; in memory.

        Every call copies the arrays: add many rows at a time. The self-check stays that of the first build.
        Raises ValueError, and changes nothing, for rows that do not match the index.
        """
        parts, more = self.parts, self.rows.alike(codes, ids, tokens, vectors, columns)
        check_length(more.codes, self.n_bits)
        self.rows.verify()
        self._become(parts.joined(more))

    def remove(self, ids: Sequence[str] | Sequence[int]) -> int:
        """Remove the rows with these ids, and return their number. Graphs and tables are rebuilt.

        Adding to an empty index rebuilds it, and chooses its lists, hash keys and effort again.
        Raises ValueError, and changes nothing, for an unknown id and for damaged files.
        """
        parts, listed = self.parts, list[Any](ids)
        kept = np.delete(np.arange(len(self)), self.rows.require(listed))
        self.rows.verify()
        removed = len(self) - len(kept)
        self._become(parts.keeping(kept))
        return removed

    def moved(self, rows: IndexRows, rows_of: NDArray[np.int64], source: DataSource) -> HammingIndex:
        """The index of other rows, where row i is this one's row rows_of[i], or new if that is -1; consumes this.

        An approximate index keeps its effort, and is measured again.
        """
        return HammingIndex.of_parts(self.parts.moved(rows, rows_of, source))

    def _become(self, parts: Parts) -> None:
        self.rows, self.self_check, self.source = parts.rows, parts.self_check, parts.source
        self._searcher = self._searcher.following(parts)

    # ---- files

    def save(self, folder: PathLike) -> Path:
        """Write the index as a folder, and return its path. An index that was there is replaced atomically.

        Raises FileExistsError for a folder of other things, OSError if writing fails, ValueError if the files that this
        was loaded from are damaged; the old index then remains.
        """
        self._become(self.parts.settled())
        return save_parts(self.parts, Path(folder))

    @classmethod
    def load(
        cls, folder: PathLike, *, memory_map: bool = True, max_bytes: int | None = None, processes: int = 1
    ) -> HammingIndex:
        """Open an index written by `save`, build_index or build_shards, without trusting its files.

        memory_map: codes and vectors stay on disk and are read as searches touch them; False: they are read and
        verified now. FAISS's part of ivf and hnsw is always read and verified, hash tables are rebuilt. max_bytes:
        limit on the total size of the files. processes: number that search a sharded index, each on its share of the
        cores; 1: this one.

        Raises FileNotFoundError if there is no index, ValueError for damage, naming the file and what to do,
        RuntimeError for an index that others keep changing, or if a process cannot be started.
        """
        place = Path(folder)

        def opened() -> HammingIndex:
            if not is_sharded(place):
                return cls.of_parts(load_parts(place, memory_map=memory_map, max_bytes=max_bytes))
            folders = shard_folders(place)
            parts = [load_parts(each, memory_map=memory_map, max_bytes=max_bytes) for each in folders]
            shards = Shards([cls.of_parts(each) for each in parts], folders, processes, cls.load)
            return cls(**shards.joined()._asdict(), shards=shards)

        return of_one_state(place, opened, lambda index: index.shards)

    @property
    def parts(self) -> Parts:
        """The index's parts.  Raises ValueError for a sharded index, which has no parts of its own."""
        if self.shards is not None:
            raise ValueError(
                "a sharded index can only be changed in its folder, with index update and index remove; to unshard "
                "it, use index merge"
            )
        return Parts(
            self.rows, self.n_bits, self.settings, self.approximate, self.binarizer, self.layout, self.provenance,
            self.self_check, self.source,
        )  # fmt: skip

    @property
    def approximate(self) -> Approximate | None:
        """FAISS's part; None for a flat index."""
        return self._searcher.approximate
