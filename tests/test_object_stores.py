"""Object stores as input and output, with a real S3 server on this machine: nothing lost, and errors in words."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import BUCKET, free_port, s3_server
from tiny_model import tiny_model, write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.embed import EmbedSummary, Progress, embed_images, read_embeddings
from bigr_repr.embed.dataset.schema import METADATA_KEY
from bigr_repr.embed.engines import local
from bigr_repr.embed.inputs import dedup
from bigr_repr.embed.inputs.fetch import EncodedPicture
from bigr_repr.embed.inputs.sources import find_sources
from bigr_repr.retrieval import build_index
from bigr_repr.system import filesystems, signed
from bigr_repr.system.object_store import ObjectPath, as_place, readable

PARTS = [f"part-{number:05d}.parquet" for number in range(3)]
USUAL: dict[str, Any] = {"unit_size": 5, "batch_size": 3, "decode_timeout": None}


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as environment:
        yield environment


@pytest.fixture
def store(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ObjectPath:
    """A place in the bucket for one test."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return ObjectPath(f"s3://{BUCKET}") / request.node.name


def run(inputs: Any, out: Any, model: Pretrained, **options: Any) -> EmbedSummary:
    return embed_images(inputs, out, model=model, **{"layers": [2], **USUAL, **options})


def put(place: ObjectPath, content: bytes) -> None:
    with place.put() as file:
        file.write(content)


def upload(files: list[Path], place: ObjectPath) -> None:
    for file in files:
        put(place / file.name, file.read_bytes())


# ---- paths


def test_objects_are_what_files_are(store: ObjectPath) -> None:
    place = as_place(str(store / "a" / "b c#?.txt"))
    assert isinstance(place, ObjectPath)
    assert not place.exists()
    place.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="no such object"):
        place.read_bytes()
    with pytest.raises(FileNotFoundError, match="no such object"):
        place.stat()
    put(place, b"content")
    assert (place.read_text(), place.stat().st_size, place.read_piece(3, 2)) == ("content", 7, b"te")
    assert (store / "a").is_dir()
    assert list((store / "a").glob("*.txt")) == [place]
    assert not list((store / "nothing").glob("*"))
    place.replace(store / "new")
    assert [name for name, size in store.members() if size is not None] == ["new"]
    (store / "new").unlink()
    assert not (store / "new").exists()


def test_an_object_that_is_not_finished_is_not_there(store: ObjectPath) -> None:
    put(store / "x", b"before")

    def half() -> None:
        with (store / "x").put() as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert (store / "x").read_bytes() == b"before"
    large = os.urandom(12 << 20)  # more than one part of an upload
    put(store / "x", large)
    assert (store / "x").read_bytes() == large


# ---- inputs


def test_folders_patterns_and_objects_are_listed_as_files_are(store: ObjectPath, tmp_path: Path) -> None:
    names = ["b/x.png", "b.png", "a/deep/y.JPG", "a/z.txt", ".hidden/x.png", "ä [1].png"]
    for name in names:
        put(store / name, b"x")
        local = tmp_path / name
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(b"x")

    def paths(inputs: Any, **options: Any) -> list[str]:
        return [source.path for source in find_sources(inputs, **options)]

    top = str(store)
    assert paths(store) == paths(f"{top}/") == paths(tmp_path) == ["a/deep/y.JPG", "b.png", "b/x.png", "ä [1].png"]
    assert paths([f"{top}/b", f"{top}/a"]) == [f"{top}/b/x.png", f"{top}/a/deep/y.JPG"]
    assert paths(f"{top}/*/*.png") == [f"{top}/b/x.png"]
    assert paths(f"{top}/**/*.JPG") == [f"{top}/a/deep/y.JPG"]
    assert paths(f"{top}/ä [1].png") == [f"{top}/ä [1].png"]
    assert paths([f"{top}/b", tmp_path / "b"], root=None) == [f"{top}/b/x.png", f"{tmp_path}/b/x.png"]
    assert paths(f"{top}/b", root=top) == ["b/x.png"]
    assert paths(iter([f"{top}/gone*.png"]), literal=True) == [f"{top}/gone*.png"]
    with pytest.raises(ValueError, match="is outside root"):
        paths(f"{top}/b", root=f"{top}/a")
    with pytest.raises(FileNotFoundError, match="no such object, and none below it"):
        paths(f"{top}/nothing")
    with pytest.raises(FileNotFoundError, match="matches no image"):
        paths(f"{top}/*.gif")


@pytest.mark.slow
def test_rows_do_not_depend_on_where_pictures_and_rows_are(store: ObjectPath, pre: Pretrained, tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "in", 13)
    files[4].write_bytes(b"junk")
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
    pq.write_table(
        pa.table({"image": [file.read_bytes() for file in files]}), tmp_path / "in.parquet", row_group_size=5
    )
    upload(files, store / "in")
    upload([tmp_path / "in.tar", tmp_path / "in.parquet"], store)
    assert run(tmp_path / "in", tmp_path / "out", pre).rows == 12
    whole = read_embeddings(tmp_path / "out")
    for name in ("in", "in.tar", "in.parquet"):
        out = store / f"out-{name}"
        summary = run(str(store / name), str(out), pre)
        assert (summary.rows, summary.failures, summary.out) == (12, 1, out)
        data = read_embeddings(str(out))
        assert data.vectors.tobytes() == whole.vectors.tobytes()
        assert len(set(data.paths)) == 12
        (line,) = (out / "failures.jsonl").read_text().splitlines()
        assert json.loads(line)["error"] == "not-an-image"
    assert read_embeddings(store / "out-in").paths == whole.paths
    local, remote = ([as_place(f"{out}/{name}") for name in PARTS] for out in (tmp_path / "out", store / "out-in"))
    for here, there in zip(local, remote, strict=True):  # all but whose list the rows are of
        tables = [pq.read_table(readable(each), partitioning=None) for each in (here, there)]
        assert tables[0].equals(tables[1])
        provenances = {table.schema.metadata[METADATA_KEY] for table in tables}
        assert len(provenances) == 1


def test_objects_that_are_gone_are_failures(store: ObjectPath, pre: Pretrained, tmp_path: Path) -> None:
    upload(write_pictures(tmp_path / "in", 2), store)
    gone = {f"{store}/gone.png": "missing", "s3://no-such-bucket/x.png": "missing", "odd://x.png": "unreadable"}
    gone |= {f"{store}/gone.tar": "missing", f"{store}/gone.parquet": "missing"}
    listed = [f"{store}/00000.png", *gone, f"{store}/00001.png"]
    assert run(iter(listed), tmp_path / "out", pre, literal=True).rows == 2
    lines = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert {line["path"]: line["error"] for line in lines} == gone
    assert all(line["message"].count(line["path"]) == 1 for line in lines)


def test_objects_are_read_once_for_their_digests(
    store: ObjectPath, pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, names, digest = write_pictures(tmp_path / "in", 4), list[str](), dedup._digest
    paths[3].write_bytes(paths[0].read_bytes())
    upload(paths, store / "in")

    def noted(picture: EncodedPicture) -> bytes:
        names.append(picture.name.rpartition("/")[2])
        return digest(picture)

    def interrupt(progress: Progress) -> None:
        if progress.total is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(dedup, "_digest", noted)
    for update, read in ((False, [path.name for path in paths]), (False, []), (True, ["new.png"])):
        with pytest.raises(KeyboardInterrupt):
            run(str(store / "in"), str(store / "out"), pre, dedup="exact", update=update, on_progress=interrupt)
        assert sorted(names) == read
        names.clear()
        if not read:
            put(store / "in" / "new.png", paths[1].read_bytes())
    done = run(str(store / "in"), str(store / "out"), pre, dedup="exact")
    assert (done.rows, done.duplicates, names) == (3, 2, [])


# ---- output: nothing is lost, nothing done twice


@pytest.mark.slow
def test_a_run_into_a_store_goes_on_wherever_it_was_broken(
    store: ObjectPath, pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_pictures(tmp_path / "in", 13)
    files[7].write_bytes(b"")
    run(tmp_path / "in", tmp_path / "whole", pre)
    whole = {file.name: file.read_bytes() for file in (tmp_path / "whole").glob("part-*")}
    original, broken = ObjectPath.put, 0
    for puts in range(0, 12, 2):
        out, made = store / str(puts), 0

        def failing(self: ObjectPath, puts: int = puts) -> Any:
            nonlocal made
            made += 1
            if made > puts:
                raise ConnectionError(f"{self}: the server does not answer")
            return original(self)

        monkeypatch.setattr(ObjectPath, "put", failing)
        try:
            run(tmp_path / "in", str(out), pre)
        except ConnectionError:
            broken += 1
        monkeypatch.setattr(ObjectPath, "put", original)
        summary = run(tmp_path / "in", str(out), pre)
        assert (summary.rows, summary.failures) == (12, 1)
        assert {file.name: file.read_bytes() for file in out.glob("part-*")} == whole
        assert json.loads((out / "failures.jsonl").read_text())["error"] == "empty"
        assert run(tmp_path / "in", str(out), pre).embedded == 0
    assert (
        broken == 6
    )  # of eleven puts: list, containers and plan, failures so far, three units of two objects each, all failures


@pytest.mark.slow
def test_retrying_overwriting_and_other_data(store: ObjectPath, pre: Pretrained, tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "in", 7)
    good = files[3].read_bytes()
    files[3].write_bytes(b"")
    assert run(tmp_path / "in", str(store), pre).failures == 1
    files[3].write_bytes(good)
    summary = run(tmp_path / "in", str(store), pre, retry_failed=True)
    assert (summary.rows, summary.failures, summary.embedded) == (7, 0, 1)
    assert read_embeddings(store).paths == [file.name for file in files]
    with pytest.raises(ValueError, match=r"holds other embeddings: layers was \[2\], is \[1\]"):
        run(tmp_path / "in", str(store), pre, layers=[1])
    assert run(files[:3], str(store), pre, layers=[1], overwrite=True).shards == 1
    assert len(list(store.glob("part-*.parquet"))) == 1
    put(store / "other" / "part-0.parquet", b"x")
    with pytest.raises(ValueError, match="was not written by bigr-repr"):
        run(files[:3], str(store / "other"), pre)


# ---- what goes wrong is one line, and soon


def one_line(error: BaseException, url: str) -> None:
    assert str(error).startswith(url)
    assert "\n" not in str(error)
    assert len(str(error)) < 400


def test_a_missing_bucket_is_said(store: ObjectPath, pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 1)
    with pytest.raises(FileNotFoundError, match="no such") as caught:
        run("s3://no-such-bucket/in", tmp_path / "out", pre)
    one_line(caught.value, "s3://no-such-bucket/in")
    with pytest.raises(FileNotFoundError, match="no such bucket") as caught:
        run(tmp_path / "in", "s3://no-such-bucket/out", pre)
    one_line(caught.value, "s3://no-such-bucket/out")
    with pytest.raises(FileNotFoundError, match="no embeddings here"):
        read_embeddings(store)
    with pytest.raises(ValueError, match="names no bucket"):
        run(tmp_path / "in", "s3:///out", pre)
    with pytest.raises(ValueError, match="unheard-of://x"):
        run(tmp_path / "in", "unheard-of://x", pre)


@pytest.mark.slow
def test_refused_credentials_are_said(store: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    refusing = subprocess.Popen(
        [sys.executable, "-c", REFUSING, str(listener.fileno())],
        pass_fds=[listener.fileno()],
        stderr=subprocess.DEVNULL,
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
    try:
        with pytest.raises(PermissionError, match="AWS_ACCESS_KEY_ID") as caught:
            list(find_sources(f"{store}/in"))
        one_line(caught.value, f"{store}/in")
        with pytest.raises(PermissionError, match="access refused"):
            put(store / "x", b"x")
    finally:
        refusing.terminate()
        refusing.wait()
        listener.close()


REFUSING = """
import http.server, socket, sys
class Refuse(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET
server = http.server.HTTPServer(("127.0.0.1", 0), Refuse, bind_and_activate=False)
server.socket = socket.socket(fileno=int(sys.argv[1]))
server.serve_forever()
"""


@pytest.mark.slow
def test_an_unreachable_server_is_said_soon(
    store: ObjectPath, pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    write_pictures(tmp_path / "in", 1)
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="AWS_ENDPOINT_URL") as caught:
        run(tmp_path / "in", str(store), pre)
    one_line(caught.value, str(store))
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up(store: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "_REQUEST", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ConnectionError, match="does not answer"):
            (store / "x").read_bytes()
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_store_that_goes_away_ends_the_run_and_not_the_pictures(
    store: ObjectPath, pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_AWAY", 6)
    files = write_pictures(tmp_path / "in", 12)
    upload(files, store)
    read, calls = ObjectPath.read_bytes, 0

    def failing(self: ObjectPath) -> bytes:
        nonlocal calls
        calls += 1
        if calls > 6 or calls in (2, 3):
            raise ConnectionError(f"{self}: the server does not answer")
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectPath, "read_bytes", failing)
        with pytest.raises(
            ConnectionError, match=r"6 pictures in a row .* run it again later .*the server does not answer"
        ):
            run(store, tmp_path / "out", pre, workers=1)
    assert run(store, tmp_path / "out", pre, retry_failed=True).rows == 12


def test_objects_that_are_refused_do_not_end_the_run_while_others_are_not(
    store: ObjectPath, pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_AWAY", 3)
    upload(write_pictures(tmp_path / "in", 12), store)
    read = ObjectPath.read_bytes

    def refusing(self: ObjectPath) -> bytes:
        if 3 <= int(self.name.split(".")[0]) < 11:
            raise PermissionError(f"{self}: access refused")
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectPath, "read_bytes", refusing)
        done = run(store, tmp_path / "out", pre, workers=1)
        assert (done.rows, done.failures) == (4, 8)
        assert run(store, tmp_path / "out", pre, workers=1, retry_failed=True).failures == 8
    assert run(store, tmp_path / "out", pre, retry_failed=True).rows == 12


def test_keys_with_an_empty_part_are_read(
    store: ObjectPath, server: dict[str, str], pre: Pretrained, tmp_path: Path
) -> None:
    (good,) = write_pictures(tmp_path / "in", 1)
    keys = ["//a.jpg", "/x//y/b.png", "/x//y//c.png", "/d.png"]
    client = boto3.client("s3", endpoint_url=server["AWS_ENDPOINT_URL"], region_name="us-east-1")
    for key in keys:
        client.put_object(Bucket=BUCKET, Key=f"{store.key.partition('/')[2]}{key}", Body=good.read_bytes())
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(good, "in/tar.png")
    client.put_object(
        Bucket=BUCKET, Key=f"{store.key.partition('/')[2]}//s.tar", Body=(tmp_path / "s.tar").read_bytes()
    )
    done = run(store, tmp_path / "out", pre)
    assert (done.rows, done.failures) == (4, 0)
    found = read_embeddings(tmp_path / "out")
    assert sorted(found.paths) == ["/a.jpg", "d.png", "x//y//c.png", "x//y/b.png"]
    assert len({vector.tobytes() for vector in found.vectors}) == 1
    given = [f"{store}//a.jpg", f"{store}//s.tar", f"{store}//gone.png"]
    assert (run(given[:2], tmp_path / "two", pre).rows, read_embeddings(tmp_path / "two").paths[1][-6:]) == (
        2,
        "tar.png"[-6:],
    )
    lost = run(given, tmp_path / "three", pre, literal=True)
    assert (lost.rows, lost.failures) == (2, 1)
    (line,) = map(json.loads, (tmp_path / "three" / "failures.jsonl").read_text().splitlines())
    assert (line["error"], "X-Amz" in line["message"]) == ("missing", False)
    with pytest.raises(FileNotFoundError, match="no such object"):
        run(given[2], tmp_path / "four", pre)


def test_keys_with_an_empty_part_without_boto3_say_what_to_install(
    store: ObjectPath, server: dict[str, str], pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (good,) = write_pictures(tmp_path / "in", 1)
    client = boto3.client("s3", endpoint_url=server["AWS_ENDPOINT_URL"], region_name="us-east-1")
    client.put_object(Bucket=BUCKET, Key=f"{store.key.partition('/')[2]}//a.png", Body=good.read_bytes())
    put(store / "b.png", good.read_bytes())
    monkeypatch.setitem(sys.modules, "boto3", None)
    signed._client.cache_clear()
    done = run(store, tmp_path / "out", pre)
    assert (done.rows, done.failures) == (1, 1)
    (line,) = map(json.loads, (tmp_path / "out" / "failures.jsonl").read_text().splitlines())
    assert line["error"] == "unreadable"
    assert line["message"].endswith("keys with an empty part (//) are read with boto3: pip install boto3")


def test_scattered_objects_out_of_reach_do_not_end_the_run(
    store: ObjectPath, pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what fails in a row makes the run ask whether the store is still there."""
    monkeypatch.setattr(local, "_AWAY", 3)
    upload(write_pictures(tmp_path / "in", 12), store)
    read, asked = ObjectPath.read_bytes, set()

    def once(self: ObjectPath) -> bytes:
        if int(self.name.split(".")[0]) % 2 or self.name in asked:
            raise ConnectionError(f"{self}: the server does not answer")
        asked.add(self.name)
        return read(self)

    monkeypatch.setattr(ObjectPath, "read_bytes", once)
    done = run(store, tmp_path / "out", pre, workers=1)
    assert (done.rows, done.failures) == (6, 6)


def test_a_shard_out_of_reach_ends_the_listing(
    store: ObjectPath, pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(write_pictures(tmp_path / "in", 1), store)

    def failing(self: ObjectPath) -> Any:
        raise ConnectionError(f"{self}: the server does not answer")

    monkeypatch.setattr(ObjectPath, "open_input", failing)
    for name in ("x.tar", "x.parquet"):
        put(store / name, b"x")
        with pytest.raises(ConnectionError, match=f"{name}: the server does not answer; listing needs to read it"):
            run([store / "00000.png", store / name], tmp_path / "out", pre)


@pytest.mark.slow
def test_the_command_takes_urls(
    store: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from bigr_repr_cli import main

    from bigr_repr.checkpoints.pretrained import save

    save(tiny_model(), tmp_path / "model")
    upload(write_pictures(tmp_path / "in", 3), store / "in")
    put(store / "in" / "x.png", b"")
    options = ["--layer", "2", "--model", str(tmp_path / "model")]

    def bigr(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["bigr-repr", "embed", *arguments, *options])
        with pytest.raises(SystemExit) as caught:
            main.main()
        return (caught.value.code, *capfd.readouterr())

    code, text, error = bigr(f"{store}/in", "--out", f"{store}/out")
    assert (code, error) == (0, "")
    assert text.startswith("4 images: 3 rows, 1 failures")
    assert f"rows: {store}/out/part-00000.parquet" in text
    scope: dict[str, Any] = {}
    exec(text.splitlines()[-1], scope)
    assert len(scope["data"].paths) == 3
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{store}/in/x.png\n".encode())))
    code, text, error = bigr("-", "--out", f"{store}/two")
    assert code == 1
    assert error == f"error: none of the images could be embedded; see the reasons in {store}/two/failures.jsonl\n"
    code, text, error = bigr("s3://no-such-bucket/x", "--out", f"{store}/three")
    assert (code, text, error.count("\n")) == (1, "", 1)
    assert error.startswith("error: s3://no-such-bucket/x: no such")


def test_an_object_that_was_rewritten_is_embedded_again(store: ObjectPath, pre: Pretrained, tmp_path: Path) -> None:
    pictures = [path.read_bytes() for path in write_pictures(tmp_path / "in", 4)]

    def write(contents: list[bytes], name: str = "in") -> None:
        pq.write_table(pa.table({"image": contents}), tmp_path / "in.parquet")
        put(store / f"{name}.parquet", (tmp_path / "in.parquet").read_bytes())

    write(pictures[:3])
    run([store / "in.parquet"], store / "out", pre)
    write(pictures[::-1])
    with pytest.raises(ValueError, match="inputs were 3, are 4"):
        run([store / "in.parquet"], store / "out", pre)
    done = run([store / "in.parquet"], store / "out", pre, update=True)
    assert (done.rows, done.changed, done.embedded) == (4, 4, 4)
    run([store / "in.parquet"], store / "anew", pre)
    assert (read_embeddings(store / "out").vectors == read_embeddings(store / "anew").vectors).all()
    for update in (False, True):
        assert run([store / "in.parquet"], store / "out", pre, update=update).embedded == 0
    (store / "in.parquet").unlink()
    write(pictures[3:], "new")
    done = run([store / "new.parquet"], store / "out", pre, update=True)  # what is gone is no obstacle
    assert (done.rows, done.gone) == (5, 4)


@pytest.mark.slow
def test_an_index_asks_a_store_a_fixed_number_of_times_whether_it_is_up_to_date(
    store: ObjectPath, pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(write_pictures(tmp_path / "in", 24), store / "in")
    run(store / "in", store / "out", pre, unit_size=2)
    index = build_index(str(store / "out"), tmp_path / "index")
    assert index.source is not None
    asked: list[str] = []
    ask = ObjectPath._ask
    monkeypatch.setattr(ObjectPath, "_ask", lambda place, call: (asked.append(place.name), ask(place, call))[1])
    assert index.source.drift() is None
    assert len(asked) == 1  # of 12 parts
    upload(write_pictures(tmp_path / "in", 16, first=24)[-16:], store / "in")
    run(store / "in", store / "out", pre, unit_size=2, update=True)
    asked.clear()
    assert index.source.drift() == (40, 24, 8, 0)
    assert len(asked) < 8  # the list of parts, which is one object


def test_a_public_bucket_is_listed_without_credentials(store: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.png", "a/x.png", "c.png"):
        put(store / name, b"x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    signed._client.cache_clear()
    try:
        assert list(store.sorted_members()) == ["a/", "b.png", "c.png"]
    finally:
        signed._client.cache_clear()


def test_a_directory_bucket_is_sorted_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectPath, "members", lambda self: iter([("b.png", 1), ("a", None), ("a.png", 1)]))
    assert list(ObjectPath("s3://pictures--use1-az4--x-s3/in").sorted_members()) == ["a.png", "a/", "b.png"]
