"""Decoding in processes: a picture that crashes or hangs its decoder costs only that picture, not the run.

A native decoder can crash on a crafted file, or never end; neither raises an exception, and a thread cannot be
stopped. So every decoding thread has a process of its own at the end of a pipe, sends it one picture at a time,
waits for a limited time, and replaces the process if necessary. Knows nothing of where pictures come from.

The cost over decoding in the threads themselves: 0.1 ms of processor time per picture at 64 pixels, 0.3 ms at 256.
Sending pixels through shared memory instead of the pipe would save less than 0.1 ms at 256.
"""

from __future__ import annotations

import hashlib
import io
import json
import signal
import threading
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr.images.decode import center_crop, decode_image
from bigr_repr.images.formats import ImageError
from bigr_repr.system.processes import Child

_BYTES_PER_PIXEL, _OWN_BYTES = 20, 2 << 30  # memory limit of a decoder: 6 GB for the usual 200 million pixels
_MOST_BYTES = 2**63 - 1  # the largest limit that can be set
_START = 120.0  # seconds that a process may take to start, on a busy machine


class Loaded(NamedTuple):
    """A picture as returned by load_image, (S, S, 3), uint8.

    sha256: of its encoded bytes, hexadecimal, if requested; thumbnail: the whole picture, small, as WebP, if requested.
    """

    pixels: NDArray[np.uint8]
    sha256: str | None
    thumbnail: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How encoded pictures become pixels.

    size: S; sha256: whether to compute it; icc: as in decode_image; thumbnail: its longer side in pixels, if wanted.
    """

    size: int
    max_pixels: int
    sha256: bool = False
    icc: str = "convert"
    thumbnail: int | None = None

    def __call__(self, source: bytes | str, name: str) -> Loaded:
        """Decode a local path, or an encoded file's bytes. name: what errors call it.  Raises ImageError."""
        picture = decode_image(source, max_pixels=self.max_pixels, name=name, icc=self.icc)
        pixels = center_crop(picture, self.size)
        digest = self._digest(source, name) if self.sha256 else None
        return Loaded(pixels, digest, self._small(picture) if self.thumbnail else None)

    def _small(self, picture: Image.Image) -> bytes:
        assert self.thumbnail is not None
        picture.thumbnail((self.thumbnail, self.thumbnail), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=80)
        return file.getvalue()

    def _digest(self, source: bytes | str, name: str) -> str:
        if isinstance(source, bytes):
            return hashlib.sha256(source).hexdigest()
        try:
            with Path(source).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ImageError("unreadable", f"{name}: {error.strerror}") from error


class GuardedLoading:
    """A Loading in processes, one for every calling thread. timeout: limit in seconds for one picture.

    Raises what Loading raises, and ImageError "timeout" and "crashed"; RuntimeError if processes do not start, or
    after stop().
    """

    def __init__(self, loading: Loading, timeout: float) -> None:
        self._loading, self._timeout = loading, timeout
        self._own = threading.local()
        self._children: set[Child] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def __call__(self, source: bytes | str, name: str) -> Loaded:
        """Decode a local path, or an encoded file's bytes. name: what errors call it."""
        try:
            return self._ask(source, name)
        except _DiedError:
            # Try once more: it may have been killed from outside (out of memory, or by hand), not by this picture.
            try:
                return self._ask(source, name)
            except _DiedError as died:
                raise ImageError("crashed", f"{name}: it crashed its decoder twice ({died})") from None

    def _ask(self, source: bytes | str, name: str) -> Loaded:
        child = self._child()
        connection: Any = child.connection
        try:
            connection.send((source, name))
            if not connection.poll(self._timeout):
                self._give_up(child)
                limit = f"decode_timeout={self._timeout:g} seconds"
                raise ImageError("timeout", f"{name}: decoding took more than {limit}; raise it")
            answer = connection.recv_bytes()
            if answer.startswith(b"["):
                raise ImageError(*json.loads(answer))
            pixels = np.frombuffer(connection.recv_bytes(), np.uint8)
            small = connection.recv_bytes() if self._loading.thumbnail else None
        except (EOFError, ConnectionError) as error:
            raise _DiedError(self._give_up(child)) from error
        return Loaded(pixels.reshape(self._loading.size, self._loading.size, 3), answer.decode() or None, small)

    def _child(self) -> Child:
        child: Child | None = getattr(self._own, "child", None)
        if child is None:
            with self._lock:
                if self._stopped:
                    raise RuntimeError("decoding was stopped")
                child = Child("bigr_repr.images.isolated", "_serve")
                self._children.add(child)
            connection: Any = child.connection
            try:
                connection.send((self._loading, self._timeout))
                started = connection.poll(_START) and connection.recv_bytes()
            except (EOFError, ConnectionError):
                started = False
            if not started:
                how = child.outcome()
                with self._lock:
                    self._children.discard(child)
                raise RuntimeError(
                    f"a decoding process does not start ({how}); decoding without a time limit needs none: "
                    "decode_timeout=None, or --decode-timeout 0"
                )
            self._own.child = child
        return child

    def _give_up(self, child: Child) -> str:
        """End a thread's process; the next picture gets another. Returns how it ended."""
        self._own.child = None
        with self._lock:
            self._children.discard(child)
        return child.end()

    def stop(self) -> None:
        """Stop decoding: threads that are waiting for a picture, or request one, get an ImageError "stopped"."""
        with self._lock:
            self._stopped = True
            for child in self._children:
                child.kill()

    def close(self) -> None:
        """End the processes. No thread may be calling."""
        self.stop()
        for child in self._children:
            child.end()
        self._children.clear()


class _DiedError(Exception):
    """A process has ended. str(): how."""


def _limit_memory(size: int) -> None:
    """Limit this process to so many bytes, where the system supports that; beyond it, MemoryError is raised."""
    try:
        import resource
    except ImportError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    size = min(size, _MOST_BYTES)
    limit = size if most == resource.RLIM_INFINITY else min(size, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def _serve(connection: Connection[Any, Any]) -> None:
    """The process's main loop."""
    warnings.simplefilter("ignore")  # about damaged metadata, which is not used here
    loading, timeout = connection.recv()
    _limit_memory(_BYTES_PER_PIXEL * loading.max_pixels + _OWN_BYTES)
    connection.send_bytes(b"ready")
    while True:
        source, name = connection.recv()
        # If the caller has gone in the meantime, nothing else would end a decoder that hangs.
        signal.setitimer(signal.ITIMER_REAL, 2 * timeout + 10)
        try:
            pixels, sha256, thumbnail = loading(source, name)
        except ImageError as error:
            connection.send_bytes(json.dumps([error.kind, str(error)]).encode())
        else:
            connection.send_bytes((sha256 or "").encode())
            connection.send_bytes(pixels.reshape(-1).data)
            if thumbnail is not None:
                connection.send_bytes(thumbnail)
        signal.setitimer(signal.ITIMER_REAL, 0)
