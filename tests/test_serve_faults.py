"""The server under odd and hostile use: no request, connection or file of a few bytes keeps others from it."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import signal
import socket
import tarfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn
from fastapi.testclient import TestClient
from forks import COMMAND, start
from tiny_model import tiny_model, write_pictures

import bigr_repr as br
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import hamming
from bigr_repr.embed.inputs import sources
from bigr_repr.embed.run import embed_images
from bigr_repr.images.containers import members
from bigr_repr.retrieval import Filter, HammingIndex, build_index
from bigr_repr.retrieval.index import grouping
from bigr_repr.retrieval.index.grouping import group_hits
from bigr_repr.retrieval.results.photos import PhotoFinder
from bigr_repr.serve import Access, Limits, Service, create_app, service
from bigr_repr.serve.batching import Batcher, ClosedError
from bigr_repr.serve.guard import RequestGuard
from bigr_repr.serve.live_index import Check, IndexState, LiveIndex
from bigr_repr.serve.metrics import Metrics
from bigr_repr.serve.run import _ApiServer

BASE = "http://127.0.0.1"
Run = Callable[..., tuple[int, str, str]]


def _client(service: Service) -> TestClient:
    return TestClient(create_app(service), base_url=BASE)


def _message(answer: Any) -> str:
    message: str = answer.json()["error"]["message"]
    return message


def _save_index(folder: Path, ids: list[str] | None = None, count: int = 50) -> HammingIndex:
    codes = np.random.default_rng(0).integers(0, 256, (count, 24), np.uint8)
    index = HammingIndex.build(codes, ids=ids)
    index.save(folder)
    return index


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of fifty random codes."""
    folder = tmp_path_factory.mktemp("plain") / "index"
    _save_index(folder, [f"{number}.png" for number in range(50)])
    return folder


# ---- long searches


def test_groups_are_those_of_the_definition_whatever_the_depth() -> None:
    random = np.random.default_rng(0)
    codes = np.repeat(random.integers(0, 256, (60, 4), np.uint8), 5, axis=0)
    codes[np.arange(300), random.integers(0, 4, 300)] ^= random.integers(0, 4, 300).astype(np.uint8)
    index, apart = HammingIndex.build(codes), hamming(codes[:, None], codes)
    for radius, deepest in ((0, None), (6, None), (10, None), (6, 40), (32, 100)):
        grouped = group_hits(index, lambda k: index.find(codes[:2], k), 12, radius, offset=3, deepest=deepest)
        for query in range(2):
            groups: list[list[int]] = []
            for row in index.find(codes[:2], deepest or 300).rows[query].tolist():
                group = next((each for each in groups if apart[each[0], row] <= radius), None)
                if group is None:
                    groups.append([row])
                else:
                    group.append(row)
            assert grouped.found.rows[query].tolist() == [each[0] for each in groups[3:15]]
            for under, group in zip(grouped.members[query], groups[3:15], strict=True):
                listed = [row for row, _ in under]  # those as near as the farthest hit that was needed
                assert listed == group[1 : 1 + len(listed)]


def test_the_cost_and_the_answer_of_a_grouped_search_are_bounded(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save_index(tmp_path / "index", count=20_000)
    compared: list[int] = []

    def counted(a: Any, b: Any) -> Any:
        compared.append(len(a))
        return hamming(a, b)

    monkeypatch.setattr(grouping, "hamming", counted)
    with _client(Service(pre, index=tmp_path / "index")) as client:
        hits = client.post("/search", json={"row": 0, "k": 1, "group": 192}).json()["hits"]
        assert len(hits) == 1
        assert len(hits[0]["members"]) < 8192
        assert max(compared) <= 8192
        many = client.post("/search", json={"row": 0, "k": 1000, "group": 0, "offset": 100_000})
        assert many.status_code == 400
        assert _message(many) == "k=1000 + offset=100000 is more than 2048, the most with group: ask for fewer"
        assert client.post("/search", json={"row": 0, "k": 1000, "offset": 100_000}).json()["hits"] == []


def test_a_search_that_computes_on_does_not_keep_the_server_from_ending(
    pre: Pretrained, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def endless(*_: Any) -> list[Any]:
        begun.set()
        go_on.wait(120)
        return []

    monkeypatch.setattr(service, "search", endless)
    served = Service(pre, index=plain, limits=Limits(seconds=0.5))
    try:
        with _client(served) as client:
            until = time.monotonic() + 60
            while not begun.is_set() and time.monotonic() < until:  # a busy machine may be too slow to begin it in time
                assert client.post("/search", json={"row": 0}).status_code == 504
            assert begun.is_set()
        assert not served.ready
        assert not go_on.is_set()
    finally:
        go_on.set()


_ENDLESS = (
    "import signal, time; from bigr_repr.serve import service; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "
    f"service.search = lambda *_: (print('searching', flush=True), time.sleep(3600)); {COMMAND}"
)


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(tmp_path: Path, plain: Path) -> None:
    br.save(tiny_model(), tmp_path / "model")
    arguments = ["serve", "--port", 0, "--model", tmp_path / "model", "--index", plain, "--timeout", 1800]
    with start(_ENDLESS, arguments) as process:
        connection = http.client.HTTPConnection("127.0.0.1", _port(process), timeout=60)
        connection.request("POST", "/search", b'{"row": 0}', {"Content-Type": "application/json"})
        assert process.stdout.readline() == "searching\n"
        process.send_signal(signal.SIGINT)
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
        assert process.returncode in (130, -signal.SIGINT)
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_process_ends_although_a_search_computes(tmp_path: Path, plain: Path, ending: signal.Signals) -> None:
    br.save(tiny_model(), tmp_path / "model")
    arguments = ["serve", "--port", 0, "--model", tmp_path / "model", "--index", plain, "--timeout", 1]
    with start(_ENDLESS, arguments) as process:
        port = _port(process)
        for _ in range(12):  # more than there are threads
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/search", b'{"row": 0}', {"Content-Type": "application/json"})
            assert connection.getresponse().status == 504
            connection.close()
        process.send_signal(ending)
        assert process.wait(60) in (130, -ending)


def _port(process: Any) -> int:
    return int(process.stderr.readline().split("http://127.0.0.1:")[1].partition(";")[0])


def test_a_queue_that_is_closed_without_finishing_drops_what_has_not_begun() -> None:
    go_on, seen = threading.Event(), list[int]()

    def run(items: list[int]) -> list[int]:
        seen.extend(items)
        go_on.wait(60)
        return items

    batcher = Batcher(run, batch=1, threads=2, wait_seconds=0, waiting=9, name="test")
    first, second, third = batcher.submit([1, 2, 3])
    while len(batcher) > 1:  # two are being worked on
        time.sleep(0.001)
    batcher.close(finish=False)
    assert third.cancelled()
    with pytest.raises(ClosedError, match="shutting down, or another index was opened; try again"):
        batcher.submit([4])
    go_on.set()
    assert {first.result(60), second.result(60)} == set(seen) == {1, 2}


def test_a_waiting_thread_holds_nothing_of_what_it_did() -> None:
    class Item:
        pass

    batcher: Batcher[Item, int] = Batcher(
        lambda items: [0 for _ in items], batch=1, wait_seconds=0, waiting=9, name="test"
    )
    item = Item()
    gone = weakref.ref(item)
    batcher.submit([item])[0].result(60)
    del item
    until = time.monotonic() + 60
    while gone() is not None and time.monotonic() < until:
        time.sleep(0.001)
    assert gone() is None
    batcher.close()


# ---- connections


_HALF = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.slow
def test_connections_without_a_request_shut_nobody_out_and_are_closed(tmp_path: Path) -> None:
    br.save(tiny_model(), tmp_path / "model")
    arguments = ["serve", "--port", 0, "--model", tmp_path / "model", "--max-requests", 3, "--timeout", 5]
    with start(COMMAND, arguments) as process:
        port = _port(process)
        opened = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(30)]
        for number, each in enumerate(opened):
            if number % 3:
                each.sendall(_HALF)
            if number % 3 == 2:
                each.sendall(b"\r\n")  # this one is answered, and then sends half of another
                assert each.recv(15) == b"HTTP/1.1 200 OK"
                each.sendall(_HALF)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        for each in opened:
            while each.recv(1 << 16):
                pass
            each.close()
        connection.close()


def test_only_connections_that_wait_too_long_for_a_request_are_closed() -> None:
    server = _ApiServer(uvicorn.Config(lambda: None), lambda address: None, lambda: None, "", seconds=10)

    class Connection:
        def __init__(self, answered: bool | None) -> None:
            self.answer(answered)
            self.closed = False
            self.transport = SimpleNamespace(close=lambda: setattr(self, "closed", True))

        def answer(self, answered: bool | None) -> None:
            self.cycle = None if answered is None else SimpleNamespace(response_complete=answered)

    new, half, busy, active = Connection(None), Connection(True), Connection(False), Connection(True)
    server.server_state.connections.update([new, half, busy, active])  # type: ignore[list-item]
    for now in range(0, 30, 3):
        server._close_idle(float(now))
        assert (new.closed, half.closed) == (now > 10, now > 10)
        active.answer(answered=True)  # another request has come and been answered meanwhile
    assert not busy.closed
    assert not active.closed


def _ask(guard: Any, method: str, path: str, receive: Any) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", b"10")]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
    asyncio.run(asyncio.wait_for(guard(scope, receive, send), 60))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/static/page.js"])
def test_nobody_without_a_token_keeps_a_place_by_sending_slowly(pre: Pretrained, path: str) -> None:
    served = Service(pre)

    async def never() -> Any:
        await asyncio.sleep(3600)

    app = create_app(served, Access(token="a token of sufficient length"))
    assert _ask(app, "POST", path, never)[0] == 405
    served.close()


def test_what_waits_for_something_that_is_dropped_is_refused() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        dropped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        dropped.cancel()
        await dropped

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    guard = RequestGuard(application, access=Access(), limits=Limits(), metrics=Metrics())
    status, headers, body = _ask(guard, "POST", "/search", receive)
    assert (status, headers[b"retry-after"]) == (503, b"1")
    said = "the server is shutting down, or another index was opened; try again"
    assert json.loads(body)["error"]["message"] == said


def test_requests_to_a_service_that_is_closed_are_told_to_try_again(pre: Pretrained, plain: Path) -> None:
    served = Service(pre, index=plain)
    image = "iVBORw0KGgo="
    with _client(served) as client:
        served.close()
        for answer in (
            client.post("/search", json={"row": 0}),
            client.get("/image/0"),
            client.post("/codes", json={"input": image}),
        ):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert _message(answer) == "the server is shutting down, or another index was opened; try again"


# ---- photographs


def _tar(file: Path, count: int) -> Path:
    write_pictures(file.parent / f"{file.stem}-files", count)
    with tarfile.open(file, "w") as tar:
        for each in sorted((file.parent / f"{file.stem}-files").iterdir()):
            tar.add(each, each.name)
    return file


def test_a_tar_file_is_listed_once_and_again_when_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _tar(tmp_path / "pictures.tar", 4)
    listed: list[str] = []

    def counted(file: str, **options: Any) -> Any:
        listed.append(file)
        return members(file, **options)

    monkeypatch.setattr(sources, "members", counted)
    for number in range(4):
        entry = sources.member_entry(str(file), f"0000{number}.png")
        assert entry is not None
        assert entry.start is not None
        content = (tmp_path / "pictures-files" / f"0000{number}.png").read_bytes()
        assert file.read_bytes()[entry.start : entry.start + (entry.size or 0)] == content
        assert sources.member_entry(str(file), f"{file.name}/gone{number}.png") is None
    assert len(listed) == 1
    with tarfile.open(file, "w") as tar:
        tar.add(tmp_path / "pictures-files" / "00003.png", "new.png")
    assert sources.member_entry(str(file), "00000.png") is None
    assert sources.member_entry(str(file), "new.png") is not None
    assert len(listed) == 2
    file = _tar(tmp_path / "damaged.tar", 4)
    last = sources.member_entry(str(file), "00003.png")
    assert last is not None
    assert last.start is not None
    file.write_bytes(file.read_bytes()[: last.start - 100])
    for _ in range(2):
        assert sources.member_entry(str(file), "00000.png") is not None  # before the damage
        with pytest.raises(ValueError, match=r"damaged\.tar: the file is damaged"):
            sources.member_entry(str(file), "00003.png")
    assert len(listed) == 4


def test_photographs_that_are_slow_to_find_delay_no_search(
    pre: Pretrained, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def slow(*_: Any, **__: Any) -> Iterator[bytes]:
        begun.set()
        go_on.wait(120)
        yield from ()

    monkeypatch.setattr(PhotoFinder, "encoded", slow)
    with _client(Service(pre, index=plain)) as client:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda row=row: answers.append(client.get(f"/image/{row}").status_code))
            for row in range(12)
        ]
        for thread in threads:
            thread.start()
        assert begun.wait(60)
        assert len(client.post("/search", json={"row": 0, "k": 5}).json()["hits"]) == 5
        assert not answers
        go_on.set()
        for thread in threads:
            thread.join(60)
        assert answers == [404] * 12


def _container(folder: Path, kind: str) -> tuple[Path, str]:
    """A container of pictures, and the path of one in it."""
    folder.mkdir()
    if kind == "tar":
        file = _tar(folder / "pictures.tar", 3)
        return file, f"{file.name}/00001.png"
    write_pictures(folder / "files", 3)
    content = [each.read_bytes() for each in sorted((folder / "files").iterdir())]
    file = folder / "pictures.parquet"
    pq.write_table(pa.table({"image": [{"bytes": each, "path": None} for each in content]}), file)
    return file, f"{file.name}#1"


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_containers_that_ids_name_are_read_only_inside_the_current_folder(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file, path = _container(tmp_path / "elsewhere", kind)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(file.parent)
    _save_index(tmp_path / "index", [str(file.parent / path), f"../elsewhere/{path}", f"link/{path}", path], 4)
    opened: list[str] = []

    def counted(file: str, **options: Any) -> Any:
        opened.append(file)
        return members(file, **options)

    monkeypatch.setattr(sources, "members", counted)
    for place, statuses in (("here", [404] * 4), ("elsewhere", [200, 200, 404, 200])):
        assert not opened  # no file outside the folder is even listed
        monkeypatch.chdir(tmp_path / place)
        with _client(Service(pre, index=tmp_path / "index")) as client:
            assert [client.get(f"/image/{row}").status_code for row in range(4)] == statuses


@pytest.mark.parametrize("thumbnails", [None, 32])
def test_of_a_data_set_elsewhere_only_its_thumbnails_are_shown(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thumbnails: int | None
) -> None:
    file, _ = _container(tmp_path / "elsewhere", "tar")
    embed_images(file, tmp_path / "data", model=pre, layers=[2], codes=True, thumbnails=thumbnails)
    build_index(tmp_path / "data", tmp_path / "index", binarizer="bits")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with _client(Service(pre, index=tmp_path / "index")) as client:
        assert client.get("/image/1").status_code == (404 if thumbnails is None else 200)
    with _client(Service(pre, index=tmp_path / "index", images=file)) as client:
        assert client.get("/image/1").status_code == 200


# ---- options


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e300, 0.0, -1.0])
def test_times_are_finite(seconds: float, bigr: Run) -> None:
    for name in ("seconds", "decode_seconds"):
        with pytest.raises(ValueError, match=rf"{name}=.* is outside 0.001..86400; give a time in seconds"):
            Limits(**{name: seconds})  # type: ignore[arg-type]
    code, _, said = bigr("serve", "--timeout", seconds)
    assert code == 2
    assert "--timeout" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]", "[::1]:8000", "http://localhost"])
def test_a_host_with_a_port_is_told_where_ports_go(host: str) -> None:
    with pytest.raises(ValueError, match="give only the address, without a scheme or brackets, and its port with --p"):
        Access(host=host)


def test_addresses_and_names_are_hosts() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        assert Access(host=host).host == host
    for host in ("0.0.0.0", "fe80::1%eth0", "::", "images.example.org"):
        assert Access(host=host, token="a token of sufficient length").host == host


def test_photographs_that_are_not_there_are_refused(pre: Pretrained, plain: Path, tmp_path: Path, bigr: Run) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(FileNotFoundError, match=r"images='/nosuch': no such file or folder; name what was embedded"):
        Service(pre, index=plain, images="/nosuch")
    with pytest.raises(ValueError, match="must be a folder, or a tar or Parquet file"):
        Service(pre, index=plain, images=tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="give an index, or neither"):
        Service(pre, images=tmp_path)
    options = {"--images": tmp_path, "--image-column": "picture", "--name": "others", "--processes": 2}
    for option, value in options.items():
        code, _, said = bigr("serve", option, value)
        assert code == 2
        assert option in said
        assert "applies only to an index" in " ".join(said.replace("│", " ").split())


# ---- odd values


def test_ids_that_no_index_can_hold_are_refused_in_words(pre: Pretrained, plain: Path, tmp_path: Path) -> None:
    HammingIndex.build(np.zeros((3, 24), np.uint8)).save(tmp_path / "numbered")
    for folder in (plain, tmp_path / "numbered"):
        index = HammingIndex.load(folder)
        for odd in (1 << 70, -(1 << 63) - 1, 1 << 63, "\ud800"):
            with pytest.raises(ValueError, match="cannot be in an index: ids are Unicode text, or whole numbers with"):
                index.find(index.rows.codes[0], 1, where=Filter(ids=(odd,)))  # type: ignore[arg-type]
    assert index.find(index.rows.codes[0], 1, where=Filter(ids=(2,))).rows.tolist() == [[2]]


@pytest.mark.parametrize(
    "body",
    [
        b'{"row": 0, "ids": [1180591620717411303424]}',
        b'{"row": 0, "ids": ["\\ud800"]}',
        b'{"row": 0, "match": "\\ud800"}',
        b'{"row": 0, "where": "path = \'\\ud800\'"}',
        b'{"row": 0, "where": "path = 1180591620717411303424"}',
        b'{"row": 0, "\\ud800": 1}',
        b'{"row": 0, "group": 1180591620717411303424}',
        b'{"row": 0, "effort": 1180591620717411303424}',
        b'{"row": 1180591620717411303424}',
        b'{"id": "\\ud800"}',
        b'{"row": 0, "version": "\\ud800"}',
        b'{"code": "\\ud800"}',
    ],
)
def test_values_out_of_every_range_are_the_callers_fault(pre: Pretrained, plain: Path, body: bytes) -> None:
    with _client(Service(pre, index=plain)) as client:
        answer = client.post("/search", content=body, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500
        assert "codec" not in _message(answer)
        assert "\n" not in _message(answer)


def test_an_index_that_cannot_be_opened_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    failures = threading.Semaphore(0)

    class Damaged:
        number = 0

        def stamp(self) -> int:
            return self.number

        def open(self, check: Check) -> IndexState:
            if self.number:
                raise ValueError("damaged")
            return IndexState(version="0", index=HammingIndex.build(np.zeros((1, 4), np.uint8)))

    opener = Damaged()
    with caplog.at_level(logging.WARNING, "bigr_repr.serve.live_index"):
        live = LiveIndex(opener, reloaded=lambda ok: failures.release(), interval=0.001)
        for number in (1, 2):  # replaced twice
            opener.number = number
            for _ in range(5):
                assert failures.acquire(timeout=60)
        live.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the index changed and cannot be opened; the old one stays: damaged"
    ] * 2
