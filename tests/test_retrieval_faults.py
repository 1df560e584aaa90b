"""Searching, updating and building indexes where something is odd: emptied indexes, wrong targets, odd names."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.embed import embed_images
from bigr_repr.retrieval import (
    Filter,
    HammingIndex,
    IndexSettings,
    build_index,
    build_shards,
    fit_binarizer,
    update_index,
)
from bigr_repr.retrieval.index.folder_writer import FolderWriter
from bigr_repr.retrieval.stores.open import open_store, push
from bigr_repr.retrieval.update import remove_images

Run = Callable[..., tuple[int, str, str]]


def embed(photos: Path, out: Path, pre: Pretrained) -> Path:
    embed_images(photos, out, model=pre, layers=(1,), codes=True, unit_size=8, decode_timeout=None)
    return out


@pytest.fixture
def data(pre: Pretrained, tmp_path: Path) -> Path:
    write_pictures(tmp_path / "photos", 10)
    return embed(tmp_path / "photos", tmp_path / "data", pre)


# ---- emptied indexes


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_an_emptied_index_is_updated(kind: str, data: Path, tmp_path: Path) -> None:
    index = build_index(data, tmp_path / "index", kind=kind)
    remove_images(tmp_path / "index", index.ids.to_pylist())
    done = update_index(tmp_path / "index")
    assert (done.kept, done.read, done.dropped) == (0, 0, 0)
    data.rename(tmp_path / "moved")
    assert update_index(tmp_path / "index", tmp_path / "moved").kept == 0
    source = HammingIndex.load(tmp_path / "index").source
    assert source is not None
    assert source.folders == (str(tmp_path / "moved"),)
    for part in (tmp_path / "moved").glob("part-*.parquet"):  # written anew
        part.touch()
    assert update_index(tmp_path / "index").read == len(index)
    assert len(HammingIndex.load(tmp_path / "index")) == len(index)


def test_an_emptied_shard_is_updated(data: Path, tmp_path: Path) -> None:
    build_shards(data, tmp_path / "index", shards=2)
    ids = HammingIndex.load(next(each for each in sorted((tmp_path / "index").iterdir()) if each.is_dir())).ids
    _, left = remove_images(tmp_path / "index", ids.to_pylist())
    done = update_index(tmp_path / "index")
    assert (done.kept, done.read, done.dropped) == (left, 0, 0)


# ---- which files are measured


def test_the_largest_file_is_the_recorded_one(data: Path, pre: Pretrained, tmp_path: Path, bigr: Run) -> None:
    """Not a file of the same name in the current folder; and a missing one has no size."""
    photos = tmp_path / "photos"
    for twin in ("00003.png", "twin.png", "third.png"):
        (photos / twin).write_bytes((photos / "00003.png").read_bytes())
    with (photos / "twin.png").open("ab") as file:
        file.write(bytes(9))
    index = build_index(embed(photos, tmp_path / "twins", pre), tmp_path / "index", binarizer="bits", layer=1)
    (tmp_path / "00003.png").write_bytes((photos / "twin.png").read_bytes() + bytes(9))
    arguments = ("near-duplicates", "index", "--radius", 0, "--keep", "largest", "--json")
    code, text, error = bigr(*arguments)
    assert (code, error) == (0, "")
    assert json.loads(text)["clusters"][0]["keep"] == ["twin.png"]
    (photos / "third.png").unlink()
    code, text, error = bigr(*arguments)
    assert code == 0
    assert "warning: 1 of 3 image sizes are unknown" in error
    assert json.loads(text)["clusters"][0]["keep"] == ["twin.png"]
    assert len(index) == 12


# ---- files to write


def test_inputs_are_not_overwritten(data: Path, tmp_path: Path, bigr: Run) -> None:
    build_index(data, tmp_path / "index")
    before = (tmp_path / "photos" / "00003.png").read_bytes()
    (tmp_path / "ids.txt").write_text("00001.png\n")
    shown = ("--index", "index", "--montage", "photos/../photos/00003.png")
    for query in ("photos/00003.png", "photos", "photos/*3.png"):
        code, out, error = bigr("search", query, *shown)
        assert (code, out) == (2, "")
        assert "is an input" in error
    assert (tmp_path / "photos" / "00003.png").read_bytes() == before
    by_id = ("search", "00001.png", "--id", "--index", "index")
    assert "is an input" in bigr(*by_id, "--ids-file", "ids.txt", "--html", "ids.txt")[2]
    assert (tmp_path / "ids.txt").read_text() == "00001.png\n"
    assert "is the file of --html too" in bigr(*by_id, "--html", "x.png", "--montage", "./x.png")[2]
    near = ("near-duplicates", "index", "--list")
    assert "is the file of --list too" in bigr(*near, "x.csv", "--html", "x.csv")[2]
    assert "is a file of the index" in bigr(*near, "index/index.json")[2]


def test_photographs_of_the_index_are_not_overwritten(data: Path, tmp_path: Path, bigr: Run) -> None:
    build_index(data, tmp_path / "index")
    before = (tmp_path / "photos" / "00003.png").read_bytes()
    by_id = ("search", "00001.png", "--id", "--index", "index", "--images", "photos")
    for command in (
        (*by_id, "--montage", "photos/00003.png"),
        (*by_id[:-2], "--html", "photos/../photos/00003.png"),  # where the data set recorded it
        ("near-duplicates", "index", "--list", tmp_path / "photos" / "00003.png"),
    ):
        code, out, error = bigr(*command)
        assert (code, out) == (2, ""), command
        assert "is an image of the index, 00003.png" in " ".join(error.split())
    assert (tmp_path / "photos" / "00003.png").read_bytes() == before
    (tmp_path / "photos" / "sheet.png").write_bytes(b"an older sheet")
    assert bigr("near-duplicates", "index", "--list", "photos/sheet.png")[0] == 0
    assert "must end in .png" in bigr(*by_id, "--montage", "sheet.jpg")[2]


@pytest.mark.parametrize(("target", "message"), [("none/x.html", "no such folder"), ("photos", "is a folder")])
def test_a_bad_target_is_refused_before_the_index_is_opened(
    target: str, message: str, tmp_path: Path, bigr: Run
) -> None:
    (tmp_path / "photos").mkdir()
    for command in (("search", "a.png", "--id", "--index", "nowhere"), ("near-duplicates", "nowhere")):
        code, out, error = bigr(*command, "--html", target)
        assert (code, out) == (1, "")
        assert message in error


def test_hits_are_printed_even_if_their_pictures_cannot_be_written(
    data: Path, tmp_path: Path, bigr: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **how: object) -> None:
        raise OSError(28, "No space left on device")

    build_index(data, tmp_path / "index")
    monkeypatch.setattr("bigr_repr.retrieval.search.views_of", full)
    code, out, error = bigr("search", "00001.png", "--id", "--index", "index", "--html", "x.html")
    assert code == 1
    assert "00001.png" in out
    assert "No space left" in error


# ---- numbers out of range


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_out_of_range_is_refused_by_name(seed: int, data: Path, tmp_path: Path, bigr: Run) -> None:
    for command in (("index", "build"), ("codes",)):
        code, _, error = bigr(*command, data, "--seed", seed)
        assert code == 2
        assert "--seed" in error
    said = rf"seed={seed} must be .*in 0\.\.2147483647"
    with pytest.raises(ValueError, match=said):
        IndexSettings(kind="ivf", seed=seed)
    with pytest.raises(ValueError, match=said):
        fit_binarizer("rotation", np.eye(8), seed=seed)
    with pytest.raises(ValueError, match=said):
        build_index(data, tmp_path / "index", seed=seed)
    stored = IndexSettings().to_dict() | {"seed": seed}  # by an earlier version
    assert 0 <= IndexSettings.from_dict(stored).seed < 2**31


def test_too_many_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"n_bits=1000000000000 must be in 1\.\.46340 for rotation"):
        fit_binarizer("rotation", np.eye(8), n_bits=10**12)


# ---- building


def test_a_data_set_is_named_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    for second in (data, "data/", tmp_path / "link"):
        with pytest.raises(ValueError, match="is named twice; name each data set once"):
            build_index([data, second], tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_failed_build_removes_only_a_folder_that_it_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FolderWriter, "commit", full)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for out in ("empty", "link", "new"):
        with pytest.raises(OSError, match="No space left"):
            build_index(data, tmp_path / out)
    assert list((tmp_path / "empty").iterdir()) == []
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "new").exists()


# ---- ids


def test_ids_are_taken_as_listed_and_as_the_system_names_them(pre: Pretrained, tmp_path: Path, bigr: Run) -> None:
    photos, raw = tmp_path / "photos", b"caf\xe9.png"
    write_pictures(photos, 4)
    (photos / "00003.png").rename(photos / os.fsdecode(raw))
    build_index(embed(photos, tmp_path / "data", pre), tmp_path / "index")
    listed = r"caf\xe9.png"
    search = ("search", "--id", "--index", "index", "--json", "-k", 1)
    for id in (listed, os.fsdecode(raw)):
        code, out, _ = bigr(*search, id)
        assert code == 0
        assert json.loads(out)[0]["hits"][0]["id"] == listed
    for line in (listed.encode(), raw):
        (tmp_path / "ids.txt").write_bytes(line + b"\n")
        code, out, _ = bigr(*search, "00001.png", "--ids-file", "ids.txt")
        assert code == 0
        assert [hit["id"] for hit in json.loads(out)[0]["hits"]] == [listed]
    assert bigr("index", "remove", "index", "--ids-file", "ids.txt")[1].startswith("1 image removed, 3 left")
    build_index(tmp_path / "data", tmp_path / "index")
    assert bigr("index", "remove", "index", "--id", os.fsdecode(raw))[1].startswith("1 image removed, 3 left")


def test_a_store_finds_nothing_among_no_ids(data: Path, tmp_path: Path, bigr: Run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("lancedb")
        push(build_index(data, tmp_path / "index"), f"lancedb:{tmp_path / 'lance'}")
        for index in ("index", "lancedb:lance"):
            code, out, error = bigr("search", "00001.png", "--id", "--index", index, "--ids-file", "/dev/null")
            assert code == 0, error
            assert "no image matches" in error
            assert ".png" not in out
        opened = open_store(f"lancedb:{tmp_path / 'lance'}")
        assert opened.binarizer is not None
        vectors = np.zeros((2, opened.binarizer.width))
        nothing = opened.rescored(opened.binarizer.encode(vectors), vectors, 3, where=Filter(ids=()))
        assert nothing.ids.shape[0] == 2
        assert all(id is None for id in nothing.ids.flat)
