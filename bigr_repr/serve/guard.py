"""Checks every request first: host, origin, token, size, number and time. Knows nothing of what is requested.

Pure ASGI, so that a request is refused before its body is read.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bigr_repr.serve.batching import ClosedError
from bigr_repr.serve.metrics import Metrics
from bigr_repr.serve.settings import Access, Limits

log = logging.getLogger(__name__)
COOKIE: Final = "bigr_session"
_OPEN: Final = {"/", "/health", "/ready"}  # without token: they reveal nothing about the collection
_STATIC: Final = "/static/"
_RETRY_SECONDS: Final = "1"
_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class RefusedError(Exception):
    """A refused request. status: of HTTP; message: one line for the caller; code: one word for programs."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class RequestGuard:
    """Middleware around the application. Every answer, even a refusal, has the same security headers."""

    def __init__(self, app: ASGIApp, *, access: Access, limits: Limits, metrics: Metrics) -> None:
        self._app, self._access, self._limits, self._metrics = app, access, limits, metrics
        self._requests = self._pending = 0
        metrics.gauge("bigr_requests_in_progress", "Requests being answered.", lambda: self._requests)
        metrics.gauge("bigr_pending_body_bytes", "Bodies held.", lambda: self._pending)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        answer = _GuardedAnswer(send)
        started = time.monotonic()
        try:
            await self._admitted(scope, receive, answer)
        except RefusedError as refused:
            await answer.refuse(refused)
        except asyncio.CancelledError:  # what it waited for was dropped, or the server has waited for it long enough
            await answer.refuse(RefusedError(503, "closed", str(ClosedError())))
        except Exception:
            log.exception("request failed")
            await answer.refuse(RefusedError(500, "internal", "the server failed; see its log"))
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, str(answer.status)).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - started)

    async def _admitted(self, scope: Scope, receive: Receive, answer: _GuardedAnswer) -> None:
        headers = _headers(scope)
        self._check_host(headers)
        _check_origin(scope, headers)
        self._check_token(scope, headers)
        self._check_password(headers)
        if self._requests >= self._limits.requests:
            raise RefusedError(429, "busy", f"{self._requests} requests are being answered; try again in a second")
        self._requests += 1
        body = _LimitedBody(self, receive)
        try:
            async with asyncio.timeout(self._limits.seconds):
                if not _is_open(scope["path"]):  # nobody without a token may keep a place by sending a body slowly
                    await body.read(headers)
                await self._app(scope, body.receive, answer.send)
        except TimeoutError:
            code = 504 if body.complete else 408
            raise RefusedError(code, "timeout", f"the request took more than {self._limits.seconds:g} s") from None
        finally:
            self._requests -= 1
            self._pending -= body.size

    def _check_host(self, headers: Mapping[str, str]) -> None:
        if not self._access.allows(_without_port(headers.get("host", ""))):
            raise RefusedError(421, "host", "this server is not known by that Host; allow it with --allow-host")

    def _check_token(self, scope: Scope, headers: Mapping[str, str]) -> None:
        token = self._access.token
        if token is None or _is_open(scope["path"]):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        bearer = scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())
        if not bearer and not hmac.compare_digest(_cookie(headers), session(token)):
            raise RefusedError(401, "token", "a token is required: Authorization: Bearer TOKEN")

    def _check_password(self, headers: Mapping[str, str]) -> None:
        if self._access.password is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        try:
            _, _, word = base64.b64decode(given, validate=True).partition(b":")
        except ValueError:
            word = b""
        if scheme.lower() != "basic" or not hmac.compare_digest(word, self._access.password.encode()):
            raise RefusedError(401, "password", "a password is required")

    def take(self, size: int, total: int) -> None:
        """Count `size` more bytes of a body, now `total` in all.  Raises RefusedError above a limit."""
        if total > self._limits.body_bytes:
            raise RefusedError(413, "body", f"the body has more than {self._limits.body_bytes:,} bytes")
        if self._pending + size > self._limits.pending_bytes:
            raise RefusedError(429, "busy", "too many bytes are waiting; try again in a second")
        self._pending += size


class _LimitedBody:
    """The body of one request, read before the application runs. size: bytes that the guard has counted."""

    def __init__(self, guard: RequestGuard, receive: Receive) -> None:
        self.size, self.complete = 0, False
        self._guard, self._receive = guard, receive
        self._chunks: list[bytes] = []
        self._given = False

    async def read(self, headers: Mapping[str, str]) -> None:
        """Read the whole body.  Raises RefusedError above a limit, or if the caller disconnects."""
        stated = headers.get("content-length", "0")
        if stated.isdecimal() and len(stated) < 20:
            self._guard.take(0, int(stated))
        while not self.complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise RefusedError(400, "disconnected", "the connection closed before the body was complete")
            chunk = message.get("body", b"")
            self._guard.take(len(chunk), self.size + len(chunk))
            self.size += len(chunk)
            self._chunks.append(chunk)
            self.complete = not message.get("more_body", False)

    async def receive(self) -> Message:
        """The application's messages: first the whole body, then those of the connection."""
        if self._given:
            return await self._receive()
        self._given = True
        body = b"".join(self._chunks)
        self._chunks.clear()
        return {"type": "http.request", "body": body, "more_body": False}


class _GuardedAnswer:
    """The answer to one request. status: as sent; 0: nothing yet."""

    def __init__(self, send: Send) -> None:
        self.status = 0
        self._send = send

    async def send(self, message: Message) -> None:
        """Forward a part of the answer, with the security headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            present = {name.lower() for name, _ in message.get("headers", [])}
            more = [(k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in present]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await self._send(message)

    async def refuse(self, refused: RefusedError) -> None:
        """Send an error, unless an answer has already begun."""
        if self.status:
            return
        body = json.dumps(error_body(refused.status, refused.code, refused.message)).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        if refused.status in (429, 503):
            headers["retry-after"] = _RETRY_SECONDS
        if refused.status == 401:
            basic = refused.code == "password"
            headers["www-authenticate"] = 'Basic realm="bigr-repr", charset="UTF-8"' if basic else "Bearer"
        if refused.status == 408:
            headers["connection"] = "close"
        start = {"type": "http.response.start", "status": refused.status}
        await self.send({**start, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})
        await self._send({"type": "http.response.body", "body": body})


def _is_open(path: str) -> bool:
    """Whether a path needs no token. Nothing there takes a body."""
    return path in _OPEN or path.startswith(_STATIC)


def error_body(status: int, code: str, message: str) -> dict[str, Any]:
    """An error in the format of OpenAI's API."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "code": code, "param": None}}


def session(token: str) -> bytes:
    """The value of the page's cookie, in place of the token."""
    return hmac.new(token.encode(), b"bigr-repr search page", hashlib.sha256).hexdigest().encode()


def _check_origin(scope: Scope, headers: Mapping[str, str]) -> None:
    """Refuse requests that another site's page makes a browser send. Links to the search page are allowed."""
    site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
    if origin is not None:
        _, _, host = origin.partition("://")
        if host.lower() != headers.get("host", "").lower():
            raise RefusedError(403, "origin", "pages of other sites may not use this server")
    elif site not in ("none", "same-origin"):
        link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if not (link and scope["method"] == "GET" and scope["path"] == "/"):
            raise RefusedError(403, "origin", "pages of other sites may not use this server")


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _without_port(host: str) -> str:
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def _cookie(headers: Mapping[str, str]) -> bytes:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return b""
    return b"" if found is None else found.value.encode("utf-8", "replace")
