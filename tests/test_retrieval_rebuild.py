"""Which shards a repeated build keeps: those that updates wrote, and those whose files' times were not recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_retrieval_growth import write_part
from test_retrieval_shards import built_in_this_process

from bigr_repr.retrieval import HammingIndex, IndexSettings, build_shards, sharding, update_index
from bigr_repr.retrieval.codes.source import DataFile, DataSource
from bigr_repr.retrieval.index.folder import manifest_digest
from bigr_repr.retrieval.index.shard_list import shard_folders
from bigr_repr.retrieval.update import remove_images

ASKED = IndexSettings(kind="hnsw", links=4, target_recall=0.5)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number, count in enumerate((100, 40, 60)):
        write_part(tmp_path / "data", number, count)
    return tmp_path / "data"


@pytest.fixture
def build(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Builds one shard, in this process, and returns what identifies its manifest."""
    monkeypatch.setattr(sharding, "_built_here", built_in_this_process)

    def built(kind: str | IndexSettings) -> int:
        build_shards(data, tmp_path / "out", 1, binarizer="bits", kind=kind)
        return (shard_of(tmp_path) / "index.json").stat().st_ino

    return built


def shard_of(tmp_path: Path) -> Path:
    (folder,) = shard_folders(tmp_path / "out")
    return folder


def asked(tmp_path: Path) -> Any:
    return json.loads((shard_of(tmp_path) / "index.json").read_text()).get("asked")


@pytest.mark.parametrize("changed", ["dropped", "rewritten", "all replaced"])
def test_a_shard_that_an_update_has_written_anew_is_kept_by_the_next_build(
    changed: str, data: Path, tmp_path: Path, build: Callable[..., int]
) -> None:
    build(ASKED)
    searched = HammingIndex.load(shard_of(tmp_path)).settings
    assert searched.effort is not None
    names = {"dropped": [1], "rewritten": [2], "all replaced": [0, 1, 2]}[changed]
    for number in names:
        (data / f"part-{number:05}.parquet").unlink()
    if changed != "dropped":
        for number in names:
            write_part(data, number, 35, name="b")
    assert update_index(tmp_path / "out").dropped == {"dropped": 40, "rewritten": 60, "all replaced": 200}[changed]
    assert asked(tmp_path) == ASKED.to_dict()
    written = (shard_of(tmp_path) / "index.json").stat().st_ino
    assert build(ASKED) == written
    assert build(replace(ASKED, links=8)) != written


def test_a_removal_that_writes_a_shard_anew_keeps_what_was_asked_for_unless_nothing_is_left(
    tmp_path: Path, build: Callable[..., int]
) -> None:
    build(ASKED)
    ids = HammingIndex.load(tmp_path / "out").ids.to_pylist()
    remove_images(tmp_path / "out", ids[:60])
    assert asked(tmp_path) == ASKED.to_dict()
    remove_images(tmp_path / "out", ids[60:])
    assert asked(tmp_path) is None  # the effort and lists of the next rows are chosen anew


def test_a_shard_whose_files_times_were_not_recorded_is_kept_if_their_sizes_are(
    data: Path, tmp_path: Path, build: Callable[..., int]
) -> None:
    build("flat")
    path = shard_of(tmp_path) / "index.json"
    manifest = json.loads(path.read_text())
    for part in manifest["dataset"]["parts"]:
        part[4] = None  # as in indexes of earlier versions, of data sets in stores
    del manifest["sha256"]
    path.write_text(json.dumps({**manifest, "sha256": manifest_digest(manifest)}))
    before = path.stat().st_ino
    assert build("flat") == before
    write_part(data, 1, 41)
    assert build("flat") != before


def test_a_source_is_still_itself_only_with_the_same_rows_of_the_same_files() -> None:
    one, two = DataFile("part-00000.parquet", 3, 3, 100, 7), DataFile("part-00001.parquet", 2, 2, 90, 8)
    source = DataSource(folders=("/data",), parts=(one, two))
    assert source.still(replace(source, parts=(one._replace(time=None), two)))
    assert replace(source, parts=(one, two._replace(time=None))).still(source)
    for parts in ((one,), (two, one), (one._replace(time=6), two), (one._replace(held=2, time=None), two)):
        assert not source.still(replace(source, parts=parts))
        assert not replace(source, parts=parts).still(source)
    assert not source.still(replace(source, folders=("/other",)))
