"""Error answers in the format of OpenAI's API, without paths of this machine. Knows no routes."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from bigr_repr.images.formats import ImageError
from bigr_repr.serve.batching import ClosedError, QueueFullError
from bigr_repr.serve.guard import RefusedError, error_body

_IMAGE_STATUS: Final = {
    "too-large": 413, "timeout": 422, "crashed": 422, "unsupported": 415, "not-an-image": 415, "stopped": 503,
}  # fmt: skip


def handle_errors(app: FastAPI) -> None:
    """Answer errors in the format of OpenAI's API, without paths of this machine."""

    def answer(status: int, code: str, message: str) -> JSONResponse:
        headers = {"Retry-After": "1"} if status in (429, 503) else None
        said = message.encode("utf-8", "backslashreplace").decode()  # a request may hold half a surrogate pair
        return JSONResponse(error_body(status, code, said), status, headers)

    async def refused(request: Request, error: Any) -> Response:
        return answer(error.status, error.code, error.message)

    async def image(request: Request, error: Any) -> Response:
        return answer(_IMAGE_STATUS.get(error.kind, 400), error.kind, str(error))

    async def value(request: Request, error: Exception) -> Response:
        return answer(400, "invalid", str(error))

    async def full(request: Request, error: Exception) -> Response:
        return answer(429, "busy", str(error))

    async def closed(request: Request, error: Exception) -> Response:
        return answer(503, "closed", str(error))

    async def invalid(request: Request, error: Any) -> Response:
        return answer(422, "invalid", _in_words(error.errors()[0]))

    async def http(request: Request, error: Any) -> Response:
        return answer(error.status_code, "http", str(error.detail))

    handlers = {
        RefusedError: refused, ImageError: image, ValueError: value, QueueFullError: full, ClosedError: closed,
        RequestValidationError: invalid, HTTPException: http,
    }  # fmt: skip
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _in_words(error: dict[str, Any]) -> str:
    """The validator's error about a body, in one line."""
    place, kind, said = ".".join(str(part) for part in error["loc"][1:]), error["type"], str(error["msg"])
    if kind == "json_invalid":
        return f"the body is not JSON: {error.get('ctx', {}).get('error', 'it cannot be read')}"
    if kind == "value_error":
        said = said.removeprefix("Value error, ")
    known = {"extra_forbidden": "there is no such field; see /docs", "missing": "is required"}
    said = known.get(kind, said[:1].lower() + said[1:])
    return f"{place}: {said}" if place else f"the body: {said}" if kind != "value_error" else said
