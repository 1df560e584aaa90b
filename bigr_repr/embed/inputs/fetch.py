"""Planned inputs to the encoded bytes of pictures: files, members of tar shards, rows of Parquet files, objects.

Knows nothing of decoding, and nothing of how the inputs were found. It has two ends. `pictures` runs in one place and
in the order of the plan, so that a Parquet file is read once, front to back; what it gives can be sent to another
process. `fetch` runs wherever pictures are decoded, many at a time, and reads what can be read at random.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import NamedTuple

from bigr_repr.embed.dataset.plan import Entry
from bigr_repr.images.containers import is_container, why_unreadable
from bigr_repr.images.find import escape_path
from bigr_repr.images.formats import ImageError
from bigr_repr.images.member import REASONS
from bigr_repr.images.parquet import USUAL_COLUMNS, Columns, ParquetRows
from bigr_repr.system.object_store import ObjectPath, is_url


class Piece(NamedTuple):
    """Bytes that are still to be read. file: a local path or a URL; size: how many from start on, None: all."""

    file: str
    start: int
    size: int | None


class EncodedPicture(NamedTuple):
    """A picture on its way to a decoder; can be pickled.

    name: what errors call it, as text. source: a local path, its encoded bytes, a Piece, or why it cannot be had.
    """

    name: str
    source: str | bytes | Piece | ImageError


def pictures(entries: Iterable[Entry], columns: Columns = USUAL_COLUMNS) -> Generator[EncodedPicture, None, None]:
    """Entries in order, each as what fetch takes. Neighboring rows of a Parquet file cost one reading of the file.

    columns: of Parquet files.
    """
    rows: ParquetRows | None = None
    try:
        for entry in entries:
            if entry.start is None and is_container(entry.file):
                yield EncodedPicture(entry.path, why_unreadable(entry.file, columns))
            elif entry.start is None:
                yield EncodedPicture(
                    escape_path(entry.file), Piece(entry.file, 0, None) if is_url(entry.file) else entry.file
                )
            elif entry.start < 0:
                yield EncodedPicture(entry.path, ImageError("unsupported", f"{entry.path}: {REASONS[entry.start]}"))
            elif entry.size is not None:
                yield EncodedPicture(entry.path, Piece(entry.file, entry.start, entry.size))
            else:
                if rows is None or rows.file != entry.file:
                    if rows is not None:
                        rows.close()
                    rows = ParquetRows(entry.file, columns)
                yield EncodedPicture(entry.path, rows.read(entry.start))
    finally:
        if rows is not None:
            rows.close()


def fetch(picture: EncodedPicture) -> str | bytes:
    """What bigr_repr.images.decode_image takes: a local path, or encoded bytes.  Raises ImageError.  Thread-safe."""
    source = picture.source
    if isinstance(source, ImageError):
        raise source
    if not isinstance(source, Piece):
        return source
    try:
        content = _read(source)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing", f"{picture.name}: no such object or file") from None
    except (OSError, ValueError) as error:  # ValueError: no file system takes the URL
        said = str(getattr(error, "strerror", None) or error).removeprefix(f"{source.file}: ")
        raise ImageError("unreadable", f"{picture.name}: {said}") from error
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
