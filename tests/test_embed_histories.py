"""Whatever happens to inputs between runs, after an update every image has a row, or a line that says why not."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_model import picture

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.embed import EmbedSummary, Progress, embed_images, read_embeddings
from bigr_repr.embed.inputs.sources import find_sources
from bigr_repr.images.containers import members
from bigr_repr.system.object_store import as_place

CLOCK = iter(range(10**9))


def run(inputs: Any, out: Path, model: Any, **options: Any) -> EmbedSummary:
    usual = {"layers": [2], "unit_size": 3, "batch_size": 3, "decode_timeout": None}
    return embed_images(inputs, out, model=model, **{**usual, **options})


def lines_of(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()


CONTENTS = [encoded(number) for number in range(5)] + [b"junk", b"other junk"]
GOOD = {hashlib.sha256(content).hexdigest() for content in CONTENTS[:5]}


def write(file: Path, content: bytes) -> None:
    """Write a file at a time of its own: clocks may be coarse."""
    file.write_bytes(content)
    os.utime(file, ns=(0, 10**9 * (1 + next(CLOCK))))


def labels_of(out: Path) -> dict[str, str]:
    data = read_embeddings(out)
    assert data.labels is not None
    return dict(zip(data.paths, data.labels, strict=True))


def vectors_of(out: Path) -> dict[str, bytes]:
    data = read_embeddings(out)
    assert len(set(data.paths)) == len(data.paths)
    return {path: vector.tobytes() for path, vector in zip(data.paths, data.vectors, strict=True)}


def check(photos: Path, out: Path, whole: EmbedSummary, *, dropped: bool, reference: dict[str, bytes]) -> None:
    """Every file has a row of its own bytes, or is the double of one that does, or is a failure."""
    data = read_embeddings(out)
    assert data.sha256 is not None
    rows = dict(zip(data.paths, data.sha256, strict=True))
    assert len(rows) == len(data.paths)
    for path, vector in vectors_of(out).items():
        assert vector == reference[rows[path]], path
    doubles = {line["path"]: line["same_as"] for line in lines_of(out / "duplicates.jsonl")}
    failures = {line["path"]: line["error"] for line in lines_of(out / "failures.jsonl")}
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in photos.iterdir()}
    for name, digest in files.items():
        if name in rows:
            assert rows[name] == digest, name
        elif name in failures:
            assert digest not in GOOD, name
        else:
            original = doubles[name]
            assert original in rows or original in failures, (name, original)
            assert rows.get(original) == (digest if digest in GOOD else None), (name, original)
    if dropped:
        assert rows.keys() <= files.keys()
        assert failures.keys() <= files.keys()
    assert len(rows) + len(failures) + len(doubles) + whole.dropped == whole.inputs


def happening(chance: random.Random, photos: Path) -> None:
    """One thing that happens to a folder."""
    files, new = sorted(photos.iterdir()), photos / f"{chance.randrange(40):02d}.png"
    kind = chance.choice(["add", "add", "copy", "rename", "replace", "remove"])
    if kind == "add" or len(files) < 3:
        write(new, chance.choice(CONTENTS))
    elif kind == "copy":
        shutil.copy2(chance.choice([file for file in files if file != new]), new)
    elif kind == "rename":
        chance.choice(files).rename(new)
    elif kind == "replace":
        write(chance.choice(files), chance.choice(CONTENTS))
    else:
        chance.choice(files).unlink()


@pytest.fixture(scope="module")
def reference(pre: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The vector of each content, by its digest."""
    place = tmp_path_factory.mktemp("reference")
    (place / "in").mkdir()
    for number, content in enumerate(CONTENTS):
        write(place / "in" / f"{number}.png", content)
    run(place / "in", place / "out", pre, sha256=True)
    data = read_embeddings(place / "out")
    assert data.sha256 is not None
    return {digest: vector.tobytes() for digest, vector in zip(data.sha256, data.vectors, strict=True)}


def history(seed: int, pre: Pretrained, place: Path, reference: dict[str, bytes], dedup: str | None) -> None:
    chance, photos, out = random.Random(seed), place / "in", place / "out"
    photos.mkdir(parents=True)
    for number in range(8):
        write(photos / f"{number:02d}.png", chance.choice(CONTENTS))

    def interrupt(progress: Progress) -> None:
        if progress.total and progress.done > 3:
            raise KeyboardInterrupt

    for turn in range(8):
        dropped, options = chance.random() < 0.6, {"sha256": True, "dedup": dedup, "update": True}
        if chance.random() < 0.4:
            try:
                run(photos, out, pre, drop_gone=chance.random() < 0.5, on_progress=interrupt, **options)
            except KeyboardInterrupt:
                happening(chance, photos)
        retry = chance.random() < 0.3
        whole = run(photos, out, pre, drop_gone=dropped, retry_failed=retry, **options)
        try:
            check(photos, out, whole, dropped=dropped, reference=reference)
        except (AssertionError, KeyError) as error:
            raise AssertionError(f"seed {seed}, turn {turn}") from error
        for _ in range(chance.randrange(1, 4)):
            happening(chance, photos)


@pytest.mark.parametrize("dedup", [None, "exact"])
def test_a_random_history(pre: Pretrained, tmp_path: Path, reference: dict[str, bytes], dedup: str | None) -> None:
    for seed in range(2):
        history(seed, pre, tmp_path / str(seed), reference, dedup)


@pytest.mark.slow
@pytest.mark.parametrize("dedup", [None, "exact"])
def test_many_random_histories(pre: Pretrained, tmp_path: Path, reference: dict[str, bytes], dedup: str | None) -> None:
    for seed in range(2, 8):
        history(seed, pre, tmp_path / str(seed), reference, dedup)
        shutil.rmtree(tmp_path / str(seed))


# ---- duplicates whose originals change or go


def folder_of(place: Path, *contents: int) -> Path:
    """A folder of pictures 0.png, 1.png, …, with these contents."""
    place.mkdir()
    for number, content in enumerate(contents):
        write(place / f"{number}.png", CONTENTS[content])
    return place


def test_a_renamed_image_has_a_row(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = folder_of(tmp_path / "in", 0, 1), tmp_path / "out"
    run(photos, out, pre, dedup="exact")
    (photos / "1.png").rename(photos / "cat.png")
    for _ in range(2):
        run(photos, out, pre, dedup="exact", update=True, drop_gone=True)
        assert vectors_of(out).keys() == {"0.png", "cat.png"}
        assert lines_of(out / "duplicates.jsonl") == []


def test_a_copy_of_what_an_image_was_has_a_row(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = folder_of(tmp_path / "in", 0, 1), tmp_path / "out"
    run(photos, out, pre, dedup="exact")
    shutil.copy2(photos / "1.png", photos / "9.png")
    write(photos / "1.png", CONTENTS[2])
    run(photos, out, pre, dedup="exact", update=True)
    assert vectors_of(out).keys() == {"0.png", "1.png", "9.png"}
    write(photos / "a.png", CONTENTS[2])  # equal to what 1.png is now
    run(photos, out, pre, dedup="exact", update=True)
    assert lines_of(out / "duplicates.jsonl") == [{"path": "a.png", "same_as": "1.png"}]


def test_a_double_that_was_away_when_its_original_changed_has_a_row(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = folder_of(tmp_path / "in", 0, 1, 1), tmp_path / "out"
    run(photos, out, pre, dedup="exact")
    (photos / "2.png").rename(tmp_path / "aside.png")
    write(photos / "1.png", CONTENTS[3])
    run(photos, out, pre, dedup="exact", update=True)
    (tmp_path / "aside.png").rename(photos / "2.png")
    run(photos, out, pre, dedup="exact", update=True)
    assert vectors_of(out).keys() == {"0.png", "1.png", "2.png"}


def test_an_original_that_changes_before_it_is_embedded_frees_its_doubles(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = folder_of(tmp_path / "in", 0, 1, 2, 3, 3), tmp_path / "out"

    def interrupt(progress: Progress) -> None:
        if progress.total and progress.done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(photos, out, pre, dedup="exact", on_progress=interrupt)
    write(photos / "3.png", CONTENTS[4])
    run(photos, out, pre, dedup="exact")  # not even an update
    assert vectors_of(out).keys() == {f"{number}.png" for number in range(5)}


def test_the_copy_of_a_removed_failure_is_a_failure_of_its_own(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = folder_of(tmp_path / "in", 0, 5, 5), tmp_path / "out"
    run(photos, out, pre, dedup="exact")
    (photos / "1.png").unlink()
    done = run(photos, out, pre, dedup="exact", update=True, drop_gone=True)
    assert [line["path"] for line in lines_of(out / "failures.jsonl")] == ["2.png"]
    assert (lines_of(out / "duplicates.jsonl"), done.dropped) == ([], 1)


# ---- failures whose files come and go


def test_what_was_missing_is_embedded_once_it_is_there(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = folder_of(tmp_path / "in", 0), tmp_path / "out"
    (photos / "link.png").symlink_to(tmp_path / "target.png")
    assert run(photos, out, pre).failures == 1
    write(tmp_path / "target.png", CONTENTS[1])
    done = run(photos, out, pre, update=True)
    assert (done.rows, done.failures, done.changed) == (2, 0, 1)


def test_a_mended_container_leaves_no_failure(pre: Pretrained, tmp_path: Path) -> None:
    file, out = tmp_path / "c.parquet", tmp_path / "out"
    file.write_bytes(b"junk")
    run([file, folder_of(tmp_path / "in", 0)], out, pre)
    assert [line["error"] for line in lines_of(out / "failures.jsonl")] == ["corrupt"]
    pq.write_table(pa.table({"image": CONTENTS[:2]}), file)
    done = run([file, tmp_path / "in"], out, pre, update=True, drop_gone=True)
    assert (done.rows, done.failures, done.dropped) == (3, 0, 1)
    assert lines_of(out / "failures.jsonl") == []


# ---- labels


def write_shard(file: Path, labels: list[str], first: str = "") -> None:
    with tarfile.open(file, "w") as tar:
        for number, label in enumerate(labels):
            for suffix, content in (("cls", label.encode()), ("png", CONTENTS[number])):
                info = tarfile.TarInfo(f"{first}{number}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    write(file, file.read_bytes())


def write_table(file: Path, labels: list[str], first: str = "") -> None:
    pq.write_table(pa.table({"image": CONTENTS[: len(labels)], "label": labels}), file)
    write(file, file.read_bytes())


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
@pytest.mark.parametrize("dedup", [None, "exact"])
def test_an_update_takes_new_labels(pre: Pretrained, tmp_path: Path, suffix: str, dedup: str | None) -> None:
    file, out = tmp_path / f"in.{suffix}", tmp_path / "out"
    to = write_shard if suffix == "tar" else write_table
    options = {"labels_from_folders": True, "dedup": dedup, "unit_size": 2}
    to(file, ["7", "8", "8", "9"])
    run(file, out, pre, **options)
    before = vectors_of(out)
    for labels in (["7", "6", "8", "9"], ["5", "6", "8", "9"], ["7", "8", "8", "9"]):
        to(file, labels)
        assert run(file, out, pre, update=True, **options).changed == 4
        assert list(labels_of(out).values()) == labels
        done = run(file, out, pre, update=True, **options)
        assert (done.changed, done.embedded, done.gone) == (0, 0, 0)
    assert vectors_of(out) == before


def test_units_that_were_not_done_take_new_labels(pre: Pretrained, tmp_path: Path) -> None:
    file, out = tmp_path / "in.parquet", tmp_path / "out"
    options = {"labels_from_folders": True, "unit_size": 2}

    def interrupt(progress: Progress) -> None:
        if progress.total and progress.done > 1:
            raise KeyboardInterrupt

    write_table(file, ["a", "b", "c", "d"])
    with pytest.raises(KeyboardInterrupt):
        run(file, out, pre, on_progress=interrupt, **options)
    write_table(file, ["a", "x", "c", "y"])
    run(file, out, pre, update=True, **options)
    assert list(labels_of(out).values()) == ["a", "x", "c", "y"]


def test_a_shard_that_grew_is_known_as_a_whole(pre: Pretrained, tmp_path: Path) -> None:
    file, out = tmp_path / "in.tar", tmp_path / "out"
    write_shard(file, ["1", "2"])
    run(file, out, pre)
    write_shard(file, ["1", "2", "3"])
    for _ in range(2):
        done = run(file, out, pre, update=True, drop_gone=True)
        assert (done.rows, done.gone, done.dropped) == (3, 0, 2)


def test_members_at_the_top_of_a_tar_have_no_folder(pre: Pretrained, tmp_path: Path) -> None:
    file, out = tmp_path / "shards" / "in.tar", tmp_path / "out"
    file.parent.mkdir()
    with tarfile.open(file, "w") as tar:
        for name in ("./0.png", "./cat/1.png", "dog/./2.png", "3.png"):
            info = tarfile.TarInfo(name)
            info.size = len(CONTENTS[0])
            tar.addfile(info, io.BytesIO(CONTENTS[0]))
    assert [member.label for member in members(str(file))] == [None, "cat", "dog", None]
    run(file, out, pre, labels_from_folders=True)
    assert list(labels_of(out).values()) == ["shards", "cat", "dog", "shards"]


def test_a_data_set_with_the_label_of_an_earlier_version_is_resumed(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "in.tar", tmp_path / "out"
    write_shard(file, ["1"])
    with tarfile.open(file, "w") as tar:
        info = tarfile.TarInfo("./0.png")
        info.size = len(CONTENTS[0])
        tar.addfile(info, io.BytesIO(CONTENTS[0]))
    with monkeypatch.context() as patch:
        patch.setattr("bigr_repr.images.tar._label_of", lambda folder: ".")
        run(file, out, pre, labels_from_folders=True)
    assert labels_of(out) == {"./0.png": "."}
    for update in (False, True):
        done = run(file, out, pre, labels_from_folders=True, update=update)
        assert (done.embedded, done.changed) == (0, 0)


def test_urls_of_local_files_are_their_paths(pre: Pretrained, tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "in", 0, 1)
    for front in ("file://", "file://localhost"):
        assert [source.path for source in find_sources(f"{front}{photos}")] == ["0.png", "1.png"]
        assert as_place(f"{front}{photos}") == photos


def test_records_of_a_wrong_form_are_done_again_or_named(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = folder_of(tmp_path / "in", 0, 1), tmp_path / "out"
    run(photos, out, pre)
    for text in (
        b"[" * 100_000,
        b"[1]",
        b"{}",
        b'{"rows": 1e999}',
        b"\xff",
        b'{"rows": 2, "size": 3, "failures": [7]}',
    ):
        (out / "_run/units/00000.json").write_bytes(text)
        assert run(photos, out, pre).embedded == 2
    for text in (b"[" * 100_000, b"[1]", b"{}", b'{"format": 3, "lists": 7}', b"\xff"):
        (out / "_run/plan.json").write_bytes(text)
        with pytest.raises(ValueError, match=r"plan\.json cannot be used: .*; start again with overwrite$"):
            run(photos, out, pre)


# ---- files that are not the data set's


@pytest.mark.parametrize("name", ["failures.jsonl", "duplicates.jsonl", "gone.jsonl", "part-00000.parquet"])
def test_a_users_own_files_are_not_replaced(pre: Pretrained, tmp_path: Path, name: str) -> None:
    photos, out = folder_of(tmp_path / "in", 0), tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=f"{name} was not written by bigr-repr; choose another output folder"):
            run(photos, out, pre, overwrite=overwrite)
    assert [file.name for file in out.iterdir()] == [name]
    assert (out / name).read_bytes() == b"mine"


def test_other_files_in_a_data_set_stay_and_are_not_read(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = folder_of(tmp_path / "in", 0, 1), tmp_path / "out"
    run(photos, out, pre)
    names = ["part-extra.parquet", "part-1.parquet", "part-00000.parquet.parquet"]
    for name in names:
        (out / name).write_bytes(b"mine")
    assert len(read_embeddings(out).paths) == 2
    run(photos, out, pre, overwrite=True)
    assert all((out / name).read_bytes() == b"mine" for name in names)
