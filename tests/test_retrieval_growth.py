"""Indexes that grow and shrink in place: what is written, what is found, and what a broken update leaves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigr_repr.codes import hamming
from bigr_repr.embed.dataset.schema import METADATA_KEY
from bigr_repr.retrieval import (
    Filter,
    HammingIndex,
    IndexSettings,
    Region,
    build_index,
    find_near_duplicates,
    find_together,
    merge_indexes,
    update_index,
)
from bigr_repr.retrieval.codes.dataset import DataCodes
from bigr_repr.retrieval.codes.regions import TokenLayout
from bigr_repr.retrieval.codes.rows import IndexRows
from bigr_repr.retrieval.index.folder_writer import FolderWriter
from bigr_repr.retrieval.update import remove_images

BITS, PER_TOKEN = 64, 4


def write_part(folder: Path, number: int, count: int, *, name: str = "a", model: str = "random") -> None:
    """A file of an embedding data set that holds only codes, half of them near copies of the data set's first."""
    folder.mkdir(exist_ok=True)
    provenance = {
        "format": 1, "package_version": "0", "model": model, "weights_sha256": "0" * 64, "layers": [],
        "pooling": "avg", "shape": [1], "dtype": "float32", "precision": "float32", "condition": "",
        "preprocessing": {}, "n_bits": BITS, "bits_per_token": PER_TOKEN, "bit_order": "", "labels": None,
        "sha256": None, "dedup": None, "batch_size": 1,
    }  # fmt: skip
    random = np.random.default_rng(sum(map(ord, name)) * 1000 + number)
    codes = random.integers(0, 256, (count, BITS // 8), np.uint8)
    codes[::2] = np.packbits(random.random((len(codes[::2]), BITS)) < 0.02, axis=1)
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(BITS // 8), count, [None, pa.py_buffer(codes)])
    paths = pa.array([f"{name}/{number:02}/{place:05}.jpg" for place in range(count)])
    labels = pa.array([["cat", "dog", "elk"][place % 3] for place in range(count)])
    kinds = [("path", pa.string()), ("code", column.type), ("label", pa.string())]
    schema = pa.schema(
        [pa.field(title, kind, nullable=False) for title, kind in kinds],
        metadata={METADATA_KEY: json.dumps(provenance)},
    )
    pq.write_table(pa.table([paths, column, labels], schema=schema), folder / f"part-{number:05}.parquet")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number in range(10):
        write_part(tmp_path / "data", number, 200)
    return tmp_path / "data"


def anew(index: HammingIndex) -> HammingIndex:
    """An exact index of the same rows, in memory."""
    columns = index.rows.columns
    return HammingIndex.build(
        np.asarray(index.rows.codes).copy(), ids=index.ids, bits_per_token=PER_TOKEN,
        columns=None if columns is None else columns.combine_chunks(),
    )  # fmt: skip


def same_answers(index: HammingIndex, *, exact: bool = True) -> None:
    """All that can be asked of an index is answered as by one that was built of its rows."""
    truth = anew(index)
    queries = np.concatenate([np.asarray(index.rows.codes[::297]), np.zeros((1, BITS // 8), np.uint8)])
    among = [
        None,
        'label = "cat"',
        'label = "cat" and path like "a/0%"',
        Filter(ids=tuple(index.ids.to_pylist()[::5])),
        Filter(match="*/00001?.jpg"),
    ]
    for where in among:
        if where is None and not exact:
            found = index.find(queries, 12, effort=300)
            np.testing.assert_array_equal(found.distances, truth.find(queries, 12).distances)
            continue
        for k, radius, offset in ((1, None, 0), (12, None, 3), (40, 20, 0)):
            found, wanted = (
                each.find(queries, k, where=where, radius=radius, offset=offset) for each in (index, truth)
            )
            for mine, theirs in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(mine, theirs)
        mine, theirs = (
            each.find_region(queries, Region(x=1, y=0, w=2, h=2), 9, where=where) for each in (index, truth)
        )
        np.testing.assert_array_equal(mine.rows, theirs.rows)
    mine, theirs = (find_together(each, queries[:2], (1, -0.5), 9) for each in (index, truth))
    np.testing.assert_array_equal(mine.rows, theirs.rows)
    clusters = [[cluster.rows.tolist() for cluster in find_near_duplicates(each, 2)] for each in (index, truth)]
    assert clusters[0] == clusters[1]


def test_building_reports_the_rows_read_so_far(data: Path, tmp_path: Path) -> None:
    reported = list[tuple[int, int]]()
    build_index(data, tmp_path / "index", binarizer="bits", on_progress=lambda *counts: reported.append(counts))
    assert reported == sorted(set(reported))
    assert reported[-1] == (2000, 2000)


@pytest.mark.parametrize("kind", ["flat", "ivf", pytest.param("hnsw", marks=pytest.mark.slow), "hash"])
def test_an_index_that_grew_answers_as_one_built_of_its_rows(kind: str, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build_index(data, folder, binarizer="bits", kind=IndexSettings(kind=kind))
    files = {file.name: file.stat().st_ino for file in folder.glob("*.bin")}
    for number in (10, 11):
        write_part(data, number, 40)
        assert update_index(folder).read == 40
    same_answers(HammingIndex.load(folder), exact=kind == "flat")
    write_part(data, 3, 100)  # written anew
    (data / "part-00011.parquet").unlink()
    done = update_index(folder)
    assert (done.kept, done.read, done.dropped, done.files) == (1840, 100, 240, 1)
    index = HammingIndex.load(folder)
    assert {file.name: file.stat().st_ino for file in folder.glob("*.bin")}.items() > files.items()  # nothing anew
    kept = [f"a/{n:02}/{place:05}.jpg" for n in (0, 1, 2, *range(4, 10)) for place in range(200)]
    kept += [f"a/10/{place:05}.jpg" for place in range(40)] + [f"a/03/{place:05}.jpg" for place in range(100)]
    assert index.ids.to_pylist() == kept
    same_answers(index, exact=kind == "flat")
    assert remove_images(folder, kept[5:9]) == (4, 1936)
    index.remove(kept[5:9])  # in memory
    assert index.ids.equals(HammingIndex.load(folder).ids)
    index.add(np.zeros((3, BITS // 8), np.uint8), ["x", "y", "z"], columns={"label": ["cat"] * 3})
    index.save(tmp_path / "whole")
    whole = HammingIndex.load(tmp_path / "whole", memory_map=False)
    assert whole.ids.equals(index.ids)
    assert json.loads((tmp_path / "whole" / "index.json").read_text())["format"] == 1
    same_answers(whole, exact=kind == "flat")


def test_rows_that_are_gone_hide_none_behind_them(tmp_path: Path) -> None:
    """However many rows near a query are gone, the next ones are found."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (6000, 8), np.uint8)
    codes[:700] = 0
    HammingIndex.build(codes, ids=[f"{i}" for i in range(6000)], bits_per_token=4).save(tmp_path / "index")
    assert remove_images(tmp_path / "index", [f"{i}" for i in range(700)]) == (700, 5300)
    index = HammingIndex.load(tmp_path / "index")
    assert json.loads((tmp_path / "index" / "index.json").read_text())["count"] == 6000
    found = index.find(np.zeros((1, 8), np.uint8), 5)
    far = hamming(codes[700:], np.zeros(8, np.uint8))
    order = np.argsort(far, kind="stable")[:5]
    assert found.rows.tolist() == [order.tolist()]
    assert found.ids.tolist() == [[f"{700 + row}" for row in order]]
    assert index.find(np.zeros((1, 8), np.uint8), 5300).rows[0].tolist() == np.argsort(far, kind="stable").tolist()
    # An eighth gone: written anew.
    remove_images(tmp_path / "index", [f"{i}" for i in range(700, 760)])
    manifest = json.loads((tmp_path / "index" / "index.json").read_text())
    assert (manifest["count"], manifest["format"]) == (5240, 1)
    with pytest.raises(ValueError, match="'0' is not in the index"):
        remove_images(tmp_path / "index", ["800", "0"])
    assert len(HammingIndex.load(tmp_path / "index")) == 5240


def test_an_update_writes_what_is_new_and_touches_nothing_else(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    before = build_index(data, folder, binarizer="bits")
    held = {file.name: file.read_bytes() for file in folder.glob("*.bin")}
    write_part(data, 10, 20)
    update_index(folder)
    for name, content in held.items():
        assert (folder / name).read_bytes()[: len(content)] == content
    grown = sum(file.stat().st_size for file in folder.glob("*.bin")) - sum(map(len, held.values()))
    assert grown == 20 * (BITS // 8 + len("a/10/00000.jpg") + 8)
    # Whoever had the old state open still has it.
    assert len(before) == 2000
    same_answers(before)
    # An update to what is there already writes nothing.
    manifest = (folder / "index.json").stat().st_mtime_ns
    assert update_index(folder).read == 0
    assert (folder / "index.json").stat().st_mtime_ns == manifest


@pytest.mark.parametrize("at", ["append", "close_part", "commit"])
def test_an_update_cut_short_changes_nothing(
    at: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    build_index(data, folder, binarizer="bits")
    write_part(data, 10, 20)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    left = iter([True] * {"append": 3, "close_part": 2, "commit": 0}[at])
    whole = getattr(FolderWriter, at)

    def failing(self: FolderWriter, *arguments: object) -> object:
        if next(left, False):
            return whole(self, *arguments)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FolderWriter, at, failing)
        with pytest.raises(OSError, match="No space left"):
            update_index(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    # Killed, it leaves bytes behind the rows: they are passed over, and then overwritten.
    for file in folder.glob("*.bin"):
        with file.open("ab") as end:
            end.write(b"torn" * 50)
    assert len(HammingIndex.load(folder, memory_map=False)) == 2000
    update_index(folder)
    assert len(HammingIndex.load(folder, memory_map=False)) == 2020
    same_answers(HammingIndex.load(folder))


def test_a_copy_made_of_links_stays_as_it_is(data: Path, tmp_path: Path) -> None:
    folder, copy = tmp_path / "index", tmp_path / "copy"
    build_index(data, folder, binarizer="bits")
    copy.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".bin":
            os.link(file, copy / file.name)
        else:
            shutil.copy(file, copy)
    held = {file.name: file.read_bytes() for file in copy.iterdir()}
    write_part(data, 10, 20)
    assert update_index(folder).read == 20
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == held
    assert (len(HammingIndex.load(copy)), len(HammingIndex.load(folder))) == (2000, 2020)


@pytest.mark.parametrize("part", ["codes", "ids", "offsets", "columns", "gone"])
def test_damage_in_any_piece_is_found(part: str, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build_index(data, folder, binarizer="bits")
    write_part(data, 10, 20)
    (data / "part-00002.parquet").unlink()
    update_index(folder)
    HammingIndex.load(folder, memory_map=False)
    (file,) = folder.glob(f"{part}-*")
    whole = bytearray(file.read_bytes())
    for place in (len(whole) // 3, len(whole) - 9):
        damaged = whole.copy()
        damaged[place] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{file.name}: damaged"):
            HammingIndex.load(folder, memory_map=False)
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=file.name):
        HammingIndex.load(folder)


def test_a_manifest_of_gone_rows_that_are_none_is_refused(data: Path, tmp_path: Path) -> None:
    from bigr_repr.retrieval.codes.dropped_rows import Gaps, LiveRows

    for wrong in ([3, 3], [4, 2], [-1], [10]):
        with pytest.raises(ValueError, match="ascending"):
            Gaps(np.array(wrong), 10)
    gaps = Gaps(np.array([0, 3, 4, 9]), 10)
    stored = np.arange(20).reshape(10, 2)
    rows = LiveRows(stored, gaps)
    plain = np.delete(stored, [0, 3, 4, 9], axis=0)
    assert (rows.shape, len(rows), rows.nbytes) == (plain.shape, 6, plain.nbytes)
    for chosen in (slice(None), slice(1, 4), slice(5, 2), slice(0, 6, 2), slice(-2, None), 2, -1, [3, 0, 5], [-1]):
        np.testing.assert_array_equal(rows[chosen], plain[chosen])
    np.testing.assert_array_equal(np.take(rows, [[1, 2]], axis=0), plain[[[1, 2]]])
    np.testing.assert_array_equal(rows[plain[:, 0] > 5], plain[plain[:, 0] > 5])
    assert gaps.rows(gaps.places(np.arange(6))).tolist() == list(range(6))
    assert gaps.lost(np.arange(10)).nonzero()[0].tolist() == [0, 3, 4, 9]


# ---- several data sets


def test_an_index_of_several_data_sets_is_kept_up_with_each(tmp_path: Path) -> None:
    folder, one, two = tmp_path / "index", tmp_path / "one", tmp_path / "two"
    for number in range(4):
        write_part(one, number, 50)
        write_part(two, number, 30, name="b")
    built = build_index([one, two], folder, binarizer="bits")
    assert len(built) == 320
    assert built.source is not None
    assert built.source.folders == (str(one), str(two))
    assert built.source.place_of(210)[::2] == (str(two), 10)
    write_part(one, 4, 10)
    write_part(two, 4, 10, name="b")
    assert update_index(folder, one).read == 10
    assert update_index(folder).read == 10
    (two / "part-00000.parquet").unlink()
    assert update_index(folder, one).dropped == 0
    done = update_index(folder)
    assert (done.kept, done.dropped) == (310, 30)
    same_answers(HammingIndex.load(folder))
    write_part(tmp_path / "three", 0, 20, name="c")
    assert update_index(folder, add=[tmp_path / "three"]).read == 20
    index = HammingIndex.load(folder)
    same_answers(index)
    assert index.source is not None
    for row, id in enumerate(index.ids.to_pylist()):
        where, part, place = index.source.place_of(row)
        assert (Path(where).name, part.name, f"{place:05}.jpg") == (
            {"a": "one", "b": "two", "c": "three"}[id[0]], f"part-000{id[2:4]}.parquet", id[5:]
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"already includes .*three"):
        update_index(folder, add=[tmp_path / "three"])
    with pytest.raises(ValueError, match="add it with: index update --add"):
        update_index(folder, tmp_path / "four")
    write_part(tmp_path / "other", 0, 20, model="another")
    with pytest.raises(ValueError, match="do not match: model"):
        update_index(folder, add=[tmp_path / "other"])
    with pytest.raises(ValueError, match=r"other was not made with the settings of .*one: model"):
        build_index([one, tmp_path / "other"], folder, binarizer="bits")
    assert len(HammingIndex.load(folder)) == 330


def test_a_merged_index_keeps_its_data_sets(tmp_path: Path) -> None:
    for name in "ab":
        for number in range(3):
            write_part(tmp_path / name, number, 20, name=name)
        build_index(tmp_path / name, tmp_path / f"of-{name}", binarizer="bits")
    merged = merge_indexes([tmp_path / "of-a", tmp_path / "of-b"], tmp_path / "all")
    assert merged.source is not None
    assert merged.source.folders == (str(tmp_path / "a"), str(tmp_path / "b"))
    write_part(tmp_path / "b", 3, 20, name="b")
    done = update_index(tmp_path / "all")
    assert (done.kept, done.read) == (120, 20)
    index = HammingIndex.load(tmp_path / "all")
    same_answers(index)
    assert index.source is not None
    assert index.source.drift(0) is None
    assert index.source.drift(1) is None


# ---- data sets that change meanwhile


def test_what_changes_while_it_is_read_is_read_by_the_next_update(data: Path, tmp_path: Path) -> None:
    def changed(done: int, total: int) -> None:
        if done == 200:
            write_part(data, 0, 200, name="b")

    built = build_index(data, tmp_path / "index", binarizer="bits", on_progress=changed)
    assert built.ids[0].as_py() == "a/00/00000.jpg"
    done = update_index(tmp_path / "index")
    assert (done.kept, done.read, done.dropped) == (1800, 200, 200)
    assert "b/00/00000.jpg" in HammingIndex.load(tmp_path / "index").ids.to_pylist()


@pytest.mark.parametrize("work", ["build", "update", "rewrite"])
def test_other_rows_than_were_announced_are_no_index(
    work: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced between its listing and its reading would move the places of all rows after it."""
    out, batches = tmp_path / "index", DataCodes.batches
    if work != "build":
        build_index(data, out, binarizer="bits")
        for number in range(1 if work == "update" else 10):
            write_part(data, number, 200, name="b")

    def late(codes: DataCodes, vectors: str | None = None) -> Iterator[IndexRows]:
        write_part(data, 0, 210, name="c")
        yield from batches(codes, vectors)

    with monkeypatch.context() as patched:
        patched.setattr(DataCodes, "batches", late)
        with pytest.raises(ValueError, match="data changed while it was read: 2010 rows instead of 2000; repeat the"):
            build_index(data, out, binarizer="bits") if work == "build" else update_index(out)
    if work != "build":
        assert len(HammingIndex.load(out)) == 2000
        assert update_index(out).read > 0
    assert len(build_index(data, out, binarizer="bits")) == 2010


# ---- damage is not copied


@pytest.mark.parametrize("part", ["codes", "tokens", "vectors"])
@pytest.mark.parametrize("work", ["merge", "remove", "update", "save", "add"])
def test_damage_is_not_given_a_valid_checksum(work: str, part: str, data: Path, tmp_path: Path) -> None:
    """Whatever copies stored rows verifies them; what appends to their files keeps their checksums."""
    folder = tmp_path / "index"
    if part == "codes":
        ids = build_index(data, folder, binarizer="bits").ids.to_pylist()
    else:
        random = np.random.default_rng(0)
        codes = random.integers(0, 256, (2000, 2 if part == "tokens" else 8), np.uint8)
        rows = IndexRows(
            ids=pa.array([f"{row}" for row in range(2000)], pa.large_string()), codes=codes,
            tokens=random.integers(0, 256, (2000, 8), np.uint8), vectors=random.random((2000, 3), np.float32),
        )  # fmt: skip
        layout = TokenLayout.square(BITS, PER_TOKEN)
        HammingIndex.of_rows(rows, 8 * codes.shape[1], IndexSettings(), layout=layout).save(folder)
        ids = rows.ids.to_pylist()
        if work == "update":
            pytest.skip("this index has no data set")
    (file,) = folder.glob(f"{part}-*")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    for number in range(10):
        (data / f"part-{number:05}.parquet").touch()
    opened = HammingIndex.load(folder)
    work_of: dict[str, Callable[[], object]] = {
        "merge": lambda: merge_indexes([folder], tmp_path / "merged"),
        "remove": lambda: remove_images(folder, ids[:1000]),
        "update": lambda: update_index(folder),
        "save": lambda: opened.save(tmp_path / "saved"),
        "add": lambda: opened.remove(ids[:1]),
    }
    with pytest.raises(ValueError, match=rf"{file.name}: damaged, its content has changed since it was written"):
        work_of[work]()
    remove_images(folder, ids[:10])  # appended to its files' numbers of dropped rows only
    with pytest.raises(ValueError, match=rf"{file.name}: damaged"):
        HammingIndex.load(folder, memory_map=False)
