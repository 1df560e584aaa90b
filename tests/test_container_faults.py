"""Containers and addresses as other tools write them: every picture gives a row, or a failure that says why not."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_model import picture, write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.datasets import ParquetSet, open_images
from bigr_repr.embed import EmbedSummary, embed_images, read_embeddings
from bigr_repr.embed.inputs.fetch import fetch, pictures
from bigr_repr.embed.inputs.sources import container_entry, find_sources
from bigr_repr.images.containers import is_container
from bigr_repr.images.parquet import Columns

PATHS = [f"{number}.png" for number in range(5)]


def encoded(number: int) -> bytes:
    stream = io.BytesIO()
    picture(number).save(stream, "png")
    return stream.getvalue()


PICTURES = [encoded(number) for number in range(5)]


def run(inputs: Any, out: Path, model: Pretrained, **options: Any) -> EmbedSummary:
    usual = {"layers": [2], "unit_size": 3, "batch_size": 2, "decode_timeout": None, "workers": 1}
    return embed_images(inputs, out, model=model, **{**usual, **options})


def rows(out: Path) -> dict[str, bytes]:
    data = read_embeddings(out)
    return {path: vector.tobytes() for path, vector in zip(data.paths, data.vectors, strict=True)}


def failures(out: Path) -> dict[str, tuple[str, str]]:
    lines = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    return {line["path"]: (line["error"], line["message"]) for line in lines}


def plain(tmp_path: Path, pre: Pretrained) -> list[bytes]:
    """Rows of the pictures as files of their own."""
    (tmp_path / "plain").mkdir()
    for path, content in zip(PATHS, PICTURES, strict=True):
        (tmp_path / "plain" / path).write_bytes(content)
    run(tmp_path / "plain", tmp_path / "plain-out", pre)
    return list(rows(tmp_path / "plain-out").values())


# ---- Parquet: columns of every kind


def column(kind: str) -> pa.Array:
    size = max(map(len, PICTURES))
    padded = [content.ljust(size, b"\0") for content in PICTURES]  # what follows a PNG's end is passed over
    if kind == "dictionary":
        return pa.array(PICTURES, pa.binary()).dictionary_encode()
    if kind == "fixed":
        return pa.array(padded, pa.binary(size))
    return pa.array(PICTURES, {"binary": pa.binary(), "large": pa.large_binary(), "view": pa.binary_view()}[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "large", "view", "dictionary", "fixed"])
@pytest.mark.parametrize("struct", [False, True])
def test_bytes_of_any_kind_are_read(pre: Pretrained, tmp_path: Path, kind: str, struct: bool) -> None:
    bytes_ = column(kind)
    if struct:
        bytes_ = pa.StructArray.from_arrays([bytes_, pa.array(PATHS)], ["bytes", "path"])
    file = tmp_path / "in.parquet"
    nested = struct and kind == "view"  # pyarrow cannot write several row groups of these
    pq.write_table(pa.table({"image": bytes_}), file, row_group_size=5 if nested else 2)
    assert run(file, tmp_path / "out", pre).rows == 5
    assert list(rows(tmp_path / "out").values()) == plain(tmp_path, pre)
    opened = ParquetSet(file)
    assert [np.asarray(opened.load(n)).tolist() for n in range(5)] == [
        np.asarray(picture(n)).tolist() for n in range(5)
    ]


def test_a_file_with_two_columns_of_one_name_is_one_failure(pre: Pretrained, tmp_path: Path) -> None:
    (good,) = write_pictures(tmp_path / "in", 1)
    image = pa.array(PICTURES)
    file = tmp_path / "two.parquet"
    pq.write_table(pa.Table.from_arrays([image, image], ["image", "image"]), file)
    done = run([file, good], tmp_path / "out", pre)
    assert (done.rows, done.failures) == (1, 1)
    kind, message = failures(tmp_path / "out")[str(file)]
    assert kind == "unsupported"
    assert "has 2 columns image; one column image" in message


def test_paths_in_a_column_are_never_opened(pre: Pretrained, tmp_path: Path) -> None:
    (secret,) = write_pictures(tmp_path / "in", 1)
    file = tmp_path / "paths.parquet"
    pq.write_table(pa.table({"image": [str(secret)]}), file)
    done = run([file, secret], tmp_path / "out", pre)
    assert (done.rows, done.failures) == (1, 1)
    assert "column image is string; the bytes of image files are needed" in failures(tmp_path / "out")[str(file)][1]
    with pytest.raises(ValueError, match="column image is string"):
        open_images(file)


def test_other_columns_can_be_named(pre: Pretrained, tmp_path: Path) -> None:
    file = tmp_path / "named.parquet"
    pq.write_table(pa.table({"picture": PICTURES, "class": ["b", "a", "b", "c", "a"]}), file)
    out = tmp_path / "out"
    options: dict[str, Any] = {"image_column": "picture", "label_column": "class", "labels_from_folders": True}
    assert run(file, out, pre, **options, dedup="exact").rows == 5
    assert read_embeddings(out).labels == ["b", "a", "b", "c", "a"]
    with pytest.raises(ValueError, match="image_column was picture, is null"):
        run(file, out, pre, labels_from_folders=True, dedup="exact")
    opened = open_images(file, columns=Columns(image="picture", label="class"))
    assert (opened.class_names, opened.labels.tolist()) == (("a", "b", "c"), [1, 0, 1, 2, 0])  # type: ignore[union-attr]


@pytest.mark.parametrize("missing", [None, -1, -7])
def test_rows_without_a_label_are_no_class_of_their_own(tmp_path: Path, missing: int | None) -> None:
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"image": PICTURES, "label": pa.array([1, missing, 0, missing, 1], pa.int64())}), file)
    opened = open_images(file)
    assert opened.labels is not None
    assert opened.labels.tolist() == [1, -1, 0, -1, 1]  # bench leaves them out, and counts them
    assert np.array_equal(np.asarray(opened.load(2)), np.asarray(picture(2)))


def test_rows_that_no_file_could_hold_are_not_listed(pre: Pretrained, tmp_path: Path) -> None:
    (good,) = write_pictures(tmp_path / "in", 1)
    file = tmp_path / "nulls.parquet"
    pq.write_table(pa.table({"image": pa.nulls(3_000_000, pa.binary())}), file)
    assert file.stat().st_size < 100_000
    done = run([file, good], tmp_path / "out", pre)
    assert (done.rows, done.failures) == (1, 1)
    assert "states 3,000,000 rows" in failures(tmp_path / "out")[str(file)][1]


def test_a_row_group_that_would_fill_memory_is_not_read(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigr_repr.images.parquet._BOMB", (1 << 20, 200))
    file = tmp_path / "zeros.parquet"
    with pq.ParquetWriter(
        file, pa.schema([("image", pa.binary())]), compression="zstd", use_dictionary=False
    ) as writer:
        writer.write_table(pa.table({"image": [bytes(1 << 21), bytes(1 << 21)]}))
        writer.write_table(pa.table({"image": PICTURES[:2]}))
    done = run(file, tmp_path / "out", pre)
    assert (done.rows, done.failures) == (2, 2)
    assert all("which pictures never do" in message for _, message in failures(tmp_path / "out").values())
    with pytest.raises(ValueError, match="which pictures never do"):
        open_images(file)


def test_a_column_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A struct column of more than 2 GiB cannot be read at once."""
    file = tmp_path / "in.parquet"
    struct = pa.StructArray.from_arrays([pa.array(PICTURES * 700), pa.array(PATHS * 700)], ["bytes", "path"])
    pq.write_table(pa.table({"image": struct}), file)
    whole = pq.ParquetFile.read
    read: list[Any] = []
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *a, **k: read.append(k) or whole(*a, **k))
    opened = ParquetSet(file)
    assert (len(opened), read) == (3500, [])
    assert max(map(len, opened._parts)) <= 1024
    assert np.array_equal(np.asarray(opened.load(2003)), np.asarray(picture(3)))


@pytest.mark.parametrize("suffix", [".parquet", ".pq", ".parq"])
def test_a_folder_that_spark_wrote_is_its_files(pre: Pretrained, tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / f"x{suffix}"
    folder.mkdir()
    for part in range(2):
        pq.write_table(pa.table({"image": PICTURES[part * 3 : part * 3 + 3]}), folder / f"part-{part}{suffix}")
    (folder / "_SUCCESS").touch()
    (folder / f".part-0{suffix}.crc").touch()
    assert [source.path for source in find_sources(folder, root=tmp_path)][2:4] == [
        f"x{suffix}/part-0{suffix}#2",
        f"x{suffix}/part-1{suffix}#0",
    ]
    assert run(folder, tmp_path / "out", pre).rows == 5
    assert len(open_images(folder)) == 5


def test_folders_that_spark_wrote_are_found_by_patterns_and_below_partitions(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = ["x.parquet/part-0.parquet", "x.parquet/part-1.parquet", "y.parquet/day=1/p.parquet", "z.parquet"]
    for number, name in enumerate(written):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": PICTURES[number : number + 1]}), tmp_path / name)
    for name in ("_SUCCESS", "_temporary.parquet", ".part-0.parquet.crc", "notes"):
        (tmp_path / "x.parquet" / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    rows = [f"{name}#0" for name in written]
    for pattern, wanted in (
        ("*.parquet", rows),
        ("x.parquet/part-*.parquet", rows[:2]),
        ("x.*/part-1.parquet", rows[1:2]),
        ("**/*.parquet", rows),
    ):
        assert [source.path for source in find_sources(pattern)] == wanted, pattern
    assert [source.path for source in find_sources(["y.parquet", "x.parquet/"], root=".")] == [rows[2], *rows[:2]]
    assert run("*.parquet", tmp_path / "out", pre).rows == 4
    assert (len(open_images("x.parquet")), len(open_images("y.parquet"))) == (2, 1)


@pytest.mark.parametrize("suffix", [".parquet", ".pq", ".parq", ".PQ"])
def test_a_row_is_found_again_by_its_recorded_path(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x{suffix}"
    pq.write_table(pa.table({"image": PICTURES}), file)
    entry = container_entry(f"{file}#3")
    assert entry is not None
    assert [fetch(picture) for picture in pictures([entry])] == [PICTURES[3]]


# ---- tar


def write_tar(file: Path, *members: tarfile.TarInfo, **options: Any) -> Path:
    with tarfile.open(file, "w", **options) as tar:
        for info in members:
            number = int(Path(info.name).stem)
            info.size = len(PICTURES[number]) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(PICTURES[number]) if info.isreg() else None)
    return file


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_links_in_a_tar_are_what_they_link_to(pre: Pretrained, tmp_path: Path) -> None:
    members = [tarfile.TarInfo("a/0.png"), link("b/1.png", "a/0.png"), link("b/2.png", "gone.png")]
    members += [link("b/3.png", "../a/0.png", tarfile.SYMTYPE), link("b/4.png", "3.png", tarfile.SYMTYPE)]
    members += [link("c/5.png", "6.png", tarfile.SYMTYPE), link("c/6.png", "5.png", tarfile.SYMTYPE)]  # in a circle
    done = run(write_tar(tmp_path / "in.tar", *members), tmp_path / "out", pre)
    assert (done.rows, done.failures) == (4, 3)
    found = rows(tmp_path / "out")
    assert found["a/0.png"] == found["b/1.png"] == found["b/3.png"] == found["b/4.png"]
    assert failures(tmp_path / "out")["b/2.png"] == ("unsupported", "b/2.png: a link to nothing in the tar file")


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_sparse_members_are_failures_and_not_their_neighbors(pre: Pretrained, tmp_path: Path, kind: str) -> None:
    holes = PICTURES[0] + bytes(100_000)
    stored = PICTURES[0].ljust(-(-len(PICTURES[0]) // 512) * 512, b"\0")
    info = tarfile.TarInfo("0.png")
    info.size = len(stored)
    if kind == "gnu":  # a map of stretches in the header, as tar -S writes it
        info.type = tarfile.GNUTYPE_SPARSE
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        entries = b"%011o\0%011o\0" % (0, len(stored))
        header[386 : 386 + 24] = entries
        header[483:495] = b"%011o\0" % len(holes)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        start = bytes(header)
    else:
        info.pax_headers = {"GNU.sparse.map": f"0,{len(stored)}", "GNU.sparse.size": str(len(holes))}
        start = info.tobuf(tarfile.PAX_FORMAT)
    follows = tarfile.TarInfo("1.png")
    follows.size = len(PICTURES[1])
    body = PICTURES[1].ljust(-(-len(PICTURES[1]) // 512) * 512, b"\0")
    file = tmp_path / "in.tar"
    file.write_bytes(start + stored + follows.tobuf() + body + bytes(1024))
    done = run(file, tmp_path / "out", pre)
    assert (done.rows, done.failures) == (1, 1)
    assert failures(tmp_path / "out")["0.png"][0] == "unsupported"
    assert "sparse" in failures(tmp_path / "out")["0.png"][1]
    assert list(rows(tmp_path / "out").values()) == [plain(tmp_path, pre)[1]]


@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.tar.gz"])
def test_compressed_tars_say_what_to_do(pre: Pretrained, tmp_path: Path, name: str) -> None:
    (good,) = write_pictures(tmp_path / "in", 1)
    packed = tmp_path / name
    packed.write_bytes(gzip.compress(write_tar(tmp_path / "plain.tar", tarfile.TarInfo("0.png")).read_bytes()))
    assert run([packed, good], tmp_path / "out", pre).failures == 1
    kind, message = failures(tmp_path / "out")[str(packed)]
    assert kind == "unsupported"
    assert message.endswith("compressed with gzip, so its members cannot be read in place; decompress it first: gunzip")


@pytest.mark.parametrize("name", ["x.tar", "x.parquet"])
def test_a_pipe_called_as_a_container_is_a_failure(pre: Pretrained, tmp_path: Path, name: str) -> None:
    (good,) = write_pictures(tmp_path / "in", 1)
    os.mkfifo(tmp_path / name)
    assert run([tmp_path / name, good], tmp_path / "out", pre).failures == 1
    kind, message = failures(tmp_path / "out")[str(tmp_path / name)]
    assert (kind, message.endswith("is not a regular file; save it as one")) == ("unreadable", True)


def test_paths_past_the_systems_limit_are_failures(pre: Pretrained, tmp_path: Path) -> None:
    (good,) = write_pictures(tmp_path / "in", 1)
    given = [f"{tmp_path}/{'n' * 300}.png", f"{tmp_path}/{'d/' * 3000}x.png", f"{tmp_path}/{'n' * 300}.tar", str(good)]
    for dedup in (None, "exact"):
        done = run(given, tmp_path / f"out-{dedup}", pre, literal=True, dedup=dedup)
        assert (done.rows, done.failures) == (1, 3)


# ---- containers that are replaced between two runs


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_container_replaced_between_runs_is_refused(pre: Pretrained, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"in.{suffix}"

    def write(contents: list[bytes]) -> None:
        if suffix == "parquet":
            pq.write_table(pa.table({"image": contents}), file, compression="none", use_dictionary=False)
        else:
            write_tar(file, *(tarfile.TarInfo(path) for path in PATHS))

    def interrupt(progress: Any) -> None:
        if progress.total and progress.done > 3:
            raise KeyboardInterrupt

    write(PICTURES)
    with pytest.raises(KeyboardInterrupt):
        run(file, tmp_path / "out", pre, on_progress=interrupt)
    status = file.stat()
    write(PICTURES[::-1])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    with pytest.raises(ValueError, match=rf"in\.{suffix} has changed since it was listed .* with update"):
        run(file, tmp_path / "out", pre)
    write(PICTURES)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(file, tmp_path / "out", pre).rows == 5


# ---- web servers


class Pieces(http.server.SimpleHTTPRequestHandler):
    """Serves files, and pieces of them if asked for."""

    pieces = True

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if "secret" in self.path or not path.is_file():
            self.send_error(403 if "secret" in self.path else 404)
            return
        content, asked = path.read_bytes(), self.headers.get("Range")
        if asked and self.pieces:
            start, end = map(int, asked.removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
            content = content[start : end + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(params=[True, False])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Pieces, "pieces", request.param)
    (tmp_path / "www").mkdir()
    handler = functools.partial(Pieces, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_pictures_and_containers_on_a_web_server(pre: Pretrained, tmp_path: Path, server: str) -> None:
    (tmp_path / "www" / "0.png").write_bytes(PICTURES[0])
    pq.write_table(pa.table({"image": PICTURES[1:3]}), tmp_path / "www" / "x.parquet")
    write_tar(tmp_path / "www" / "x.tar", *map(tarfile.TarInfo, PATHS[3:]))
    given = [f"{server}/0.png?size=1", f"{server}/x.parquet?token=a/b", f"{server}/x.tar", f"{server}/gone.png"]
    done = run([*given, f"{server}/secret.png"], tmp_path / "out", pre)
    assert (done.rows, done.failures) == (5, 2)
    assert list(rows(tmp_path / "out").values()) == plain(tmp_path, pre)
    assert [kind for kind, _ in failures(tmp_path / "out").values()] == ["missing", "unreadable"]


def test_a_server_that_refuses_is_not_a_missing_file(pre: Pretrained, tmp_path: Path) -> None:
    (good,) = write_pictures(tmp_path / "in", 1)
    run(["http://127.0.0.1:9/x.png", good], tmp_path / "out", pre)
    ((kind, message),) = failures(tmp_path / "out").values()
    assert kind == "unreachable"
    assert "the server does not answer" in message


def test_containers_are_told_by_their_names() -> None:
    for name in ("a.tar", "a.TGZ", "a.tar.gz", "a.parquet", "a.pq", "a.parq", "https://h/a.parquet?x=1#y"):
        assert is_container(name)
    for name in ("a.png", "tar", "a.parquet?x", "https://h/a.png?of=a.parquet"):
        assert not is_container(name)
