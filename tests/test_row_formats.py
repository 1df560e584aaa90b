"""Rows as other libraries read them back: HDF5, Zarr and WebDataset, and our Parquet through DuckDB and Polars."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_model import tiny_model, write_pictures

from bigr_repr.embed import embed_images, export_embeddings, read_embeddings

LAYERS = (1, 2)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for name in ("a", "b"):
        write_pictures(folder / "in" / name, 3)
    fields = {"layers": LAYERS, "codes": True, "labels_from_folders": True, "sha256": True, "decode_timeout": None}
    embed_images(folder / "in", folder / "out", model=tiny_model(), unit_size=4, **fields)
    return folder / "out"


@pytest.mark.parametrize("codes", [False, True])
def test_hdf5(stored: Path, tmp_path: Path, codes: bool) -> None:
    h5py = pytest.importorskip("h5py")
    done = export_embeddings(stored, tmp_path / "f.h5", layer=2, codes=codes)
    data = read_embeddings(stored, 2)
    with h5py.File(tmp_path / "f.h5") as file:
        expected = data.codes if codes else data.vectors
        assert np.array_equal(file["values"][:], expected)
        assert (done.shape, done.dtype) == (file["values"].shape, file["values"].dtype)
        assert file["path"].asstr()[:].tolist() == data.paths
        assert codes or file["label"].asstr()[:].tolist() == data.labels
        assert json.loads(file.attrs["provenance"])["model"] == "tiny-random"


def test_zarr(stored: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    data = read_embeddings(stored, 1)
    for _ in range(2):  # the second replaces the first
        export_embeddings(stored, tmp_path / "f.zarr", layer=1)
    group = zarr.open_group(tmp_path / "f.zarr", mode="r")
    assert np.array_equal(group["values"][:], data.vectors)
    assert group["path"][:].tolist() == data.paths
    assert json.loads(group.attrs["provenance"])["layers"] == list(LAYERS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves its file open
def test_webdataset(stored: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    export_embeddings(stored, tmp_path / "f.tar", layer=1)
    data = read_embeddings(stored, 1)
    rows = list(webdataset.WebDataset(str(tmp_path / "f.tar"), shardshuffle=False).decode())
    assert np.array_equal(np.stack([row["npy"] for row in rows]), data.vectors)
    assert [row["json"]["path"] for row in rows] == data.paths
    assert [row["json"]["label"] for row in rows] == data.labels


def test_a_folder_of_other_things_is_not_replaced(stored: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr" / "mine").touch()
    zarr.create_group(tmp_path / "theirs.zarr").create_array("values", shape=(3,), dtype="float32")
    zarr.create_group(tmp_path / "said.zarr", attributes={"provenance": '{"package_version": "1"}'})
    export_embeddings(stored, tmp_path / "more.zarr", layer=1)
    zarr.open_group(tmp_path / "more.zarr").create_array("mine", shape=(3,), dtype="float32")
    before = sorted(tmp_path.rglob("*"))
    for name in ("folder", "theirs", "said", "more"):
        with pytest.raises(FileExistsError, match=f"{name}.zarr exists and is not an export of bigr-repr"):
            export_embeddings(stored, tmp_path / f"{name}.zarr", layer=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_the_package_the_remedy_is_named(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install h5py"):
        export_embeddings(stored, tmp_path / "f.h5", layer=1)


def test_duckdb_and_polars_read_the_files_as_they_are(stored: Path) -> None:
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    data = read_embeddings(stored, 2)
    pattern = str(stored / "*.parquet")
    rows = duckdb.sql(f"SELECT path, embedding_2, code FROM '{pattern}' ORDER BY path").fetchall()
    assert [row[0] for row in rows] == data.paths
    assert np.array_equal(np.array([row[1] for row in rows], np.float32), data.vectors)
    assert data.codes is not None
    assert [row[2] for row in rows] == [code.tobytes() for code in data.codes]
    frame = polars.read_parquet(pattern)
    assert np.array_equal(frame["embedding_2"].to_numpy(), data.vectors)
    assert frame["label"].to_list() == data.labels
