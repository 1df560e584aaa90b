"""Files on web servers, read-only, with the interface of pyarrow's file systems. Knows nothing of their content."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # loaded with the first URL: they would slow down every command's start
    from http.client import HTTPResponse
    from urllib.request import Request

_SECONDS: Final = 10.0  # without a byte
_ATTEMPTS: Final = 3


def without_password(text: str) -> str:
    """Text with passwords in URLs replaced by stars: https://name:***@host/path."""
    return re.sub(r"(?<=://)([^/@:\s]*):[^/@\s]+@", r"\1:***@", text)


class HttpFileSystem:
    """The file system for http:// and https:// URLs, as far as ObjectPath needs it."""

    def open_input_file(self, url: str) -> HttpFile:
        """A file to read, with seek() and read_at()."""
        return HttpFile(url)

    def get_file_info(self, url: str) -> Any:
        """The size and time of a file; there are no folders.  Raises FileNotFoundError."""
        return HttpFile(url).info()

    def open_output_stream(self, url: str) -> Any:
        """Raises PermissionError: web servers are read-only."""
        raise PermissionError(f"{url}: web servers are read-only; choose a folder or an object store")


class HttpFile(io.RawIOBase):
    """A file on a web server, read in the requested pieces, or whole if the server does not support ranges.

    name: what errors call it; None: its URL. Raises FileNotFoundError, PermissionError or, if the server does not
    answer or fails, ConnectionError.
    """

    def __init__(self, url: str, name: str | None = None) -> None:
        super().__init__()
        self._url, self._name, self._place = url, name or without_password(url), 0
        self._whole: bytes | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place}.get(whence)
        self._place = max(0, offset + (self.size if start is None else start))
        return self._place

    @cached_property
    def size(self) -> int:
        """In bytes."""
        with self._answer("bytes=0-0") as answer:
            if answer.status == 206:
                return _total(answer)
            self._whole = answer.read()
        return len(self._whole)

    def info(self) -> Any:
        """Its size, and when it was last modified as mtime_ns, 0 if the server does not say.

        The content is read only if the server does not say how long it is.
        """
        from email.utils import parsedate_to_datetime

        with self._answer("bytes=0-0") as answer:
            modified = answer.headers["Last-Modified"]
            size = _total(answer) if answer.status == 206 else answer.length
            size = len(answer.read()) if size is None else size
        seconds = 0.0
        with suppress(ValueError):
            seconds = parsedate_to_datetime(modified).timestamp() if modified else 0.0
        return SimpleNamespace(is_file=True, type=None, size=size, mtime_ns=int(seconds) * 10**9)

    def readinto(self, buffer: Any) -> int:
        content = self.read_at(len(buffer), self._place)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def readall(self) -> bytes:
        """The rest of the file."""
        if not self._place and self._whole is None:
            with self._answer() as answer:
                self._whole = answer.read()
        return super().readall() if self._whole is None else self._whole[self._place :]

    def read_at(self, size: int, start: int) -> bytes:
        """Up to size bytes from start on; fewer at the end of the file."""
        end = min(start + size, self.size)
        if end <= start:
            return b""
        if self._whole is None:
            with self._answer(f"bytes={start}-{end - 1}") as answer:
                content = answer.read()
            if answer.status == 206:
                return content
            self._whole = content
        return self._whole[start:end]

    @contextmanager
    def _answer(self, piece: str | None = None) -> Iterator[HTTPResponse]:
        from http.client import HTTPException
        from urllib.request import Request

        ranges = {"Range": piece} if piece else {}
        answer = self._asked(Request(self._url, headers={"User-Agent": "bigr-repr"} | ranges))
        try:
            with answer:
                yield answer
        except HTTPException as error:  # it hung up
            raise ConnectionError(f"{self._name}: the server ended the answer early ({error})") from error

    def _asked(self, request: Request) -> HTTPResponse:
        from http.client import HTTPException
        from urllib.error import HTTPError
        from urllib.request import urlopen

        for attempt in range(_ATTEMPTS):
            try:
                answer: HTTPResponse = urlopen(request, timeout=_SECONDS)
                return answer
            except HTTPError as error:
                error.close()
                if error.code in (404, 410):
                    raise FileNotFoundError(f"{self._name}: no such file") from error
                if error.code in (401, 403):
                    raise PermissionError(f"{self._name}: access refused ({error.code} {error.reason})") from error
                failure: Exception = error
            except (OSError, HTTPException) as error:
                failure = error
            if attempt == _ATTEMPTS - 1 or isinstance(getattr(failure, "reason", None), ConnectionRefusedError):
                break
        raise ConnectionError(f"{self._name}: the server does not answer ({failure})") from failure


def _total(answer: HTTPResponse) -> int:
    """Size in bytes of the file of which the answer is a piece."""
    return int(answer.headers["Content-Range"].rpartition("/")[2])
