"""Files that hold many pictures, Parquet files and tar shards: what is in them, and reading rows in order.

Knows nothing of models, plans or decoding. A container that is damaged yields what comes before the damage, and then
an error; nothing of it is held in memory but the batch of rows at hand.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from bisect import bisect_right
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bigr_repr.images.find import IMAGE_SUFFIXES, escape_path
from bigr_repr.images.formats import ImageError, one_line
from bigr_repr.system.object_store import ObjectPath, is_url, readable
from bigr_repr.system.threads import read_ahead

_ROWS = 32  # rows of a Parquet file in memory at a time
_AHEAD = 4  # times so many, read before they are needed
_BUFFER = 4 << 20  # bytes read at a time
_WORDNET_ID = re.compile(r"^n\d{8}:")


class Member(NamedTuple):
    """A picture in a container. start: a Parquet file's row, size being None, or where a tar member's bytes begin.

    name: of the member, or the row's number; may hold surrogate escapes. label: what the container says it is, if that.
    """

    name: str
    start: int
    size: int | None
    label: str | None


def is_container(file: str) -> bool:
    """Whether a file's name says that it holds many pictures."""
    return file.lower().endswith((".parquet", ".tar"))


def members(file: str, *, labels: bool = False) -> Iterator[Member]:
    """The pictures in a container, a local path or a URL, in its order; names need not be unique.

    Of a tar shard, regular files with the suffix of an image; of a Parquet file, all rows of the column `image`.
    labels: look for them, in the column `label` (numbers become names where the schema's metadata has some) or, as in
    WebDataset, in the member that has the picture's name up to its first dot and the suffix `.cls`; where there is
    none, a tar member's label is the name of its folder, if it has one.

    Raises ImageError for a container that is missing, damaged, of another kind or without pictures, after what comes
    before the damage.
    """
    member = None
    with _explained(file):
        for member in (_tar_members if file.lower().endswith(".tar") else _rows)(file, labels):
            yield member
        if member is None:
            raise ImageError("empty", f"{escape_path(file)}: holds no picture")


def why_unreadable(file: str) -> ImageError:
    """What was wrong with a container whose listing ended in an error."""
    try:
        for _ in members(file):
            pass
    except ImageError as error:
        return error
    return ImageError(
        "corrupt", f"{escape_path(file)}: was damaged when it was listed, and is whole now; take it in with update"
    )


@contextmanager
def _explained(file: str) -> Iterator[None]:
    """Turn what readers of containers raise into an ImageError."""
    name = one_line(escape_path(file))
    try:
        yield
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing", f"{name}: no such file") from None
    except (OSError, ValueError, tarfile.TarError, pa.ArrowException) as error:
        said = one_line(" ".join(str(error).split()))[:200]
        if isinstance(error, PermissionError | ConnectionError) or getattr(error, "errno", None) or "AWS Error" in said:
            said = getattr(error, "strerror", None) or said
            raise ImageError("unreadable", f"{name}: {said.removeprefix(f'{name}: ')}") from error
        raise ImageError("corrupt", f"{name}: the file is damaged; fetch it again ({said})") from error


# ---- tar shards


def _tar_members(file: str, labels: bool) -> Iterator[Member]:
    with _open(file) as stream, _open_tar(stream, file) as tar:
        for infos in _samples(tar):
            label = next((_text(tar, info) for info in infos if info.name.endswith(".cls")), None) if labels else None
            for info in infos:
                folder, base = os.path.split(info.name)
                if os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES and not base.startswith("."):  # noqa: PTH122
                    own = label if label is not None or not folder else escape_path(os.path.basename(folder))  # noqa: PTH119
                    yield Member(info.name, info.offset_data, info.size, own)


def _open_tar(stream: BinaryIO, file: str) -> tarfile.TarFile:
    if not stream.read(1):
        raise ImageError("empty", f"{escape_path(file)}: the file is empty; fetch it again")
    stream.seek(0)
    return tarfile.open(fileobj=stream, mode="r:")  # plain: what is compressed cannot be read from the middle


def _regular(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        if info.isreg():
            yield info
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any damage for the end
        raise tarfile.ReadError("no member begins where one should, and no end mark")


def _samples(tar: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    """Neighboring members with one key, together. What comes before an error is given before it is raised."""
    sample: list[tarfile.TarInfo] = []
    try:
        for info in _regular(tar):
            if sample and _key(info.name) != _key(sample[0].name):
                yield sample
                sample = []
            sample.append(info)
    except Exception:
        yield sample
        raise
    yield sample


def _key(name: str) -> str:
    """What members of one WebDataset sample share."""
    folder, base = os.path.split(name)
    return f"{folder}/{base.partition('.')[0]}"


def _text(tar: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    member = tar.extractfile(info)
    assert member is not None
    return escape_path(os.fsdecode(member.read(1024).strip()))


def _open(file: str) -> BinaryIO:
    if is_url(file):
        return io.BufferedReader(ObjectPath(file).open_input(), _BUFFER)
    return Path(file).open("rb")


# ---- Parquet files


def open_parquet(file: str) -> pq.ParquetFile:
    """A Parquet file, local or in a store, to be read in pieces: as much of it is in memory as is asked for."""
    return pq.ParquetFile(readable(file), pre_buffer=False, buffer_size=_BUFFER)


def class_names(metadata: Mapping[bytes, bytes] | None) -> tuple[str, ...]:
    """Names by the number that the column `label` holds; none if the schema's metadata states none.

    The key `classes` holds them separated by `|`, or by commas where there is no `|`; WordNet ids in front of names
    ("n01443537:goldfish") are left out. Else they are those of the Hugging Face hub's feature ClassLabel.
    """
    metadata = metadata or {}
    if classes := metadata.get(b"classes", b"").decode():
        return tuple(_WORDNET_ID.sub("", name) for name in classes.split("|" if "|" in classes else ","))
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError):
        return ()


def class_ids(metadata: Mapping[bytes, bytes] | None) -> tuple[str, ...]:
    """WordNet ids in front of the names of `class_names`; none unless every name has one."""
    classes = (metadata or {}).get(b"classes", b"").decode()
    found = [_WORDNET_ID.match(name) for name in classes.split("|" if "|" in classes else ",")]
    return tuple(match[0][:-1] for match in found if match) if all(found) else ()


def _rows(file: str, labels: bool) -> Iterator[Member]:
    with open_parquet(file) as parquet:
        _image_column(parquet, file)
        if not labels or "label" not in parquet.schema_arrow.names:
            yield from (Member(str(row), row, None, None) for row in range(parquet.metadata.num_rows))
            return
        names = class_names(parquet.schema_arrow.metadata)
        batches = parquet.iter_batches(4096, columns=["label"])
        values = (value for batch in batches for value in batch.column("label").to_pylist())
        for row, value in enumerate(values):
            known = isinstance(value, int) and 0 <= value < len(names)
            yield Member(str(row), row, None, names[value] if known else "" if value is None else str(value))


def _image_column(parquet: pq.ParquetFile, file: str) -> str:
    """What Parquet calls the column of encoded bytes. Raises ImageError if there is none."""
    schema, remedy = parquet.schema_arrow, "a column image with the bytes of image files is needed"
    if "image" not in schema.names:
        held = ", ".join(schema.names)
        raise ImageError("unsupported", f"{escape_path(file)}: has columns {held}; {remedy}")
    kind, column = schema.field("image").type, "image"
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind, column = kind.field("bytes").type, "image.bytes"
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ImageError("unsupported", f"{escape_path(file)}: column {column} is {kind}; {remedy}")
    return column


class _Stretch(NamedTuple):
    """Neighboring rows, those from start up to end: their encoded pictures, or why they cannot be read."""

    start: int
    end: int
    content: pa.Array | ImageError


class ParquetRows:
    """The encoded pictures of a Parquet file, for one reader, who closes it.

    Rows that rise are read once, and ahead of need. Opening raises nothing: what is wrong with the file is what becomes
    of its rows.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._held = _Stretch(0, 0, pa.array([], pa.binary()))
        self._following: Generator[_Stretch, None, None] | None = None
        self._error: ImageError | None = None
        try:
            with _explained(file):
                self._parquet = open_parquet(file)
                self._column = _image_column(self._parquet, file)
                groups = range(self._parquet.metadata.num_row_groups)
                sizes = (self._parquet.metadata.row_group(group).num_rows for group in groups)
                self._starts = list(accumulate(sizes, initial=0))
        except ImageError as error:
            self._error = error

    def read(self, row: int) -> bytes | ImageError:
        """A row's bytes, or why there are none."""
        name = f"{escape_path(self.file)}#{row}"
        if self._error is None and row >= self._starts[-1]:
            return ImageError("missing", f"{name}: the file has {self._starts[-1]} rows")
        error = self._error
        if error is None:
            held = self._find(row)
            if not isinstance(held.content, ImageError):
                content: bytes | None = held.content[row - held.start].as_py()
                return content or ImageError("empty", f"{name}: the row holds no bytes")
            error = held.content
        return ImageError(error.kind, f"{name}: {error.message.removeprefix(f'{one_line(escape_path(self.file))}: ')}")

    def close(self) -> None:
        """Read no further."""
        if self._following is not None:
            self._following.close()

    def _find(self, row: int) -> _Stretch:
        group, latest = (bisect_right(self._starts, place) - 1 for place in (row, max(0, self._held.end - 1)))
        if self._following is None or row < self._held.start or group > latest + 1:
            self.close()
            self._held = _Stretch(self._starts[group], self._starts[group], None)
            self._following = read_ahead(self._stretches(group), _AHEAD)
        while row >= self._held.end:
            self._held = next(self._following)
        return self._held

    def _stretches(self, group: int) -> Iterator[_Stretch]:
        """All rows from a row group's first on. What is damaged ends its row group, and the next one follows."""
        for number in range(group, len(self._starts) - 1):
            start = self._starts[number]
            try:
                with _explained(self.file):
                    for batch in self._parquet.iter_batches(_ROWS, row_groups=[number], columns=[self._column]):
                        yield _Stretch(start, start + len(batch), self._picture_bytes(batch))
                        start += len(batch)
            except ImageError as error:
                yield _Stretch(start, self._starts[number + 1], error)

    def _picture_bytes(self, batch: pa.RecordBatch) -> pa.Array:
        column = batch.column(0)
        return column.field("bytes") if pa.types.is_struct(column.type) else column
