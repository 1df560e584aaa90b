"""Writes files atomically and durably, for a single writer. Knows nothing of what is in them.

A local file is written under a temporary name, synced and renamed. An object in a store is put in one piece instead,
with the same guarantees: see bigr_repr.system.object_store.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from bigr_repr.system.object_store import ObjectPath, Place

log = logging.getLogger(__name__)

_FULL: Final = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FULL_SAID: Final = re.compile(r"No space left on device|Disk quota exceeded|File too large|os error (28|27|122)\b")
_SPACE: Final = 1 << 16  # a disk with fewer free bytes counts as full
_NO_LOCKS: Final = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # some network file systems
FULL_REMEDY: Final = "free some space or choose another folder, then repeat the command"


@contextmanager
def replacing(path: Place, writer: str = "") -> Iterator[BinaryIO]:
    """A file to write, which replaces path when the block ends without an error.

    It is written next to path, synced and renamed, and the folder is synced. Only one process at a time may write a
    path under the same writer name.
    Raises OSError that names path, whose previous content then remains.
    """
    if isinstance(path, ObjectPath):
        with path.put() as file:
            yield file
        return
    beside = partial_name(path, writer)
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if (named := _named(error, path, also=beside)) is None:
            raise
        raise named from error


@contextmanager
def naming(path: Path, also: Path | None = None) -> Iterator[None]:
    """Make errors in a block that writes path name that file and, if the disk is full, the remedy.

    also: the file or folder that is written first and finally replaces path.
    Raises OSError, also instead of what other libraries raise when the disk is full.
    """
    try:
        yield
    except Exception as error:
        if (named := _named(error, path, also)) is None:
            raise
        raise named from error


def reserve(file: BinaryIO, size: int) -> None:
    """Set a file's size and reserve the space on disk, if the file system supports that.

    Writing to a memory-mapped file on a full disk would kill the process.  Raises OSError if the disk is full now.
    """
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if is_full(error):
                raise


def is_full(error: BaseException, place: Path | None = None) -> bool:
    """Whether an error means that a disk is full, judging by its code or text. place: a path on that disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    if _FULL_SAID.search(str(error)) is not None:
        return True
    if place is None or not isinstance(error, RuntimeError):  # PyTorch does not report the cause
        return False
    try:
        return shutil.disk_usage(place.parent).free < _SPACE
    except OSError:
        return False


def _named(error: BaseException, path: Path, also: Path | None = None) -> OSError | None:
    """The error with the name of the file that could not be written; None if it has one or is of another kind."""
    code = error.errno if isinstance(error, OSError) else None
    if code is None:
        if not is_full(error, also or path):
            return None
        return OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}; {FULL_REMEDY}", str(path))
    assert isinstance(error, OSError)
    known = None if error.filename is None else os.fsdecode(error.filename)
    own = known is None or (also is not None and Path(known).is_relative_to(also))
    if code in _FULL and FULL_REMEDY not in str(error.strerror):
        return OSError(code, f"{error.strerror}; {FULL_REMEDY}", str(path) if own else known)
    return type(error)(code, error.strerror, str(path)) if own else None


def partial_name(path: Path, writer: str = "") -> Path:
    """The temporary file that becomes path; hidden, so that readers of the folder skip it."""
    return path.with_name(f".{path.name}{writer and f'.{writer}'}.part")


def remove(path: Place) -> None:
    """Remove a file, if it exists, and the remains of an interrupted write."""
    path.unlink(missing_ok=True)
    if not isinstance(path, ObjectPath):
        partial_name(path).unlink(missing_ok=True)


class HashedFile(io.RawIOBase):
    """A file to write sequentially, with its digest and size (`tell()`) known at the end."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self._digest, self._size = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self._size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._size

    @property
    def sha256(self) -> str:
        """The digest of everything written so far, hexadecimal."""
        return self._digest.hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, hexadecimal.  Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Flush the content of a file to the disk. Raises OSError that names it."""
    _sync(path, os.O_RDWR)  # Windows does not sync what is open for reading only


def sync_folder(folder: Place) -> None:
    """Flush the names in a folder to the disk, if the system supports that. Raises OSError that names it."""
    if os.name == "nt" or isinstance(folder, ObjectPath):
        return  # folders cannot be opened there
    _sync(folder, os.O_RDONLY)


def sync_tree(folder: Path) -> None:
    """Flush everything in a folder, at any depth, to the disk. Raises OSError that names what cannot be flushed."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
    sync_folder(folder)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[int | None]:
    """Lock a folder, or a file, which is created, for this process; where there are no locks, only say so in the log.

    Yields the descriptor that holds the lock, or None. As long as any process has it open, others are refused.
    Raises RuntimeError(busy) if another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        log.info("this system has no file locks: do not run twice at once on %s", path)
        yield None
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(busy) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.info("the file system of %s has no locks: do not run twice at once on it", path)
        yield handle
    finally:
        os.close(handle)
