"""Many HTTP clients in one thread: prepared requests out, raw answers in. Knows nothing about what is asked.

A server on loopback shares its cores with the clients that load it, so the clients do as little as possible: requests
are prepared beforehand, and answers are stored as received and examined after the load.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

_READ: Final = 1 << 18
_TIMEOUT: Final = 120.0  # seconds without any answer


class Answer(NamedTuple):
    """The result of request `number`. status: 0 if the connection failed; the body then says why."""

    number: int
    status: int
    body: bytes
    seconds: float


def post(path: str, body: bytes) -> bytes:
    """A complete HTTP request, as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def load(port: int, numbers: Iterable[int], request_of: Callable[[int], bytes], clients: int) -> Iterable[Answer]:
    """Yield the answers to the numbered requests as they arrive. Each client sends its next request immediately."""
    waiting = iter(numbers)
    with selectors.DefaultSelector() as ready:
        for _ in range(clients):
            _next(_Client(port), waiting, request_of, ready)
        while ready.get_map():
            events = ready.select(_TIMEOUT)
            if not events:
                raise TimeoutError(f"no answer for {_TIMEOUT:g} seconds")
            for key, _ in events:
                client: _Client = key.data
                answer = client.read()
                if answer is not None:
                    ready.unregister(key.fileobj)
                    _next(client, waiting, request_of, ready)
                    yield answer


def _next(
    client: _Client, waiting: Iterable[int], request_of: Callable[[int], bytes], ready: selectors.BaseSelector
) -> None:
    number = next(iter(waiting), None)
    if number is None:
        client.socket.close()
        return
    client.send(number, request_of(number))
    ready.register(client.socket, selectors.EVENT_READ, client)


class _Client:
    """One persistent connection. Its socket may block: it is read only when data is available."""

    def __init__(self, port: int) -> None:
        self._port, self._number, self._began = port, -1, 0.0
        self._got, self._whole = bytearray(), 0
        self._connect()

    def _connect(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self._port), _TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, number: int, request: bytes) -> None:
        """Send a request."""
        self._number, self._began, self._whole = number, time.perf_counter(), 0
        self._got.clear()
        try:
            self.socket.sendall(request)
        except OSError:  # the server closed the idle connection: retry once, as HTTP clients do
            self.socket.close()
            self._connect()
            self.socket.sendall(request)

    def read(self) -> Answer | None:
        """The answer, if it has arrived completely."""
        try:
            data = self.socket.recv(_READ)
        except OSError as error:
            return self._failed(repr(error))
        if not data:
            return self._failed("closed before the answer")
        self._got += data
        if not self._whole and (end := self._got.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._got[:end]).lower()
            self._whole = end + 4 + int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        if not self._whole or len(self._got) < self._whole:
            return None
        body = bytes(self._got[self._got.index(b"\r\n\r\n") + 4 :])
        return Answer(self._number, int(self._got[9:12]), body, time.perf_counter() - self._began)

    def _failed(self, how: str) -> Answer:
        self.socket.close()
        self._connect()
        return Answer(self._number, 0, how.encode(), time.perf_counter() - self._began)
