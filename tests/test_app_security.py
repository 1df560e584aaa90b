"""The page in the browser under attack: by other sites, by strangers on the network, by too much of anything."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")

import uvicorn
from bigr_repr_cli.app import jobs, server, shelf
from bigr_repr_cli.app.server import LIMITS, serve
from bigr_repr_cli.app.studio import Studio
from forks import HEEDING, start
from PIL import Image
from studio_server import JSON, Running, served, waited
from tiny_model import tiny_model, write_pictures

from bigr_repr.serve import Access
from bigr_repr.serve.guard import RequestGuard
from bigr_repr.serve.metrics import Metrics
from bigr_repr.serve.settings import is_loopback
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


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served(SlowStudio(tiny_model(), tmp_path_factory.mktemp("drawn"))) as opened:
        yield opened


def slow(running: Running) -> SlowStudio:
    assert isinstance(running.studio, SlowStudio)
    return running.studio


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


# ---- other sites
@pytest.mark.parametrize("path", ["/", "/about", "/search/opened", "/jobs"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:7860", "10.0.0.1", "", "localhost.evil"])
def test_rebound_names_are_refused(running: Running, host: str, path: str) -> None:
    """A name of the attacker's that leads to this machine: the browser takes the page for the attacker's own."""
    status, _, body = running.ask("GET", path, headers={"Host": host})
    assert status == 421
    assert b"tiny-random" not in body


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_the_page_has_its_names(running: Running, name: str) -> None:
    assert running.ask("GET", "/", headers={"Host": f"{name}:{running.port}"})[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:3000", "null", "http://127.0.0.1:1"])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/about"), ("POST", "/jobs"), ("OPTIONS", "/jobs"), ("POST", "/pictures")]
)
def test_pages_of_other_sites_may_ask_for_nothing(running: Running, origin: str, method: str, path: str) -> None:
    headers = {"Origin": origin, "Content-Type": "text/plain", "Access-Control-Request-Method": "POST"}
    status, answer, _ = running.ask(method, path, png() if method == "POST" else None, headers)
    assert status == 403
    assert not [name for name in answer if name.startswith("access-control-")]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_a_browser_calls_foreign_is_refused_but_for_links(running: Running, site: str) -> None:
    foreign = {"Sec-Fetch-Site": site}
    link = {**foreign, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert running.ask("GET", "/about", headers=foreign)[0] == 403
    assert running.ask("GET", "/", headers=foreign)[0] == 403
    assert running.ask("GET", "/", headers=link)[0] == 200
    assert running.ask("POST", "/", b"", headers=link)[0] == 403
    assert running.ask("GET", "/", headers={**link, "Sec-Fetch-Dest": "iframe"})[0] == 403


def test_no_answer_lets_others_in_or_frame_it(running: Running) -> None:
    own = {"Origin": running.url}
    for path, headers in (("/", {}), ("/about", own), ("/nowhere", own), ("/about", {"Origin": "http://evil"})):
        _, answer, _ = running.ask("GET", path, headers=headers)
        assert answer["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in answer["content-security-policy"]
        assert "default-src 'none'" in answer["content-security-policy"]
        assert not [name for name in answer if name.startswith("access-control-")]


# ---- uploads
def test_images_are_taken_and_nothing_else(running: Running) -> None:
    status, _, body = running.ask("POST", "/pictures?name=..%2F..%2Fa.png", png())
    assert (status, json.loads(body)["name"]) == (200, "a.png")
    before = {file for file in running.folder.rglob("*") if file.is_file()}
    assert len(before) == 1
    for data in (b"<script>alert(1)</script>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"", png()[:40]):
        status, _, body = running.ask("POST", "/pictures?name=b.html", data)
        assert status in (400, 415), data
        assert str(running.folder).encode() not in body
    assert {file for file in running.folder.rglob("*") if file.is_file()} == before


def test_what_is_shown_is_an_image_to_every_browser(running: Running) -> None:
    _, _, body = running.ask("POST", "/pictures", png())
    picture = json.loads(body)["id"]
    _, headers, _ = running.ask("GET", f"/pictures/{picture}")
    assert headers["content-type"] == "image/png"
    _, headers, _ = running.ask("GET", f"/pictures/{picture}/file")
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"].startswith("attachment")
    assert headers["x-content-type-options"] == "nosniff"


def test_uploads_are_limited(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert running.ask("POST", "/pictures", b"", {"content-length": str(400 << 20)})[0] == 413
    assert running.ask("POST", "/jobs", b"", {**JSON, "content-length": str(129 << 20)})[0] == 413
    assert running.post("/jobs", kind="inpaint", mask="A" * ((16 << 20) + 1))[0] == 422
    monkeypatch.setattr(shelf, "FOLDER_BYTES", 0)
    assert running.ask("POST", "/pictures", png())[0] == 507


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("1", (3000, 3000)).save(file, "PNG")
    kept = shelf.Shelf(tmp_path, max_pixels=1_000_000)
    with pytest.raises(ValueError, match="pixels"):
        kept.upload(file.getvalue(), "bomb.png")
    assert not list(tmp_path.iterdir())


def test_a_mask_is_no_bomb(running: Running) -> None:
    file = io.BytesIO()
    Image.new("L", (30_000, 3000)).save(file, "PNG")
    photo = json.loads(running.ask("POST", "/pictures", png())[2])["id"]
    for mask, words in [(file.getvalue(), "too many"), (b"GIF89a", "not a PNG"), (png()[:30], "not a PNG")]:
        body = base64.b64encode(mask).decode()
        status, answer = running.post("/jobs", kind="inpaint", photo=photo, mask=body)
        assert (status, answer["error"]["param"]) == (400, "mask")
        assert words in answer["error"]["message"]


# ---- too much


@pytest.mark.slow
def test_the_queue_is_limited_and_what_nobody_waits_for_ends(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    studio, began = slow(running), slow(running).began
    found = [running.post("/jobs", kind="generate") for _ in range(30)]
    assert {status for status, _ in found} == {200, 429}
    accepted = [answer["job"] for status, answer in found if status == 200]
    assert len(accepted) <= 10
    assert waited(lambda: studio.began > began)
    now = time.monotonic()
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: now))
    for _ in range(4):  # as long as somebody listens
        now += 0.9 * jobs.ABANDONED_SECONDS
        assert running.ask("GET", f"/jobs/{accepted[0]}")[0] == 200
    assert (studio.began, studio.ended) == (began + 1, began)
    now += 1.1 * jobs.ABANDONED_SECONDS
    assert waited(lambda: studio.ended == studio.began)
    assert waited(lambda: running.post("/jobs", kind="generate")[0] == 200)  # the queue is free again
    begun, now = studio.began, time.monotonic()
    assert running.post("/jobs", kind="generate")[0] == 200
    assert waited(lambda: studio.began > begun)
    now += 1.1 * jobs.ABANDONED_SECONDS
    assert waited(lambda: studio.ended == studio.began)  # though nobody has ever listened


@pytest.mark.parametrize(
    ("labels", "count", "words"),
    [([], 65, "65 pictures"), ([], 0, "0 pictures"), (["1,2"] * 1500, 1, "3000")],
)
def test_a_press_is_limited_on_the_server(tmp_path: Path, labels: list[str], count: int, words: str) -> None:
    studio = Studio(tiny_model(), tmp_path)
    with pytest.raises(ValueError, match=words):
        studio.generate(labels, count, {}, lambda *_: None)
    with pytest.raises(ValueError, match="33 frames"):
        studio.interpolate("0", "1", 33, {}, lambda *_: None)
    assert not list(tmp_path.iterdir())


def test_hostile_requests_leave_no_traceback(running: Running, capfd: pytest.CaptureFixture[str]) -> None:
    for method, path, body in [
        ("POST", "/jobs", b"{"),
        ("POST", "/jobs", b'{"kind": "shutdown"}'),
        ("POST", "/jobs", b'{"kind": "generate", "seed": -1}'),
        ("POST", "/jobs", b'{"kind": "generate", "seed": 1e400}'),
        ("POST", "/jobs", b'{"kind": "generate", "settings": {"steps": "many"}}'),
        ("POST", "/jobs", b'{"kind": "generate", "settings": {"__class__": 1}}'),
        ("POST", "/jobs", b'{"kind": "inpaint", "photo": "/etc/passwd"}'),
        ("POST", "/inside/look", b'{"picture": "../../etc/passwd"}'),
        ("POST", "/inside/unmask", b'{"steps": 100000}'),
        ("POST", "/inside/unmask", b'{"order": "\\u0000"}'),
        ("POST", "/search/open", b'{"path": ""}'),
        ("POST", "/search/search", b"[]"),
        ("POST", "/pictures", b"no picture"),
        ("GET", "/pictures/..%2F..%2Fetc%2Fpasswd", None),
        ("GET", "/pictures/%2Fetc%2Fpasswd/file", None),
        ("GET", "/static/..%2F..%2Fserver.py", None),
        ("GET", "/static/../../server.py", None),
        ("GET", "/%00", None),
        ("GET", "/jobs/none", None),
        ("DELETE", "/jobs/none", None),
        ("PUT", "/about", b"x"),
    ]:
        status, _, answer = running.ask(method, path, body, JSON)
        assert 400 <= status < 500, path
        assert b"root:" not in answer
        assert b"Traceback" not in answer
        assert b"import" not in answer
    text = "".join(capfd.readouterr())
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "path",
    ["/monitoring", "/metrics", "/search/metrics", "/docs", "/search/docs", "/openapi.json", "/redoc", "/health"],
)
def test_nothing_is_told_of_the_server(running: Running, path: str) -> None:
    assert running.ask("GET", path)[0] == 404


def test_only_what_was_opened_or_drawn_is_served(running: Running) -> None:
    (running.studio.out / "private.png").write_bytes(png())
    for path in ("/pictures/private.png", f"/pictures/{running.studio.out / 'private.png'}", "/drawn/private.png"):
        assert running.ask("GET", path)[0] == 404


# ---- strangers
def test_the_password_is_asked_for_first() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"secret"})

    guard = RequestGuard(app, access=Access(password="pässword"), limits=LIMITS, metrics=Metrics())
    for path in (b"/", b"/static/draw.js", b"/about"):
        for word, status in [(None, 401), ("wrong", 401), ("pässword", 200), ("", 401)]:
            headers = [(b"host", b"localhost")]
            if word is not None:
                headers.append((b"authorization", b"Basic " + base64.b64encode(f"me:{word}".encode())))
            sent = ask(guard, headers, path)
            assert sent[0]["status"] == status
            assert (b"secret" in sent[1]["body"]) == (status == 200)
    for odd in (b"Basic", b"Basic \xff", b"Bearer x", b"Basic !!!"):
        sent = ask(guard, [(b"host", b"localhost"), (b"authorization", odd)])
        assert sent[0]["status"] == 401
        assert dict(sent[0]["headers"])[b"www-authenticate"].startswith(b"Basic")


def ask(guard: RequestGuard, headers: list[tuple[bytes, bytes]], path: bytes = b"/") -> list[Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path.decode(), "query_string": b"", "headers": headers}
    asyncio.run(guard(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    ("host", "names", "foreign"),
    [
        ("::1", ["localhost", "[::1]:7860"], ["evil.example", "[fe80::1]"]),
        ("0.0.0.0", ["192.168.0.7:7860", "localhost", socket.gethostname()], ["evil.example"]),
    ],
)
def test_elsewhere_only_addresses_and_its_own_name_are_answered(
    host: str, names: list[str], foreign: list[str]
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    access = Access(host=host, anyone=True, allowed_hosts=() if is_loopback(host) else (socket.gethostname(),))
    guard = RequestGuard(app, access=access, limits=LIMITS, metrics=Metrics())
    for name, status in [*((each, 200) for each in names), *((each, 421) for each in foreign)]:
        assert ask(guard, [(b"host", name.encode())])[0]["status"] == status, name


def test_a_warning_where_other_machines_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def nothing(*_: Any, **__: Any) -> None: ...

    monkeypatch.setattr(uvicorn.Server, "serve", nothing)
    studio = SlowStudio(tiny_model(), tmp_path)
    for host, password, wanted in [("127.0.0.1", None, []), ("0.0.0.0", None, ["warning", "--password"])]:
        serve(studio, host, 0, browser=False, password=password)
        error = capsys.readouterr().err
        assert all(word in error for word in wanted)
        assert bool(error) == bool(wanted)


def test_a_proxy_is_answered_by_the_name_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bigr: Callable[..., tuple[int, str, str]]
) -> None:
    given: list[Access] = []
    monkeypatch.setattr(server, "run_server", lambda app, access, *_, **__: given.append(access))
    words = ["app", "--no-browser", "--out", str(tmp_path / "drawn"), "--port", "0", "--allow-host", "a.example"]
    code, _, said = bigr(*words, "--allow-host", "b.example")
    assert (code, "warning" in said) == (0, True)
    assert [given[0].allows(name) for name in ("a.example", "b.example", "c.example")] == [True, True, False]


def test_a_page_that_others_reach_opens_no_folders(tmp_path: Path) -> None:
    """Else a stranger could look at any picture of the machine."""
    write_pictures(tmp_path / "pictures", 2)
    for access, status in [
        (Access(host="0.0.0.0", anyone=True), 403),
        (Access(anyone=True, allowed_hosts=("studio.example.org",)), 403),  # through a proxy on this machine
        (Access(anyone=True), 200),
    ]:
        with served(SlowStudio(tiny_model(), tmp_path / "drawn"), access) as opened:
            found, answer = opened.post("/search/open", path=str(tmp_path / "pictures"))
            assert found == status, answer


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_the_private_folder_goes_with_the_server(tmp_path: Path, ending: signal.Signals) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    words = ["app", "--no-browser", "--out", tmp_path / "drawn", "--port", 0]
    with start(HEEDING, words, env={**os.environ, "TMPDIR": str(temporary)}) as started:
        assert "press Ctrl-C to stop" in started.stderr.readline()
        (folder,) = temporary.glob("bigr-repr-*")
        assert folder.stat().st_mode & 0o077 == 0
        with replacing(folder / "picture") as file:
            file.write(b"x")
        started.send_signal(ending)
        _, said = started.communicate(timeout=60)
    assert (started.returncode, said) == (0, "")
    assert not list(temporary.glob("bigr-repr-*"))
