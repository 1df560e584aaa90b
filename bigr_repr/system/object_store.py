"""Object stores: URLs that are used as paths are, over pyarrow's and fsspec's file systems. Knows nothing of pictures.

Objects are not renamed: one that is written is collected in memory and put in one piece when it is complete. The store
then has all of it or what it had before, whenever the process dies, and a put that it has confirmed is durable. There
are no locks. Credentials and endpoints are those of the usual environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL, AWS_REGION; GOOGLE_APPLICATION_CREDENTIALS) and of the usual files.
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

from bigr_repr._typing import PathLike
from bigr_repr.system.http import HttpFileSystem, without_password
from bigr_repr.system.patience import patiently
from bigr_repr.system.signed import SignedFileSystem, needs_signing

if TYPE_CHECKING:
    import pyarrow.fs

_T = TypeVar("_T")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_CONNECT, _REQUEST = 5.0, 10.0  # seconds until there is a connection; seconds without a byte
_ATTEMPTS = 3  # an unreachable server is an error after half a minute


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
    """A URL with those of pathlib.Path's methods that this package uses, meaning the same.

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
        with _explained(self._url):
            return _open_url(self._url)

    def open_input(self) -> Any:
        """The object to read, with seek() and read_at()."""
        return _PatientFile(self)

    def _ask(self, call: Callable[[], _T]) -> _T:
        """What call() gives, with errors in words; asked again while the server does not answer."""

        def once() -> _T:
            with _explained(self._url):
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
        """Nothing: objects need no folder."""

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
    """An object to read, opened anew and asked again while the server does not answer.  Thread-safe but for seek()."""

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


def _open_url(url: str) -> tuple[Any, str]:
    """File system and key of a URL."""
    scheme, _, rest = url.partition("://")
    scheme, process = scheme.lower(), os.getpid()  # connections are not shared with a forked child
    if scheme == "s3" and needs_signing(rest):
        return SignedFileSystem(os.environ.get("AWS_ENDPOINT_URL"), process), rest
    if scheme == "s3":
        return _open_s3(rest.partition("/")[0], os.environ.get("AWS_ENDPOINT_URL"), process), rest
    if scheme in ("gs", "gcs"):
        return _open_gcs(process), rest
    if scheme in ("http", "https"):
        return HttpFileSystem(), url
    return _open_fsspec(scheme, process), rest if scheme == "memory" else url


@lru_cache(32)
def _open_s3(bucket: str, endpoint: str | None, process: int) -> Any:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    if not bucket:
        raise ValueError("s3:// names no bucket; write s3://bucket/key")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = resolve_s3_region(bucket)
    scheme, _, server = (endpoint or "").rpartition("://")
    return S3FileSystem(
        region=region or "us-east-1", endpoint_override=server.rstrip("/") or None, scheme=scheme or None,
        connect_timeout=_CONNECT, request_timeout=_REQUEST, allow_delayed_open=True,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )  # fmt: skip


@lru_cache(1)
def _open_gcs(process: int) -> Any:
    from pyarrow.fs import GcsFileSystem

    return GcsFileSystem(retry_time_limit=timedelta(seconds=_REQUEST))


@lru_cache(8)
def _open_fsspec(scheme: str, process: int) -> Any:
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(fsspec.filesystem(scheme)))


# What file systems say, and what to do about it.
_REMEDIES = (
    (r"NO_SUCH_BUCKET|NoSuchBucket", FileNotFoundError, "no such bucket; make it first"),
    (r"ACCESS_DENIED|HTTP status 403|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|[Cc]redential"
     r"|InvalidAccessKeyId|SignatureDoesNotMatch|Forbidden|HTTP status 401|authenticat",
     PermissionError, "access refused; check the store's credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
     "GOOGLE_APPLICATION_CREDENTIALS) and the bucket's policy"),
    (r"NETWORK_CONNECTION|curlCode|REQUEST_TIMEOUT|SLOW_DOWN|SERVICE_UNAVAILABLE|[Tt]imed? ?out"
     r"|INTERNAL_FAILURE|HTTP status 5\d\d",
     ConnectionError, "the server does not answer; check AWS_ENDPOINT_URL and the network"),
)  # fmt: skip


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Say in one line what went wrong with a URL, without the password that may be in it."""
    try:
        yield
    except Exception as error:  # each file system has errors of its own
        said, url = without_password(" ".join(str(error).split())), without_password(url)
        if said.startswith(url):
            if said == " ".join(str(error).split()):
                raise
            raise type(error)(said) from None
        for pattern, kind, remedy in _REMEDIES:
            if re.search(pattern, said):
                raise kind(f"{url}: {remedy} ({_cause(said)})") from error
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"{url}: no such object") from error
        raise (ValueError if isinstance(error, ValueError | ImportError) else OSError)(
            f"{url}: {said[:300]}"
        ) from error


def _cause(said: str) -> str:
    """The part of an AWS error that tells something."""
    found = re.search(r"AWS Error .*", said)
    return (found.group() if found else said)[:200]
