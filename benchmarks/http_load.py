"""Many HTTP clients in one thread: prepared requests out, raw answers in. Knows nothing of what is asked.

A server on loopback shares its cores with the clients that load it. So they do as little as can be done honestly: what
they send is prepared, what they get is kept as it came, and looking at it comes after the load.
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
    """What came of one request. number: its own. status: 0: the connection failed, and body says how."""

    number: int
    status: int
    body: bytes
    seconds: float


def post(path: str, body: bytes) -> bytes:
    """A whole request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def load(port: int, numbers: Iterable[int], request_of: Callable[[int], bytes], clients: int) -> Iterable[Answer]:
    """The answers to requests of these numbers, as they come; each client sends its next request at once."""
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
    """One connection that is kept. It is read only when there is something, so it may block."""

    def __init__(self, port: int) -> None:
        self._port, self._number, self._began = port, -1, 0.0
        self._got, self._whole = bytearray(), 0
        self._connect()

    def _connect(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self._port), _TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, number: int, request: bytes) -> None:
        """Begin a request."""
        self._number, self._began, self._whole = number, time.perf_counter(), 0
        self._got.clear()
        try:
            self.socket.sendall(request)
        except OSError:  # the server closed it while it was idle: its clients try once more
            self.socket.close()
            self._connect()
            self.socket.sendall(request)

    def read(self) -> Answer | None:
        """The answer, if all of it is there."""
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
