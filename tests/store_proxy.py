"""A proxy before a store that counts what it lets through, and lets through what a test says."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

# What becomes of a request, by its method, its path without a query, and its number: None: it goes through; a status;
# or a share of the body, after which the connection ends.
Rule = Callable[[str, str, int], "int | float | None"]


class StoreProxy:
    """address: to be used in place of the store's. sent, requests: bytes of bodies and number of answers, by path."""

    def __init__(self, store: str) -> None:
        self.store = urlsplit(store)
        self.rule: Rule = lambda method, path, number: None
        self.sent: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.address = ""

    def count(self, path: str) -> int:
        with self._lock:
            self.requests[path] += 1
            return self.requests[path]

    def read(self, name: str) -> int:
        """Bytes sent of the objects whose paths end in name."""
        return sum(size for path, size in self.sent.items() if path.endswith(name))


def _handler(proxy: StoreProxy) -> type[http.server.BaseHTTPRequestHandler]:
    class _Forward(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            body = self._body()
            path = unquote(urlsplit(self.path).path)
            verdict = proxy.rule(self.command, path, proxy.count(path))
            if isinstance(verdict, int):
                self._answer(verdict, [], b"")
                return
            there = http.client.HTTPConnection(str(proxy.store.netloc), timeout=30)
            own = ("transfer-encoding", "expect", "content-length", "connection")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in own}
            there.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            answer = there.getresponse()
            content = answer.read()
            there.close()
            kept = content if verdict is None else content[: int(verdict * len(content))]
            with proxy._lock:
                proxy.sent[path] += len(kept) if self.command == "GET" else 0
            self._answer(answer.status, answer.getheaders(), kept, None if verdict is None else len(content))

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, stated: int | None = None) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection", "content-length") or (
                    name.lower() == "content-length" and self.command == "HEAD"
                ):
                    self.send_header(name, value)
            if self.command != "HEAD" or not headers:
                self.send_header("Content-Length", str(len(body) if stated is None else stated))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            if stated is not None:
                self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do  # noqa: N815 - names that the server looks for

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return _Forward


@contextmanager
def store_proxy(store: str) -> Iterator[StoreProxy]:
    """A proxy in threads of this process. store: the address it leads to."""
    proxy = StoreProxy(store)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy))
    server.daemon_threads = True
    proxy.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
