"""Parquet files whose columns have names of their own: read wherever a Parquet file is taken."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bigr_repr_cli.main import app
from PIL import Image
from tiny_model import picture
from typer.testing import CliRunner

from bigr_repr.checkpoints.pretrained import Pretrained, save
from bigr_repr.datasets import ParquetSet, open_images
from bigr_repr.embed import embed_images, read_embeddings
from bigr_repr.evaluate.data.splits import open_data, transfer
from bigr_repr.evaluate.runs.suite_file import SuiteData
from bigr_repr.images.formats import ImageError
from bigr_repr.images.parquet import Columns
from bigr_repr.retrieval import HammingIndex, build_index
from bigr_repr.retrieval.results.photos import PhotoFinder
from bigr_repr.retrieval.search import search_ids, search_images, views_of
from bigr_repr.serve.service import Service

NAMED = Columns(image="photo", label="species")
OPTIONS = ("--image-column", "photo", "--label-column", "species")


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()


def write(file: Path, numbers: range, **more: Any) -> Path:
    file.parent.mkdir(exist_ok=True, parents=True)
    species = ["finch" if number % 2 else "wren" for number in numbers]
    pq.write_table(pa.table({"photo": [encoded(n) for n in numbers], "species": species, **more}), file)
    return file


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("birds") / "birds.parquet", range(12))


@pytest.fixture(scope="module")
def embedded(pre: Pretrained, birds: Path) -> Path:
    columns = {"image_column": NAMED.image, "label_column": NAMED.label, "labels_from_folders": True}
    embed_images(birds, birds.parent / "data", model=pre, layers=[2], codes=True, decode_timeout=None, **columns)
    save(pre, birds.parent / "model")
    return birds.parent / "data"


def bigr(*words: object) -> tuple[int, str]:
    done = CliRunner(env={"COLUMNS": "300"}).invoke(app, [*map(str, words)])
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


# ---- data sets


def test_benchmarks_read_them(birds: Path, tmp_path: Path) -> None:
    for opened in (
        open_data(str(birds), columns=NAMED),
        SuiteData(dataset=str(birds), image_column="photo", label_column="species").open("data", 0),
        transfer(str(birds), str(birds), columns=NAMED),
    ):
        assert opened.train.class_names == ("finch", "wren")
    for side, numbers in (("train", range(8)), ("test", range(4))):
        write(tmp_path / "split" / f"birds-{side}.parquet", numbers)
        write(tmp_path / "folders" / side / "part.parquet", numbers)
    for place in (tmp_path / "split", tmp_path / "split" / "birds", tmp_path / "folders"):
        opened = open_data(str(place), columns=NAMED)
        assert (len(opened.train), len(opened.test)) == (8, 4)
        with pytest.raises(ImageError, match="has columns photo, species; one column image"):
            open_data(str(place))
    for side in ("train", "test"):
        write(tmp_path / f"cifar10-{side}.parquet", range(8))
    assert len(open_data("cifar10", root=tmp_path, columns=NAMED).test) == 8


def test_another_column_of_a_file_is_another_set(tmp_path: Path) -> None:
    """Or features of one would be taken for the other's."""
    file = write(tmp_path / "two.parquet", range(4), image=[encoded(20 + n) for n in range(4)], label=[0, 1, 1, 0])
    usual, named = ParquetSet(file), ParquetSet(file, NAMED)
    assert usual.fingerprint() != named.fingerprint()
    assert not np.array_equal(np.asarray(usual.load(0)), np.asarray(named.load(0)))


@pytest.mark.parametrize("columns", [Columns(image="gone"), Columns(image="photo", label="gone")])
def test_a_name_that_is_not_there_is_refused(birds: Path, columns: Columns) -> None:
    with pytest.raises(ImageError, match="has columns photo, species; one column gone") as caught:
        open_images(birds, columns=columns)
    assert caught.value.kind == "unsupported"


def test_embed_with_a_column_of_labels_that_is_not_there_says_so(pre: Pretrained, birds: Path, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"model": pre, "layers": [2], "decode_timeout": None, "image_column": "photo"}
    done = embed_images(birds, tmp_path / "a", label_column="gone", labels_from_folders=True, **usual)
    assert (done.rows, done.failures) == (0, 1)
    assert "one column gone with labels is needed; name another" in (tmp_path / "a" / "failures.jsonl").read_text()
    assert embed_images(birds, tmp_path / "b", label_column="gone", **usual).rows == 12  # of which nobody asks
    labeled = {**usual, "labels_from_folders": True}
    assert embed_images(birds, tmp_path / "c", label_column="species", **labeled).rows == 12
    with pytest.raises(ValueError, match="label_column was species, is null"):
        embed_images(birds, tmp_path / "c", **labeled)


# ---- search


def same(image: Image.Image | None, number: int) -> bool:
    return image is not None and np.array_equal(np.asarray(image), np.asarray(picture(number)))


def test_rows_are_queries_and_photographs(
    pre: Pretrained, birds: Path, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build_index(embedded, tmp_path / "index", binarizer="bits")
    monkeypatch.chdir(birds.parent)
    found = search_images(index, ["birds.parquet#3", "birds.parquet"], 1, model=pre, image_column="photo")
    assert found.found.rows.ravel().tolist() == [3, *range(12)]
    assert (found.found.distances == 0).all()
    with pytest.raises(ImageError, match="one column image with the bytes"):
        search_images(index, ["birds.parquet#3"], 1, model=pre)
    for view, number in zip(views_of(found, index, model=pre), [3, *range(12)], strict=True):
        assert same(view.photo, number)
        assert same(view.hits[0].photo, number)
    id = index.ids[5].as_py()
    assert same(search_ids(index, [id], 1).photos[0], 5)
    assert same(PhotoFinder(birds, index.source)(id, 5), 5)  # as it was embedded
    assert same(PhotoFinder(birds, image_column="photo")(id, 5), 5)
    assert PhotoFinder(birds)(id, 5) is None


def test_the_server_shows_their_photographs(pre: Pretrained, birds: Path, embedded: Path, tmp_path: Path) -> None:
    index = build_index(embedded, tmp_path / "index", binarizer="bits")
    HammingIndex.build(index.rows.codes, ids=index.ids.to_pylist()).save(tmp_path / "plain")  # knows no data set
    for name, column, shown in (("index", None, True), ("plain", None, False), ("plain", "photo", True)):
        service = Service(pre, index=tmp_path / name, images=birds, image_column=column)
        try:
            found = asyncio.run(service.photo(service.live.current, 5))  # type: ignore[union-attr]
        finally:
            service.close()
        assert (found is not None) == shown


def test_the_search_command_takes_the_column(
    birds: Path, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(embedded, tmp_path / "index", binarizer="bits")
    monkeypatch.chdir(birds.parent)
    shared = ("--index", tmp_path / "index", "--model", "model", "-k", 1)
    code, said = bigr("search", "birds.parquet#3", *shared, *OPTIONS[:2], "--html", tmp_path / "page.html")
    assert (code, "birds.parquet#3" in said) == (0, True)
    assert (tmp_path / "page.html").read_text().count("data:image") >= 4  # two photographs, two codes
    code, said = bigr("search", "--id", f"{birds}#3", *shared, "--montage", tmp_path / "m.png")
    assert (code, "no photograph" in said) == (0, False)
    assert bigr("search", "birds.parquet#3", *shared)[0] == 1


# ---- commands


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("bench", "knn", "--dataset", "{data}", "--model", "pixels", "-k", 1, "--cache", "{tmp}"),
        ("bench", "retrieval", "--dataset", "{data}", "--model", "pixels", "--cache", "{tmp}"),
        ("train", "codes", "{data}", "--tokenizer", "{model}", "--out", "{tmp}/codes"),
        ("train", "generator", "{data}", "--tokenizer", "{model}", "--out", "{tmp}/g", "--steps", 1, "--batch-size", 2,
         "--sample-every", 0, "--cpu"),
        ("train", "tokenizer", "{data}", "--out", "{tmp}/t", "--steps", 1, "--batch-size", 2, "--perceptual", "none",
         "--gan-start", -1, "--crop", 16, "--sample-every", 0, "--cpu"),
    ],
    ids=lambda words: " ".join(words[:2]),
)  # fmt: skip
def test_commands_take_the_columns(birds: Path, embedded: Path, tmp_path: Path, words: tuple[object, ...]) -> None:
    filled = [str(word).format(data=birds, tmp=tmp_path, model=birds.parent / "model") for word in words]
    code, said = bigr(*filled)
    assert (code, "has columns photo, species; one column image" in said) == (1, True)
    code, said = bigr(*filled, *OPTIONS)
    assert code == 0, said


def test_generated_images_may_lie_in_named_columns(birds: Path, tmp_path: Path) -> None:
    words = ("bench", "generation", birds, "--real", birds, "--model", "pixels:8", "-k", 1, "--cache", tmp_path)
    assert bigr(*words)[0] == 1
    code, said = bigr(*words, "--image-column", "photo")
    assert code == 0, said


def test_stored_rows_keep_their_labels(embedded: Path) -> None:
    assert read_embeddings(embedded).labels == ["wren", "finch"] * 6
    assert isinstance(build_index(embedded, embedded.parent / "labeled"), HammingIndex)
