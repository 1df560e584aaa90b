"""The HTTP API: an application around a Service, and the routes of a stand-alone server. Knows no search.

The routes used by a search page are in `routes`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path as FilePath
from typing import Final

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles

from bigr_repr._version import __version__
from bigr_repr.serve import metrics
from bigr_repr.serve.errors import handle_errors
from bigr_repr.serve.guard import COOKIE, RefusedError, RequestGuard, session
from bigr_repr.serve.routes import Served, router
from bigr_repr.serve.schemas import ErrorAnswer
from bigr_repr.serve.service import Service
from bigr_repr.serve.settings import Access
from bigr_repr.system.pages import TOKENS, render

_PAGE: Final = FilePath(__file__).parent / "search_page.html"
_STATIC: Final = FilePath(__file__).parent / "static"
own = APIRouter()


def create_app(service: Service, access: Access | None = None) -> FastAPI:
    """The application, which closes the service when it shuts down.

    access: where it listens and who may use it; None: this machine only, without a token.
    """
    access = access or Access()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="bigr-repr", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
        description="Embeddings, bit codes and search of pictures.", responses={"4XX": {"model": ErrorAnswer}},
    )  # fmt: skip
    app.state.service, app.state.token = service, access.token
    app.add_middleware(RequestGuard, access=access, limits=service.limits, metrics=service.metrics)
    app.include_router(router)
    app.include_router(own)
    mount_static(app)
    handle_errors(app)
    return app


def mount_static(app: FastAPI, path: str = "/static", folder: FilePath = _STATIC) -> None:
    """Mount the scripts and styles in a folder, by default the search page's, and the tokens shared by all pages."""

    @app.get(f"{path}/tokens.css", include_in_schema=False)
    async def tokens() -> Response:
        return FileResponse(TOKENS)

    app.mount(path, StaticFiles(directory=folder))


# ---- pages


@own.get("/", include_in_schema=False)
async def page() -> Response:
    """The search page."""
    return HTMLResponse(render(_PAGE), headers={"Cache-Control": "no-cache"})


@own.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """Documentation of the API."""
    return FileResponse(_STATIC / "docs.html", headers={"Cache-Control": "no-cache"})


@own.post("/session", include_in_schema=False)
async def start_session(request: Request) -> Response:
    """Keep the search page signed in: the guard has checked the token already."""
    answer = Response(status_code=204)
    if request.app.state.token is not None:
        value = session(request.app.state.token).decode()
        answer.set_cookie(COOKIE, value, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer


# ---- state


@own.get("/health")
async def health() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@own.get("/ready")
async def ready(service: Served) -> dict[str, str]:
    """Whether model and index are loaded and requests are processed; 503 otherwise."""
    if not service.ready:
        raise RefusedError(503, "not-ready", "the server is shutting down")
    return {"status": "ready"}


@own.get("/metrics", response_class=Response)
async def read_metrics(service: Served) -> Response:
    """Figures for Prometheus."""
    return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)
