"""Codes of an embedding data set, chunk by chunk: memory never holds all vectors. Knows nothing of search."""

# n rows (images), D features

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterator, Sequence
from itertools import repeat
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.embed.dataset.read import Embeddings, EmbeddingSet
from bigr_repr.features.pools import NONE
from bigr_repr.retrieval.codes.binarizer import BINARIZERS, Binarizer, check_seed, fit_binarizer
from bigr_repr.retrieval.codes.columns import column_table, kept_type
from bigr_repr.retrieval.codes.ids import id_array
from bigr_repr.retrieval.codes.provenance import BITS, FEATURES, provenance_of
from bigr_repr.retrieval.codes.regions import TokenLayout
from bigr_repr.retrieval.codes.rows import IndexRows
from bigr_repr.system.object_store import ObjectPath, Place, as_place

_SAMPLE: Final = 48 << 20  # bytes of float32 for fitting a binarizer
_SAMPLE_ROWS: Final = 1 << 16
_ROWS: Final = 1 << 16  # rows read at a time, without vectors
_BATCH: Final = 8 << 20  # bytes of vectors read at a time


class DataCodes:
    """The codes of one or several compatible embedding data sets, for an index or an export.

    binarizer: a fitted one; or one of BINARIZERS, to be fitted with n_bits on a sample of the vectors of `layer` (None:
    the only one); or "bits": the tokenizer's own bits stored in the data set. seed: for sample and fit. keep: columns
    to keep in addition to `label`; of text, numbers, booleans, dates or times. only: names of the files to open; None:
    all.

    Raises ValueError for incompatible data sets, for one named twice, and for those without vectors or codes, without
    rows, with unpooled tokens, or with non-finite vectors; FileNotFoundError if a folder holds no data set.
    """

    def __init__(
        self,
        folder: PathLike | Sequence[PathLike],
        binarizer: str | Binarizer = "sign",
        *,
        n_bits: int | None = None,
        layer: int | str | None = None,
        seed: int = 0,
        keep: Sequence[str] = (),
        only: Collection[str] | None = None,
    ) -> None:
        kind = binarizer.kind if isinstance(binarizer, Binarizer) else binarizer
        if kind != "bits" and kind not in BINARIZERS:
            raise ValueError(f"binarizer={kind!r} is unknown; choose bits or one of {', '.join(BINARIZERS)}")
        folders = [folder] if isinstance(folder, str | os.PathLike) else list(folder)
        _check_distinct(folders)
        self.sets = [EmbeddingSet(each, only=only) for each in folders]
        self.data = self.sets[0].with_others(self.sets[1:])
        recorded = self.data.provenance
        if not self.data.rows and only is None:
            raise ValueError(f"{self.data.folder} has no rows: nothing to index")
        self.layout: TokenLayout | None = None
        if self.data.n_bits is not None:
            self.layout = TokenLayout.square(self.data.n_bits, recorded["bits_per_token"])
        pooled = recorded["pooling"] != NONE
        choice = kind != "bits" or layer is not None or len(self.data.layers) == 1
        self.layer = self._layer(layer) if choice and self.data.layers and pooled else None
        self.binarizer: Binarizer | None = None
        if kind == "bits":
            self._bits_asked_for(n_bits)
        elif not pooled:
            raise ValueError(f"{self.data.folder} holds one vector per token; embed with pool avg to search images")
        else:
            self._check_layer(layer)
            self.binarizer = self._fitted(binarizer, n_bits, seed)
        self.n_bits = self.binarizer.n_bits if self.binarizer else int(self.data.n_bits or 0)
        self.kept = self._kept_columns(keep)
        self.provenance = provenance_of(recorded, FEATURES if self.binarizer else BITS, self.layer)

    def _layer(self, layer: int | str | None) -> int | str:
        self._check_layer(layer)
        return self.data.layers[0] if layer is None else layer

    def _check_layer(self, layer: int | str | None) -> None:
        """Raise ValueError that says what is missing, unless the data set holds vectors of this layer."""
        if layer is None and len(layers := self.data.layers) > 1:
            held = ", ".join(map(str, layers))
            raise ValueError(f"{self.data.folder} holds layers {held}; choose one, for example layer={layers[-1]}")
        self.data.column(layer)

    def _fitted(self, binarizer: str | Binarizer, n_bits: int | None, seed: int) -> Binarizer:
        if isinstance(binarizer, Binarizer):
            return binarizer
        check_seed(seed)  # before the sample is read
        return fit_binarizer(binarizer, self._sample(seed), n_bits=n_bits, seed=seed)

    def _kept_columns(self, keep: Sequence[str]) -> pa.Schema:
        names = dict.fromkeys([*(["label"] if "label" in self.data.schema.names else []), *keep])
        if lacking := [name for name in names if name not in self.data.schema.names]:
            held = ", ".join(self.data.schema.names)
            raise ValueError(f"{self.data.folder} has no column {lacking[0]!r} to keep; its columns are {held}")
        return pa.schema([(name, kept_type(name, self.data.schema.field(name).type)) for name in names])

    def _bits_asked_for(self, n_bits: int | None) -> None:
        if self.data.n_bits is None:
            raise ValueError(f"{self.data.folder} holds no codes; embed with codes (bigr-repr embed --codes)")
        if n_bits not in (None, self.data.n_bits):
            raise ValueError(f"n_bits={n_bits}: the tokenizer's codes here have {self.data.n_bits}; leave n_bits out")

    def file(self, number: int) -> DataCodes:
        """The codes of one file of the data set, from the same binarizer."""
        part = copy.copy(self)
        part.data = self.data.file(number)
        return part

    def batches(self, vectors: str | None = None) -> Iterator[IndexRows]:
        """All rows in order, in chunks; vectors: also keep any vectors, as "float16" or "float32"."""
        if self.layer is None:
            pairs = zip(self.data.code_batches(rows=_ROWS), self._column_batches(_ROWS), strict=True)
            for (paths, codes), columns in pairs:
                yield IndexRows(ids=id_array(paths, len(paths)), codes=codes, columns=columns)
            return
        batches = self.data.batches(self.layer, rows=self._rows)
        for batch, columns in zip(batches, self._column_batches(self._rows), strict=True):
            kept = None if vectors is None else self._stored(batch, vectors)
            ids = id_array(batch.paths, len(batch.paths))
            if self.binarizer is None:
                assert batch.codes is not None
                yield IndexRows(ids=ids, codes=batch.codes, vectors=kept, columns=columns)
            else:
                codes = self._encode(batch)
                yield IndexRows(ids=ids, codes=codes, tokens=batch.codes, vectors=kept, columns=columns)

    def _column_batches(self, rows: int) -> Iterator[pa.Table | None]:
        """The kept columns, in the same chunks as the rows."""
        if not self.kept.names:
            yield from repeat(None, sum(-(-count // rows) for count in self.data.rows_of_files))
            return
        for batch in self.data.column_batches(self.kept.names, rows=rows):
            columns = column_table(pa.table(batch), len(batch))
            assert columns is not None
            yield columns.cast(self.kept)

    def _encode(self, batch: Embeddings) -> NDArray[np.uint8]:
        assert self.binarizer is not None
        bad = np.flatnonzero(~np.isfinite(batch.vectors).all(axis=1))
        if len(bad):
            raise ValueError(f"{self.data.folder}: the vector of {batch.paths[bad[0]]} is not finite; embed it again")
        return self.binarizer.encode(batch.vectors)

    def _stored(self, batch: Embeddings, dtype: str) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            stored = batch.vectors.astype(dtype, copy=False)
        if not np.isfinite(stored).all():
            raise ValueError(f"{self.data.folder}: vectors do not fit {dtype}; keep them as float32")
        return stored

    @property
    def _rows(self) -> int:
        """Rows with vectors to read at a time."""
        width = int(np.prod(self.data.shape(self.layer)))
        return max(1, min(8192, _BATCH // (4 * width)))

    def _sample(self, seed: int) -> NDArray[np.float32]:
        """Vectors of random rows, as many as the memory for them allows."""
        width = int(np.prod(self.data.shape(self.layer)))
        count = min(self.data.rows, _SAMPLE_ROWS, max(1, _SAMPLE // (4 * width)))
        chosen = np.sort(np.random.default_rng(seed).choice(self.data.rows, count, replace=False))
        sample, filled, start = np.empty((count, width), np.float32), 0, 0
        for batch in self.data.batches(self.layer, rows=self._rows):
            end = start + len(batch.paths)
            inside = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, end)] - start
            vectors = batch.vectors[inside]
            bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
            if len(bad):
                path = batch.paths[inside[bad[0]]]
                raise ValueError(f"{self.data.folder}: the vector of {path} is not finite; embed it again")
            sample[filled : filled + len(inside)] = vectors
            filled, start = filled + len(inside), end
        return sample


def _check_distinct(folders: Sequence[PathLike]) -> None:
    """Raise ValueError for a data set that is named twice, possibly through a link."""
    known = set[Place]()
    for each in folders:
        place = as_place(each)
        place = place if isinstance(place, ObjectPath) else place.resolve()
        if place in known:
            raise ValueError(f"{each} is named twice; name each data set once")
        known.add(place)
