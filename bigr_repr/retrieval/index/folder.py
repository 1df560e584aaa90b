"""An index on disk: a folder of raw arrays and a manifest that names them. Knows nothing of search.

    index.json              settings, provenance (as "origin"), self-check, every file's size and SHA-256, and its own
                            SHA-256
    codes-<token>.bin       uint8 (n, bytes);  tokens-, vectors-: as stated in the manifest
    ids-<token>.bin         int64, or the concatenated text of all names, with offsets-<token>.bin, int64 (n+1)
    search-<token>.faiss    FAISS's file, for the kinds ivf and hnsw, of the distinct codes
    columns-<token>.arrow   the columns kept for filtering, an Arrow IPC stream
    distinct-<token>.bin    int64, the number of each row's distinct code, for rows in FAISS's file, unless all differ
    gone-<token>.bin        int64, ascending, the numbers of stored rows that the index has dropped
    binarizer-<token>.safetensors

Data files are written and synced first; then the manifest replaces the old one atomically, and the files that only
the old one named are removed. So the folder always holds a complete index, and readers that have the old files open
keep them. An update appends rows to the existing files: whatever the old manifest names stays as it was, and bytes
beyond what a manifest states belong to an interrupted update. Such files have a SHA-256 for each piece (format 2; the
columns of each piece are a separate stream). So do ids of a megabyte or more, of which searches verify only what they
read. Nothing that is read is trusted: names, sizes and shapes are checked before memory is allocated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike

MANIFEST: Final = "index.json"
FORMATS: Final = (1, 2)  # 2: with appended or dropped rows
BINARIZER: Final = "binariser"  # on disk it keeps the spelling of the format's first version
GROWING: Final = ("codes", "ids", "offsets", "tokens", "vectors", "columns")
PARTS: Final = (*GROWING, "search", "distinct", "gone", BINARIZER)
_LONGEST_MANIFEST: Final = 64 << 20  # a data set of ten million pictures has ten thousand files
_MOST_PIECES: Final = 1 << 20
FILE_NAME: Final = re.compile(r"(?P<part>[a-z]+)-[0-9a-f]{16}\.(bin|faiss|arrow|safetensors)")
_BLOCK: Final = 1 << 20  # bytes hashed at a time
_TRIES: Final = 5  # attempts to read a folder that others replace
_T = TypeVar("_T")
_REMEDY: Final = "build the index again, or use an intact copy of it"
_CHANGED: Final = f"damaged, its content has changed since it was written; {_REMEDY}"


class FolderReader:
    """An index folder, with its manifest read and the sizes of its files checked.

    max_bytes: limit on the total size of all files; None: no limit.
    Raises FileNotFoundError if there is no index, ValueError for a damaged one or one above the limit.
    """

    def __init__(self, folder: PathLike, *, max_bytes: int | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self._files: dict[str, dict[str, Any]] = {}
        total = 0
        for part, entry in self._mapping("files").items():
            total += self._check_file(part, entry)
        if max_bytes is not None and total > max_bytes:
            raise ValueError(f"{self.folder}: {total:,} bytes are more than max_bytes={max_bytes:,}; raise it")

    def __contains__(self, part: str) -> bool:
        return part in self._files

    def field(self, name: str, kind: type, *, optional: bool = False) -> Any:
        """A field of the manifest. Raises ValueError if it is missing or of the wrong type."""
        value = self.manifest.get(name)
        if (value is None and optional) or (isinstance(value, kind) and not isinstance(value, bool)):
            return value
        raise self.damaged(f"{name} is {value!r:.40}, not {kind.__name__}")

    def damaged(self, what: str) -> ValueError:
        """The error for something wrong with this folder."""
        return ValueError(f"{self.folder / MANIFEST}: damaged ({what}); {_REMEDY}")

    def path(self, part: str) -> Path:
        """The file of a part, with its content verified."""
        if part not in self._files:
            raise self.damaged(f"it names no file of {part}")
        self.verify(part)
        return self.folder / str(self._files[part]["name"])

    def entry(self, part: str) -> dict[str, Any]:
        """The manifest's entry for a file: its name, size, and the SHA-256 of the whole or of its pieces."""
        return self._files[part]

    def pieces(self, part: str) -> list[list[Any]]:
        """Size and SHA-256 of each piece of a file."""
        entry = self._files[part]
        return entry["pieces"] if "pieces" in entry else [[entry["bytes"], entry["sha256"]]]

    def can_grow(self) -> bool:
        """Whether rows may be appended to the files: none is shared with another folder through a link."""
        paths = [self.folder / entry["name"] for entry in self._files.values()]
        return all(not path.is_symlink() and path.stat().st_nlink == 1 for path in paths)

    def cut(self) -> None:
        """Truncate what an interrupted update has left after the files' rows."""
        for part in GROWING:
            if part in self._files:
                path, size = self.folder / self._files[part]["name"], self._files[part]["bytes"]
                if path.stat().st_size > size:
                    os.truncate(path, size)

    def verify(self, part: str) -> None:
        """Raise ValueError unless a file's content is what was written."""
        path = self.folder / self._files[part]["name"]
        with path.open("rb") as file:
            for size, digest in self.pieces(part):
                if _digest(file, size) != digest:
                    raise ValueError(f"{path}: {_CHANGED}")

    def array(self, part: str, dtype: str, shape: tuple[int, ...], *, memory_map: bool) -> NDArray[Any]:
        """A part as an array: memory-mapped and unverified, or read and verified."""
        if part not in self._files:
            raise self.damaged(f"it names no file of {part}")
        entry = self._files[part]
        path, size = self.folder / entry["name"], np.dtype(dtype).itemsize
        for side in shape:
            size *= side
        if entry["bytes"] != size:
            raise ValueError(
                f"{path}: {entry['bytes']} bytes, but the manifest's shape {shape} takes {size}; {_REMEDY}"
            )
        if not size:
            return np.empty(shape, dtype)
        if not memory_map:
            self.verify(part)
            return np.fromfile(path, dtype, size // np.dtype(dtype).itemsize).reshape(shape)
        # Plain views of the map: np.memmap is an ndarray subclass whose slices are slow to create.
        return np.asarray(np.memmap(path, dtype, "r", shape=shape))

    def mapped(self, part: str, dtype: str, count: int) -> MappedPart:
        """A part as a memory-mapped array of `count` numbers, verified piece by piece on demand."""
        array = self.array(part, dtype, (count,), memory_map=True)
        return MappedPart(array, self.pieces(part), self.folder / str(self._files[part]["name"]))

    @property
    def parts(self) -> list[str]:
        """Existing parts."""
        return list(self._files)

    @property
    def size(self) -> int:
        """Total size of all files in bytes."""
        return sum(int(entry["bytes"]) for entry in self._files.values())

    def _mapping(self, name: str) -> Mapping[str, Any]:
        value: Mapping[str, Any] = self.field(name, dict)
        return value

    def _check_file(self, part: str, entry: Any) -> int:
        if part not in PARTS or not isinstance(entry, dict):
            raise self.damaged(f"its files hold {part!r:.40}")
        if not _described(entry):
            raise self.damaged(f"its entry for {part} is not a name, a size and a checksum")
        match = FILE_NAME.fullmatch(entry["name"])
        if match is None or match["part"] != part:
            raise self.damaged(f"{entry['name']!r:.60} is not a file name for {part}")
        path = self.folder / entry["name"]
        if not path.is_file():  # links are followed: model hubs' caches are made of them
            raise ValueError(f"{path}: missing; {_REMEDY}")
        size: int = path.stat().st_size
        if size < entry["bytes"] or (size > entry["bytes"] and part not in GROWING):
            raise ValueError(f"{path}: {size} bytes where {entry['bytes']} were written; {_REMEDY}")
        self._files[part] = entry
        return int(entry["bytes"])


class MappedPart:
    """A memory-mapped file of an index, whose content is verified once, on demand.

    array: all of it, unverified. pieces: size and SHA-256 of each. path: for errors.
    """

    def __init__(self, array: NDArray[Any], pieces: Sequence[Sequence[Any]], path: Path) -> None:
        self.array, self._bytes, self._path = array, array.view(np.uint8), path
        self._ends = np.cumsum([size for size, _ in pieces])
        self._digests = [digest for _, digest in pieces]
        self._left = set(range(len(pieces)))

    def check(self, firsts: NDArray[np.int64], lasts: NDArray[np.int64]) -> None:
        """Verify the pieces that contain the bytes from each of firsts to the matching one of lasts.

        Raises ValueError for a damaged piece.
        """
        if not len(firsts):
            return
        bounds = np.unique(np.searchsorted(self._ends, np.stack([firsts, lasts], 1), "right"), axis=0)
        self._check({number for low, high in bounds.tolist() for number in range(low, high + 1)})

    def check_all(self) -> None:
        """Verify the whole file.  Raises ValueError as check does."""
        self._check(set(self._left))

    def _check(self, pieces: set[int]) -> None:
        for number in sorted(pieces & self._left):
            start = int(self._ends[number - 1]) if number else 0
            if hashlib.sha256(self._bytes[start : int(self._ends[number])].data).hexdigest() != self._digests[number]:
                raise ValueError(f"{self._path}: {_CHANGED}")
            self._left.discard(number)


def read_folder(folder: Path, read: Callable[[FolderReader], _T], *, max_bytes: int | None = None) -> _T:
    """read(reader of the folder), restarted if another process replaces the index in the meantime.

    Raises as FolderReader and read do.
    """
    for _ in range(_TRIES):
        before = _state(folder)
        try:
            return read(FolderReader(folder, max_bytes=max_bytes))
        except (OSError, ValueError):
            if _state(folder) == before:
                raise
    return read(FolderReader(folder, max_bytes=max_bytes))


def _state(folder: Path) -> tuple[int, int] | None:
    """A value that changes when the folder's manifest is replaced."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def manifest_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its own checksum, in hexadecimal, over its canonical JSON."""
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no index here ({MANIFEST}); make one with: bigr-repr index build")
    with path.open("rb") as file:
        data = file.read(_LONGEST_MANIFEST + 1)
    if len(data) > _LONGEST_MANIFEST:
        raise ValueError(f"{path}: longer than any manifest; {_REMEDY}")
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not JSON ({type(error).__name__}); {_REMEDY}") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{path}: damaged, not an object; {_REMEDY}")
    if manifest.get("format") not in FORMATS:
        found = repr(manifest.get("format"))[:20]
        raise ValueError(
            f"{path}: format {found} is newer than {FORMATS[-1]}, the newest this version reads; upgrade bigr-repr"
        )
    if manifest.pop("sha256", None) != manifest_digest(manifest):
        raise ValueError(f"{path}: {_CHANGED}")
    return manifest


def _described(entry: Mapping[str, Any]) -> bool:
    """Whether a file's entry has the form of _entry."""
    if not isinstance(entry.get("name"), str) or not isinstance(entry.get("bytes"), int):
        return False
    pieces = entry.get("pieces", [[entry["bytes"], entry.get("sha256")]])
    if not isinstance(pieces, list) or not 1 <= len(pieces) <= _MOST_PIECES:
        return False
    if not all(isinstance(piece, list) and [type(each) for each in piece] == [int, str] for piece in pieces):
        return False
    sizes: list[int] = [size for size, _ in pieces]
    return min(sizes) >= 0 and sum(sizes) == int(entry["bytes"])


def _digest(file: BinaryIO, size: int) -> str:
    """SHA-256 of the next `size` bytes."""
    digest = hashlib.sha256()
    while size and (block := file.read(min(size, _BLOCK))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()
