"""Serves the studio until a signal stops it, with a private folder for its files."""

from __future__ import annotations

import signal
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import typer
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from bigr_repr.serve import Access, Limits, run_server
from bigr_repr.serve import api as search_api
from bigr_repr.serve import routes as search_routes
from bigr_repr.serve.errors import handle_errors
from bigr_repr.serve.guard import RequestGuard, error_body
from bigr_repr.serve.metrics import Metrics
from bigr_repr.serve.run import listen
from bigr_repr.serve.settings import is_loopback
from bigr_repr.system.files import is_full
from bigr_repr.system.scratch import scratch_folder
from bigr_repr_cli.app import inside, routes, searching
from bigr_repr_cli.app.jobs import BusyError, Desk, Look
from bigr_repr_cli.app.orders import field_of
from bigr_repr_cli.app.shelf import FullError, Shelf
from bigr_repr_cli.app.studio import Studio
from bigr_repr_cli.progress import counting_progress

LIMITS: Final = Limits(body_bytes=128 << 20, pending_bytes=256 << 20, requests=100, seconds=60.0, pixels=50_000_000)
_STATIC: Final = Path(__file__).with_name("static")


def build(studio: Studio, folder: Path, access: Access) -> FastAPI:
    """The application. folder: for uploads and indexes."""
    shelf, desk = Shelf(folder, studio.max_pixels), Desk()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()
        finder.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    local = not _reachable(access.host, access.allowed_hosts) or access.password is not None
    finder = searching.Finder(studio, folder, app.state, open_paths=local)
    app.state.studio, app.state.shelf, app.state.desk, app.state.finder = studio, shelf, desk, finder
    app.add_middleware(RequestGuard, access=access, limits=LIMITS, metrics=Metrics())
    for router in (routes.router, inside.router, searching.router):
        app.include_router(router)
    app.include_router(search_routes.router, prefix="/search", dependencies=[Depends(finder.used)])
    search_api.mount_static(app, "/search/static")
    search_api.mount_static(app, "/static", _STATIC)
    handle_errors(app)
    _handle_errors(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    """Make errors name the form field that they are about."""

    def answer(request: Request, status: int, code: str, error: Exception) -> JSONResponse:
        body = error_body(status, code, routes.without_folders(error, request))
        body["error"]["param"] = field_of(error)
        return JSONResponse(body, status)

    async def value(request: Request, error: Exception) -> Response:
        return answer(request, 400, "invalid", error)

    async def busy(request: Request, error: Exception) -> Response:
        return answer(request, 429, "busy", error)

    async def full(request: Request, error: Exception) -> Response:
        return answer(request, 507, "full", error)

    async def system(request: Request, error: Exception) -> Response:
        if is_full(error):
            return answer(request, 507, "full", error)
        raise error

    for kind, handler in ((ValueError, value), (TypeError, value), (ImportError, value), (BusyError, busy)):
        app.add_exception_handler(kind, handler)
    app.add_exception_handler(FullError, full)
    app.add_exception_handler(OSError, system)


class _EndError(Exception):
    """A signal asked the server to stop."""


def serve(
    studio: Studio,
    host: str,
    port: int,
    *,
    browser: bool,
    password: str | None = None,
    search: Path | None = None,
    images: Path | None = None,
    allow_hosts: Sequence[str] = (),
) -> None:
    """Serve the page until Ctrl-C or SIGTERM. search, images: as in `Finder.open`. allow_hosts: as in `Access`.

    Raises OSError, before any other work, if the server cannot listen on the address, and as `Finder.open` does.
    """
    names = (*allow_hosts, *(() if is_loopback(host) else (socket.gethostname(),)))
    access = Access(host=host, password=password or None, anyone=True, allowed_hosts=names)

    def begun(address: str) -> None:
        typer.echo(f"{studio.pre.config.name} paints at {address}; press Ctrl-C to stop", err=True)
        if browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    listen(host, port).close()
    if _reachable(host, names):
        warning = "every machine that can reach this one can use the page"
        typer.echo(f"warning: {warning}" + ("" if password else "; set a password with --password"), err=True)
    usual = signal.signal(signal.SIGTERM, _raise_end)  # uvicorn re-raises the signal once it has shut down
    try:
        with suppress(_EndError, KeyboardInterrupt), scratch_folder() as folder:
            app = build(studio, folder, access)
            desk: Desk = app.state.desk
            with closing(desk):
                if search is not None:
                    _open(app.state.finder, search, images)
                run_server(app, access, LIMITS, port, begun=begun, ended=desk.halt, grace=1)
    finally:
        signal.signal(signal.SIGTERM, usual)


def _reachable(host: str, names: Sequence[str]) -> bool:
    """Whether other machines can reach the page: on its address, or by other names, such as a proxy's."""
    return not is_loopback(host) or bool(names)


def _open(finder: searching.Finder, search: Path, images: Path | None) -> None:
    """Open what is searched, with progress and the number of unreadable files on stderr. Raises as `Finder.open`."""
    with ExitStack() as stack:
        begun = cache(lambda: stack.enter_context(counting_progress("embedding")))

        def watch(done: float, total: float, look: Look | None) -> None:
            if total:
                begun()(done, total)

        rows = finder.open(search, images, watch)
    if finder.unreadable:
        typer.echo(f"{search}: {rows:,} rows; files that cannot be read as pictures: {finder.unreadable:,}", err=True)


def _raise_end(*_: Any) -> None:
    raise _EndError
