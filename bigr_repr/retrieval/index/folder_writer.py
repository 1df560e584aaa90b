"""Writes a new state of an index folder next to the old one. Knows nothing of the parts' contents."""

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
from bigr_repr.retrieval.index.shard_list import SHARD_LIST, SHARD_NAME, busy, is_index, unlist
from bigr_repr.system import files

_PIECED: Final = ("ids", "offsets")  # searches read only parts of these
_PIECE: Final = 1 << 20  # bytes
_SUFFIX: Final = {"columns": ".arrow", "search": ".faiss", BINARIZER: ".safetensors"}


class _Open:
    """A part that is being written, in separately verified pieces. pieces: size and SHA-256 of each."""

    def __init__(self, file: BinaryIO, pieces: list[list[Any]]) -> None:
        self.file, self.pieces, self._held, self._digest = file, pieces, 0, hashlib.sha256()

    def append(self, data: bytes | memoryview, piece: int | None) -> None:
        """Write to the file. piece: number of bytes after which a piece ends; None: never."""
        self.file.write(data)
        self._digest.update(data)
        self._held += memoryview(data).nbytes
        if piece is not None and self._held >= piece:
            self.end_piece()

    def end_piece(self) -> None:
        """End a piece; a file has at least one."""
        if self._held or not self.pieces:
            self.pieces.append([self._held, self._digest.hexdigest()])
            self._held, self._digest = 0, hashlib.sha256()


class FolderWriter:
    """Writes a new state of an index folder next to the old one; `commit` makes it current.  Raises OSError.

    made: whether the folder was made for it.
    """

    def __init__(self, folder: Path, *, made: bool = False) -> None:
        self.folder, self._made, self._token = folder, made, secrets.token_hex(8)
        self._open: dict[str, _Open] = {}
        self._files: dict[str, dict[str, Any]] = {}
        self._base: FolderReader | None = None

    def extend(self, base: FolderReader) -> None:
        """Start with the parts of the existing state; new rows are appended to its rows."""
        self._base = base
        self._files = {part: base.entry(part) for part in base.parts}

    def path(self, part: str) -> Path:
        """The path of a part of the new state."""
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
        file.truncate(sum(size for size, _ in pieces))  # remove the rest of an interrupted update
        file.seek(0, os.SEEK_END)
        return _Open(file, pieces)

    def close_part(self, part: str) -> Path:
        """Finish a part that was appended to: sync it, and return its path."""
        opened = self._open.pop(part)
        path = Path(opened.file.name)
        with files.naming(path), opened.file as file:
            file.flush()
            os.fsync(file.fileno())
        opened.end_piece()
        self._files[part] = _entry(path.name, opened.pieces)
        return path

    def adopt(self, part: str) -> None:
        """Adopt a part that other code has written to path(part)."""
        path = self.path(part)
        with path.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self._files[part] = _entry(path.name, [[path.stat().st_size, digest]])

    def commit(self, manifest: Mapping[str, Any]) -> None:
        """Replace the folder's state with this one."""
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
        """Remove what was written, and the folder if it was made for that and is empty."""
        for part in self._open.values():
            with suppress(OSError):  # on a full disk, the rest cannot be written either
                part.file.close()
        for name in PARTS:
            self.path(name).unlink(missing_ok=True)
        if self._base is not None:
            self._base.cut()
        if self._made:
            with suppress(OSError):  # not empty, or gone
                self.folder.rmdir()


@contextmanager
def writing(folder: Path) -> Iterator[FolderWriter]:
    """A FolderWriter whose files are removed if the block fails.

    Raises FileExistsError for a folder that holds something other than an index, RuntimeError while another process
    is writing it.
    """
    check_place(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder, busy(folder)):
        writer = FolderWriter(folder, made=made)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise


def check_place(folder: Path) -> None:
    """Raise FileExistsError unless the folder is new, empty, or holds an index, sharded or not."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose a folder for the index")
    if folder.is_dir() and not is_index(folder) and not all(map(_left_over, folder.iterdir())):
        raise FileExistsError(f"{folder} holds something other than an index; choose another folder (--out)")


def remove_files(folder: Path, kept: Collection[str] = ()) -> None:
    """Remove the files of an index from a folder, except the kept ones."""
    for path in folder.iterdir():
        if FILE_NAME.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)


def _left_over(path: Path) -> bool:
    """Whether a file or folder is left over from a killed process that was writing an index."""
    partial = {files.partial_name(Path(name)).name for name in (MANIFEST, SHARD_LIST)}
    shard = SHARD_NAME.fullmatch(path.name) is not None and path.is_dir()
    return shard or FILE_NAME.fullmatch(path.name) is not None or path.name in partial


def _entry(name: str, pieces: list[list[Any]]) -> dict[str, Any]:
    total = sum(size for size, _ in pieces)
    return {"name": name, "bytes": total, **({"pieces": pieces} if len(pieces) > 1 else {"sha256": pieces[0][1]})}
