"""Indexes in shards: what they find is what one index finds, however many processes look, and a build goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_retrieval_growth import BITS, write_part

from bigr_repr.retrieval import Filter, HammingIndex, build_index, build_shards, open_store
from bigr_repr.retrieval.stores.shards import shard_folders


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
    shards = open_store(str(tmp_path / "shards"), processes=processes)
    queries = np.concatenate([one.rows.codes[::57], np.zeros((1, BITS // 8), np.uint8)])
    for where in (None, 'label = "cat" and not path like "a/02%"', Filter(ids=tuple(one.ids.to_pylist()[::9]))):
        for k, radius, offset in ((1, None, 0), (12, 25, 3), (600, None, 0)):
            found, wanted = (each.find(queries, k, where=where, radius=radius, offset=offset) for each in (shards, one))
            for mine, theirs in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(mine, theirs)  # equal distances too: half of the codes are near copies
    names, codes = shards.read([0, 99, 100, 599])
    assert names == one.ids.take([0, 99, 100, 599]).to_pylist()
    np.testing.assert_array_equal(codes, one.rows.codes[[0, 99, 100, 599]])
    assert shards.row_of("a/03/00007.jpg") == 307
    assert shards.row_of("none") == -1


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
    assert sorted(path.name for path in out.glob("shard-*")) == ["shard-00000", "shard-00001"]
    (out / "shards.json").write_text(json.dumps({"format": 1, "shards": ["../elsewhere"]}))
    with pytest.raises(ValueError, match="is no shard"):
        open_store(str(out))
