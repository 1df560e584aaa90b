"""Data sets that grow, inputs that repeat, several devices, batch sizes that are measured, and files for others."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_model import picture, tiny_model, write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained, load
from bigr_repr.embed import EmbedSummary, Progress, embed_images, export_embeddings, read_embeddings
from bigr_repr.embed.dataset.lists import list_inputs
from bigr_repr.embed.dataset.plan import commit_plan
from bigr_repr.embed.engines import batching, local
from bigr_repr.embed.inputs import dedup, suspects
from bigr_repr.embed.inputs.fetch import EncodedPicture
from bigr_repr.embed.inputs.update import KnownInputs
from bigr_repr.features.extractor import FeatureExtractor, Features
from bigr_repr.features.network import Network
from bigr_repr.images.find import Source, unescape_path


def run(inputs: Any, out: Path, model: Any, **options: Any) -> EmbedSummary:
    usual = {"layers": [2], "unit_size": 4, "batch_size": 2, "decode_timeout": None}
    return embed_images(inputs, out, model=model, **{**usual, **options})


def rows_of(out: Path) -> dict[str, bytes]:
    data = read_embeddings(out)
    assert len(set(data.paths)) == len(data.paths)
    return {path: vector.tobytes() for path, vector in zip(data.paths, data.vectors, strict=True)}


def lines_of(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def shards(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in out.glob("part-*")}


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the inputs that are read for their digests from now on."""
    names: list[str] = []
    digest = dedup._digest

    def noted(picture: EncodedPicture) -> bytes:
        names.append(Path(picture.name).name)
        return digest(picture)

    monkeypatch.setattr(dedup, "_digest", noted)
    return names


# ---- update


def rewrite(path: Path, number: int) -> None:
    """Another picture in a file's place, later: clocks may be coarse."""
    picture(number).save(path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9 * (1 + number)))


@pytest.mark.slow
@pytest.mark.parametrize("dedup", [None, "exact"])
def test_an_update_equals_a_run_anew_where_files_changed_came_and_went(
    dedup: str | None, pre: Pretrained, tmp_path: Path
) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    write_pictures(photos, 10)
    for name in ("twin.png", "zwin.png"):
        shutil.copy(photos / "00002.png", photos / name)
    (photos / "torn.png").write_bytes(b"no picture")
    run(photos, out, pre, dedup=dedup, sha256=True)
    rewrite(photos / "00002.png", 50)  # what has doubles is no longer the same
    rewrite(photos / "00005.png", 51)
    rewrite(photos / "torn.png", 52)
    rewrite(photos / "zwin.png", 53)
    (photos / "00007.png").unlink()
    write_pictures(photos, 2, first=10)
    kept = run(photos, out, pre, dedup=dedup, sha256=True, update=True)
    assert kept.gone == 1
    assert "00007.png" in rows_of(out)
    summary = run(photos, out, pre, dedup=dedup, sha256=True, update=True, drop_gone=True)
    assert (summary.changed, summary.gone) == (0, 1)
    anew = run(photos, tmp_path / "anew", pre, sha256=True)
    assert (anew.rows, anew.failures) == (14, 0)
    assert rows_of(out) == rows_of(tmp_path / "anew")
    assert (summary.failures, summary.dropped, summary.inputs) == (0, 1, 15)
    assert summary.rows + summary.duplicates == 14
    assert lines_of(out / "failures.jsonl") == []
    assert lines_of(out / "gone.jsonl") == [{"path": "00007.png"}]
    before = shards(out)
    again = run(photos, out, pre, dedup=dedup, sha256=True, update=True, drop_gone=True)
    assert (again.embedded, again.changed) == (0, 0)
    again = run(photos, out, pre, dedup=dedup, sha256=True, update=True, retry_failed=True)
    assert (again.failures, again.dropped) == (0, 1)  # there is nothing to try
    write_pictures(photos, 1, first=7)  # it comes back
    back = run(photos, out, pre, dedup=dedup, sha256=True, update=True)
    assert (back.changed, back.failures, back.gone, back.dropped) == (1, 0, 0, 0)
    assert "00007.png" in rows_of(out)
    assert before.keys() == shards(out).keys()


def test_an_update_that_is_cut_short_takes_changed_files_on_next_time(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    write_pictures(photos, 6)
    run(photos, out, pre)
    rewrite(photos / "00001.png", 50)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(local.LocalEngine, "run_units", cut)
        with pytest.raises(KeyboardInterrupt):
            run(photos, out, pre, update=True)
    assert "00001.png" not in rows_of(out)
    summary = run(photos, out, pre)  # not even an update
    assert summary.embedded == 1
    run(photos, tmp_path / "anew", pre)
    assert rows_of(out) == rows_of(tmp_path / "anew")


def test_rows_of_a_data_set_without_stamps_stay(pre: Pretrained, tmp_path: Path) -> None:
    """As an earlier version wrote it: nothing is known of its files, so nothing is said to have changed."""
    photos, out = tmp_path / "in", tmp_path / "out"
    write_pictures(photos, 6)
    run(photos, out, pre)
    for file in (out / "_run" / "units").glob("*.json"):
        record = json.loads(file.read_text())
        assert len(record.pop("stamps")) in (64, 32)
        file.write_text(json.dumps(record))
    rewrite(photos / "00001.png", 50)
    assert run(photos, out, pre, update=True).changed == 0
    with pytest.raises(ValueError, match="drop_gone needs update"):
        run(photos, out, pre, drop_gone=True)


def test_an_update_embeds_what_was_added_and_only_that(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    write_pictures(photos / "b", 6)
    run(photos, out, pre)
    before = shards(out)
    write_pictures(photos / "a", 5, first=10)
    write_pictures(photos / "b", 1, first=6)
    with pytest.raises(ValueError, match=r"inputs were 6, are 12 .*add new inputs with update"):
        run(photos, out, pre)
    done = run(photos, out, pre, update=True)
    assert (done.inputs, done.rows, done.embedded, done.gone, done.shards) == (12, 12, 6, 0, 4)
    assert {name: inode for name, inode in shards(out).items() if name in before} == before
    run(photos, tmp_path / "whole", pre)
    assert rows_of(out) == rows_of(tmp_path / "whole")
    assert read_embeddings(out).paths[6] == "a/00010.png"
    for options in ({}, {"update": True}):
        again = run(photos, out, pre, **options)
        assert (again.embedded, again.rows) == (0, 12)
    write_pictures(photos / "c", 1)
    with pytest.raises(ValueError, match=r"c/00000.png is new"):
        run(photos, out, pre)
    assert run(photos, out, pre, update=True).rows == 13


def test_what_is_gone_keeps_its_row_and_is_listed(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    paths = write_pictures(photos, 6)
    run(photos, out, pre)
    rows = rows_of(out)
    paths[1].unlink()
    paths[4].rename(photos / "z.png")
    done = run(photos, out, pre, update=True)
    assert (done.inputs, done.rows, done.gone) == (7, 7, 2)
    assert lines_of(out / "gone.jsonl") == [{"path": "00001.png"}, {"path": "00004.png"}]
    assert rows_of(out) == rows | {"z.png": rows["00004.png"]}
    with pytest.raises(ValueError, match=r"00001.png is missing"):
        run(photos, out, pre)
    write_pictures(photos, 6)
    assert run(photos, out, pre, update=True).gone == 0
    assert lines_of(out / "gone.jsonl") == []


def test_a_recorded_path_never_comes_to_mean_another_file(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "one", 3)
    write_pictures(tmp_path / "two", 3, first=2)
    run(tmp_path / "one", tmp_path / "out", pre)
    before = rows_of(tmp_path / "out")
    with pytest.raises(ValueError, match=r"00002.png is recorded for a different file than .*two/00002.png"):
        run(tmp_path / "two", tmp_path / "out", pre, update=True)
    assert rows_of(tmp_path / "out") == before
    assert run(tmp_path / "one", tmp_path / "out", pre).embedded == 0


def test_an_update_of_nothing_is_a_first_run(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 3)
    assert run(tmp_path / "in", tmp_path / "out", pre, update=True).rows == 3


@pytest.mark.slow
def test_failures_of_additions_are_tried_again(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    write_pictures(photos, 6)
    (photos / "00002.png").write_bytes(b"junk")
    run(photos, out, pre)
    write_pictures(photos / "more", 6)
    (photos / "more/00003.png").write_bytes(b"junk")
    done = run(photos, out, pre, update=True)
    assert (done.rows, done.failures, done.embedded) == (10, 2, 6)
    write_pictures(photos, 6)
    write_pictures(photos / "more", 6)
    done = run(photos, out, pre, retry_failed=True)
    assert (done.rows, done.failures, done.embedded) == (12, 0, 2)
    run(photos, tmp_path / "whole", pre)
    assert rows_of(out).keys() == rows_of(tmp_path / "whole").keys()


@pytest.mark.slow
def test_known_inputs_take_little_memory(tmp_path: Path) -> None:
    def sources(count: int) -> Any:
        return (Source(f"folder/{n:08d}.jpg", f"/root/folder/{n:08d}.jpg") for n in range(count))

    peaks = []
    for count in (20_000, 60_000):
        listed = list_inputs(tmp_path, sources(count), 1000, lambda listed: None)
        plan = commit_plan(tmp_path, listed, 1000, {})
        tracemalloc.start()
        try:
            known = KnownInputs(plan)
            added = sum(1 for _ in known.additions(sources(count + 10_000), lambda listed: None))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert added == 10_000
        assert list(known.gone()) == []
    assert peaks[1] - peaks[0] < 100 * 40_000


def test_a_second_input_does_not_embed_the_first_again(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in/a", 3)
    write_pictures(tmp_path / "in/b", 2)
    both = [tmp_path / "in/a", tmp_path / "in/b"]
    run(both[0], tmp_path / "out", pre)
    with pytest.raises(ValueError, match=r"a/00000.png is recorded under a different path .* as the first run did"):
        run(both, tmp_path / "out", pre, update=True)
    assert run(both[0], tmp_path / "out", pre).embedded == 0
    run(both[0], tmp_path / "rooted", pre, root=tmp_path / "in")
    done = run(both, tmp_path / "rooted", pre, root=tmp_path / "in", update=True)
    assert (done.rows, done.embedded, done.gone) == (5, 2, 0)


# ---- the same bytes


def test_each_distinct_image_is_embedded_once(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    paths = write_pictures(photos, 8)
    for copy, original in ((2, 0), (5, 1), (6, 0), (7, 4)):
        shutil.copy(paths[original], paths[copy])
    paths[4].write_bytes(b"junk")
    paths[3].write_bytes(b"junk")
    done = run(photos, out, pre, dedup="exact", sha256=True)
    assert (done.inputs, done.rows, done.failures, done.duplicates, done.embedded) == (8, 3, 1, 4, 4)
    assert lines_of(out / "duplicates.jsonl") == [
        {"path": "00002.png", "same_as": "00000.png"},
        {"path": "00004.png", "same_as": "00003.png"},
        {"path": "00005.png", "same_as": "00001.png"},
        {"path": "00006.png", "same_as": "00000.png"},
    ]
    data = read_embeddings(out)
    assert data.paths == ["00000.png", "00001.png", "00007.png"]
    assert data.sha256 == [hashlib.sha256((photos / path).read_bytes()).hexdigest() for path in data.paths]
    assert pq.read_schema(out / "part-00000.parquet").names == ["path", "embedding", "sha256"]
    assert run(photos, out, pre, dedup="exact", sha256=True).embedded == 0
    with pytest.raises(ValueError, match="dedup was exact, is null"):
        run(photos, out, pre, sha256=True)


def test_additions_are_compared_with_what_there_was(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    paths = write_pictures(photos, 5)
    run(photos, out, pre, dedup="exact")
    for name in ("x.png", "y.png"):
        shutil.copy(paths[3], photos / name)
    write_pictures(photos, 1, first=9)
    shutil.copy(photos / "00009.png", photos / "z.png")
    done = run(photos, out, pre, dedup="exact", update=True)
    assert (done.inputs, done.rows, done.duplicates, done.embedded) == (9, 6, 3, 1)
    same = {line["path"]: line["same_as"] for line in lines_of(out / "duplicates.jsonl")}
    assert same == {"x.png": "00003.png", "y.png": "00003.png", "z.png": "00009.png"}


def test_a_unit_of_duplicates_alone_is_sealed(pre: Pretrained, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "in", 1)
    for number in range(1, 10):
        shutil.copy(paths[0], tmp_path / f"in/{number:05d}.png")
    done = run(tmp_path / "in", tmp_path / "out", pre, dedup="exact")
    assert (done.rows, done.duplicates, done.shards) == (1, 9, 3)
    assert run(tmp_path / "in", tmp_path / "out", pre, dedup="exact").embedded == 0


def test_what_cannot_be_read_is_nobodys_double(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 2)
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).symlink_to("nowhere")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    done = run(tmp_path / "in", tmp_path / "out", pre, dedup="exact")
    assert (done.rows, done.failures, done.duplicates) == (2, 3, 0)


def test_retried_failures_among_duplicates_find_their_places(pre: Pretrained, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "in", 4)
    shutil.copy(paths[0], paths[1])
    paths[2].write_bytes(b"junk")
    run(tmp_path / "in", tmp_path / "out", pre, dedup="exact")
    write_pictures(tmp_path / "in", 1, first=2)
    done = run(tmp_path / "in", tmp_path / "out", pre, dedup="exact", retry_failed=True)
    assert (done.rows, done.failures, done.duplicates) == (3, 0, 1)
    assert read_embeddings(tmp_path / "out").paths == ["00000.png", "00002.png", "00003.png"]


@pytest.mark.slow
def test_doubles_of_a_failure_that_are_mended_get_rows(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    paths = write_pictures(photos, 9)
    good = [path.read_bytes() for path in paths]
    for place in (1, 2, 5, 6, 7):
        paths[place].write_bytes(b"403 Forbidden")
    shutil.copy(paths[3], paths[8])
    done = run(photos, out, pre, dedup="exact")
    assert (done.rows, done.failures, done.duplicates) == (3, 1, 5)
    for place in (2, 5, 6):  # all different; 1 and 7 are still what they were
        paths[place].write_bytes(good[place])
    done = run(photos, out, pre, dedup="exact", retry_failed=True)
    assert (done.rows, done.failures, done.duplicates, done.embedded) == (6, 1, 2, 4)
    same = {line["path"]: line["same_as"] for line in lines_of(out / "duplicates.jsonl")}
    assert same == {"00007.png": "00001.png", "00008.png": "00003.png"}
    for place in (1, 7):
        paths[place].write_bytes(good[1])  # the same picture in both
    done = run(photos, out, pre, dedup="exact", retry_failed=True)
    assert (done.rows, done.failures, done.duplicates) == (7, 0, 2)
    assert run(photos, out, pre, dedup="exact", retry_failed=True).embedded == 0
    assert read_embeddings(out).paths == [f"{number:05d}.png" for number in range(7)]
    run(photos, tmp_path / "whole", pre)
    rows = rows_of(tmp_path / "whole")
    assert {path: rows[path] for path in rows_of(out)} == rows_of(out)


def test_a_retry_hashes_only_failed_images_that_have_doubles_and_those(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    paths = write_pictures(photos, 7)
    good = paths[5].read_bytes()
    for place in (1, 4, 5):
        paths[place].write_bytes(b"403 Forbidden")
    paths[2].write_bytes(b"fails alone")
    shutil.copy(paths[3], paths[6])
    assert run(photos, out, pre, dedup="exact").duplicates == 3
    paths[5].write_bytes(good)
    names = hashed(monkeypatch)
    run(photos, out, pre, dedup="exact", retry_failed=True)
    assert sorted(names) == ["00001.png", "00004.png", "00005.png"]
    paths[4].write_bytes(b"404 Not Found")
    names.clear()
    run(photos, out, pre, dedup="exact", retry_failed=True)
    assert sorted(names) == ["00001.png", "00004.png"]
    names.clear()
    run(photos, out, pre, dedup="exact", retry_failed=True)
    assert names == []  # no double is left: each has a row or a failure of its own


def listed_only(progress: Progress) -> None:
    if progress.total is not None:
        raise KeyboardInterrupt


def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make files count as older than the clock is coarse, after a wait that is shorter than usual."""
    monkeypatch.setattr(suspects, "_SETTLED_NS", 10**8)
    time.sleep(0.2)


def test_a_resumed_run_reads_only_files_that_may_have_changed(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    paths = write_pictures(photos, 8)
    for copy, original in ((2, 0), (5, 1), (6, 0)):
        shutil.copy(paths[original], paths[copy])
    settled(monkeypatch)
    names = hashed(monkeypatch)
    for read in ([path.name for path in paths], [], []):
        with pytest.raises(KeyboardInterrupt):
            run(photos, out, pre, dedup="exact", on_progress=listed_only)
        assert sorted(names) == read
        names.clear()
    shutil.copy(paths[5], photos / "new.png")
    soon = time.time_ns() + 10**11
    os.utime(photos / "new.png", ns=(soon, soon))
    for read in (["new.png"], ["new.png"]):  # it was written only just before it was listed, however slow this is
        with pytest.raises(KeyboardInterrupt):
            run(photos, out, pre, dedup="exact", update=True, on_progress=listed_only)
        assert names == read
        names.clear()
    paths[7].touch()
    shutil.copy(paths[5], photos / "newer.png")
    done = run(photos, out, pre, dedup="exact", update=True)
    assert sorted(set(names)) == ["00007.png", "new.png", "newer.png"]
    assert (done.rows, done.duplicates) == (5, 5)
    names.clear()
    run(photos, out, pre, dedup="exact")
    assert names == []


@pytest.mark.parametrize("how", ["cp -p", "mv", "mv folder", "ln -s"])
@pytest.mark.parametrize("update", [False, True])
def test_an_older_file_in_the_place_of_one_that_was_listed_is_noticed(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, update: bool
) -> None:
    photos, other, out = tmp_path / "in" / "a", tmp_path / "other", tmp_path / "out"
    listed, older = write_pictures(photos, 2)[0], write_pictures(other, 1, first=7)[0].rename(other / "00000.png")
    size = max(len(listed.read_bytes()), len(older.read_bytes()))
    for file in (listed, older):
        file.write_bytes(file.read_bytes().ljust(size, b"\0"))
        os.utime(file, ns=(0, 10**18))
    shutil.copy2(listed, photos / "00002.png")
    if how == "ln -s":
        listed = listed.rename(tmp_path / "target.png")
        (photos / "00000.png").symlink_to(listed)
    for name in ("00001.png", "00002.png"):
        shutil.copy2(photos / name, other / name)
    settled(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(photos, out, pre, dedup="exact", on_progress=listed_only)
    if how == "cp -p":
        shutil.copy2(older, listed)
    elif how == "mv":
        older.rename(listed)
    elif how == "mv folder":
        photos.rename(tmp_path / "away")
        other.rename(photos)
    else:
        (photos / "00000.png").unlink()
        (photos / "00000.png").symlink_to(older)
    done = run(photos, out, pre, dedup="exact", update=update)
    assert (done.rows, done.duplicates) == (3, 0)


# ---- batches and devices


@pytest.mark.slow
def test_rows_are_the_same_bits_whatever_the_batch_size(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 70)
    group = FeatureExtractor(pre, (2,)).group
    assert group >= 2
    for size in (group, 2 * group, 4 * group):
        run(tmp_path / "in", tmp_path / str(size), pre, batch_size=size, unit_size=50)
    assert rows_of(tmp_path / str(group)) == rows_of(tmp_path / str(2 * group)) == rows_of(tmp_path / str(4 * group))


def test_few_images_are_not_computed_as_many(pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, seen, compute = FeatureExtractor(pre, (2,)).group, list[int](), FeatureExtractor.forward
    monkeypatch.setattr(
        FeatureExtractor, "forward", lambda self, images: seen.append(len(images)) or compute(self, images)
    )
    write_pictures(tmp_path / "in", group + 1)
    run(tmp_path / "in", tmp_path / "out", pre, batch_size=8 * group, unit_size=50)
    assert seen == [group, group]


def test_a_thread_that_cannot_be_started_is_an_error_and_no_hang(
    pre: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, submit = torch.get_num_threads(), ThreadPoolExecutor.submit
    submitted = []

    def failing(self: ThreadPoolExecutor, *task: Any) -> Any:
        submitted.append(task)
        if len(submitted) == 3:
            raise RuntimeError("can't start new thread")
        return submit(self, *task)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", failing)
    torch.set_num_threads(3)
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            Network(FeatureExtractor(pre, (2,)), 8)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_all_gpus_of_a_machine_without_any_are_not_the_cpu(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU"):
        run(tmp_path / "in", tmp_path / "out", pre, device="all")


@pytest.mark.slow
def test_rows_of_a_retry_are_the_same_bits(pre: Pretrained, tmp_path: Path) -> None:
    group = FeatureExtractor(pre, (2,)).group
    paths = write_pictures(tmp_path / "in", 9)
    run(tmp_path / "in", tmp_path / "whole", pre, batch_size=group)
    good = paths[3].read_bytes()
    paths[3].write_bytes(b"junk")
    run(tmp_path / "in", tmp_path / "out", pre, batch_size=group)
    paths[3].write_bytes(good)
    run(tmp_path / "in", tmp_path / "out", pre, batch_size=group, retry_failed=True)
    shards = [[file.read_bytes() for file in sorted((tmp_path / out).glob("part-*"))] for out in ("out", "whole")]
    assert shards[0] == shards[1]


@pytest.mark.slow
def test_rows_of_a_retry_are_the_same_bits_where_groups_do_not_fill_batches(tmp_path: Path) -> None:
    pre = load("bigr-tiny")
    paths = write_pictures(tmp_path / "in", 30)
    options = {"layers": [12], "batch_size": 12, "unit_size": 30}
    run(tmp_path / "in", tmp_path / "whole", pre, **options)
    for path in paths[8:12]:
        path.rename(path.with_suffix(".away"))
        path.write_bytes(b"junk")
    run(tmp_path / "in", tmp_path / "out", pre, **options)
    for path in paths[8:12]:
        path.with_suffix(".away").rename(path)
    assert run(tmp_path / "in", tmp_path / "out", pre, retry_failed=True, **options).embedded == 4
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")


@pytest.mark.slow
def test_scattered_failures_can_be_tried_again_together(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = FeatureExtractor.forward

    def overflowing(self: FeatureExtractor, images: torch.Tensor) -> Features:
        return compute(self, images)._replace(finite=images.flatten(1).any(1))  # not for black pictures

    monkeypatch.setattr(FeatureExtractor, "forward", overflowing)
    monkeypatch.setattr(local, "_HOPELESS", 3)
    for path in write_pictures(tmp_path / "in", 12)[::3]:
        Image.new("RGB", (40, 40)).save(path)
    assert run(tmp_path / "in", tmp_path / "out", pre).failures == 4
    done = run(tmp_path / "in", tmp_path / "out", pre, retry_failed=True)
    assert (done.failures, done.embedded) == (4, 4)
    with pytest.raises(ValueError, match="3 images in a row"):
        run([tmp_path / f"in/{number:05d}.png" for number in (0, 3, 6)], tmp_path / "black", pre)


@pytest.mark.slow
def test_rows_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    pre = load("bigr-tiny")  # large enough for its products and convolutions to be shared between threads
    write_pictures(tmp_path / "in", 21)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            run(tmp_path / "in", tmp_path / str(threads), pre, layers=[12], batch_size=8 * threads, unit_size=50)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert rows_of(tmp_path / "1") == rows_of(tmp_path / "2") == rows_of(tmp_path / "3")


def test_the_measured_batch_size_is_the_fastest_and_is_kept(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = FeatureExtractor(pre, (2,))
    times = {1: 8.0, 2: 5.0, 4: 3.0, 8: 2.9, 16: 1.0}
    monkeypatch.setattr(batching, "_SECONDS", 1e9)
    monkeypatch.setattr(batching, "_seconds", lambda extractor, size: times[size // extractor.group])
    assert batching.best_batch_size(extractor) == 4 * extractor.group  # 8 gains too little, 16 is not looked at

    def full(extractor: FeatureExtractor, size: int) -> float:
        if size > 2 * extractor.group:
            raise torch.OutOfMemoryError
        return 1 / size

    monkeypatch.setattr(batching, "_seconds", full)
    assert batching.best_batch_size(extractor) == 2 * extractor.group
    write_pictures(tmp_path / "in", 5)
    assert run(tmp_path / "in", tmp_path / "out", pre, batch_size="auto").batch_size == 2 * extractor.group
    monkeypatch.setattr(batching, "_seconds", lambda extractor, size: float(size))
    assert run(tmp_path / "in", tmp_path / "out", pre, batch_size="auto").batch_size == 2 * extractor.group
    assert run(tmp_path / "in", tmp_path / "out", pre, batch_size=None).batch_size == 2 * extractor.group
    assert run(tmp_path / "in", tmp_path / "new", pre, batch_size=None).batch_size == 32
    for wrong in (0, -1, "many"):
        with pytest.raises(ValueError, match="must be at least 1"):
            run(tmp_path / "in", tmp_path / "out", pre, batch_size=wrong)


def test_a_batch_size_is_really_measured(pre: Pretrained) -> None:
    extractor = FeatureExtractor(pre, (2,))
    size = batching.best_batch_size(extractor)
    assert size % extractor.group == 0
    assert size <= 1024


@pytest.mark.slow
def test_two_devices_give_what_one_gives(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 21)
    (tmp_path / "in/00007.png").write_bytes(b"junk")
    run(tmp_path / "in", tmp_path / "one", pre, codes=True)
    seen: list[Progress] = []
    done = run(tmp_path / "in", tmp_path / "two", pre, codes=True, device="cpu,cpu", on_progress=seen.append)
    assert (done.rows, done.failures) == (20, 1)
    assert seen[-1] == Progress(21, 21, 1)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")
    assert lines_of(tmp_path / "one/failures.jsonl") == lines_of(tmp_path / "two/failures.jsonl")


@pytest.mark.slow
def test_a_device_that_dies_ends_the_run_and_the_next_goes_on(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 60)
    killed = []

    def children() -> set[int]:
        listed = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        return {int(pid) for file in listed for pid in file.read_text().split()}

    others = children()

    def kill(progress: Progress) -> None:
        if progress.total and progress.done > 8 and not killed:
            killed.append(max(children() - others))
            os.kill(killed[-1], signal.SIGKILL)

    with pytest.raises(RuntimeError, match=r"process on cpu ended \(SIGKILL\); finished units are kept"):
        run(tmp_path / "in", tmp_path / "out", pre, device=["cpu", "cpu"], on_progress=kill)
    assert run(tmp_path / "in", tmp_path / "out", pre).embedded < 60
    run(tmp_path / "in", tmp_path / "whole", pre)
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")


@pytest.mark.slow
def test_what_a_device_raises_is_raised(pre: Pretrained, tmp_path: Path) -> None:
    broken = tiny_model()
    broken.tokenizer.quantize.proj[0].weight.data[0, 0] = torch.nan
    write_pictures(tmp_path / "in", 40)
    with pytest.raises(ValueError, match="16 images in a row"):
        run(tmp_path / "in", tmp_path / "out", broken, device="cpu,cpu")
    url = "http://127.0.0.1:9/x.png"  # where nobody listens
    with pytest.raises(ConnectionError, match="64 pictures in a row could not be fetched; run it again later"):
        run([f"{url}?{number}" for number in range(160)], tmp_path / "far", pre, device="cpu,cpu")


def test_a_device_that_is_none_is_refused_before_any_process_starts(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 2)
    with pytest.raises(ValueError, match="device='tpu' is unknown"):
        run(tmp_path / "in", tmp_path / "out", pre, device="cpu,tpu")


# ---- files for other programs


@pytest.fixture(scope="module")
def stored(pre: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    write_pictures(folder / "in/a", 3)
    write_pictures(folder / "in/b", 3)
    (folder / "in/b/00001.png").rename(folder / "in/b/two\nlines.png")
    options = {"layers": [1, 2], "codes": True, "labels_from_folders": True, "sha256": True}
    run(folder / "in", folder / "out", pre, **options)
    return folder / "out"


def test_an_array_and_its_paths(stored: Path, tmp_path: Path) -> None:
    done = export_embeddings(stored, tmp_path / "f.npy", layer=2)
    data = read_embeddings(stored, 2)
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), data.vectors)
    assert (done.shape, done.dtype) == ((6, 64), "float32")
    assert done.files == (tmp_path / "f.npy", tmp_path / "f.paths.txt")
    assert [unescape_path(line) for line in done.files[1].read_text().splitlines()] == data.paths
    assert export_embeddings(stored, tmp_path / "c.npy", codes=True).shape == (6, 24)
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), data.codes)


def test_an_export_says_what_is_missing(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out holds layers 1, 2; name one of them as the layer$"):
        export_embeddings(stored, tmp_path / "f.npy")
    with pytest.raises(ValueError, match=r"to=s3://bkt/f\.npy: exports are local files; export to a local path"):
        export_embeddings(stored, "s3://bkt/f.npy", layer=1)
    assert export_embeddings(stored, f"file://localhost{tmp_path}/f.npy", layer=1).files[0] == tmp_path / "f.npy"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_tokens_and_half_precision(pre: Pretrained, tmp_path: Path, dtype: str) -> None:
    write_pictures(tmp_path / "in", 5)
    run(tmp_path / "in", tmp_path / "out", pre, pool="none", store_dtype=dtype)
    export_embeddings(tmp_path / "out", tmp_path / "f.npy")
    array = np.load(tmp_path / "f.npy")
    assert (array.shape, array.dtype) == ((5, 16, 64), np.dtype(dtype))
    np.testing.assert_array_equal(array, read_embeddings(tmp_path / "out").vectors)


def test_csv_gives_the_same_numbers_back(stored: Path, tmp_path: Path) -> None:
    export_embeddings(stored, tmp_path / "f.csv", layer=1)
    data = read_embeddings(stored, 1)
    with (tmp_path / "f.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "label", "sha256", *map(str, range(64))]
    assert [row[0] for row in rows] == data.paths
    assert [row[1] for row in rows] == data.labels == ["a"] * 3 + ["b"] * 3
    assert [row[2] for row in rows] == data.sha256
    np.testing.assert_array_equal(np.array([row[3:] for row in rows], np.float32), data.vectors)
    export_embeddings(stored, tmp_path / "c.csv", codes=True)
    with (tmp_path / "c.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "code"]
    assert data.codes is not None
    assert [bytes.fromhex(row[1]) for row in rows] == [code.tobytes() for code in data.codes]


def test_an_export_that_fails_leaves_what_was_there(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_embeddings(stored, tmp_path / "f.npy", layer=2)
    mine = (tmp_path / "f.npy").read_bytes()
    for arguments, message in (
        ({"to": "f.txt", "layer": 1}, "one of .npy, .csv"),
        ({"to": "f.npy"}, "holds layers 1, 2"),
        ({"to": "f.npy", "layer": 3}, "layer=3 is not in"),
    ):
        with pytest.raises(ValueError, match=message):
            export_embeddings(stored, tmp_path / str(arguments.pop("to")), **arguments)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no embeddings here"):
        export_embeddings(tmp_path, tmp_path / "f.npy")
    damaged = tmp_path / "damaged"
    shutil.copytree(stored, damaged)
    last = sorted(damaged.glob("part-*"))[-1]
    content = bytearray(last.read_bytes())
    content[4:200] = bytes(196)  # the footer is whole, the rows are not
    last.write_bytes(content)
    with pytest.raises((OSError, ValueError)):
        export_embeddings(damaged, tmp_path / "f.npy", layer=1)
    assert (tmp_path / "f.npy").read_bytes() == mine
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "f.npy", "f.paths.txt"]
