"""Reads embedding data sets. Independent of images, models and how the files were made."""

# D width, N tokens

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.embed.dataset.damage import MEND, damage_named
from bigr_repr.embed.dataset.parts import DataPart, find_parts, open_parts, plan_named
from bigr_repr.embed.dataset.plan import RUN_FOLDER, Plan, open_plan
from bigr_repr.embed.dataset.schema import check_texts, incomparable_fields, read_provenance
from bigr_repr.features.pools import NONE
from bigr_repr.system.object_store import Place, as_place, readable

log = logging.getLogger(__name__)

_TEXTS = ("label", "sha256")


class Embeddings(NamedTuple):
    """Rows of a data set, in its order.

    paths: n, as recorded. vectors: (n, D), or (n, N, D) if tokens were not pooled, float32 or float16 as stored.
    codes: uint8 (n, bytes), packed as in bigr_repr.codes, or None if not stored. labels, sha256: n, or None.
    """

    paths: list[str]
    vectors: NDArray[Any]
    codes: NDArray[np.uint8] | None
    labels: list[str] | None
    sha256: list[str] | None = None


class EmbeddingSet:
    """An open data set written by embed_images. Rows are read on demand.

    only: names of the files to open; None: all.
    Raises FileNotFoundError if the folder holds no data set, ValueError if its files differ in provenance.
    """

    def __init__(self, folder: PathLike, *, only: Collection[str] | None = None) -> None:
        self.folder = as_place(folder)
        found = find_parts(self.folder)
        if not found:
            raise FileNotFoundError(
                f"{self.folder}: no embeddings here (part-*.parquet); make them with: bigr-repr embed"
            )
        plan = open_plan(self.folder / RUN_FOLDER)
        if plan is not None and plan.units != len(found):
            parts = f"{len(found)} of {plan.units} parts"
            log.warning("%s is incomplete (%s); repeat the bigr-repr embed command to finish it", self.folder, parts)
        found = [part for part in found if only is None or part[0].name in only]
        self.files: list[Place] = [file for file, _ in found]
        self.provenance: dict[str, Any] = {}
        self.rows_of_files: list[int] = []
        self._plans: dict[Place, Plan | None] = {self.folder: plan}
        before = None
        for part in open_parts(self.folder / RUN_FOLDER, found):
            if part.schema is not before:  # listed parts share one schema
                self._check_make(part, self.files[0])
            self._check_plan(part.file, part.plan)
            self.rows_of_files.append(part.rows)
            self.schema = before = part.schema

    def _check_make(self, part: DataPart, first: Place) -> None:
        provenance = read_provenance(part.schema, str(part.file))
        check_texts(part.schema, str(part.file))
        self.provenance = self.provenance or provenance
        if differing := incomparable_fields(self.provenance, provenance):
            raise ValueError(f"{part.file} does not belong with {first.name}: {'; '.join(differing)}")

    def _check_plan(self, file: Place, named: str) -> None:
        plan = self._plans[file.parent]  # joined data sets each keep the plan of their own run
        if plan is not None and _foreign(plan, file, named):
            raise ValueError(f"{file}: rows of another run in this run's folder; {MEND}")

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(self.rows_of_files)

    def with_others(self, others: Sequence[EmbeddingSet]) -> EmbeddingSet:
        """The rows of this data set followed by those of others.  Raises ValueError if their provenance differs."""
        joined = copy.copy(self)
        for other in others:
            if found := incomparable_fields(self.provenance, other.provenance):
                raise ValueError(f"{other.folder} was not made with the settings of {self.folder}: {'; '.join(found)}")
        joined._plans = {folder: plan for each in (self, *others) for folder, plan in each._plans.items()}
        joined.files = [file for each in (self, *others) for file in each.files]
        joined.rows_of_files = [rows for each in (self, *others) for rows in each.rows_of_files]
        return joined

    def file(self, number: int) -> EmbeddingSet:
        """The rows of one of its files."""
        part = copy.copy(self)
        part.files, part.rows_of_files = [self.files[number]], [self.rows_of_files[number]]
        return part

    @property
    def layers(self) -> tuple[int | str, ...]:
        """Layers with stored vectors: block numbers, or several concatenated as "4+8"."""
        return tuple(self.provenance["layers"])

    @property
    def n_bits(self) -> int | None:
        """Bits of a code; None if there are no codes."""
        bits: int | None = self.provenance["n_bits"]
        return bits

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the stored vectors: float32 or float16."""
        dtype: np.dtype[Any] = np.dtype(self.provenance["dtype"])
        return dtype

    def shape(self, layer: int | str | None = None) -> tuple[int, ...]:
        """The shape of one vector of a layer: (D,), or (N, D) if tokens were not pooled."""
        size: int = self.schema.field(self.column(layer)).type.list_size
        tokens: int = self.provenance["shape"][0]
        return (tokens, size // tokens) if self.provenance["pooling"] == NONE else (size,)

    def column(self, layer: int | str | None = None) -> str:
        """The name of a layer's column; None: the only layer's.

        Raises ValueError for a missing layer, or None if there are several.
        """
        if not self.layers:
            raise ValueError(f"{self.folder} holds no vectors, only codes; read them with EmbeddingSet.code_batches")
        if layer is None and len(self.layers) == 1:
            return "embedding"
        if layer not in self.layers:
            held = ", ".join(map(str, self.layers))
            if layer is None:
                raise ValueError(f"{self.folder} holds layers {held}; name one of them as the layer")
            raise ValueError(f"layer={layer} is not in {self.folder}, which holds layers {held}; name one of them")
        return "embedding" if len(self.layers) == 1 else f"embedding_{layer}"

    def batches(self, layer: int | str | None = None, *, rows: int = 4096) -> Iterator[Embeddings]:
        """All rows in order, in batches of at most `rows`; memory holds one batch."""
        for batch in self._record_batches(["path", self.column(layer), "code", "label", "sha256"], rows):
            yield Embeddings(
                batch.column("path").to_pylist(),
                _vectors(batch.column(self.column(layer)), self.shape(layer)),
                _bytes(batch.column("code")) if "code" in batch.schema.names else None,
                *(batch.column(name).to_pylist() if name in batch.schema.names else None for name in _TEXTS),
            )

    def code_batches(self, *, rows: int = 65536) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
        """Paths and codes (n, bytes) of all rows in order; vectors are not read. ValueError if there are no codes."""
        if self.n_bits is None:
            raise ValueError(f"{self.folder} holds no codes; embed with codes (bigr-repr embed --codes)")
        for batch in self._record_batches(["path", "code"], rows):
            yield batch.column("path").to_pylist(), _bytes(batch.column("code"))

    def label_batches(self, *, rows: int = 65536) -> Iterator[list[str]]:
        """Labels of all rows in order; nothing else is read. ValueError if there are none."""
        if "label" not in self.schema.names:
            raise ValueError(
                f"{self.folder} holds no labels; embed with labels (bigr-repr embed --labels-from-folders)"
            )
        for batch in self._record_batches(["label"], rows):
            yield batch.column("label").to_pylist()

    def column_batches(self, names: list[str], *, rows: int = 65536) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows in order.  Raises ValueError if a file lacks one."""
        for file in self.files:
            with self._damage_named(file), pq.ParquetFile(readable(file), page_checksum_verification=True) as parquet:
                if lacking := sorted(set(names) - set(parquet.schema_arrow.names)):
                    held = ", ".join(parquet.schema_arrow.names)
                    raise ValueError(f"{file} has no column {lacking[0]!r}; its columns are {held}")
                yield from (batch.select(names) for batch in parquet.iter_batches(rows, columns=names))

    def read(self, layer: int | str | None = None) -> Embeddings:
        """All rows at once."""
        paths, start = list[str](), 0
        texts: dict[str, list[str]] = {name: [] for name in _TEXTS if name in self.schema.names}
        vectors = np.empty((self.rows, *self.shape(layer)), self.dtype)
        codes = None if self.n_bits is None else np.empty((self.rows, -(-self.n_bits // 8)), np.uint8)
        for batch in self.batches(layer):
            end = start + len(batch.paths)
            vectors[start:end] = batch.vectors
            if codes is not None and batch.codes is not None:
                codes[start:end] = batch.codes
            paths += batch.paths
            for name, values in zip(_TEXTS, (batch.labels, batch.sha256), strict=True):
                if values is not None:
                    texts[name] += values
            start = end
        return Embeddings(paths, vectors, codes, *map(texts.get, _TEXTS))

    def _record_batches(self, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        wanted = [name for name in columns if name in self.schema.names]
        for file in self.files:
            with self._damage_named(file), pq.ParquetFile(readable(file), page_checksum_verification=True) as parquet:
                schema = parquet.schema_arrow  # of the current file; the list of parts may be out of date
                self._check_make(DataPart(file, parquet.metadata.num_rows, schema, ""), self.files[0])
                self._check_plan(file, plan_named(schema))
                yield from parquet.iter_batches(rows, columns=wanted)

    def _damage_named(self, file: Place) -> AbstractContextManager[None]:
        return damage_named(file, file.parent / RUN_FOLDER)


def _foreign(plan: Plan, file: Place, named: str) -> bool:
    """Whether a part names a different list of inputs than the plan does."""
    unit = file.name.removeprefix("part-").removesuffix(".parquet")
    known = unit.isdecimal() and int(unit) < plan.units
    return bool(named) and named != (plan.id_of(int(unit)) if known else "")


def read_embeddings(folder: PathLike, layer: int | str | None = None) -> Embeddings:
    """All rows of a data set written by embed_images: paths, vectors of a layer (None: the only one), codes, labels.

    For more rows than fit into memory, use EmbeddingSet.batches.
    Raises FileNotFoundError if the folder holds no data set, ValueError for a missing layer.
    """
    return EmbeddingSet(folder).read(layer)


def _vectors(column: pa.Array, shape: tuple[int, ...]) -> NDArray[Any]:
    flat: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), *shape)


def _bytes(column: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    width = column.type.byte_width
    flat = np.frombuffer(column.buffers()[1], np.uint8, count=len(column) * width, offset=column.offset * width)
    return flat.reshape(len(column), width)
