"""An embedding data set to an index folder, chunk by chunk: memory never holds all vectors. Knows nothing of images."""

# n rows (images), D features

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.embed import Embeddings, EmbeddingSet
from bigr_repr.retrieval._folder import writing
from bigr_repr.retrieval._rows import Rows, id_array
from bigr_repr.retrieval._storage import RowWriter
from bigr_repr.retrieval.binariser import BINARISERS, Binariser, fit_binariser
from bigr_repr.retrieval.index import HammingIndex
from bigr_repr.retrieval.origin import BITS, FEATURES, origin_of
from bigr_repr.retrieval.regions import TokenLayout
from bigr_repr.retrieval.settings import IndexSettings

__all__ = ["DataCodes", "build_index"]

_SAMPLE: Final = 48 << 20  # bytes of float32 that a binariser is fitted on
_SAMPLE_ROWS: Final = 1 << 16
_BATCH: Final = 8 << 20  # bytes of vectors read at a time

Report = Callable[[int, int], None]


class DataCodes:
    """The codes of an embedding data set, as an index or an export wants them.

    binariser: one of BINARISERS, fitted on a sample of the vectors of `layer` (the only one: None), of n_bits; or
    "bits": the tokenizer's own bits that the data set holds. seed: of sample and fit.

    Raises ValueError for a data set without vectors or codes, without rows, of unpooled tokens, or with vectors that
    are not finite; FileNotFoundError if the folder holds none.
    """

    def __init__(
        self,
        folder: PathLike,
        binariser: str = "sign",
        *,
        n_bits: int | None = None,
        layer: int | None = None,
        seed: int = 0,
    ) -> None:
        if binariser != "bits" and binariser not in BINARISERS:
            raise ValueError(f"binariser={binariser!r} is unknown; choose bits or one of {', '.join(BINARISERS)}")
        self.data = EmbeddingSet(folder)
        provenance = self.data.provenance
        if not self.data.rows:
            raise ValueError(f"{self.data.folder} has no rows: nothing to index")
        self.layout: TokenLayout | None = None
        if self.data.n_bits is not None:
            self.layout = TokenLayout.square(self.data.n_bits, provenance["bits_per_token"])
        pooled = provenance["pooling"] == "avg"
        choice = binariser != "bits" or layer is not None or len(self.data.layers) == 1
        self.layer = self._layer(layer) if choice and self.data.layers and pooled else None
        self.binariser: Binariser | None = None
        if binariser == "bits":
            self._bits_asked_for(n_bits)
        else:
            if not pooled:
                raise ValueError(f"{self.data.folder} holds one vector per token; embed with pool avg to search images")
            self.data.column(layer)  # says what is missing
            self.binariser = fit_binariser(binariser, self._sample(seed), n_bits=n_bits, seed=seed)
        self.n_bits = self.binariser.n_bits if self.binariser else int(self.data.n_bits or 0)
        self.origin = origin_of(provenance, FEATURES if self.binariser else BITS, self.layer)

    def _layer(self, layer: int | None) -> int:
        self.data.column(layer)
        return self.data.layers[0] if layer is None else layer

    def _bits_asked_for(self, n_bits: int | None) -> None:
        if self.data.n_bits is None:
            raise ValueError(f"{self.data.folder} holds no codes; embed with codes (bigr-repr embed --codes)")
        if n_bits not in (None, self.data.n_bits):
            raise ValueError(f"n_bits={n_bits}: the tokenizer's codes here have {self.data.n_bits}; leave n_bits out")

    def batches(self, vectors: str | None = None) -> Iterator[Rows]:
        """All rows in order, in chunks; vectors: keep them too, as "float16" or "float32", where there are some."""
        if self.layer is None:
            for paths, codes in self.data.code_batches():
                yield Rows(ids=id_array(paths, len(paths)), codes=codes)
            return
        for batch in self._vector_batches():
            kept = None if vectors is None else self._stored(batch, vectors)
            if self.binariser is None:
                assert batch.codes is not None
                yield Rows(ids=id_array(batch.paths, len(batch.paths)), codes=batch.codes, vectors=kept)
            else:
                codes = self._encode(batch)
                yield Rows(ids=id_array(batch.paths, len(codes)), codes=codes, tokens=batch.codes, vectors=kept)

    def _encode(self, batch: Embeddings) -> NDArray[np.uint8]:
        assert self.binariser is not None
        bad = np.flatnonzero(~np.isfinite(batch.vectors).all(axis=1))
        if len(bad):
            raise ValueError(f"{self.data.folder}: the vector of {batch.paths[bad[0]]} is not finite; embed it again")
        return self.binariser.encode(batch.vectors)

    def _stored(self, batch: Embeddings, dtype: str) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            stored = batch.vectors.astype(dtype, copy=False)
        if not np.isfinite(stored).all():
            raise ValueError(f"{self.data.folder}: vectors do not fit {dtype}; keep them as float32")
        return stored

    def _vector_batches(self) -> Iterator[Embeddings]:
        width = int(np.prod(self.data.provenance["shape"]))
        return self.data.batches(self.layer, rows=max(1, min(8192, _BATCH // (4 * width))))

    def _sample(self, seed: int) -> NDArray[np.float32]:
        """Vectors of random rows, as many as the memory for them allows."""
        width = int(np.prod(self.data.provenance["shape"]))
        count = min(self.data.rows, _SAMPLE_ROWS, max(1, _SAMPLE // (4 * width)))
        chosen = np.sort(np.random.default_rng(seed).choice(self.data.rows, count, replace=False))
        sample, filled, start = np.empty((count, width), np.float32), 0, 0
        for batch in self._vector_batches():
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


def build_index(
    dataset: PathLike,
    out: PathLike,
    *,
    binariser: str = "sign",
    n_bits: int | None = None,
    layer: int | None = None,
    kind: str | IndexSettings = "flat",
    vectors: str | None = "float16",
    seed: int = 0,
    on_progress: Report | None = None,
) -> HammingIndex:
    """Build an index folder `out` of an embedding data set that embed_images wrote; returns it opened, mapped.

    binariser, n_bits, layer, seed: as DataCodes. kind: as HammingIndex.build. vectors: what to keep the data set's
    vectors as, to rescore by ("float16", "float32", or None: do not). Tokenizer codes in the data set are kept too:
    hits can be decoded, and regions searched. Ids are the data set's paths. on_progress(rows done, all rows).

    Rows pass through memory in chunks: beside FAISS's part (none, if flat) it takes less than 300 MB, whatever the
    number of rows. The index appears whole or not at all.  Raises as DataCodes and HammingIndex.save do.
    """
    settings = IndexSettings(kind=kind) if isinstance(kind, str) else kind
    if vectors not in (None, "float16", "float32"):
        raise ValueError(f"vectors={vectors!r} is unknown; keep them as float16 or float32, or None")
    source = DataCodes(dataset, binariser, n_bits=n_bits, layer=layer, seed=seed)
    report = on_progress or (lambda done, total: None)
    with writing(Path(out)) as writer:
        rows = RowWriter(writer)
        for batch in source.batches(vectors):
            rows.append(batch)
            report(rows.count, source.data.rows)
        built = HammingIndex.of_rows(
            rows.mapped(), source.n_bits, settings,
            binariser=source.binariser, layout=source.layout, origin=source.origin,
        )  # fmt: skip
        rows.commit(built)
    return HammingIndex.load(out)
