"""Object stores: URLs used like paths, on pyarrow's and fsspec's file systems. Knows nothing of pictures.

Objects cannot be renamed, so writes are collected in memory and put in one piece when complete. If the process dies,
the store has either the whole object or its previous content, and a confirmed put is durable. There are no
locks. Credentials and endpoints come from the usual environment variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL, AWS_REGION; GOOGLE_APPLICATION_CREDENTIALS) and files.
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
from bigr_repr.system.retries import retried
from bigr_repr.system.signed import has_pages, needs_signing, page_of

if TYPE_CHECKING:
    import pyarrow.fs

_T = TypeVar("_T")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(text: str) -> bool:
    """Whether text names an object in a store, such as s3://bucket/key, and not a local file."""
    return bool(_URL.match(text)) and not text.startswith("file://")


def as_place(name: PathLike) -> Place:
    """A local path (also for file:// URLs) or an ObjectPath."""
    text = os.fspath(name)
    return ObjectPath(text) if is_url(text) else Path(local_path(text))


def local_path(text: str) -> str:
    """The path in a file:// URL, with or without the host localhost; any other text unchanged."""
    path = text.removeprefix("file://")
    return path.removeprefix("localhost") if text.startswith("file://localhost/") else path


class _Status(NamedTuple):
    st_size: int
    st_mtime_ns: int

    @classmethod
    def of(cls, info: Any) -> _Status:
        """Of a file system's report. Microseconds: pyarrow rounds times of listed objects to 256 ns, and others not."""
        return cls(info.size, round(info.mtime_ns or 0, -3))


class ObjectPath(os.PathLike[str]):
    """A URL with the methods of pathlib.Path that this package uses, with the same meaning.

    Raises OSError of one line that names the URL: FileNotFoundError for a missing bucket or object, PermissionError
    for missing or refused credentials; ValueError for a URL that no file system supports.
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
        """The part after the last slash."""
        return self._url.rpartition("/")[2]

    @property
    def parent(self) -> ObjectPath:
        """The folder of the object."""
        return ObjectPath(self._url.rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        """The object of that name in the same folder."""
        return self.parent / name

    def resolve(self) -> ObjectPath:
        """Itself."""
        return self

    # ---- reading

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        """The file system for key."""
        return self._opened()[0]

    @property
    def key(self) -> str:
        """The object's name in the file system."""
        return self._opened()[1]

    def _opened(self) -> tuple[Any, str]:
        with explained(self._url):
            return open_url(self._url)

    def open_input(self) -> Any:
        """The object opened for reading, with seek() and read_at()."""
        return _PatientFile(self)

    def _ask(self, call: Callable[[], _T]) -> _T:
        """The result of call(), with errors explained; repeated while the server does not answer."""

        def once() -> _T:
            with explained(self._url):
                return call()

        return retried(once, self._url)

    def read_bytes(self) -> bytes:
        """The object's bytes."""

        def whole() -> bytes:
            with self.filesystem.open_input_file(self.key) as file:
                content: bytes = file.readall()
                return content

        return self._ask(whole)

    def read_piece(self, start: int, size: int) -> bytes:
        """Up to size bytes from start on; fewer at the end of the object. A thread's last object stays open."""
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
        """Its size as st_size, and its time of writing as st_mtime_ns, to the microsecond, 0 if the store has none."""
        info = self._info()
        if not info.is_file:
            raise FileNotFoundError(f"{self._url}: no such object")
        return _Status.of(info)

    def exists(self) -> bool:
        """Whether there is such an object, or there are objects below."""
        info = self._info()
        return bool(info.is_file) or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object with exactly that name."""
        return bool(self._info().is_file)

    def is_dir(self) -> bool:
        """Whether there are objects below, or this is a bucket."""
        from pyarrow.fs import FileType

        return bool(self._info().type == FileType.Directory)

    def _info(self) -> Any:
        return self._ask(lambda: self.filesystem.get_file_info(self.key))

    def members(self) -> Iterator[tuple[str, int | None]]:
        """Name and size of each direct child, in arbitrary order; size is None if it has objects below itself.

        Keys with an empty part, such as `data//a.jpg`, yield names that begin with a slash.
        """
        from pyarrow.fs import FileSelector

        found = self._ask(lambda: self.filesystem.get_file_info(FileSelector(self.key, allow_not_found=True)))
        for info in found:
            if info.path == self.key:  # how pyarrow indicates an empty name here
                yield from self._without_name()
            elif info.base_name:  # some stores represent a folder by an empty object
                yield info.base_name, info.size if info.is_file else None

    def sorted_members(self) -> Iterator[str]:
        """The names from members, in byte order, with a trailing slash if they have objects below.

        In S3, they are listed page by page if boto3 is installed; otherwise, and for directory buckets, which list in
        no order, all names are held in memory.
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

    def states(self) -> Iterator[tuple[str, _Status]]:
        """Name of each object directly below, and what stat() would say of it, in arbitrary order, from one listing."""
        from pyarrow.fs import FileSelector

        found = self._ask(lambda: self.filesystem.get_file_info(FileSelector(self.key, allow_not_found=True)))
        return ((info.base_name, _Status.of(info)) for info in found if info.is_file)

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
        """Direct children whose names match."""
        return (self / name for name, size in self.members() if size is not None and fnmatchcase(name, pattern))

    # ---- writing

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: objects need no folders."""

    @contextmanager
    def put(self) -> Iterator[BinaryIO]:
        """A file to write, which becomes the object when the block ends without an error."""
        content = io.BytesIO()
        yield content

        # Nothing but the store itself may fail between opening and closing, because closing completes the object.
        def upload() -> None:
            file = self.filesystem.open_output_stream(self.key)
            file.write(content.getbuffer())
            file.close()

        self._ask(upload)

    def replace(self, target: os.PathLike[str]) -> None:
        """Rename the object by a copy in the store and a removal; not atomic."""
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
    """An object opened for reading; requests are repeated while the server is silent.  Thread-safe except seek()."""

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
        """Up to size bytes, or all that follow."""
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
    """A file in the form that pyarrow's readers accept: its path, or a file opened in a store."""
    if isinstance(place, str):
        place = as_place(place)
    return place.open_input() if isinstance(place, ObjectPath) else place
