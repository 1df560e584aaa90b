"""Files that list a plan's inputs: their names and form, and how they are written, before they become part of a plan.

A list of inputs is a Parquet file with one row group per unit. Next to it are the containers that hold several of its
inputs, and with dedup their digests. Independent of models and rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bigr_repr.embed.dataset.containers import ContainerList
from bigr_repr.embed.dataset.cut import Cut
from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.images.find import Source, escape_path, unescape_path
from bigr_repr.system.files import HashedFile, replacing
from bigr_repr.system.object_store import Place, readable

INPUTS, DIGESTS, CONTAINERS = "inputs", "digests", "containers"
NO_MARK = bytes(8)  # nothing is known of the file
_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("start", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("label", pa.string()),
    ]
)
_ENCODING = {
    "path": "DELTA_BYTE_ARRAY", "file": "DELTA_BYTE_ARRAY", "label": "DELTA_BYTE_ARRAY",
    "start": "DELTA_BINARY_PACKED", "size": "DELTA_BINARY_PACKED",
}  # fmt: skip


class Listed(NamedTuple):
    """A list that list_inputs wrote. sha256: of its file; uneven, continued: as in Plan, for this list alone."""

    inputs: int
    sha256: str
    uneven: int | None
    continued: tuple[tuple[int, int], ...]


def list_inputs(folder: Place, sources: Iterable[Source], unit_size: int, on_listed: Callable[[int], None]) -> Listed:
    """Write a list of inputs for commit_plan, next to that of any plan in the folder."""
    found, held, cut = 0, ContainerList(), Cut(unit_size)
    with (
        replacing(folder / list_file(INPUTS, None)) as file,
        closing(HashedFile(file)) as hashed,
        pq.ParquetWriter(
            hashed,
            _SCHEMA,
            compression="zstd",
            use_dictionary=False,
            column_encoding=_ENCODING,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):
        for unit in cut.units(held.watched(sources)):
            paths, files, *parts = zip(*unit, strict=True)
            columns = [paths, map(escape_path, files), *parts]
            writer.write_table(pa.table(list(map(list, columns)), schema=_SCHEMA), row_group_size=len(unit))
            held.note(unit, found)
            found += len(unit)
            on_listed(found)
    held.write(folder / list_file(CONTAINERS, None))
    return Listed(found, hashed.sha256, cut.count if cut.uneven else None, tuple(cut.continued))


def listed(folder: Place) -> Iterator[list[Entry]]:
    """The inputs written by list_inputs that are not part of a plan yet, unit by unit."""
    file = pq.ParquetFile(readable(folder / list_file(INPUTS, None)))
    for group in range(file.num_row_groups):
        yield entries_of(file.read_row_group(group))


def listed_count(folder: Place) -> int:
    """The number of inputs written by list_inputs that are not part of a plan yet."""
    return int(pq.read_metadata(readable(folder / list_file(INPUTS, None))).num_rows)


def write_digests(
    folder: Place, units: Iterable[tuple[Sequence[bytes], Sequence[str | None], Sequence[bytes]]]
) -> None:
    """Write each unit's SHA-256 digests, the paths of equal inputs, and marks, next to the list of list_inputs."""
    own = (pa.field(name, pa.binary(size), nullable=False) for name, size in (("sha256", 32), ("mark", len(NO_MARK))))
    schema = pa.schema([*own, pa.field("same_as", pa.string())])
    with replacing(folder / list_file(DIGESTS, None)) as file, _digest_writer(file, schema) as to:
        for digests, same_as, marks in units:
            columns = {"sha256": digests, "mark": marks, "same_as": same_as}
            to.write_table(pa.table(columns, schema=schema), row_group_size=len(digests))


def _digest_writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, schema, use_dictionary=False, write_page_checksum=True)


def list_file(kind: str, number: int | None) -> str:
    """A file's name. kind: INPUTS, DIGESTS or CONTAINERS; number: of the list; None if not in the plan yet."""
    return f"{kind}.new.parquet" if number is None else f"{kind}-{number}.parquet" if number else f"{kind}.parquet"


def entries_of(table: pa.Table) -> list[Entry]:
    """The inputs in rows of a list."""
    columns = [column.to_pylist() for column in table.columns]
    return [Entry(path, unescape_path(name), *part) for path, name, *part in zip(*columns, strict=True)]
