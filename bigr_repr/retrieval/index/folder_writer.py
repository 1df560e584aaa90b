"""A new state of an index folder, written beside the old one. Knows nothing of what the parts hold."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr.retrieval.index.folder import (
    BINARIZER,
    FILE_NAME,
    FORMATS,
    GROWING,
    MANIFEST,
    PARTS,
    FolderReader,
    manifest_digest,
)
from bigr_repr.retrieval.index.shard_list import SHARD_LIST, SHARD_NAME, is_index, unlist
from bigr_repr.system import files

_PIECED: Final = ("ids", "offsets")  # of which searches read a few
_PIECE: Final = 1 << 20  # bytes
_SUFFIX: Final = {"columns": ".arrow", "search": ".faiss", BINARIZER: ".safetensors"}


class _Open:
    """A part that is being written, in pieces that are checked by themselves. pieces: bytes and SHA-256 of each."""

    def __init__(self, file: BinaryIO, pieces: list[list[Any]]) -> None:
        self.file, self.pieces, self._held, self._digest = file, pieces, 0, hashlib.sha256()

    def append(self, data: bytes | memoryview, piece: int | None) -> None:
        """Write to the file. piece: bytes from which on a piece ends; None: it does not."""
        self.file.write(data)
        self._digest.update(data)
        self._held += memoryview(data).nbytes
        if piece is not None and self._held >= piece:
            self.end_piece()

    def end_piece(self) -> None:
        """End a piece; a file has one at least."""
        if self._held or not self.pieces:
            self.pieces.append([self._held, self._digest.hexdigest()])
            self._held, self._digest = 0, hashlib.sha256()


class FolderWriter:
    """Writes a new state of an index folder beside the old one; `commit` makes it the folder's.  Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._token = folder, secrets.token_hex(8)
        self._open: dict[str, _Open] = {}
        self._files: dict[str, dict[str, Any]] = {}
        self._base: FolderReader | None = None

    def extend(self, base: FolderReader) -> None:
        """Begin with the parts of the state that there is; what is appended goes behind its rows."""
        self._base = base
        self._files = {part: base.entry(part) for part in base.parts}

    def path(self, part: str) -> Path:
        """Where a part of the new state is."""
        return self.folder / f"{part}-{self._token}{_SUFFIX.get(part, '.bin')}"

    @property
    def appended(self) -> list[str]:
        """Parts that can be appended to."""
        return list(self._open)

    def append(self, part: str, data: NDArray[Any] | bytes | memoryview) -> None:
        """Append to a part."""
        if part not in self._open:
            self._open[part] = self._begin(part)
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else data
        with files.naming(Path(self._open[part].file.name)):
            self._open[part].append(view, _PIECE if part in _PIECED else None)

    def _begin(self, part: str) -> _Open:
        if part not in GROWING or self._base is None or part not in self._base:
            return _Open(self.path(part).open("wb"), [])
        pieces = list(self._base.pieces(part))
        file = (self.folder / self._base.entry(part)["name"]).open("r+b")
        file.truncate(sum(size for size, _ in pieces))  # of an update that was cut short
        file.seek(0, os.SEEK_END)
        return _Open(file, pieces)

    def close_part(self, part: str) -> Path:
        """Finish a part that was appended to: synced, and readable at the path returned."""
        opened = self._open.pop(part)
        path = Path(opened.file.name)
        with files.naming(path), opened.file as file:
            file.flush()
            os.fsync(file.fileno())
        opened.end_piece()
        self._files[part] = _entry(path.name, opened.pieces)
        return path

    def adopt(self, part: str) -> None:
        """Take a part in that someone else has written to path(part)."""
        path = self.path(part)
        with path.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self._files[part] = _entry(path.name, [[path.stat().st_size, digest]])

    def commit(self, manifest: Mapping[str, Any]) -> None:
        """Replace the folder's state by this one."""
        for part in list(self._open):
            self.close_part(part)
        files.sync_folder(self.folder)
        grown = "gone" in self._files or any("pieces" in entry for entry in self._files.values())
        record = {"format": FORMATS[grown], **manifest, "files": self._files}
        record["sha256"] = manifest_digest(record)
        fields = ",\n".join(f" {json.dumps(name)}: {json.dumps(record[name], ensure_ascii=False)}" for name in record)
        with files.replacing(self.folder / MANIFEST) as file:
            file.write(f"{{\n{fields}\n}}\n".encode())
        kept = {entry["name"] for entry in self._files.values()}
        remove_files(self.folder, kept)
        unlist(self.folder)

    def abandon(self) -> None:
        """Remove what was written, and the folder if it is empty."""
        for part in self._open.values():
            with suppress(OSError):  # a full disk does not take what was still to be written
                part.file.close()
        for name in PARTS:
            self.path(name).unlink(missing_ok=True)
        if self._base is not None:
            self._base.cut()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


@contextmanager
def writing(folder: Path) -> Iterator[FolderWriter]:
    """A FolderWriter, whose files vanish if the block ends with an error.

    Raises FileExistsError for a folder that holds something other than an index, RuntimeError while another process
    writes it.
    """
    check_place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder, f"{folder}: another process is writing this index; wait for it"):
        writer = FolderWriter(folder)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise


def check_place(folder: Path) -> None:
    """Raises FileExistsError for what is neither a new or empty folder nor one of an index, in shards or not."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder for the index")
    if folder.is_dir() and not is_index(folder) and not all(map(_left_over, folder.iterdir())):
        raise FileExistsError(f"{folder} holds other things than an index; name another folder (--out)")


def remove_files(folder: Path, kept: Collection[str] = ()) -> None:
    """Remove the files of an index from a folder, all but some."""
    for path in folder.iterdir():
        if FILE_NAME.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)


def _left_over(path: Path) -> bool:
    """Whether a file or folder is what a process that was killed leaves of an index."""
    partial = {files.partial_name(Path(name)).name for name in (MANIFEST, SHARD_LIST)}
    shard = SHARD_NAME.fullmatch(path.name) is not None and path.is_dir()
    return shard or FILE_NAME.fullmatch(path.name) is not None or path.name in partial


def _entry(name: str, pieces: list[list[Any]]) -> dict[str, Any]:
    total = sum(size for size, _ in pieces)
    return {"name": name, "bytes": total, **({"pieces": pieces} if len(pieces) > 1 else {"sha256": pieces[0][1]})}
