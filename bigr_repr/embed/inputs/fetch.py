"""Reads the encoded bytes of planned inputs: files, members of tar shards, rows of Parquet files, objects.

Independent of decoding and of how inputs were found. There are two stages. `pictures` runs sequentially in the order
of the plan, so that a Parquet file is read once, front to back. `fetch` runs in the decoding threads, many at a time,
and reads what allows random access. Neighboring members of a tar shard in a store are read together, by whichever
thread needs the first of them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain, groupby, repeat
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.images.containers import is_container, why_unreadable
from bigr_repr.images.find import escape_path
from bigr_repr.images.formats import ErrorKind, ImageError
from bigr_repr.images.member import REASONS
from bigr_repr.images.parquet import USUAL_COLUMNS, Columns, ParquetRows
from bigr_repr.system.http import without_password
from bigr_repr.system.object_store import ObjectPath, is_url

_SPAN: Final = 8 << 20  # maximum bytes of an object to read together
_GAP: Final = 64 << 10  # maximum gap between two such members: non-pictures such as labels


class Piece(NamedTuple):
    """Bytes to be read later. file: a local path or a URL; size: number of bytes from start, None: all."""

    file: str
    start: int
    size: int | None


class _Span:
    """Neighboring pieces of an object, read together when the first is needed."""

    def __init__(self, file: str, start: int, end: int) -> None:
        self._whole, self._lock = Piece(file, start, end - start), Lock()
        self._content: bytes | None = None

    def read(self, piece: Piece) -> bytes:
        """A piece's bytes; if the whole span cannot be read, only the piece is requested."""
        with self._lock:
            if self._content is None:
                try:
                    self._content = _read(self._whole)
                except (OSError, ValueError):
                    self._content = b""
        start = piece.start - self._whole.start
        content = self._content[start : start + (piece.size or 0)]
        return content if len(content) == piece.size else _read(piece)


class EncodedPicture(NamedTuple):
    """A picture on its way to a decoder.

    name: its name in errors, as text. source: a local path, its encoded bytes, a Piece, or why it cannot be read.
    span: the bytes that the piece is read with.
    """

    name: str
    source: str | bytes | Piece | ImageError
    span: _Span | None = None


def pictures(entries: Iterable[Entry], columns: Columns = USUAL_COLUMNS) -> Generator[EncodedPicture, None, None]:
    """pictures_of_units() for one unit."""
    return pictures_of_units([list(entries)], columns)


def pictures_of_units(
    units: Iterable[Sequence[Entry]], columns: Columns = USUAL_COLUMNS
) -> Generator[EncodedPicture, None, None]:
    """Entries in order, each in the form that fetch takes. Neighboring rows of a Parquet file are read in one pass.

    Row groups are not read ahead beyond those that a unit needs. columns: of Parquet files.
    """
    rows: ParquetRows | None = None
    try:
        for entry, span, last in chain.from_iterable(map(_with_neighbors, units)):
            if entry.start is None and is_container(entry.file):
                yield EncodedPicture(entry.path, why_unreadable(entry.file, columns))
            elif entry.start is None:
                yield EncodedPicture(
                    without_password(escape_path(entry.file)),
                    Piece(entry.file, 0, None) if is_url(entry.file) else entry.file,
                )
            elif entry.start < 0:
                yield EncodedPicture(entry.path, ImageError("unsupported", f"{entry.path}: {REASONS[entry.start]}"))
            elif entry.size is not None:
                yield EncodedPicture(entry.path, Piece(entry.file, entry.start, entry.size), span)
            else:
                if rows is None or rows.file != entry.file:
                    if rows is not None:
                        rows.close()
                    rows = ParquetRows(entry.file, columns)
                yield EncodedPicture(entry.path, rows.read(entry.start, last))
    finally:
        if rows is not None:
            rows.close()


def _with_neighbors(entries: Sequence[Entry]) -> Iterator[tuple[Entry, _Span | None, int]]:
    """Entries, each with the span it is read with, and the last row that its neighbors need from the same file."""
    for file, group in groupby(entries, lambda entry: entry.file):
        same = list(group)
        last = max(entry.start or 0 for entry in same)
        spans = _with_spans(same) if is_url(file) else zip(same, repeat(None))
        yield from ((entry, span, last) for entry, span in spans)


def _with_spans(entries: Sequence[Entry]) -> Iterator[tuple[Entry, _Span | None]]:
    together: list[Entry] = []
    for entry in entries:
        if together and not _follows(entry, together):
            yield from _joined(together)
            together = []
        if entry.start is not None and entry.start >= 0 and entry.size is not None:
            together.append(entry)
        else:
            yield entry, None
    yield from _joined(together)


def _follows(entry: Entry, together: list[Entry]) -> bool:
    first, last = together[0], together[-1]
    if entry.start is None or entry.size is None:
        return False
    gap = entry.start - (last.start or 0) - (last.size or 0)
    return 0 <= gap <= _GAP and entry.start + entry.size - (first.start or 0) <= _SPAN


def _joined(together: list[Entry]) -> Iterator[tuple[Entry, _Span | None]]:
    span = None
    if len(together) > 1:
        first, last = together[0], together[-1]
        span = _Span(first.file, first.start or 0, (last.start or 0) + (last.size or 0))
    yield from ((entry, span) for entry in together)


def fetch(picture: EncodedPicture) -> str | bytes:
    """The input for bigr_repr.images.decode_image: a local path or encoded bytes.  Raises ImageError.  Thread-safe."""
    source = picture.source
    if isinstance(source, ImageError):
        raise source
    if not isinstance(source, Piece):
        return source
    try:
        content = _read(source) if picture.span is None else picture.span.read(source)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing", f"{picture.name}: no such object or file") from None
    except (OSError, ValueError) as error:  # ValueError: no file system supports the URL
        said = str(getattr(error, "strerror", None) or error).removeprefix(f"{without_password(source.file)}: ")
        kind: ErrorKind = "unreachable" if isinstance(error, ConnectionError) else "unreadable"
        raise ImageError(kind, f"{picture.name}: {said}") from error
    if source.size is not None and len(content) < source.size:
        raise ImageError("truncated", f"{picture.name}: {escape_path(source.file)} ends before it does")
    return content


def _read(piece: Piece) -> bytes:
    if is_url(piece.file):
        place = ObjectPath(piece.file)
        return place.read_bytes() if piece.size is None else place.read_piece(piece.start, piece.size)
    with Path(piece.file).open("rb") as file:
        file.seek(piece.start)
        return file.read(-1 if piece.size is None else piece.size)
