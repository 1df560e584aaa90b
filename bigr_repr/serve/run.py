"""Serves an application on a socket until a signal ends it. Knows nothing of models."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from bigr_repr.serve.settings import Access, Limits

log = logging.getLogger(__name__)


class _ApiServer(uvicorn.Server):
    """A server that reports when it listens and when a signal ends it. begun: called once with the address."""

    def __init__(
        self, config: uvicorn.Config, begun: Callable[[str], None], ended: Callable[[], None], address: str
    ) -> None:
        super().__init__(config)
        self._begun, self._ended, self._address = begun, ended, address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening."""
        await super().startup(sockets)
        if self.started:
            self._begun(self._address)

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
    Raises OSError if it cannot listen on the address.
    """
    listening = _listen(access.host, port)
    with listening:
        shown = f"[{access.host}]" if ":" in access.host else access.host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none",
            limit_concurrency=4 * limits.requests, timeout_keep_alive=15,
            timeout_graceful_shutdown=max(1, int(limits.seconds if grace is None else grace)), lifespan="on",
        )  # fmt: skip
        _ApiServer(config, begun, ended, address).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
    except OSError as error:
        opened.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host") from error
    return opened
