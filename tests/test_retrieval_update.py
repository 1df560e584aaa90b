"""An index and its data set over time: what is said of changes, updating, removing, and whose photograph is shown."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_model import picture, tiny_model, write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained, load, save
from bigr_repr.codes import hamming
from bigr_repr.embed import EmbeddingSet, embed_images
from bigr_repr.retrieval import HammingIndex, IndexSettings, build_index, search_images, update_index
from bigr_repr.retrieval.results.photos import PhotoFinder
from bigr_repr.retrieval.search import views_of
from bigr_repr.retrieval.update import remove_images

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save(tiny_model(), folder / "m")
    return folder / "m"


@pytest.fixture(scope="module")
def pre(model: Path) -> Pretrained:
    return load(model)


def embed(photos: Path, out: Path, pre: Pretrained, **options: object) -> None:
    embed_images(photos, out, model=pre, layers=(1,), codes=True, unit_size=8, decode_timeout=None, **options)  # type: ignore[arg-type]


def same_rows(index: HammingIndex, other: HammingIndex) -> None:
    """The same rows, whatever their order."""
    for mine, theirs in ((index, other), (other, index)):
        places = theirs.rows.places(mine.ids.to_pylist())
        assert (places >= 0).all()
        np.testing.assert_array_equal(mine.rows.codes, theirs.rows.codes[places])
        np.testing.assert_array_equal(mine.tokens, theirs.tokens[places])
        np.testing.assert_array_equal(mine.rows.vectors, theirs.rows.vectors[places])  # type: ignore[arg-type, index]


def test_a_file_of_another_name_is_no_part_of_the_data_set(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 3)
    embed(tmp_path / "photos", tmp_path / "data", pre)
    build_index(tmp_path / "data", tmp_path / "index")
    shutil.copy(tmp_path / "data" / "part-00000.parquet", tmp_path / "data" / "part-extra.parquet")
    source = HammingIndex.load(tmp_path / "index").source
    assert source is not None
    assert source.drift() is None
    assert update_index(tmp_path / "index").read == 0


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "hash"])
def test_an_updated_index_is_one_that_was_built_anew(kind: str, pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 20)
    embed(tmp_path / "photos", tmp_path / "data", pre)
    old = build_index(tmp_path / "data", tmp_path / "index", binarizer="pca", n_bits=16, kind=IndexSettings(kind=kind))
    assert old.binarizer is not None
    thresholds = old.binarizer.thresholds
    write_pictures(tmp_path / "photos", 5, first=20)
    shutil.copy(tmp_path / "photos" / "00003.png", tmp_path / "photos" / "twin.png")
    embed(tmp_path / "photos", tmp_path / "data", pre, update=True)
    done = update_index(tmp_path / "index")
    assert (done.kept, done.read, done.dropped, done.files) == (20, 6, 0, 1)
    index = HammingIndex.load(tmp_path / "index")
    assert index.binarizer is not None
    np.testing.assert_array_equal(index.binarizer.thresholds, thresholds)
    np.testing.assert_array_equal(index.rows.codes[:20], old.rows.codes)
    assert index.ids.to_pylist()[-1] == "twin.png"
    found = index.search(index.rows.codes, 1, effort=None if kind == "flat" else 20)
    assert (found.distances == 0).all()
    assert update_index(tmp_path / "index").read == 0
    # A file of the data set is written anew, another goes.
    parts = sorted((tmp_path / "data").glob("part-*.parquet"))
    table = pq.read_table(parts[1], partitioning=None)
    pq.write_table(table.slice(0, 3), parts[1])
    parts[2].unlink()
    done = update_index(tmp_path / "index")
    assert (done.kept, done.read, done.dropped, done.files) == (8 + 6, 3, 12, 1)
    again = HammingIndex.load(tmp_path / "index")
    stay = [f"{i:05d}.png" for i in [*range(8), *range(20, 25)]]
    assert again.ids.to_pylist() == [*stay, "twin.png", *(f"{i:05d}.png" for i in range(8, 11))]
    found = again.search(again.rows.codes, 2, effort=None if kind == "flat" else 20)
    truth = np.sort(hamming(again.rows.codes[:, None], again.rows.codes), axis=1)[:, :2]
    np.testing.assert_array_equal(found.distances, truth)
    assert (again.self_check is None) == (kind == "flat")


def test_an_update_equals_a_build_with_the_same_binarizer(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 12)
    embed(tmp_path / "photos", tmp_path / "data", pre)
    build_index(tmp_path / "data", tmp_path / "bits", binarizer="bits", layer=1)
    write_pictures(tmp_path / "photos", 9, first=12)
    embed(tmp_path / "photos", tmp_path / "data", pre, update=True)
    update_index(tmp_path / "bits")
    same_rows(
        HammingIndex.load(tmp_path / "bits"),
        build_index(tmp_path / "data", tmp_path / "anew", binarizer="bits", layer=1),
    )


def test_an_update_is_whole_or_not_at_all(pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigr_repr.retrieval.index.folder_writer import FolderWriter

    write_pictures(tmp_path / "photos", 9)
    embed(tmp_path / "photos", tmp_path / "data", pre)
    build_index(tmp_path / "data", tmp_path / "index", kind="ivf")
    write_pictures(tmp_path / "photos", 9, first=9)
    embed(tmp_path / "photos", tmp_path / "data", pre, update=True)
    before = sorted(file.name for file in (tmp_path / "index").iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FolderWriter, "commit", full)
        with pytest.raises(OSError, match="No space left"):
            update_index(tmp_path / "index")
    assert sorted(file.name for file in (tmp_path / "index").iterdir()) == before
    assert len(HammingIndex.load(tmp_path / "index")) == 9


def test_another_models_data_set_is_no_update(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 9)
    embed(tmp_path / "photos", tmp_path / "data", pre)
    embed(tmp_path / "photos", tmp_path / "other", tiny_model(seed=1, name="other"))
    build_index(tmp_path / "data", tmp_path / "index")
    with pytest.raises(ValueError, match="do not match: model was"):
        update_index(tmp_path / "index", tmp_path / "other")
    HammingIndex.build(np.zeros((3, 4), np.uint8)).save(tmp_path / "plain")
    with pytest.raises(ValueError, match="does not say which data set"):
        update_index(tmp_path / "plain")


def test_a_data_set_that_has_changed_is_spoken_of(model: Path, pre: Pretrained, tmp_path: Path, bigr: Run) -> None:
    write_pictures(tmp_path / "photos", 8)
    embed(tmp_path / "photos", tmp_path / "data", pre)
    assert bigr("index", "build", tmp_path / "data", "--codes", "bits")[2] == ""
    search = ("search", "00001.png", "--id", "--index", "index", "-k", 1)
    assert bigr(*search)[2] == ""
    write_pictures(tmp_path / "photos", 2, first=8)
    embed(tmp_path / "photos", tmp_path / "data", pre, update=True)
    said = f"index holds 8 of 10 rows of {tmp_path / 'data'}; bring it up to date with: bigr-repr index update index"
    assert said in bigr(*search)[2]
    assert "".join(said.split()) in "".join(bigr("index", "info", "index")[1].split())  # wherever the line breaks
    record = json.loads(bigr("index", "info", "index", "--json")[1])["dataset"]
    assert record == {"folder": str(tmp_path / "data"), "found": True, "rows": 10, "held": 8, "files": 1, "stale": 0}
    code, text, _ = bigr("index", "update", "index", "--json")
    assert (code, json.loads(text)) == (0, {"kept": 8, "read": 2, "dropped": 0, "files": 1})
    assert bigr(*search)[2] == ""
    code, text, _ = bigr("index", "remove", "index", "--id", "00003.png", "--id", "00008.png")
    assert (code, text) == (0, "2 images removed, 8 left: index\n")
    assert bigr(*search)[2] == ""  # nothing is missing that was not removed on purpose
    (tmp_path / "data" / "part-00000.parquet").rename(tmp_path / "apart")
    assert f"index holds 1 of 2 rows of {tmp_path / 'data'}, and 7 that have changed" in bigr(*search)[2]
    (tmp_path / "apart").rename(tmp_path / "data" / "part-00000.parquet")
    assert "without 2 of its 10 rows, which were removed" in " ".join(bigr("index", "info", "index")[1].split())
    (tmp_path / "list").write_text("00004.png\n00005.png\n")
    assert json.loads(bigr("index", "remove", "index", "--ids-file", "list", "--json")[1]) == {
        "removed": 2,
        "images": 6,
    }
    assert bigr("index", "update", "index")[1] == "6 rows kept, 0 dropped, 0 read from 0 files: index\n"
    assert bigr("index", "remove", "index", "--id", "00003.png")[0] == 1
    assert bigr("index", "remove", "index")[0] == 2
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")  # not at hand: nothing is known of it
    assert bigr(*search)[2] == ""
    said = f"{tmp_path / 'data'}: cannot be found"
    assert said in bigr(*search, "--html", "page.html", "--model", model)[2]
    assert "".join(said.split()) in "".join(bigr("index", "info", "index")[1].split())
    record = json.loads(bigr("index", "info", "index", "--json")[1])["dataset"]
    assert (record["found"], record["held"]) == (False, 6)


# ---- photographs


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()


def shows(photo: object, number: int) -> bool:
    return bool(np.array_equal(np.asarray(photo), np.asarray(picture(number))))


def test_photographs_in_tar_and_parquet_files_are_shown(pre: Pretrained, tmp_path: Path) -> None:
    """Also where a tar file holds one name twice: each row shows its own, and its own bits."""
    names = ["a/1.png", "a/2.png", "a/1.png", "b.png"]
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = len(encoded(number))
            tar.addfile(info, io.BytesIO(encoded(number)))
    rows = [{"bytes": encoded(10 + number), "path": None} for number in range(5)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "p.parquet")
    for file, first in (("s.tar", 0), ("p.parquet", 10)):
        data = tmp_path / f"of-{file}"
        embed(tmp_path / file, data, pre)
        index = build_index(data, tmp_path / "index", binarizer="bits")
        finder = PhotoFinder(source=index.source)
        for row, id in enumerate(index.ids.to_pylist()):
            assert shows(finder(id, row), first + row)
        searched = search_images(index, {"query": encoded(first + 2)}, 1, model=pre)
        assert searched.found.rows.tolist() == [[2]]
        (view,) = views_of(searched, index, model=pre)
        assert shows(view.hits[0].photo, first + 2)
        assert view.hits[0].differing is not None
        assert view.hits[0].differing.sum() == 0
        # Without the data set: by the name, in the file that is named.
        assert shows(PhotoFinder(tmp_path / file)(index.ids[3].as_py(), 3), first + 3)


def test_no_photograph_outside_the_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for name in ("secret.png", "in/a.png"):
        picture(1).save(tmp_path / name)
    for images in (tmp_path / "in", tmp_path / "in" / ".." / "in"):
        finder = PhotoFinder(images)
        assert shows(finder("a.png", 0), 1)
        assert shows(finder(str(tmp_path / "in" / "a.png"), 0), 1)  # as embedded among several inputs
        for id in ("../secret.png", str(tmp_path / "secret.png"), "../in/../secret.png", "a.png/../../secret.png"):
            assert finder(id, 0) is None, id


def test_rows_of_containers_are_queries(pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "photos", 6)
    embed(tmp_path / "photos", tmp_path / "data", pre)
    index = build_index(tmp_path / "data", tmp_path / "index", binarizer="bits")
    rows = [{"bytes": encoded(number), "path": None} for number in (4, 2)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "p.parquet")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        info = tarfile.TarInfo("deep/5.png")
        info.size = len(encoded(5))
        tar.addfile(info, io.BytesIO(encoded(5)))
    monkeypatch.chdir(tmp_path)
    searched = search_images(index, ["p.parquet#1", "s.tar/deep/5.png", "p.parquet", "s.tar"], 1, model=pre)
    assert searched.names == ["p.parquet#1", "s.tar/deep/5.png", "p.parquet#0", "p.parquet#1", "s.tar/deep/5.png"]
    assert [ids[0] for ids in searched.found.ids] == [f"0000{number}.png" for number in (2, 5, 4, 2, 5)]
    assert (searched.found.distances == 0).all()
    with pytest.raises(FileNotFoundError):
        search_images(index, ["s.tar/none.png"], 1, model=pre)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_thumbnails_are_kept_and_shown(timeout: float | None, pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 3)
    (tmp_path / "photos" / "00001x.png").write_bytes(b"no picture")
    embed_images(tmp_path / "photos", tmp_path / "data", model=pre, layers=(1,), thumbnails=24, decode_timeout=timeout)
    plain = tmp_path / "plain"
    embed_images(tmp_path / "photos", plain, model=pre, layers=(1,), decode_timeout=timeout)
    kept, without = (pq.read_table(folder / "part-00000.parquet") for folder in (tmp_path / "data", plain))
    assert kept.drop_columns(["image"]).equals(without)
    assert kept.schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for row, stored in enumerate(kept.column("image").to_pylist()):
        with Image.open(io.BytesIO(stored["bytes"])) as small:
            assert (small.format, max(small.size)) == ("WEBP", 24)
        assert stored["path"] == f"0000{row}.png"
    index = build_index(tmp_path / "data", tmp_path / "index")
    shutil.rmtree(tmp_path / "photos")
    for row, id in enumerate(index.ids.to_pylist()):
        photo = PhotoFinder(source=index.source)(id, row)
        assert photo is not None
        seen, wanted = (np.asarray(each.resize((8, 6)), float) for each in (photo, picture(row)))
        assert np.abs(seen - wanted).mean() < 12
    with pytest.raises(ValueError, match=r"thumbnails=8 must be in 16\.\.1024"):
        embed_images(write_pictures(tmp_path / "more", 1), tmp_path / "x", model=pre, layers=(1,), thumbnails=8)


def test_photographs_of_the_rows_that_are_left_are_shown(pre: Pretrained, tmp_path: Path) -> None:
    """After some of the same file were removed from the index: as they were embedded, and as thumbnails."""
    write_pictures(tmp_path / "photos", 12)
    embed(tmp_path / "photos", tmp_path / "data", pre, thumbnails=24)
    build_index(tmp_path / "data", tmp_path / "index")
    remove_images(tmp_path / "index", ["00002.png"])
    index = HammingIndex.load(tmp_path / "index")
    finder = PhotoFinder(source=index.source)
    for row, id in enumerate(index.ids.to_pylist()):
        file, small = finder.encoded(id, row)
        assert file == str(tmp_path / "photos" / id)
        with Image.open(io.BytesIO(small)) as shown:  # type: ignore[arg-type]
            seen = np.asarray(shown.resize((8, 6)), float)
        assert np.abs(seen - np.asarray(picture(int(id[:5])).resize((8, 6)), float)).mean() < 12


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_merged_index_is_one_of_all_rows(kind: str, pre: Pretrained, tmp_path: Path, bigr: Run) -> None:
    write_pictures(tmp_path / "a", 12)
    write_pictures(tmp_path / "b", 9, first=100)
    for name in "ab":
        embed(tmp_path / name, tmp_path / f"data-{name}", pre)
    one = build_index(tmp_path / "data-a", tmp_path / "one", binarizer="pca", n_bits=8, kind=kind)
    assert bigr("index", "build", "data-b", "--like", "one", "--out", "two")[0] == 0
    two = HammingIndex.load(tmp_path / "two")
    assert bigr("index", "merge", "one", "two", "--out", "all")[0] == 0
    merged = HammingIndex.load(tmp_path / "all")
    assert merged.ids.to_pylist() == [*one.ids.to_pylist(), *two.ids.to_pylist()]
    assert merged.settings.kind == kind
    codes = np.concatenate([one.rows.codes, two.rows.codes])
    np.testing.assert_array_equal(merged.rows.codes, codes)
    flat = HammingIndex.build(codes)
    found = merged.find(codes[:5], 6, effort=None if kind == "flat" else 64)
    np.testing.assert_array_equal(found.distances, flat.find(codes[:5], 6).distances)
    build_index(tmp_path / "data-b", tmp_path / "other", binarizer="pca", n_bits=8)
    code, _, error = bigr("index", "merge", "one", "other", "--out", "none")
    assert (code, "build the second with: index build --like" in error, error.count("\n")) == (1, True, 1)
    assert not (tmp_path / "none").exists()
    assert bigr("index", "merge", "one", "two", "--out", "one")[0] == 0  # in the place of one of them
    assert len(HammingIndex.load(tmp_path / "one")) == 21


def test_several_data_sets_written_by_embed_become_one_index(pre: Pretrained, tmp_path: Path, bigr: Run) -> None:
    """Each with the plan of its own run, which its files are checked against while they are read."""
    for name, first in (("a", 0), ("b", 100)):
        write_pictures(tmp_path / name, 10, first=first)
        embed(tmp_path / name, tmp_path / f"data-{name}", pre)
    assert bigr("index", "build", "data-a", "data-b", "--out", "all")[0] == 0
    built = HammingIndex.load(tmp_path / "all")
    ids = [f"{number:05}.png" for number in (*range(10), *range(100, 110))]
    assert built.ids.to_pylist() == ids
    joined = EmbeddingSet(tmp_path / "data-a").with_others([EmbeddingSet(tmp_path / "data-b")])
    assert joined.read(1).paths == ids
    shutil.copy(tmp_path / "data-a" / "part-00000.parquet", tmp_path / "data-b" / "part-00000.parquet")
    with pytest.raises(ValueError, match=r"data-b/part-00000\.parquet: rows of another run in this run's folder"):
        joined.read(1)
