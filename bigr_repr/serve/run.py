"""Serves an application on a socket until a signal ends it. Knows nothing of models."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import uvicorn

from bigr_repr.serve.settings import Access, Limits

log = logging.getLogger(__name__)
_TICKS: Final = 5  # of uvicorn, of 0.1 s each, between two looks at idle connections


class _ApiServer(uvicorn.Server):
    """A server that reports when it listens and when a signal ends it, and closes idle connections.

    begun: called once with the address. seconds: until a connection must have delivered the headers of a request.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        begun: Callable[[str], None],
        ended: Callable[[], None],
        address: str,
        seconds: float,
    ) -> None:
        super().__init__(config)
        self._begun, self._ended, self._address, self._seconds = begun, ended, address, seconds
        self._idle: dict[Any, tuple[Any, float]] = {}  # connections without a request, the last one, and since when

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening."""
        await super().startup(sockets)
        if self.started:
            self._begun(self._address)

    async def on_tick(self, counter: int) -> bool:
        """Several times a second."""
        if counter % _TICKS == 0:
            self._close_idle(time.monotonic())
        return await super().on_tick(counter)

    def _close_idle(self, now: float) -> None:
        """Close connections that wait for a request too long: uvicorn limits that time only between two requests."""
        before, self._idle = self._idle, {}
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)  # the request being answered, or the last one
            if cycle is not None and not cycle.response_complete:
                continue
            last, since = before.get(connection, (cycle, now))
            self._idle[connection] = cycle, since if last is cycle else now
        for connection, (_, since) in self._idle.items():
            if now - since > self._seconds:
                connection.transport.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self._ended()
        super().handle_exit(sig, frame)


def run_server(
    app: Any,
    access: Access,
    limits: Limits,
    port: int,
    *,
    begun: Callable[[str], None] = lambda address: None,
    ended: Callable[[], None] = lambda: None,
    grace: float | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish running requests.

    port: 0 picks a free one. begun: called with the server's address once it listens; ended: called on a signal.
    grace: seconds for requests to finish; None: limits.seconds.
    A connection that does not deliver the headers of a request within limits.seconds is closed.
    Raises OSError if it cannot listen on the address.
    """
    listening = listen(access.host, port)
    with listening:
        shown = f"[{access.host}]" if ":" in access.host else access.host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none",
            timeout_keep_alive=15,
            timeout_graceful_shutdown=max(1, int(limits.seconds if grace is None else grace)), lifespan="on",
        )  # fmt: skip
        _ApiServer(config, begun, ended, address, limits.seconds).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
    except OSError as error:
        opened.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host") from error
    return opened
