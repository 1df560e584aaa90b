"""Parquet files, tar shards and lists as inputs: every picture in them once, in order, and damage recorded."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_model import picture, write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.embed import EmbedSummary, embed_images, read_embeddings
from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.embed.inputs.fetch import fetch, pictures
from bigr_repr.embed.inputs.sources import find_sources
from bigr_repr.images import parquet
from bigr_repr.images.find import Source, unescape_path

USUAL: dict[str, Any] = {"unit_size": 5, "batch_size": 3, "decode_timeout": None}


def encoded(number: int) -> bytes:
    stream = io.BytesIO()
    picture(number).save(stream, "png")
    return stream.getvalue()


def write_parquet(
    file: Path, images: list[bytes | None], *, group: int = 4, struct: bool = True, **columns: list[Any]
) -> Path:
    """As the datasets library of Hugging Face writes pictures, or with plain bytes."""
    column = pa.array(images, pa.binary())
    if struct:
        column = pa.StructArray.from_arrays(
            [column, pa.array([f"{n}.png" for n in range(len(images))])], ["bytes", "path"]
        )
    table = pa.table({"image": column, **columns})
    if "label" in columns:
        features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, file, row_group_size=group, compression="none")
    return file


def write_tar(file: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def run(inputs: Any, out: Path, model: Pretrained, **options: Any) -> EmbedSummary:
    return embed_images(inputs, out, model=model, **{"layers": [2], **USUAL, **options})


def failures_of(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "failures.jsonl").read_text("utf-8").splitlines()]


def contents(sources: Iterable[Source]) -> list[bytes]:
    """The encoded bytes of each source, by way of the plan's entries."""
    entries = [Entry(source.path, source.file, source.start, source.size, source.label) for source in sources]
    fetched = map(fetch, pictures(entries))
    return [content if isinstance(content, bytes) else Path(content).read_bytes() for content in fetched]


# ---- what is found, and what its bytes are


@pytest.mark.parametrize("struct", [False, True])
def test_rows_of_a_parquet_file_are_its_pictures(tmp_path: Path, struct: bool) -> None:
    images = [encoded(number) for number in range(11)]
    file = write_parquet(tmp_path / "in.parquet", images, struct=struct)
    found = list(find_sources(file))
    assert [source.path for source in found] == [f"{file}#{row}" for row in range(11)]
    assert contents(found) == images
    assert contents(found[3::3]) == images[3::3]
    assert contents([found[9], found[2], found[2], found[3]]) == [images[n] for n in (9, 2, 2, 3)]


def test_a_parquet_file_is_read_once_and_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [bytes([n]) * 1000 for n in range(200)]
    file = write_parquet(tmp_path / "in.parquet", images, group=100)
    read: list[int] = []
    unpack = parquet.picture_bytes

    def counting(batch: pa.RecordBatch, columns: parquet.Columns) -> pa.Array:
        read.append(len(batch))
        return unpack(batch, columns)

    monkeypatch.setattr(parquet, "picture_bytes", counting)
    assert contents(find_sources(file)) == images
    assert (sum(read), max(read)) == (200, 32)
    read.clear()
    assert contents(list(find_sources(file))[150:153]) == images[150:153]
    assert sum(read) <= 100


def test_members_of_a_tar_shard_are_its_pictures(tmp_path: Path) -> None:
    images = [encoded(number) for number in range(4)]
    members = [
        ("0.png", images[0]),
        ("0.json", b"{}"),
        ("b/1.seg.PNG", images[1]),
        ("b/._1.png", b"x"),
        ("c/2.png", images[2]),
    ]
    one = write_tar(tmp_path / "one.tar", members)
    two = write_tar(tmp_path / "two.tar", [("0.png", images[3])])
    assert [source.path for source in find_sources(one)] == ["0.png", "b/1.seg.PNG", "c/2.png"]
    assert contents(find_sources(one)) == images[:3]
    found = list(find_sources([one, two]))
    assert [source.path for source in found] == [f"{one}/0.png", f"{one}/b/1.seg.PNG", f"{one}/c/2.png", f"{two}/0.png"]
    assert contents(found) == images
    assert [source.path for source in find_sources(f"{tmp_path}/*.tar")] == [source.path for source in found]
    relative = ["one.tar/0.png", "one.tar/b/1.seg.PNG", "one.tar/c/2.png"]
    assert [source.path for source in find_sources(one, root=tmp_path)] == relative


def test_files_and_containers_keep_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    (alone,) = write_pictures(tmp_path / "folder", 1)
    shard = write_tar(tmp_path / "a.tar", [("x.jpg", b"x")])
    table = write_parquet(tmp_path / "b.parquet", [b"y", b"z"])
    given = [table, tmp_path / "folder", shard, f"file://{alone}"]
    paths = [f"{table}#0", f"{table}#1", str(alone), f"{shard}/x.jpg", str(alone)]
    assert [source.path for source in find_sources(given)] == paths
    assert [source.path for source in find_sources(iter(map(str, given)), literal=True)] == paths
    assert [source.path for source in find_sources(tmp_path / "folder")] == ["00000.png"]


def test_names_of_any_kind_and_names_that_come_twice(pre: Pretrained, tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.png"), "日本/x.png", "two\nlines.png", "twice.png", "twice.png", "n" * 180 + ".png"]
    shard = write_tar(tmp_path / "in.tar", [(name, encoded(number)) for number, name in enumerate(names)])
    assert run(shard, tmp_path / "out", pre).rows == 6
    data = read_embeddings(tmp_path / "out")
    assert [unescape_path(path) for path in data.paths] == names
    assert len(np.unique(data.vectors, axis=0)) == 6


def test_labels_are_taken_from_the_container(pre: Pretrained, tmp_path: Path) -> None:
    images: list[bytes | None] = [encoded(number) for number in range(4)]
    (tmp_path / "pets").mkdir()
    table = write_parquet(tmp_path / "pets" / "hub.parquet", images, label=[1, 0, None, 7])
    plain = write_parquet(tmp_path / "pets" / "plain.parquet", images[:1])
    text = write_parquet(tmp_path / "pets" / "text.parquet", images[:1])
    pq.write_table(pq.read_table(text).append_column("label", pa.array(["bird"])), text)
    members = [
        ("a/0.png", images[0]),
        ("a/0.cls", b"3\n"),
        ("1.cls", b"dog"),
        ("1.png", images[1]),
        ("b/2.png", images[2]),
        ("3.png", images[3]),
    ]
    shard = write_tar(tmp_path / "pets" / "in.tar", members)  # type: ignore[arg-type]
    run([table, plain, text, shard], tmp_path / "out", pre, labels_from_folders=True)
    labels = ["dog", "cat", "", "7", "pets", "bird", "3", "dog", "b", "pets"]
    assert read_embeddings(tmp_path / "out").labels == labels


# ---- rows


def test_the_same_pictures_give_the_same_rows_wherever_they_lie(pre: Pretrained, tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "in", 13)
    images: list[bytes | None] = [file.read_bytes() for file in files]
    shard = write_tar(tmp_path / "in.tar", [(file.name, file.read_bytes()) for file in files])
    table = write_parquet(tmp_path / "in.parquet", images)
    run(tmp_path / "in", tmp_path / "one", pre)
    whole = read_embeddings(tmp_path / "one")
    for number, container in enumerate([shard, table]):
        out = tmp_path / f"out{number}"
        run(container, out, pre)
        assert read_embeddings(out).vectors.tobytes() == whole.vectors.tobytes()
    assert read_embeddings(tmp_path / "out0").paths == whole.paths


def test_a_broken_run_over_containers_goes_on(pre: Pretrained, tmp_path: Path) -> None:
    images: list[bytes | None] = [encoded(number) for number in range(13)]
    inputs = [write_parquet(tmp_path / "a.parquet", images), write_tar(tmp_path / "b.tar", [("x.png", encoded(14))])]
    run(inputs, tmp_path / "whole", pre)

    def interrupt(progress: Any) -> None:
        if progress.total and progress.done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "out", pre, on_progress=interrupt)
    assert run(inputs, tmp_path / "out", pre).embedded == 10  # units of whole row groups, which have four rows
    whole, resumed = read_embeddings(tmp_path / "whole"), read_embeddings(tmp_path / "out")
    assert (resumed.paths, resumed.vectors.tobytes()) == (whole.paths, whole.vectors.tobytes())
    write_parquet(tmp_path / "a.parquet", images[:12])
    with pytest.raises(
        ValueError, match=r"inputs were 14, are 13 \(input 12 was .*a.parquet from 12 on, is .*b.tar from"
    ):
        run(inputs, tmp_path / "out", pre)


# ---- damage


def test_rows_and_members_that_are_no_pictures_are_failures(pre: Pretrained, tmp_path: Path) -> None:
    good = encoded(0)
    table = write_parquet(tmp_path / "a.parquet", [good, None, b"", b"junk", good[:200], good])
    shard = write_tar(tmp_path / "b.tar", [("x.png", good), ("y.png", b""), ("z.png", good[:200])])
    summary = run([table, shard], tmp_path / "out", pre)
    assert (summary.rows, summary.failures) == (3, 6)
    lines = failures_of(tmp_path / "out")
    kinds = {Path(line["path"]).name: line["error"] for line in lines}
    assert kinds == {
        "a.parquet#1": "empty", "a.parquet#2": "empty", "a.parquet#3": "not-an-image", "a.parquet#4": "truncated",
        "y.png": "empty", "z.png": "truncated",
    }  # fmt: skip
    assert all(line["path"] in line["message"] and "\n" not in line["message"] for line in lines)


def damaged(folder: Path) -> dict[str, tuple[str, str, int]]:
    """Containers that are damaged each in its own way; {name: (kind, words, pictures before the damage)}."""
    images: list[bytes | None] = [encoded(number) for number in range(3)]
    members = [(f"{number}.png", encoded(number)) for number in range(3)]
    whole = write_tar(folder / "whole.tar", members).read_bytes()
    start = whole.index(b"2.png")
    (folder / "cut-data.tar").write_bytes(whole[: start + 600])
    (folder / "cut-header.tar").write_bytes(whole[: start + 100])
    (folder / "header.tar").write_bytes(whole[:start] + b"\xff" * 512 + whole[start + 512 :])
    (folder / "empty.tar").write_bytes(b"")
    (folder / "no-members.tar").write_bytes(b"\0" * 10240)
    (folder / "junk.tar").write_bytes(b"junk" * 1000)
    with tarfile.open(folder / "zipped.tar", "w:gz") as tar:
        tar.add(folder / "whole.tar", "x.png")
    table = write_parquet(folder / "whole.parquet", images).read_bytes()
    (folder / "cut.parquet").write_bytes(table[:-20])
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "junk.parquet").write_bytes(b"PAR1" + b"junk" * 100 + b"PAR1")
    pq.write_table(pa.table({"picture": images}), folder / "no-column.parquet")
    pq.write_table(pa.table({"image": ["a.png"]}), folder / "names.parquet")
    pq.write_table(pa.table({"image": [[1, 2]]}), folder / "numbers.parquet")
    write_parquet(folder / "no-rows.parquet", [])
    return {
        "cut-data.tar": ("corrupt", "damaged", 2), "cut-header.tar": ("corrupt", "damaged", 2),
        "header.tar": ("corrupt", "damaged", 2), "empty.tar": ("empty", "the file is empty", 0),
        "no-members.tar": ("empty", "holds no picture", 0), "junk.tar": ("corrupt", "damaged", 0),
        "zipped.tar": ("unsupported", "gunzip", 0), "cut.parquet": ("corrupt", "damaged", 0),
        "empty.parquet": ("empty", "the file is empty", 0), "junk.parquet": ("corrupt", "damaged", 0),
        "no-column.parquet": ("unsupported", "has columns picture", 0),
        "names.parquet": ("unsupported", "column image is string", 0),
        "numbers.parquet": ("unsupported", "column image is list", 0),
        "no-rows.parquet": ("empty", "holds no picture", 0), "gone.tar": ("missing", "no such file", 0),
    }  # fmt: skip


def test_a_damaged_container_is_recorded_and_the_rest_goes_on(pre: Pretrained, tmp_path: Path) -> None:
    kinds = damaged(tmp_path)
    listed = [str(tmp_path / name) for name in [*kinds, "whole.tar", "whole.parquet"]]
    summary = run(iter(listed), tmp_path / "out", pre, literal=True)
    before = sum(count for _, _, count in kinds.values())
    assert (summary.rows, summary.failures) == (before + 6, len(kinds) + 1)
    lines = failures_of(tmp_path / "out")
    cut = next(line for line in lines if line["error"] == "truncated")
    assert cut["message"].startswith(f"{tmp_path}/cut-data.tar/2.png: ")
    lines.remove(cut)
    assert {Path(line["path"]).name: line["error"] for line in lines} == {
        name: kind for name, (kind, _, _) in kinds.items()
    }
    for line in lines:
        assert kinds[Path(line["path"]).name][1] in line["message"]
        assert line["path"] in line["message"]
        assert "\n" not in line["message"]
    assert run(iter(listed), tmp_path / "out", pre, literal=True, retry_failed=True).failures == len(kinds) + 1


def test_a_damaged_row_group_costs_its_rows_alone(pre: Pretrained, tmp_path: Path) -> None:
    images: list[bytes | None] = [encoded(number) for number in range(12)]
    file = write_parquet(tmp_path / "in.parquet", images, group=4)
    run(file, tmp_path / "clean", pre)
    chunk = pq.ParquetFile(file).metadata.row_group(1).column(0)
    content = bytearray(file.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    file.write_bytes(content)
    summary = run(file, tmp_path / "out", pre)
    assert (summary.rows, summary.failures) == (8, 4)
    lines = failures_of(tmp_path / "out")
    assert [(line["path"], line["error"]) for line in lines] == [(f"{file}#{row}", "corrupt") for row in range(4, 8)]
    clean, rest = read_embeddings(tmp_path / "clean"), read_embeddings(tmp_path / "out")
    assert rest.vectors.tobytes() == np.delete(clean.vectors, range(4, 8), axis=0).tobytes()


def test_what_became_of_a_container_after_it_was_listed(tmp_path: Path) -> None:
    images: list[bytes | None] = [encoded(number) for number in range(5)]
    table = write_parquet(tmp_path / "a.parquet", images)
    shard = write_tar(tmp_path / "b.tar", [("x.png", encoded(0))])
    found = list(find_sources([table, shard]))
    entries = [Entry(source.path, source.file, source.start, source.size) for source in found]
    write_parquet(table, images[:3])
    shard.write_bytes(shard.read_bytes()[:700])
    errors = [picture.source for picture in list(pictures(entries))[3:5]]
    assert [getattr(error, "kind", None) for error in errors] == ["missing", "missing"]
    with pytest.raises(parquet.ImageError, match="ends before it does"):
        fetch(list(pictures(entries))[5])
    shard.unlink()
    with pytest.raises(parquet.ImageError, match=r"b.tar/x.png: no such"):
        fetch(list(pictures(entries))[5])
    table.unlink()
    assert [error.source.kind for error in pictures(entries[:2])] == ["missing", "missing"]  # type: ignore[union-attr]


def test_a_container_that_was_repaired_is_taken_in_by_an_update(pre: Pretrained, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    kinds = damaged(tmp_path / "in")
    shard, good = tmp_path / "in/cut-header.tar", tmp_path / "in/whole.tar"
    assert kinds[shard.name][2] == 2
    run([shard, good], tmp_path / "out", pre)
    shard.write_bytes(good.read_bytes())
    assert run([shard, good], tmp_path / "out", pre, update=True, retry_failed=True).rows == 6
    assert failures_of(tmp_path / "out") == []  # also of the file as a whole


def test_an_input_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        find_sources(tmp_path / "nothing.tar")
    with pytest.raises(ValueError, match="no inputs"):
        next(find_sources([]))
    with pytest.raises(FileNotFoundError, match="matches no image"):
        next(find_sources(f"{tmp_path}/*.tar"))


def test_an_address_is_recorded_below_its_root() -> None:
    urls = ["https://host.example/in/a/1.png", "https://host.example/in/2.png"]
    assert list(find_sources(urls)) == [Source(url, url) for url in urls]
    below = list(find_sources(urls, root="https://host.example/in"))
    assert below == [Source("a/1.png", urls[0]), Source("2.png", urls[1])]
