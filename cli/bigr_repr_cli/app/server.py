"""The page on a socket until a signal ends it, with a folder of its own for what passes through. Knows no component."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import typer
import uvicorn

from bigr_repr_cli.app.guard import UPLOAD_BYTES, Guard, is_loopback
from bigr_repr_cli.app.page import CSS, Page
from bigr_repr_cli.app.studio import Studio


class _EndError(Exception):
    """A signal asked the server to end."""


class _Server(uvicorn.Server):
    """A server that calls `ended` as soon as a signal comes, so that nothing keeps it waiting."""

    def __init__(self, config: uvicorn.Config, begun: Callable[[], None], ended: Callable[[], None]) -> None:
        super().__init__(config)
        self._begun, self._ended = begun, ended

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening."""
        await super().startup(sockets)
        if self.started:
            self._begun()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """What a signal does."""
        self._ended()
        super().handle_exit(sig, frame)


def build(studio: Studio, host: str, folder: Path, password: str | None = None) -> tuple[Page, Guard]:
    """The page and the application that serves it. folder: see `private_folder`."""
    page = Page(studio)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app,
        page.blocks,
        "/",
        server_name=host,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        max_file_size=UPLOAD_BYTES,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        footer_links=[],
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # none from elsewhere
        css=CSS,
    )
    guard = Guard(app, host, folder, password)
    page.alone = guard.seconds_alone
    return page, guard


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for uploads and the pictures shown, of this user only, which is removed at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="bigr-repr-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def serve(studio: Studio, host: str, port: int, *, browser: bool, password: str | None = None) -> None:
    """Serve the page until Ctrl-C or SIGTERM. Raises OSError when the address cannot be listened on."""
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def begun() -> None:
        typer.echo(f"{studio.pre.config.name} paints at {address}; Ctrl-C ends it", err=True)
        if browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    with _listen(host, port) as listening, private_folder() as folder:
        if not is_loopback(host):
            warning = "every machine that reaches this one can use the page"
            typer.echo(f"warning: {warning}" + ("" if password else "; set a password with --password"), err=True)
        page, guard = build(studio, host, folder, password)
        config = uvicorn.Config(
            guard, log_level="critical", access_log=False, server_header=False, proxy_headers=False, ws="none",
            limit_concurrency=200, timeout_keep_alive=15, timeout_graceful_shutdown=1,
        )  # fmt: skip
        usual = signal.signal(signal.SIGTERM, _raise_end)  # uvicorn passes the signal on when it has ended
        try:
            _Server(config, begun, page.halt).run(sockets=[listening])
        except (_EndError, KeyboardInterrupt):
            pass
        finally:
            signal.signal(signal.SIGTERM, usual)
            page.close()


def _raise_end(*_: object) -> None:
    raise _EndError


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host") from error
