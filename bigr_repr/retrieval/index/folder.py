"""An index on disk: a folder of raw arrays and a manifest that names them. Knows nothing of search.

    index.json              settings, provenance (as "origin"), self-check, every file's size and SHA-256, and its own
                            SHA-256
    codes-<token>.bin       uint8 (n, bytes);  tokens-, vectors-: as stated in the manifest
    ids-<token>.bin         int64, or the text of all names one after the other, with offsets-<token>.bin, int64 (n+1)
    search-<token>.faiss    FAISS's file, for the kinds ivf and hnsw, of the distinct codes
    columns-<token>.arrow   the columns that are kept to filter by, an Arrow IPC stream
    distinct-<token>.bin    int64 (n,), each row's distinct code by number, unless all codes differ
    binarizer-<token>.safetensors

Data files are written and synced first; then the manifest replaces the old one in a single step, and the files that
only the old one named are removed. So the folder always holds a whole index, and readers that have the old files open
keep them. What is read is trusted in nothing: names, sizes and shapes are checked before memory is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.system import files

MANIFEST: Final = "index.json"
FORMAT: Final = 1
BINARIZER: Final = "binariser"  # on disk it keeps the spelling of the format's first version
PARTS: Final = ("codes", "ids", "offsets", "tokens", "vectors", "columns", "search", "distinct", BINARIZER)
_LONGEST_MANIFEST: Final = 1 << 20
_NAME: Final = re.compile(r"(?P<part>[a-z]+)-[0-9a-f]{16}\.(bin|faiss|arrow|safetensors)")
_SUFFIX: Final = {"columns": ".arrow", "search": ".faiss", BINARIZER: ".safetensors"}
_TRIES: Final = 5  # to read a folder that others replace
_T = TypeVar("_T")
_REMEDY: Final = "build the index again, or take a whole copy of it"


class FolderWriter:
    """Writes a new state of an index folder beside the old one; `commit` makes it the folder's.  Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._token = folder, secrets.token_hex(8)
        self._open: dict[str, tuple[BinaryIO, Any]] = {}
        self._files: dict[str, dict[str, Any]] = {}

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
            self._open[part] = (self.path(part).open("wb"), hashlib.sha256())
        file, digest = self._open[part]
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else data
        file.write(view)
        digest.update(view)

    def close_part(self, part: str) -> Path:
        """Finish a part that was appended to: synced, and readable at the path returned."""
        file, digest = self._open.pop(part)
        with file:
            file.flush()
            os.fsync(file.fileno())
        self._files[part] = _entry(self.path(part), digest.hexdigest())
        return self.path(part)

    def adopt(self, part: str) -> None:
        """Take a part in that someone else has written to path(part)."""
        path = self.path(part)
        with path.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self._files[part] = _entry(path, digest)

    def commit(self, manifest: Mapping[str, Any]) -> None:
        """Replace the folder's state by this one."""
        for part in list(self._open):
            self.close_part(part)
        files.sync_folder(self.folder)
        record = {"format": FORMAT, **manifest, "files": self._files}
        text = json.dumps({**record, "sha256": manifest_digest(record)}, indent=1, ensure_ascii=False)
        with files.replacing(self.folder / MANIFEST) as file:
            file.write(text.encode())
        kept = {entry["name"] for entry in self._files.values()}
        for path in self.folder.iterdir():
            if _NAME.fullmatch(path.name) and path.name not in kept:
                path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Remove what was written, and the folder if it is empty."""
        for file, _ in self._open.values():
            file.close()
        for part in PARTS:
            self.path(part).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def manifest_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its own checksum, as hexadecimal digits: that of its JSON, written in one way."""
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


@contextmanager
def writing(folder: Path) -> Iterator[FolderWriter]:
    """A FolderWriter, whose files vanish if the block ends with an error.

    Raises FileExistsError for a folder that holds something other than an index, RuntimeError while another process
    writes it.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder for the index")
    if folder.is_dir() and not (folder / MANIFEST).is_file() and not all(map(_left_over, folder.iterdir())):
        raise FileExistsError(f"{folder} holds other things than an index; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder, f"{folder}: another process is writing this index; wait for it"):
        writer = FolderWriter(folder)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise


def _left_over(path: Path) -> bool:
    """Whether a file is what a process that was killed leaves of an index."""
    return _NAME.fullmatch(path.name) is not None or path.name == files.partial_name(Path(MANIFEST)).name


class FolderReader:
    """An index folder, its manifest read and its files' sizes checked.

    max_bytes: what all files may hold together; None: no limit.
    Raises FileNotFoundError if there is no index, ValueError for a damaged one or one past the limit.
    """

    def __init__(self, folder: PathLike, *, max_bytes: int | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self._files: dict[str, dict[str, Any]] = {}
        total = 0
        for part, entry in self._mapping("files").items():
            total += self._check_file(part, entry)
        if max_bytes is not None and total > max_bytes:
            raise ValueError(f"{self.folder}: {total:,} bytes are more than max_bytes={max_bytes:,}; raise that")

    def __contains__(self, part: str) -> bool:
        return part in self._files

    def field(self, name: str, kind: type, *, optional: bool = False) -> Any:
        """A field of the manifest. Raises ValueError if it is missing or of another type."""
        value = self.manifest.get(name)
        if (value is None and optional) or (isinstance(value, kind) and not isinstance(value, bool)):
            return value
        raise self.damaged(f"{name} is {value!r:.40}, not {kind.__name__}")

    def damaged(self, what: str) -> ValueError:
        """The error for something wrong with this folder."""
        return ValueError(f"{self.folder / MANIFEST}: damaged ({what}); {_REMEDY}")

    def path(self, part: str) -> Path:
        """The file of a part, its content verified."""
        if part not in self._files:
            raise self.damaged(f"it names no file of {part}")
        self.verify(part)
        return self.folder / str(self._files[part]["name"])

    def verify(self, part: str) -> None:
        """Raises ValueError unless a file's content is what was written."""
        entry = self._files[part]
        path = self.folder / entry["name"]
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise ValueError(f"{path}: damaged, its content is not what was written; {_REMEDY}")

    def array(self, part: str, dtype: str, shape: tuple[int, ...], *, memory_map: bool) -> NDArray[Any]:
        """A part as an array: mapped, its content unverified, or read and verified."""
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
            return np.fromfile(path, dtype).reshape(shape)
        # Plain views of the map: np.memmap is an array class of its own, whose slices are slow to make.
        return np.asarray(np.memmap(path, dtype, "r", shape=shape))

    @property
    def parts(self) -> list[str]:
        """Parts that there are."""
        return list(self._files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(int(entry["bytes"]) for entry in self._files.values())

    def _mapping(self, name: str) -> Mapping[str, Any]:
        value: Mapping[str, Any] = self.field(name, dict)
        return value

    def _check_file(self, part: str, entry: Any) -> int:
        shape = {"name": str, "bytes": int, "sha256": str}
        if part not in PARTS or not isinstance(entry, dict):
            raise self.damaged(f"its files hold {part!r:.40}")
        if any(not isinstance(entry.get(key), kind) for key, kind in shape.items()):
            raise self.damaged(f"its entry for {part} is not a name, a size and a checksum")
        match = _NAME.fullmatch(entry["name"])
        if match is None or match["part"] != part:
            raise self.damaged(f"{entry['name']!r:.60} is no file name of {part}")
        path = self.folder / entry["name"]
        if not path.is_file():  # links are followed: model hubs' caches are made of them
            raise ValueError(f"{path}: missing; {_REMEDY}")
        size: int = path.stat().st_size
        if size != entry["bytes"]:
            raise ValueError(f"{path}: {size} bytes where {entry['bytes']} were written; {_REMEDY}")
        self._files[part] = entry
        return size


def read_folder(folder: Path, read: Callable[[FolderReader], _T], *, max_bytes: int | None = None) -> _T:
    """read(reader of the folder), begun again when another process replaces the index meanwhile.

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
    """What changes when the folder's manifest is replaced."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


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
    if manifest.get("format") != FORMAT:
        found = repr(manifest.get("format"))[:20]
        raise ValueError(f"{path}: format {found} is not {FORMAT}, the one this program reads; upgrade bigr-repr")
    if manifest.pop("sha256", None) != manifest_digest(manifest):
        raise ValueError(f"{path}: damaged, its content is not what was written; {_REMEDY}")
    return manifest


def _entry(path: Path, digest: str) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
