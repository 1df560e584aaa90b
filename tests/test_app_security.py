"""The page in the browser under attack: by other sites, by strangers on the network, by too much of anything."""

from __future__ import annotations

import base64
import gc
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from bigr_repr_cli.app import guard as guarding
from bigr_repr_cli.app import page as pages
from bigr_repr_cli.app.guard import Guard, is_loopback
from bigr_repr_cli.app.page import Page
from bigr_repr_cli.app.server import build, private_folder, serve
from bigr_repr_cli.app.studio import Studio
from PIL import Image
from tiny_model import tiny_model

from bigr_repr.system.files import replacing


class SlowStudio(Studio):
    """Draws until it is told to end, and counts."""

    began = ended = 0

    def generate(self, labels: Any, count: int, options: Any, watch: Callable[..., object]) -> list[Path]:
        self.began += 1
        try:
            while True:
                watch(0, 1, None)
                time.sleep(0.02)
        finally:
            self.ended += 1


@dataclass
class Running:
    """A page that is served."""

    page: Page
    guard: Guard
    studio: SlowStudio
    folder: Path
    port: int
    opened: list[http.client.HTTPConnection] = field(default_factory=list)

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

    def join(self, session: str, data: list[Any]) -> int:
        """Press Generate as the page's script does: the answer's status."""
        (number,) = [key for key, fn in self.page.blocks.fns.items() if self.page.count in fn.inputs]
        message = {"data": data, "fn_index": number, "session_hash": session, "trigger_id": None, "event_data": None}
        return self.ask("POST", "/gradio_api/queue/join", json.dumps(message).encode(), JSON)[0]

    def listen(self, session: str) -> http.client.HTTPConnection:
        """Hear what becomes of a session's presses."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
        assert connection.getresponse().status == 200
        return connection


# Gradio leaves event loops open.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module", autouse=True)
def _collected_at_the_end() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with private_folder() as folder:
        studio = SlowStudio(tiny_model(), tmp_path_factory.mktemp("drawn"))
        page, guard = build(studio, "127.0.0.1", folder)
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(guard, log_level="critical", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield Running(page, guard, studio, folder, listening.getsockname()[1])
        server.should_exit = True
        page.close()
        thread.join()
        listening.close()


def waited(until: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        time.sleep(0.02)
    return until()


def upload(*files: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """A body and its header, as a form sends files."""
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode() + b'"\r\n'
        b"Content-Type: image/png\r\n\r\n" + data + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + b"--edge--\r\n", {"content-type": "multipart/form-data; boundary=edge"}


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


# ---- other sites
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/gradio_api/queue/join"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:7860", "10.0.0.1", "", "localhost.evil"])
def test_rebound_names_are_refused(running: Running, host: str, path: str) -> None:
    """A name of the attacker's that leads to this machine: the browser takes the page for the attacker's own."""
    status, _, body = running.ask("GET", path, headers={"Host": host})
    assert status == 421
    assert b"gradio" not in body


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_the_page_has_its_names(running: Running, name: str) -> None:
    assert running.ask("GET", "/", headers={"Host": f"{name}:{running.port}"})[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:3000", "null", "http://127.0.0.1:1"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_other_sites_may_ask_for_nothing(running: Running, origin: str, method: str) -> None:
    headers = {"Origin": origin, "Content-Type": "text/plain", "Access-Control-Request-Method": "POST"}
    status, answer, _ = running.ask(method, "/gradio_api/queue/join", b"{}" if method == "POST" else None, headers)
    assert status == 403
    assert not [name for name in answer if name.startswith("access-control-")]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_a_browser_calls_foreign_is_refused_but_for_links(running: Running, site: str) -> None:
    foreign = {"Sec-Fetch-Site": site}
    link = {**foreign, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert running.ask("GET", "/gradio_api/info", headers=foreign)[0] == 403
    assert running.ask("GET", "/", headers=foreign)[0] == 403
    assert running.ask("GET", "/", headers=link)[0] == 200
    assert running.ask("POST", "/", b"", headers=link)[0] == 403
    assert running.ask("GET", "/", headers={**link, "Sec-Fetch-Dest": "iframe"})[0] == 403


def test_no_answer_lets_others_in_or_frame_it(running: Running) -> None:
    own = {"Origin": f"http://127.0.0.1:{running.port}"}
    for path, headers in (("/", {}), ("/config", own), ("/nowhere", own), ("/config", {"Origin": "http://evil"})):
        _, answer, _ = running.ask("GET", path, headers=headers)
        assert answer["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in answer["content-security-policy"]
        assert not [name for name in answer if name.startswith("access-control-")]


# ---- uploads
def test_images_are_taken_and_nothing_else(running: Running) -> None:
    status, _, body = running.ask("POST", "/gradio_api/upload", *upload(("a.png", png())))
    assert status == 200
    (path,) = map(Path, json.loads(body))
    assert path.is_relative_to(running.folder)
    before = {file for file in running.folder.rglob("*") if file.is_file()}
    for files in ([("a.png", b"<script>alert(1)</script>")], [("a.png", png()), ("b.html", b"<html>")]):
        status, _, body = running.ask("POST", "/gradio_api/upload", *upload(*files))
        assert (status, body) == (415, b"only images can be opened")
    assert {file for file in running.folder.rglob("*") if file.is_file()} <= before


def test_uploads_are_limited(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    body, headers = upload(("a.png", png() + bytes(1 << 20)))
    claimed = {**headers, "content-length": str(400 << 20)}
    assert running.ask("POST", "/gradio_api/upload", b"", claimed)[0] == 413
    assert running.ask("POST", "/gradio_api/queue/join", b"", {**JSON, "content-length": str(9 << 20)})[0] == 413
    monkeypatch.setattr(guarding, "UPLOAD_BYTES", 1 << 19)
    assert running.ask("POST", "/gradio_api/upload", body, headers)[0] == 413
    monkeypatch.setattr(guarding, "UPLOAD_BYTES", 128 << 20)
    monkeypatch.setattr(guarding, "FOLDER_BYTES", 0)
    assert running.ask("POST", "/gradio_api/upload", *upload(("a.png", png())))[0] == 507


# ---- too much
def values(running: Running, **changes: Any) -> list[Any]:
    """What the page would send for Generate."""
    (fn,) = [fn for fn in running.page.blocks.fns.values() if running.page.count in fn.inputs]
    named = {getattr(running.page, name): value for name, value in changes.items()}
    return [named.get(part, getattr(part, "value", None)) for part in fn.inputs]


def test_the_queue_is_limited_and_what_nobody_waits_for_ends(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    studio, began = running.studio, running.studio.began
    found = [running.join("first", values(running)) for _ in range(30)]
    assert set(found) == {200, 503}
    assert found.count(200) <= 10
    assert waited(lambda: studio.began > began)
    listening = running.listen("first")
    monkeypatch.setattr(pages, "_ABANDONED_SECONDS", 0.5)
    time.sleep(1.5)
    assert (studio.began, studio.ended) == (began + 1, began)  # as long as somebody listens
    listening.close()
    assert waited(lambda: studio.ended == studio.began)
    now = studio.began
    assert waited(lambda: running.join("second", values(running)) == 200)  # the queue is free again
    assert waited(lambda: studio.began > now)
    assert waited(lambda: studio.ended == studio.began)  # though nobody has ever listened


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"count": 65}, "65 pictures"), ({"count": 0}, "0 pictures"), ({"labels": ["1"] * 3000}, "3000")],
)
def test_a_press_is_limited_on_the_server(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    studio = Studio(tiny_model(), tmp_path)
    with pytest.raises(ValueError, match=words):
        studio.generate(changes.get("labels", []), changes.get("count", 1), {}, lambda *_: None)
    with pytest.raises(ValueError, match="33 steps"):
        studio.interpolate("0", "1", 33, {}, lambda *_: None)
    assert not list(tmp_path.iterdir())


def test_hostile_requests_leave_no_traceback(running: Running, capfd: pytest.CaptureFixture[str]) -> None:
    for method, path, body in [
        ("POST", "/gradio_api/queue/join", b"{"),
        ("POST", "/gradio_api/queue/join", b'{"data": null, "fn_index": 99999, "session_hash": "x"}'),
        ("POST", "/gradio_api/queue/join", b'{"data": {}, "fn_index": "a"}'),
        ("POST", "/gradio_api/upload", b"no form"),
        ("GET", "/gradio_api/file=/etc/passwd", None),
        ("GET", "/gradio_api/file=..%2F..%2Fetc%2Fpasswd", None),
        ("GET", "/%00", None),
        ("GET", "/gradio_api/queue/data", None),
        ("PUT", "/config", b"x"),
    ]:
        status, _, answer = running.ask(method, path, body, JSON)
        assert 400 <= status < 600, path
        assert b"root:" not in answer
        assert b"Traceback" not in answer
    text = "".join(capfd.readouterr())
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "path", ["/monitoring", "/monitoring/summary", "/gradio_api/monitoring", "/docs", "/openapi.json"]
)
def test_nothing_is_told_of_the_server(running: Running, path: str) -> None:
    assert running.ask("GET", path)[0] == 404


# ---- strangers
def test_the_password_is_asked_for_first(tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"secret"})

    guard = Guard(app, "127.0.0.1", tmp_path, "pässword")
    for word, status in [(None, 401), ("wrong", 401), ("pässword", 200), ("", 401)]:
        sent: list[Any] = []
        headers = [(b"host", b"localhost")]
        if word is not None:
            headers.append((b"authorization", b"Basic " + base64.b64encode(f"me:{word}".encode())))
        ask(guard, headers, sent)
        assert sent[0]["status"] == status
        assert (b"secret" in sent[1]["body"]) == (status == 200)
    for odd in (b"Basic", b"Basic \xff", b"Bearer x", b"Basic !!!"):
        sent = []
        ask(guard, [(b"host", b"localhost"), (b"authorization", odd)], sent)
        assert sent[0]["status"] == 401


def ask(guard: Guard, headers: list[tuple[bytes, bytes]], sent: list[Any]) -> None:
    import asyncio

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
    asyncio.run(guard(scope, receive, send))


@pytest.mark.parametrize(
    ("host", "names", "foreign"),
    [
        ("::1", ["localhost", "[::1]:7860"], ["evil.example", "[fe80::1]"]),
        ("0.0.0.0", ["192.168.0.7:7860", "localhost", socket.gethostname()], ["evil.example"]),
    ],
)
def test_elsewhere_only_addresses_and_its_own_name_are_answered(
    tmp_path: Path, host: str, names: list[str], foreign: list[str]
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    for name, status in [*((each, 200) for each in names), *((each, 421) for each in foreign)]:
        sent: list[Any] = []
        ask(Guard(app, host, tmp_path), [(b"host", name.encode())], sent)
        assert sent[0]["status"] == status, name


def test_a_warning_where_other_machines_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    studio = SlowStudio(tiny_model(), tmp_path)
    for host, password, wanted in [("127.0.0.1", None, []), ("0.0.0.0", None, ["warning", "--password"])]:
        serve(studio, host, 0, browser=False, password=password)
        error = capsys.readouterr().err
        assert all(word in error for word in wanted)
        assert bool(error) == bool(wanted)
    assert is_loopback("::1")
    assert not is_loopback("::")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_the_private_folder_goes_with_the_server(tmp_path: Path, ending: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    words = ["bigr-repr", "app", "--no-browser", "--out", str(tmp_path / "drawn"), "--port", port]
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"sys.argv = {words!r}; from bigr_repr_cli.main import main; main()"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    started = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)}
    )
    assert started.stderr is not None
    try:
        assert "Ctrl-C ends it" in started.stderr.readline()
        (folder,) = temporary.glob("bigr-repr-*")
        assert folder.stat().st_mode & 0o077 == 0
        with replacing(folder / "picture") as file:
            file.write(b"x")
        started.send_signal(ending)
        _, said = started.communicate(timeout=60)
    finally:
        started.kill()
    assert (started.returncode, said) == (0, "")
    assert not list(temporary.glob("bigr-repr-*"))
