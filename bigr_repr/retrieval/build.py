"""Builds an index folder from embedding data sets, chunk by chunk: memory never holds all vectors."""

# n rows (images), D features

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bigr_repr._typing import PathLike
from bigr_repr.retrieval.codes.binarizer import Binarizer
from bigr_repr.retrieval.codes.dataset import DataCodes
from bigr_repr.retrieval.codes.source import DataSource
from bigr_repr.retrieval.index.folder_writer import writing
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.settings import IndexSettings
from bigr_repr.retrieval.index.storage import RowWriter

Report = Callable[[int, int], None]


def build_index(
    dataset: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    binarizer: str | Binarizer = "sign",
    n_bits: int | None = None,
    layer: int | str | None = None,
    kind: str | IndexSettings = "flat",
    vectors: str | None = "float16",
    keep: Sequence[str] = (),
    seed: int = 0,
    on_progress: Report | None = None,
) -> HammingIndex:
    """Build an index folder `out` from embedding data sets written by embed_images; returns it opened, memory-mapped.

    dataset: a folder or URL, or several. binarizer, n_bits, layer, seed: as in DataCodes. kind: as in
    HammingIndex.build. vectors: how to store the data sets' vectors for rescoring ("float16", "float32", or None: not
    at all). Tokenizer codes are stored too, so hits can be decoded and regions searched. Ids are the data sets' paths.
    keep: columns to filter by; `label` is always kept. on_progress(rows done, all rows).

    Rows pass through memory in chunks: besides FAISS's part (none if flat) this takes less than 300 MB, whatever the
    number of rows. The index is written atomically.  Raises as DataCodes and HammingIndex.save do.
    """
    settings = IndexSettings(kind=kind) if isinstance(kind, str) else kind
    source = DataCodes(dataset, binarizer, n_bits=n_bits, layer=layer, seed=seed, keep=keep)
    write_index(source, out, settings, vectors, on_progress or (lambda done, total: None))
    return HammingIndex.load(out)


def write_index(
    source: DataCodes,
    out: PathLike,
    settings: IndexSettings,
    vectors: str | None,
    report: Report = lambda done, total: None,
) -> None:
    """build_index() for opened data sets."""
    if vectors not in (None, "float16", "float32"):
        raise ValueError(f"vectors={vectors!r} is unknown; choose float16, float32 or None")
    # Before anything is read, so that what changes while it is read counts as changed since.
    known = DataSource.joined([DataSource.of(each, each.rows_of_files) for each in source.sets])
    with writing(Path(out)) as writer:
        rows = RowWriter(writer)
        for batch in source.batches(vectors):
            rows.append(batch)
            report(rows.count, source.data.rows)
        built = HammingIndex.of_rows(
            rows.mapped(), source.n_bits, settings,
            binarizer=source.binarizer, layout=source.layout, provenance=source.provenance, source=known,
        )  # fmt: skip
        rows.commit(built.parts, settings)
