"""Pictures in requests, decoded in guarded processes. Knows nothing of HTTP or models."""

# S side in pixels

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr.images.formats import ImageError
from bigr_repr.images.isolated import GuardedLoading, Loading
from bigr_repr.serve.batching import ClosedError

THUMBNAIL: Final = 320  # side of displayed photographs, in pixels
_DATA_URL: Final = re.compile(r"data:(?P<type>[\w.+/-]*)(?:;[\w=.-]+)*?(?P<base64>;base64)?,", re.ASCII)
_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def picture_bytes(text: str, name: str) -> bytes:
    """The encoded file in a data URL or in base64.

    Raises ImageError for anything else; URLs are never fetched.
    """
    found = _DATA_URL.match(text[:200])
    if found is None and _ADDRESS.match(text[:40]):
        raise ImageError("unreadable", f"{name}: URLs are not fetched; send the file as a data URL or in base64")
    if found is not None and not found["base64"]:
        raise ImageError("unreadable", f"{name}: the data URL is not in base64; write data:image/png;base64,…")
    try:
        data = base64.b64decode(text if found is None else text[found.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("unreadable", f"{name}: not valid base64 ({error})") from None
    if not data:
        raise ImageError("empty", f"{name}: no bytes")
    return data


class PictureReader:
    """Threads with one decoding process each, so that a hostile file harms only its own request.

    size: S. workers: threads. icc: as in decode_image. A thread's process starts with its first picture.
    """

    def __init__(self, size: int, *, max_pixels: int, timeout: float, workers: int, icc: str = "convert") -> None:
        self._load = GuardedLoading(Loading(size=size, max_pixels=max_pixels, icc=icc), timeout)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def read(self, text: str, name: str) -> Future[NDArray[np.uint8]]:
        """Decode a data URL or base64: uint8 (S, S, 3), cropped to the middle square.

        Raises ImageError, and ClosedError once closed.
        """
        return self._submit(lambda: self._load(picture_bytes(text, name), name).pixels)

    def read_encoded(self, source: str | bytes, name: str) -> Future[NDArray[np.uint8]]:
        """Decode a local path or an encoded file's bytes; name: what errors call it.  Raises as read."""
        return self._submit(lambda: self._load(source, name).pixels)

    def _submit(self, work: Callable[[], NDArray[np.uint8]]) -> Future[NDArray[np.uint8]]:
        try:
            return self._threads.submit(work)
        except RuntimeError as error:  # it has been closed
            raise ClosedError from error

    def close(self) -> None:
        """End threads and processes; pictures not begun are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._load.stop()
        self._threads.shutdown(wait=True)
        self._load.close()
