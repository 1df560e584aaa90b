"""A run's counts in Prometheus' text format, and a port that serves them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Final, Protocol

import typer

if TYPE_CHECKING:  # loaded only to serve: it would slow down every command's start
    from http.server import ThreadingHTTPServer


METRICS_START: Final = b"# HELP bigr_repr_embed_"  # of every text


class Counts(Protocol):
    """Images processed, in total (None during listing), failed, and per second."""

    done: int
    total: int | None
    failures: int

    @property
    def rate(self) -> float:
        """Recent images per second."""
        ...


def metrics_text(meter: Counts) -> str:
    """Counts in Prometheus' text format."""
    values = {
        "images_done": ("Images processed, including failures", meter.done),
        "images_planned": ("Images in total; 0 during listing", meter.total or 0),
        "images_failed": ("Images without a row", meter.failures),
        "images_per_second": ("Recent images per second", round(meter.rate, 3)),
        "updated_seconds": ("Time of writing, in seconds since 1970", round(time.time(), 3)),
    }
    lines = (
        f"# HELP bigr_repr_embed_{name} {said}\n# TYPE bigr_repr_embed_{name} gauge\nbigr_repr_embed_{name} {value}\n"
        for name, (said, value) in values.items()
    )
    return "".join(lines)


@contextmanager
def serving(address: str, text: Callable[[], str]) -> Iterator[int]:
    """While the block runs, serve text() as /metrics at "[HOST:]PORT".  Yields the port.

    Raises BadParameter for a malformed address, OSError if the port is taken.
    """
    server = _server(address, text)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="bigr-metrics", daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


def parse_address(text: str) -> tuple[str, int]:
    """Parse "9464", "host:9464" or "[::]:9464" as host and port.  Raises BadParameter for anything else."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not int(port) <= 65535 or (":" in host and not host.startswith("[")):
        raise typer.BadParameter(f"{text!r} is not a port, such as 9464 or 0.0.0.0:9464", param_hint="--metrics-port")
    return host.strip("[]") or "127.0.0.1", int(port)


def _server(address: str, text: Callable[[], str]) -> ThreadingHTTPServer:
    """A server that answers /metrics with text()."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class MetricsAnswer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == "/metrics"
            content = text().encode() if found else b"ask for /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Log nothing."""

    place = parse_address(address)

    class MetricsServer(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET

    try:
        return MetricsServer(place, MetricsAnswer)
    except OSError as error:
        raise OSError(
            f"metrics_port={address}: cannot listen there ({error.strerror or error}); choose another"
        ) from error
