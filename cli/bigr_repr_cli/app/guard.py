"""What every request to the page passes first: host, origin, password, size and kind. Knows nothing of drawing.

Written for ASGI itself, around Gradio's application: what is refused reaches none of it.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bigr_repr.images.formats import ImageError, open_image

log = logging.getLogger(__name__)
UPLOAD_BYTES: Final = 128 << 20
BODY_BYTES: Final = 8 << 20  # of any other request
FOLDER_BYTES: Final = 2 << 30  # of all that is kept of uploads and pictures shown
_UPLOAD: Final = "/gradio_api/upload"
_STREAM: Final = "/gradio_api/queue/data"
_CLOSED: Final = ("/monitoring", "/gradio_api/monitoring")
_HEADERS: Final = {
    "x-frame-options": "DENY",
    "content-security-policy": "frame-ancestors 'none'; base-uri 'self'; form-action 'self'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class _RejectedError(Exception):
    """A request that is refused, with the status of the answer and one line for whoever asks."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """The application behind its checks.

    host: the address listened on. On this machine's own, only its names are answered; else any address in numbers,
    which no other site can take over, and this machine's name.  password: asked for by HTTP's basic scheme, with any
    user name; None: no password.  folder: where uploads are kept.
    """

    def __init__(self, app: ASGIApp, host: str, folder: Path, password: str | None = None) -> None:
        self._app, self._folder, self._password = app, folder, password
        self._local = is_loopback(host)
        self._names = {"localhost", host.lower()} | (set() if self._local else {socket.gethostname().lower()})
        self._streams: Counter[str] = Counter()  # open ones, by session
        self._left: dict[str, float] = {}  # when a session closed its last one

    def seconds_alone(self, session: str | None, now: float) -> float:
        """For how long nobody has been listening to what a session draws."""
        if session is None or self._streams[session]:
            return 0.0
        return now - self._left.setdefault(session, now)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page needs no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Answer(send)
        try:
            await self._admitted(scope, receive, answer)
        except _RejectedError as refused:
            await answer.refuse(refused)
        except Exception as error:
            log.warning("a request for %s failed: %s: %s", scope["path"], type(error).__name__, error)
            await answer.refuse(_RejectedError(500, "the server failed"))

    async def _admitted(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self._check_host(headers.get("host", ""))
        _check_origin(scope, headers)
        self._check_password(headers)
        if scope["path"].startswith(_CLOSED):
            raise _RejectedError(404, "there is nothing here")
        upload = scope["path"].rstrip("/") == _UPLOAD
        body = _limited(receive, headers, UPLOAD_BYTES if upload else BODY_BYTES)
        if upload:
            self._check_folder()
            await answer.checked(self._app, scope, body, _check_images)
        elif scope["path"] == _STREAM:
            await self._stream(scope, body, answer)
        else:
            await self._app(scope, body, answer.send)

    async def _stream(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        self._streams[session] += 1
        try:
            await self._app(scope, receive, answer.send)
        finally:
            self._streams[session] -= 1
            if not self._streams[session]:
                del self._streams[session]
                self._left[session] = time.monotonic()
            for old in list(self._left)[:-1000]:  # sessions come and go
                del self._left[old]

    def _check_host(self, given: str) -> None:
        name = given.rpartition("]")[0].lstrip("[") if given.startswith("[") else given.partition(":")[0]
        if name.lower() in self._names:
            return
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            raise _RejectedError(421, "this page is not served under that name") from None
        if self._local and not address.is_loopback:
            raise _RejectedError(421, "this page is not served under that address")

    def _check_password(self, headers: Mapping[str, str]) -> None:
        if self._password is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        try:
            _, _, word = base64.b64decode(given, validate=True).partition(b":")
        except ValueError:
            word = b""
        if scheme.lower() != "basic" or not hmac.compare_digest(word, self._password.encode()):
            raise _RejectedError(401, "the page has a password")

    def _check_folder(self) -> None:
        if sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file()) > FOLDER_BYTES:
            raise _RejectedError(507, "too much has been uploaded; start the page again")


def _check_origin(scope: Scope, headers: Mapping[str, str]) -> None:
    """Refuse what a page of another site or port makes a browser send. A link to the page may be followed."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if origin is not None:
        if origin.partition("://")[2].lower() != headers.get("host", "").lower():
            raise _RejectedError(403, "pages of other sites may not use this one")
    elif site not in ("none", "same-origin"):
        link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if not (link and scope["method"] == "GET" and scope["path"] == "/"):
            raise _RejectedError(403, "pages of other sites may not use this one")


def _limited(receive: Receive, headers: Mapping[str, str], most: int) -> Receive:
    """The body as it comes, cut off past the limit."""
    stated, size = headers.get("content-length", "0"), 0
    if not stated.isdecimal() or len(stated) > 18 or int(stated) > most:
        raise _RejectedError(413, f"more than {most >> 20} MB at once are not taken")

    async def part() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise _RejectedError(413, f"more than {most >> 20} MB at once are not taken")
        return message

    return part


def _check_images(body: bytes) -> None:
    """Remove uploads that are no images. body: Gradio's answer, the list of their paths."""
    paths = [Path(path) for path in json.loads(body)]
    wrong = [path for path in paths if not _is_image(path)]
    for path in wrong:
        path.unlink(missing_ok=True)
    if wrong:
        raise _RejectedError(415, "only images can be opened")


def _is_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            open_image(file, path.name)
    except (ImageError, OSError, ValueError, SyntaxError):
        return False
    return True


class _Answer:
    """The answer to one request, with safety headers and without those that let other sites in."""

    def __init__(self, send: Send) -> None:
        self._send, self._begun = send, False

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on."""
        if message["type"] == "http.response.start":
            self._begun = True
            kept = [
                (name, value)
                for name, value in message.get("headers", [])
                if not name.lower().startswith(b"access-control-") and name.lower().decode() not in _HEADERS
            ]
            message = {**message, "headers": [*kept, *((k.encode(), v.encode()) for k, v in _HEADERS.items())]}
        await self._send(message)

    async def checked(self, app: ASGIApp, scope: Scope, receive: Receive, check: Callable[[bytes], None]) -> None:
        """Send the application's answer once its body has passed the check."""
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        bare = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
        await app({**scope, "headers": bare}, receive, keep)
        if messages and messages[0].get("status") == 200:
            check(b"".join(message.get("body", b"") for message in messages))
        for message in messages:
            await self.send(message)

    async def refuse(self, refused: _RejectedError) -> None:
        """Send an error, unless an answer has begun."""
        if self._begun:
            return
        headers: dict[str, Any] = {"content-type": "text/plain; charset=utf-8", "connection": "close"}
        if refused.status == 401:
            headers["www-authenticate"] = 'Basic realm="bigr-repr", charset="UTF-8"'
        start = {"type": "http.response.start", "status": refused.status}
        await self.send({**start, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})
        await self._send({"type": "http.response.body", "body": str(refused).encode()})
