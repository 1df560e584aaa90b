"""Object stores: URLs used like paths, on pyarrow's and fsspec's file systems. Knows nothing of pictures.

Objects cannot be renamed, so one that is written is collected in memory and put in one piece when it is complete. If
the process dies, the store has the whole object or what it had before, and a confirmed put is durable. There are no
locks. Credentials and endpoints are those of the usual environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL, AWS_REGION; GOOGLE_APPLICATION_CREDENTIALS) and of the usual files.
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

from bigr_repr._typing import PathLike
from bigr_repr.system.filesystems import explained, open_url
from bigr_repr.system.patience import patiently
from bigr_repr.system.signed import has_pages, needs_signing, page_of

if TYPE_CHECKING:
    import pyarrow.fs

_T = TypeVar("_T")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(text: str) -> bool:
    """Whether text names an object in a store, as s3://bucket/key does, and not a local file."""
    return bool(_URL.match(text)) and not text.startswith("file://")


def as_place(name: PathLike) -> Place:
    """A local path (file:// URLs included) or an object's."""
    text = os.fspath(name)
    return ObjectPath(text) if is_url(text) else Path(text.removeprefix("file://"))


class _Status(NamedTuple):
    st_size: int
    st_mtime_ns: int


class ObjectPath(os.PathLike[str]):
    """A URL with the methods of pathlib.Path that this package uses, with the same meaning.

    Raises OSError of one line that names the URL: FileNotFoundError for a bucket or an object that is not there,
    PermissionError for credentials that are missing or refused; ValueError for a URL that no file system takes.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def __str__(self) -> str:
        return self._url

    def __fspath__(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return f"ObjectPath({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and self._url == other._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __lt__(self, other: ObjectPath) -> bool:
        return self._url < other._url

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(f"{self._url}/{name}")

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self._url.rpartition("/")[2]

    @property
    def parent(self) -> ObjectPath:
        """What the object lies in."""
        return ObjectPath(self._url.rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        """Its neighbor of that name."""
        return self.parent / name

    def resolve(self) -> ObjectPath:
        """Itself."""
        return self

    # ---- reading

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        """The file system that takes key."""
        return self._opened()[0]

    @property
    def key(self) -> str:
        """What the file system calls the object."""
        return self._opened()[1]

    def _opened(self) -> tuple[Any, str]:
        with explained(self._url):
            return open_url(self._url)

    def open_input(self) -> Any:
        """The object to read, with seek() and read_at()."""
        return _PatientFile(self)

    def _ask(self, call: Callable[[], _T]) -> _T:
        """The result of call(), with errors in words; repeated while the server does not answer."""

        def once() -> _T:
            with explained(self._url):
                return call()

        return patiently(once, self._url)

    def read_bytes(self) -> bytes:
        """The object's bytes."""

        def whole() -> bytes:
            with self.filesystem.open_input_file(self.key) as file:
                content: bytes = file.readall()
                return content

        return self._ask(whole)

    def read_piece(self, start: int, size: int) -> bytes:
        """So many bytes from start on; fewer if the object ends there. A thread's last such object stays open."""
        process = os.getpid()

        def piece() -> bytes:
            if getattr(_last, "key", None) != (self._url, process):
                _last.file, _last.key = self.filesystem.open_input_file(self.key), (self._url, process)
            content: bytes = _last.file.read_at(size, start)
            return content

        return self._ask(piece)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object as text."""
        return self.read_bytes().decode(encoding)

    def stat(self) -> _Status:
        """Its size as st_size, and when it was written as st_mtime_ns, 0 where the store does not say."""
        info = self._info()
        if not info.is_file:
            raise FileNotFoundError(f"{self._url}: no such object")
        return _Status(info.size, info.mtime_ns or 0)

    def exists(self) -> bool:
        """Whether there is an object, or are objects below."""
        info = self._info()
        return bool(info.is_file) or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of that very name."""
        return bool(self._info().is_file)

    def is_dir(self) -> bool:
        """Whether there are objects below, or a bucket is named."""
        from pyarrow.fs import FileType

        return bool(self._info().type == FileType.Directory)

    def _info(self) -> Any:
        return self._ask(lambda: self.filesystem.get_file_info(self.key))

    def members(self) -> Iterator[tuple[str, int | None]]:
        """Name and size of each object right below, in no order; of what has objects below itself, None for size.

        Keys with an empty part, as `data//a.jpg`, are names that begin with a slash.
        """
        from pyarrow.fs import FileSelector

        found = self._ask(lambda: self.filesystem.get_file_info(FileSelector(self.key, allow_not_found=True)))
        for info in found:
            if info.path == self.key:  # how pyarrow shows that something has an empty name here
                yield from self._without_name()
            elif info.base_name:  # some stores hold an empty object to stand for the folder
                yield info.base_name, info.size if info.is_file else None

    def sorted_members(self) -> Iterator[str]:
        """Names that members gives, in byte order, a slash behind those that have objects below.

        In S3 they come a page at a time where boto3 is installed; else, and of directory buckets, which list in no
        order, memory holds all of them.
        """
        path = self._url.removeprefix("s3://")
        if path != self._url and has_pages(path) and not needs_signing(path):
            yield from self._paged()
            return
        found = (name if size is not None else f"{name}/" for name, size in self.members())
        yield from sorted(found, key=str.encode)

    def _paged(self) -> Iterator[str]:
        path, endpoint, following = self._url.removeprefix("s3://"), os.environ.get("AWS_ENDPOINT_URL"), None
        while True:
            page = self._ask(partial(page_of, path, endpoint, os.getpid(), following))
            for name in page.names:
                yield from [name] if name != "/" else sorted((each for each, _ in self._without_name()), key=str.encode)
            following = page.following
            if following is None:
                return

    def written(self) -> Iterator[tuple[str, float]]:
        """Name of each object right below, and when it was written, in seconds since 1970; 0.0: not said."""
        from pyarrow.fs import FileSelector

        found = self._ask(lambda: self.filesystem.get_file_info(FileSelector(self.key, allow_not_found=True)))
        return ((info.base_name, (info.mtime_ns or 0) / 1e9) for info in found if info.is_file)

    def _without_name(self) -> Iterator[tuple[str, int | None]]:
        """Objects at any depth below an empty name in this folder."""
        from pyarrow.fs import FileSelector

        select = FileSelector(self.key, allow_not_found=True, recursive=True)
        found = self._ask(lambda: self.filesystem.get_file_info(select))
        front = f"{self.key}//"
        for info in found:
            if info.is_file and info.path.startswith(front):
                yield info.path[len(front) - 1 :], info.size

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects right below whose names match."""
        return (self / name for name, size in self.members() if size is not None and fnmatchcase(name, pattern))

    # ---- writing

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: objects need no folders."""

    @contextmanager
    def put(self) -> Iterator[BinaryIO]:
        """A file to write, which becomes the object when the block ends without an error."""
        content = io.BytesIO()
        yield content

        # Nothing may fail between opening and closing but the store itself, for closing is what completes the object.
        def upload() -> None:
            file = self.filesystem.open_output_stream(self.key)
            file.write(content.getbuffer())
            file.close()

        self._ask(upload)

    def replace(self, target: os.PathLike[str]) -> None:
        """Give the object another name: a copy in the store, then a removal; not in one step."""
        self._ask(lambda: self.filesystem.copy_file(self.key, ObjectPath(os.fspath(target)).key))
        self._ask(lambda: self.filesystem.delete_file(self.key))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        if not self.is_file():
            if missing_ok:
                return
            raise FileNotFoundError(f"{self._url}: no such object")
        self._ask(lambda: self.filesystem.delete_file(self.key))


class _PatientFile(io.RawIOBase):
    """An object to read; requests are repeated while the server does not answer.  Thread-safe except for seek()."""

    def __init__(self, place: ObjectPath) -> None:
        super().__init__()
        self._place, self._at = place, 0
        self._file: Any = None
        self._length: int = place._ask(self._open_anew)

    def _open_anew(self) -> int:
        self._file = self._place.filesystem.open_input_file(self._place.key)
        size = self._file.size
        return int(size() if callable(size) else size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def size(self) -> int:
        """In bytes."""
        return self._length

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence, self._length)
        return self._at

    def read_at(self, size: int, start: int) -> bytes:
        """So many bytes from start on; fewer where the object ends."""

        def piece() -> bytes:
            content: bytes = self._file.read_at(size, start)
            return content

        return self._place._ask(piece)

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes, or all that follow."""
        left = max(0, self._length - self._at)
        content = self.read_at(left if size is None or size < 0 else min(size, left), self._at)
        self._at += len(content)
        return content

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


Place = Path | ObjectPath
_last = threading.local()


def readable(place: str | Place) -> Any:
    """What pyarrow's readers take for a file: its path, or a file opened in a store."""
    if isinstance(place, str):
        place = as_place(place)
    return place.open_input() if isinstance(place, ObjectPath) else place
