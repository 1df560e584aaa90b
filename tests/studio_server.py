"""A studio that is served on a free port of this machine, for tests."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from bigr_repr_cli.app.server import build
from bigr_repr_cli.app.studio import Studio
from fastapi import FastAPI

from bigr_repr.serve import Access
from bigr_repr.system.scratch import scratch_folder

JSON = {"content-type": "application/json"}


@dataclass
class Running:
    """A page that is served."""

    app: FastAPI
    studio: Studio
    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        except (BrokenPipeError, ConnectionResetError):  # refused while it was being sent
            return 413, {}, b""
        finally:
            connection.close()

    def post(self, path: str, /, **body: Any) -> tuple[int, Any]:
        """Status and answer of a request with a JSON body."""
        status, _, answer = self.ask("POST", path, json.dumps(body).encode(), JSON)
        return status, json.loads(answer)


@contextmanager
def served(studio: Studio, access: Access | None = None) -> Iterator[Running]:
    with scratch_folder() as folder:
        app = build(studio, folder, access or Access(anyone=True))
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Running(app, studio, folder, listening.getsockname()[1])
        finally:
            app.state.desk.halt()
            server.should_exit = True
            thread.join()
            listening.close()


def waited(until: Callable[[], bool], seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        time.sleep(0.02)
    return until()
