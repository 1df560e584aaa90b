"""Indexes in shards: what they find is what one index finds, however many processes look, and a build goes on."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_retrieval_growth import BITS, same_answers, write_part

from bigr_repr.retrieval import (
    Filter,
    HammingIndex,
    IndexSettings,
    Region,
    build_index,
    build_shards,
    merge_indexes,
    search_ids,
    sharding,
    update,
    update_index,
)
from bigr_repr.retrieval.index import shard_workers
from bigr_repr.retrieval.index.grouping import group_hits
from bigr_repr.retrieval.index.shard_list import shard_folders, unfinished_removal
from bigr_repr.retrieval.index.shards import Shards
from bigr_repr.retrieval.update import remove_images


def built_in_this_process(jobs: list[sharding._Job], processes: int) -> Iterator[None]:
    """Shards built one after the other in this process."""
    for job in jobs:
        sharding._build(*job)
        yield


@pytest.fixture(autouse=True)
def _processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow tests build shards in processes, as users do, which take a second each to start."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(sharding, "_built_here", built_in_this_process)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for number, count in enumerate((100, 40, 160, 20, 80, 200)):
        write_part(root / "data", number, count)
    return root / "data"


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_shards_find_what_one_index_finds(processes: int, data: Path, tmp_path: Path) -> None:
    one = build_index(data, tmp_path / "one", binarizer="bits")
    built = build_shards(data, tmp_path / "shards", 4, binarizer="bits")
    assert len(built) == len(one) == 600
    sizes = [len(HammingIndex.load(folder)) for folder in shard_folders(tmp_path / "shards")]
    assert len(sizes) == 4
    assert sum(sizes) == 600
    shards = HammingIndex.load(tmp_path / "shards", processes=processes)
    queries = np.concatenate([one.rows.codes[::57], np.zeros((1, BITS // 8), np.uint8)])
    for where in (None, 'label = "cat" and not path like "a/02%"', Filter(ids=tuple(one.ids.to_pylist()[::9]))):
        for k, radius, offset in ((1, None, 0), (12, 25, 3), (600, None, 0)):
            found, wanted = (each.find(queries, k, where=where, radius=radius, offset=offset) for each in (shards, one))
            for mine, theirs in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(mine, theirs)  # equal distances too: half of the codes are near copies
        region = Region(x=1, y=0, w=2, h=2)
        for mine, theirs in zip(
            *(each.find_region(queries, region, 9, where=where) for each in (shards, one)), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
    assert shards.ids.to_pylist() == one.ids.to_pylist()
    np.testing.assert_array_equal(shards.rows.codes[[0, 599, 99, 100, -1]], one.rows.codes[[0, 599, 99, 100, -1]])
    np.testing.assert_array_equal(shards.rows.codes[95:310:7], one.rows.codes[95:310:7])
    np.testing.assert_array_equal(np.asarray(shards.rows.codes), one.rows.codes)
    with pytest.raises(ValueError, match="step=-1 must be at least 1"):
        shards.rows.codes[::-1]
    assert shards.shards is not None
    shards.shards.close()


def test_shards_answer_all_that_one_index_does(data: Path, tmp_path: Path) -> None:
    one = build_index(data, tmp_path / "one", binarizer="bits")
    shards = build_shards(data, tmp_path / "shards", 4, binarizer="bits")
    same_answers(shards)  # several codes as one, near-duplicates
    groups = [group_hits(each, lambda k, each=each: each.find(one.rows.codes[:3], k), 7, 4) for each in (shards, one)]
    np.testing.assert_array_equal(groups[0].found.rows, groups[1].found.rows)
    assert groups[0].members == groups[1].members
    asked = {"weights": (1, -0.5), "group": 3, "where": 'label != "dog"'}
    mine, theirs = (search_ids(each, ["a/00/00003.jpg", "a/05/00100.jpg"], 5, **asked) for each in (shards, one))
    np.testing.assert_array_equal(mine.found.ids, theirs.found.ids)
    assert mine.near == theirs.near
    merged = merge_indexes([tmp_path / "shards"], tmp_path / "merged")
    assert merged.ids.equals(one.ids)
    assert merged.source == one.source == shards.source


def test_rescoring_reads_the_vectors_of_all_shards() -> None:
    random = np.random.default_rng(0)
    codes, vectors = random.integers(0, 256, (90, 8), np.uint8), random.standard_normal((90, 5)).astype(np.float32)
    one = HammingIndex.build(codes, vectors=vectors)
    parts = [HammingIndex.build(codes[run], vectors=vectors[run], ids=np.arange(90)[run])
             for run in (slice(0, 20), slice(20, 21), slice(21, 90))]  # fmt: skip
    shards = Shards(parts, [Path(str(i)) for i in range(3)], 1, HammingIndex.load)
    whole = HammingIndex(**shards.joined()._asdict(), shards=shards)
    for mine, theirs in zip(
        *(each.find_rescored(codes[:4], vectors[:4], 6, rescore=5) for each in (whole, one)), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("kind", ["flat", pytest.param("ivf", marks=pytest.mark.slow)])
def test_shards_are_brought_up_to_date_each_by_its_own_files(kind: str, data: Path, tmp_path: Path) -> None:
    mine, out = tmp_path / "data", tmp_path / "shards"
    shutil.copytree(data, mine)
    build_shards(mine, out, 3, binarizer="bits", kind=kind)
    unchanged = update_index(out)
    assert (unchanged.kept, unchanged.read, unchanged.dropped) == (600, 0, 0)
    (mine / "part-00001.parquet").unlink()  # 40 rows gone, 20 changed, 70 new
    write_part(mine, 3, 25)
    write_part(mine, 6, 70)
    done = update_index(out)
    assert (done.kept, done.read, done.dropped) == (540, 95, 60)
    index = HammingIndex.load(out)
    assert sorted(index.ids.to_pylist()) == sorted(
        build_index(mine, tmp_path / "anew", binarizer="bits").ids.to_pylist()
    )
    if kind == "flat":
        same_answers(index)
    assert update_index(out).read == 0
    write_part(tmp_path / "more", 0, 30, name="b")
    assert update_index(out, add=[tmp_path / "more"]).read == 30
    with pytest.raises(ValueError, match="update it without --add"):
        update_index(out, add=[tmp_path / "more"])
    with pytest.raises(ValueError, match=r"was built from .*, not "):
        update_index(out, tmp_path / "elsewhere")
    gone = ["a/00/00000.jpg", "b/00/00007.jpg", "a/06/00069.jpg"]
    with pytest.raises(ValueError, match=r"'nowhere\.jpg' is not in the index"):
        remove_images(out, [*gone, "nowhere.jpg"])
    assert remove_images(out, gone) == (3, 662)
    index = HammingIndex.load(out)
    assert not set(gone) & set(index.ids.to_pylist())
    assert index.source is not None
    assert update_index(out).read == 0  # what was removed stays out


def test_a_shard_without_rows_finds_nothing(data: Path, tmp_path: Path) -> None:
    one = build_index(data, tmp_path / "one", binarizer="bits")
    build_shards(data, tmp_path / "shards", 3, binarizer="bits")
    gone = HammingIndex.load(shard_folders(tmp_path / "shards")[0]).ids.to_pylist()
    remove_images(tmp_path / "shards", gone)
    one.remove(gone)
    shards = HammingIndex.load(tmp_path / "shards")
    assert len(shards) == len(one) == 600 - len(gone)
    for region in (None, Region(x=1, y=0, w=2, h=2)):
        for mine, theirs in zip(
            *(
                each.find(one.rows.codes[:4], 9) if region is None else each.find_region(one.rows.codes[:4], region, 9)
                for each in (shards, one)
            ),
            strict=True,
        ):
            np.testing.assert_array_equal(mine, theirs)


def test_what_shards_cannot_do_is_said(data: Path, tmp_path: Path) -> None:
    index = build_shards(data, tmp_path / "shards", 3, binarizer="bits")
    for change in (
        lambda: index.remove(["a/00/00000.jpg"]),
        lambda: index.add(index.rows.codes[:1], ["new"]),
        lambda: index.save(tmp_path / "i"),
    ):
        with pytest.raises(ValueError, match="a sharded index can only be changed in its folder"):
            change()
    with pytest.raises(ValueError, match="processes=0 must be at least 1"):
        HammingIndex.load(tmp_path / "shards", processes=0)
    build_index(data, tmp_path / "shards" / "shard-00001", binarizer="bits", kind="ivf")
    with pytest.raises(ValueError, match="shard-00001 differs in kind from the other shards"):
        HammingIndex.load(tmp_path / "shards")


def test_what_cannot_be_built(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="engine='slurm' is unknown; choose one of local, ray"):
        build_shards(data, tmp_path / "shards", 2, engine="slurm", binarizer="bits")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'bigr-repr\[ray\]'"):
        build_shards(data, tmp_path / "shards", 2, engine="ray", binarizer="bits")
    assert not (tmp_path / "shards").exists()


def test_a_folder_takes_either_form_of_an_index(data: Path, tmp_path: Path) -> None:
    """An index in place of shards, and shards in place of an index: nothing of what was there stays."""
    out = tmp_path / "index"
    one = build_index(data, out, binarizer="bits")
    shards = build_shards(data, out, 3, binarizer="bits")
    assert shards.ids.to_pylist() == one.ids.to_pylist()  # `one` keeps the files that it has open
    assert sorted(path.name for path in out.iterdir()) == ["shard-00000", "shard-00001", "shard-00002", "shards.json"]
    again = merge_indexes([out], out)
    assert again.shards is None
    assert again.ids.to_pylist() == shards.ids.to_pylist() == one.ids.to_pylist()
    assert not list(out.glob("shard*"))
    (out / "shard-00000").mkdir()  # of a build that was killed before its first list
    assert len(build_index(data, out, binarizer="bits")) == 600
    assert not list(out.glob("shard*"))


def test_shards_are_not_built_among_other_things(data: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"a picture")
    with pytest.raises(FileExistsError, match="holds something other than an index; choose another folder"):
        build_shards(data, tmp_path, 2, binarizer="bits")
    with pytest.raises(FileExistsError, match="is a file; choose a folder for the index"):
        build_shards(data, tmp_path / "holiday.jpg", 2, binarizer="bits")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.slow
def test_a_build_that_was_cut_short_goes_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    build_shards(data, out, 3, binarizer="bits")
    folders = shard_folders(out)
    held = [(folder / "index.json").stat().st_mtime_ns for folder in folders]
    shutil.rmtree(folders[1])
    (out / "shards.json").unlink()
    with pytest.raises(FileNotFoundError, match="no shards here"):
        shard_folders(out)
    assert len(build_shards(data, out, 3, binarizer="bits")) == 600
    again = [(folder / "index.json").stat().st_mtime_ns for folder in folders]
    assert [mine == theirs for mine, theirs in zip(held, again, strict=True)] == [True, False, True]
    assert len(build_shards(data, out, 2, binarizer="bits")) == 600  # other shards
    names = sorted(path.name for path in out.glob("shard-*"))
    assert names == sorted(folder.name for folder in shard_folders(out))
    assert len(names) == 2
    (out / "shards.json").write_text(json.dumps({"format": 1, "shards": ["../elsewhere"]}))
    with pytest.raises(ValueError, match="is not a shard"):
        HammingIndex.load(out)


@pytest.mark.parametrize("change", ["fewer shards", "updated shards"])
def test_an_index_stays_whole_until_all_new_shards_are_built(
    change: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off after each shard of a rebuild: what opens is the old index; the next run builds only the rest."""
    out, mine, shards = tmp_path / "shards", tmp_path / "data", 3
    shutil.copytree(data, mine)
    old = build_shards(mine, out, 3 if change == "updated shards" else 6, binarizer="bits").ids.to_pylist()
    if change == "updated shards":
        gone = ["a/00/00001.jpg", "a/05/00002.jpg"]
        remove_images(out, gone)
        old = [each for each in old if each not in gone]
    totals = []

    def broken_off(done: int, total: int) -> None:
        totals.append((done, total))
        if len(totals) > 1:
            raise KeyboardInterrupt

    for _ in range(shards):
        totals.clear()
        with pytest.raises(KeyboardInterrupt):
            build_shards(mine, out, shards, binarizer="bits", on_progress=broken_off)
        assert totals[-1] == (totals[0][0] + 1, shards)
        assert HammingIndex.load(out).ids.to_pylist() == old
        if totals[-1][0] == shards:
            break
    built = build_shards(mine, out, shards, binarizer="bits")
    assert built.ids.to_pylist() == build_index(mine, tmp_path / "one", binarizer="bits").ids.to_pylist()
    assert len(list(out.glob("shard-*"))) == 3


@pytest.mark.parametrize("ends", ["remove", "update"])
def test_a_removal_that_was_cut_short_is_finished(
    ends: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same command, by another removal or by an update."""
    out = tmp_path / "shards"
    build_shards(data, out, 3, binarizer="bits")
    gone = ["a/00/00000.jpg", "a/02/00007.jpg", "a/05/00069.jpg"]
    with monkeypatch.context() as patched:
        calls = []

        def killed(folder: Path, ids: list[str]) -> tuple[int, int]:
            calls.append(folder)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return remove_images(folder, ids)

        patched.setattr(update, "remove_images", killed)
        with pytest.raises(KeyboardInterrupt):
            update._remove_from_shards(out, gone)
    assert len(HammingIndex.load(out)) == 599
    with pytest.raises(ValueError, match=r"'nowhere\.jpg' is not in the index"):
        remove_images(out, [*gone, "nowhere.jpg"])
    assert len(HammingIndex.load(out)) == 599
    if ends == "remove":
        assert remove_images(out, [*gone, "a/01/00001.jpg"]) == (3, 596)
    else:
        assert update_index(out).read == 0
    assert not set(gone) & set(HammingIndex.load(out).ids.to_pylist())
    assert unfinished_removal(out) == []
    with pytest.raises(ValueError, match="is not in the index"):
        remove_images(out, gone)
    assert remove_images(out, []) == (0, len(HammingIndex.load(out)))


def test_a_shard_of_another_machine_may_come_to_sight_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            (tmp_path / "late").touch()

    monkeypatch.setattr(time, "sleep", sleep)
    assert sharding._is_seen(tmp_path / "late")
    assert len(waits) == 3
    assert not sharding._is_seen(tmp_path / "never")
    assert sum(waits[3:]) == 60


def test_cores_are_shared_among_the_processes_that_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are no more than the shards."""
    begun = []

    class Pool:
        def __init__(self, *_: object, **__: object) -> None: ...

        def submit(self, _: object, *arguments: object) -> Future[None]:
            begun.append(arguments)
            done: Future[None] = Future()
            done.set_result(None)
            return done

    monkeypatch.setattr(shard_workers, "ProcessPoolExecutor", Pool)
    index = HammingIndex.build(np.zeros((2, 8), np.uint8))
    Shards([index, index], [Path("0"), Path("1")], 8, HammingIndex.load)
    assert [each[:3] for each in begun] == [(["0"], 0, 2), (["1"], 1, 2)]


def test_shards_of_other_settings_are_built_again(data: Path, tmp_path: Path) -> None:
    def built(**settings: int | float) -> list[int]:
        index = build_shards(data, tmp_path / "s", 2, binarizer="bits", kind=IndexSettings(kind="hnsw", **settings))  # type: ignore[arg-type]
        assert {name: getattr(index.settings, name) for name in settings} == settings
        return sorted(path.stat().st_ino for path in (tmp_path / "s").glob("*/index.json"))

    first = built(links=4, target_recall=0.5)
    assert built(links=4, target_recall=0.5) == first  # the effort was the build's choice
    second = built(links=8, target_recall=0.5)
    assert not set(second) & set(first)
    third = built(links=8, target_recall=0.5, effort=48)
    assert not set(third) & set(second)
    assert not set(built(links=8, effort=48, target_recall=0.5, seed=1)) & set(third)


@pytest.mark.parametrize(("kind", "given"), [("ivf", {"effort": 1}), ("ivf", {"lists": 3}), ("hash", {"hash_bits": 3})])
def test_settings_that_are_left_out_later_are_chosen_anew(
    data: Path, tmp_path: Path, kind: str, given: dict[str, int]
) -> None:
    def built(folder: Path, **settings: int) -> dict[str, Any]:
        settings_of = IndexSettings(kind=kind, **settings)
        return build_shards(data, folder, 2, binarizer="bits", kind=settings_of).settings.to_dict()

    usual = built(tmp_path / "usual")
    assert built(tmp_path / "s", **given) != usual
    assert built(tmp_path / "s") == usual
