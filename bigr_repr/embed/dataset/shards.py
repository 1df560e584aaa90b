"""Builds, writes and reads the Parquet table of one unit. Independent of images and models."""

# B batch, D width, N tokens

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bigr_repr.embed.dataset.schema import IMAGE, Recipe
from bigr_repr.system.files import HashedFile, replacing
from bigr_repr.system.object_store import ObjectPath, Place, readable

_PIECE: Final = 8 << 20  # bytes read at a time


class ShardRows(NamedTuple):
    """Rows of a recipe's store_dtype, finite.

    vectors: {layer: (B, *recipe.shape(layer))}; codes: (B, bytes), uint8; others: B values each.

    Fields without a column in the recipe are ignored.
    """

    paths: Sequence[str]
    vectors: Mapping[int | str, NDArray[Any]]
    codes: NDArray[np.uint8]
    labels: Sequence[str]
    sha256: Sequence[str]
    thumbnails: Sequence[bytes] = ()


def rows_table(recipe: Recipe, rows: ShardRows) -> pa.Table:
    """Rows as a table of the recipe's schema."""
    schema = recipe.schema
    columns: list[pa.Array] = [pa.array(rows.paths, pa.string())]
    for layer, name in recipe.columns.items():
        flat = pa.array(np.ascontiguousarray(rows.vectors[layer]).reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, type=schema.field(name).type))
    if recipe.codes:
        kind = schema.field("code").type
        packed = [None, pa.py_buffer(rows.codes.tobytes())]
        columns.append(pa.FixedSizeBinaryArray.from_buffers(kind, len(rows.codes), packed))
    if recipe.labels:
        columns.append(pa.array(rows.labels, pa.string()))
    if recipe.sha256:
        columns.append(pa.array(rows.sha256, pa.string()))
    if recipe.thumbnails:
        named = zip(rows.thumbnails, rows.paths, strict=True)
        columns.append(pa.array([{"bytes": small, "path": path} for small, path in named], IMAGE))
    return pa.table(columns, schema=schema)


class ShardFile(NamedTuple):
    """What identifies a file. size: in bytes; sha256: hexadecimal."""

    size: int
    sha256: str


def shard_file(path: Place) -> ShardFile:
    """Size and digest of a file on the disk or in a store.  Raises OSError."""
    opened: Any = path.open_input() if isinstance(path, ObjectPath) else path.open("rb")
    digest, size = hashlib.sha256(), 0
    with opened as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return ShardFile(size, digest.hexdigest())


def write_shard(path: Place, table: pa.Table, writer: str = "") -> ShardFile:
    """Write a unit's rows as one row group with page checksums.  writer: as in replacing().

    Raises OSError.
    """
    packed = ["path", "label"]  # vectors, codes and digests do not compress
    with replacing(path, writer) as file:
        hashed = HashedFile(file)
        pq.write_table(
            table,
            hashed,
            row_group_size=max(1, table.num_rows),
            compression={_leaf(field): "zstd" if field.name in packed else "none" for field in table.schema},
            use_dictionary=["label"],
            write_statistics=packed,
            write_page_checksum=True,
        )
    return ShardFile(hashed.tell(), hashed.sha256)


def _leaf(field: pa.Field) -> str:
    """A column's name in Parquet."""
    return f"{field.name}.list.element" if pa.types.is_fixed_size_list(field.type) else field.name


def read_shard(path: Place) -> pa.Table:
    """A unit's rows."""
    return pq.read_table(readable(path), partitioning=None, page_checksum_verification=True)


def merge_rows(table: pa.Table, places: Sequence[int], more: pa.Table, more_places: Sequence[int]) -> pa.Table:
    """Merge the rows of two tables in the order of their places."""
    joined = pa.concat_tables([table.replace_schema_metadata(more.schema.metadata), more])
    return joined.take(np.argsort(np.concatenate([places, more_places]), kind="stable")).combine_chunks()
