"""Times of objects and web files: what is rewritten at the same size is seen where a store or server tells the time."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
from test_embed_containers import write_tar
from test_embed_histories import CONTENTS, run, write

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.embed import read_embeddings
from bigr_repr.embed.dataset.containers import same_stamp, stamp_of
from bigr_repr.retrieval import HammingIndex, build_index, update_index
from bigr_repr.retrieval.codes.source import DataFile, listing, part_state
from bigr_repr.system.object_store import ObjectPath

WRITTEN = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[ObjectPath]:
    """A folder in fsspec's store in memory."""
    place = ObjectPath(f"memory://{request.node.name}")
    yield place
    store = fsspec.filesystem("memory")
    if store.exists(place.key):
        store.rm(place.key, recursive=True)


def digests(out: Any) -> dict[str, str]:
    data = read_embeddings(out)
    assert data.sha256 is not None
    return dict(zip(data.paths, data.sha256, strict=True))


@pytest.mark.parametrize("told", [WRITTEN, None, "yesterday"])
def test_a_web_servers_time_is_that_of_the_file(told: str | None) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if told is not None:
                self.send_header("Last-Modified", told)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"tar.")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        status = ObjectPath(f"http://127.0.0.1:{server.server_port}/in.tar").stat()
        server.shutdown()
    assert status == (4, 1445412480 * 10**9 if told == WRITTEN else 0)


@pytest.mark.parametrize("stated", [True, False])
def test_asking_for_the_state_of_a_web_file_does_not_send_all_of_it(stated: bool) -> None:
    """From a server without ranges; if it does not state the length, only reading tells it."""
    size, sent = (64 << 20 if stated else 1 << 20), 0

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal sent
            self.send_response(200)
            if stated:
                self.send_header("Content-Length", str(size))
            self.end_headers()
            with suppress(ConnectionError):
                while sent < size:
                    sent += self.wfile.write(bytes(1 << 16))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert stamp_of(f"http://127.0.0.1:{server.server_port}/in.tar") == (size, 0)
        server.shutdown()  # after the answer has ended
    assert sent <= size // (2 if stated else 1)


def test_a_store_tells_the_same_time_of_an_object_listed_or_alone(memory: ObjectPath) -> None:
    for number in range(5):
        with (memory / f"part-{number:05}.parquet").put() as file:
            file.write(b"rows")
    listed = listing(str(memory))
    assert {name: state for name, (state, _) in listed.items()} == {
        name: part_state(place) for name, (_, place) in listed.items()
    }
    assert all(time for (_, time), _ in listed.values())


def test_a_shard_in_a_store_that_is_rewritten_at_its_size_is_embedded_again(
    pre: Pretrained, memory: ObjectPath, tmp_path: Path
) -> None:
    def put(*numbers: int) -> int:
        write_tar(tmp_path / "in.tar", [(f"{place}.png", CONTENTS[number]) for place, number in enumerate(numbers)])
        with (memory / "in.tar").put() as file:
            file.write((tmp_path / "in.tar").read_bytes())
        return (memory / "in.tar").stat().st_size

    size = put(0, 1, 2)
    run([memory / "in.tar"], tmp_path / "out", pre, sha256=True)
    assert put(2, 1, 0) == size
    with pytest.raises(ValueError, match=r"in\.tar has changed since it was listed"):
        run([memory / "in.tar"], tmp_path / "out", pre, sha256=True)
    assert run([memory / "in.tar"], tmp_path / "out", pre, sha256=True, update=True).changed == 3
    run([memory / "in.tar"], tmp_path / "anew", pre, sha256=True)
    assert digests(tmp_path / "out") == digests(tmp_path / "anew")


def test_an_object_whose_time_was_not_known_is_what_it_was_if_its_size_is() -> None:
    for url in ("s3://bucket/in.tar", "https://host/in.tar"):
        assert same_stamp(url, (4, 0), (4, 7))
        assert same_stamp(url, (4, 7), (4, 0))
        assert not same_stamp(url, (4, 0), (5, 7))
        assert not same_stamp(url, (4, 6), (4, 7))
        assert not same_stamp(url, (4, 0), None)
    assert not same_stamp("/in.tar", (4, 0), (4, 7))  # a local file's time may be 1970
    old = DataFile("part-00000.parquet", 3, 3, 100, None)  # as in indexes of earlier versions
    assert old.still((100, 7))
    assert not old.still((101, 7))
    assert not old._replace(time=6).still((100, 7))


def test_an_index_of_rows_in_a_store_follows_those_of_equal_size(
    pre: Pretrained, memory: ObjectPath, tmp_path: Path
) -> None:
    photos: Path = tmp_path / "in"
    out: Any = memory / "out"
    photos.mkdir()
    for number in range(3):
        write(photos / f"{number}.png", CONTENTS[number])
    run(photos, out, pre)
    index = build_index(str(out), tmp_path / "index")
    assert index.source is not None
    assert index.source.drift() is None
    part = out / "part-00000.parquet"
    size = part.stat().st_size
    write(photos / "1.png", CONTENTS[4])
    run(photos, out, pre, update=True)
    assert part.stat().st_size == size
    assert index.source.drift() == (3, 0, 1, 3)
    done = update_index(tmp_path / "index")
    assert (done.kept, done.read) == (0, 3)
    now = HammingIndex.load(tmp_path / "index")
    assert now.binarizer is not None
    assert (now.rows.codes == now.binarizer.encode(read_embeddings(out).vectors)).all()
    assert update_index(tmp_path / "index").read == 0
