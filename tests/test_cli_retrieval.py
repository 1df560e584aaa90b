"""`bigr-repr index`, `search`, `codes`, `decode` and `near-duplicates` as their users meet them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from bigr_repr_cli.search import report
from PIL import Image
from tiny_model import tiny_model, write_pictures

from bigr_repr.checkpoints.pretrained import load, save
from bigr_repr.codes import from_bytes, hamming, tokens_to_grid
from bigr_repr.embed import embed_images, read_embeddings
from bigr_repr.embed.dataset.schema import METADATA_KEY
from bigr_repr.features.extract import encode_codes
from bigr_repr.retrieval import Filter, HammingIndex, sharding
from bigr_repr.retrieval.codes.dataset import DataCodes
from bigr_repr.retrieval.codes.decoding import decode_codes
from bigr_repr.retrieval.codes.files import export_data_codes, read_codes

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, photographs, a data set of two layers and codes, and an index of bits and one of features."""
    folder = tmp_path_factory.mktemp("retrieval")
    pre = tiny_model()
    save(pre, folder / "model")
    write_pictures(folder / "photos", 20)
    shutil.copy(folder / "photos" / "00003.png", folder / "photos" / "twin.png")
    embed_images(folder / "photos", folder / "data", model=str(folder / "model"), layers=(1, 3), codes=True)
    embed_images(folder / "photos", folder / "plain", model=str(folder / "model"), layers=(3,))
    return folder


@pytest.mark.slow
def test_bits_from_pictures_to_a_page(place: Path, tmp_path: Path, bigr: Run) -> None:
    code, text, errors = bigr("index", "build", place / "data", "--codes", "bits", "--layer", 3)
    assert (code, errors) == (0, "")
    assert "192 bits = 24 B: tokenizer bits of tiny-random" in " ".join(text.split())
    photo = place / "photos" / "00003.png"
    shown = ("--html", "page.html", "--montage", "sheet.png", "--images", place / "photos")
    code, text, errors = bigr("search", photo, "--index", "index", "-k", 5, "--model", place / "model", *shown)
    assert code == 0, errors
    assert errors == "written: page.html and sheet.png\n"
    assert text.splitlines()[0].split() == ["bits", "image"]
    listed = [line.split() for line in text.splitlines()[1:]]
    codes = encode_codes(place / "photos", model=place / "model")
    distances = hamming(codes, codes[3])
    assert [line[1] for line in listed][:2] == ["00003.png", "twin.png"]
    assert [int(line[0]) for line in listed] == sorted(distances.tolist())[:5]
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 6
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script", page)  # nothing comes from elsewhere
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 600


@pytest.mark.slow
def test_features_with_rescoring_agree_with_floats(place: Path, bigr: Run) -> None:
    assert bigr("index", "build", place / "data", "--layer", 3, "--vectors", "float32", "--out", "f")[0] == 0
    code, text, _ = bigr("search", "00005.png", "--id", "--index", "f", "-k", 4, "--rescore", 5, "--json")
    assert code == 0
    (found,) = json.loads(text)
    vectors = read_embeddings(place / "data", 3).vectors.astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit[5]), kind="stable")[:4]
    assert [hit["id"] for hit in found["hits"]] == [f"{row:05d}.png" if row < 20 else "twin.png" for row in order]
    by_picture = bigr(
        "search", place / "photos" / "00005.png", "--index", "f", "-k", 4, "--rescore", 5, "--json",
        "--model", place / "model",
    )  # fmt: skip
    assert [hit["id"] for hit in json.loads(by_picture[1])[0]["hits"]] == [hit["id"] for hit in found["hits"]]


def test_a_picture_that_cannot_be_read_does_not_end_the_others(place: Path, tmp_path: Path, bigr: Run) -> None:
    bigr("index", "build", place / "data", "--codes", "bits", "--layer", 3)
    (tmp_path / "torn.png").write_bytes((place / "photos" / "00001.png").read_bytes()[:200])
    model = ("--index", "index", "-k", 1, "--model", place / "model")
    photos = [str(place / "photos" / f"0000{number}.png") for number in (1, 2)]
    code, text, error = bigr("search", photos[0], "torn.png", "gone.png", photos[1], *model)
    assert (code, error.count("\n")) == (1, 2)
    assert "torn.png" in error
    assert "gone.png" in error
    assert [line for line in text.splitlines() if line.endswith(".png") and not line.startswith(" ")] == photos
    code, text, _ = bigr("search", photos[0], "torn.png", photos[1], *model, "--json")
    answers = json.loads(text)
    assert code == 1
    assert [answer["query"] for answer in answers] == [*photos, "torn.png"]  # as they were named
    assert [len(answer.get("hits", [])) for answer in answers] == [1, 1, 0]
    assert "torn.png" in answers[2]["error"]
    code, text, error = bigr("search", "torn.png", *model)
    assert (code, text, error.count("\n")) == (1, "", 1)


def test_a_search_among_some_paths(place: Path, bigr: Run) -> None:
    bigr("index", "build", place / "data", "--codes", "bits", "--layer", 3)
    search = ("search", "00003.png", "--id", "--index", "index", "-k", 3, "--json")
    (found,) = json.loads(bigr(*search, "--match", "0001*")[1])
    assert all(hit["id"].startswith("0001") for hit in found["hits"])
    assert len(found["hits"]) == 3
    (found,) = json.loads(bigr(*search, "--match", "twin.png")[1])
    assert found["hits"] == [{"id": "twin.png", "distance": 0}]
    everything = json.loads(bigr(*search[:-3], "-k", 16, "--json")[1])[0]["hits"]
    (found,) = json.loads(bigr(*search, "--where", 'path like "0001%"', "--offset", 1, "--rescore", 9)[1])
    assert {hit["id"][:4] for hit in found["hits"]} == {"0001"}
    (found,) = json.loads(bigr(*search, "--offset", 2, "--radius", everything[3]["distance"])[1])
    assert found["hits"] == [hit for hit in everything[2:5] if hit["distance"] <= everything[3]["distance"]]
    Path("some.txt").write_text("00005.png\n00002.png\nnone.png\n")
    (found,) = json.loads(bigr(*search, "--ids-file", "some.txt")[1])
    assert {hit["id"] for hit in found["hits"]} == {"00005.png", "00002.png"}
    code, _, error = bigr(*search[:-1], "--match", "no*")
    assert (code, "no image matches the filter" in error) == (0, True)
    for wrong, message in (("label = 1", "its columns are path; keep more"), ("path = ", "cannot be read")):
        code, _, error = bigr(*search, "--where", wrong)
        assert (code, message in error, error.count("\n")) == (1, True, 1)
    code, _, error = bigr("index", "build", place / "data", "--codes", "bits", "--keep", "width")
    assert (code, "has no column 'width' to keep; its columns are path" in error) == (1, True)


def test_several_pictures_as_one_query_grouped_and_as_csv(place: Path, bigr: Run) -> None:
    bigr("index", "build", place / "data", "--codes", "bits", "--layer", 3)
    search = ("search", "00003.png", "00005.png", "--id", "--index", "index", "-k", 4)
    (found,) = json.loads(bigr(*search, "--weights", "1,1", "--json")[1])
    assert {hit["id"] for hit in found["hits"]} > {"00003.png", "00005.png"} - {"twin.png"}
    assert found["query"] == "1*00003.png +1*00005.png"
    (away,) = json.loads(bigr(*search, "--weights", "1,-0.5", "--json")[1])
    assert "00005.png" not in [hit["id"] for hit in away["hits"]]
    listed = list(csv.DictReader(io.StringIO(bigr(*search, "--csv", "--group", 0)[1])))
    assert {row["query"] for row in listed} == {"00003.png", "00005.png"}
    assert ("twin.png" in {row["id"] for row in listed if row["near_duplicate_of"]}) or len(listed) >= 8
    for wrong, message in (
        (("--weights", "1,x"), "1,1,-0.5"),
        (("--weights", "1"), "must be 2 finite numbers"),
    ):
        code, _, error = bigr(*search, *wrong)
        assert (code != 0, message in error) == (True, True)


@pytest.mark.slow
def test_queries_come_from_standard_input(place: Path, bigr: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    bigr("index", "build", place / "data", "--codes", "bits", "--layer", 3)
    photo = place / "photos" / "00005.png"

    def piped(data: bytes, *options: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        return bigr("search", "-", "--index", "index", "-k", 1, "--json", *options)

    model = ("--model", place / "model")
    for data, name in ((photo.read_bytes(), "-"), (f"{photo}\n".encode(), str(photo))):
        (answer,) = json.loads(piped(data, *model)[1])
        assert (answer["query"], answer["hits"]) == (name, [{"id": "00005.png", "distance": 0}])
    assert json.loads(piped(b"00005.png\n00006.png\n", "--id")[1])[1]["hits"][0]["id"] == "00006.png"
    assert piped(b"", *model)[:2] == (1, "")
    assert piped(photo.read_bytes()[:100], *model)[:2] == (1, "")
    assert bigr("search", "-", "x", "--index", "index")[0] == 2


def test_regions_in_tokens_and_in_shares(place: Path, bigr: Run) -> None:
    bigr("index", "build", place / "data", "--codes", "bits", "--layer", 1)
    shown = ("--html", "p.html", "--model", place / "model")
    a = bigr("search", "00001.png", "--id", "--index", "index", "--region", "1,0,2,2", "--json", *shown)
    b = bigr("search", "00001.png", "--id", "--index", "index", "--region", "0.25,0.0,0.5,0.5", "--json")
    assert a[0] == b[0] == 0
    assert a[1] == b[1]
    wrong = bigr("search", "00001.png", "--id", "--index", "index", "--region", "3,3,2,2")
    assert wrong[0] == 1
    assert "grid of 4 x 4 tokens" in wrong[2]
    assert bigr("search", "00001.png", "--id", "--index", "index", "--region", "3,3,2")[0] == 2


def test_several_queries_and_an_approximate_index(place: Path, bigr: Run) -> None:
    assert bigr("index", "build", place / "plain", "--kind", "ivf", "--lists", 3, "--out", "ivf")[0] == 0
    code, text, _ = bigr("index", "info", "ivf", "--json", "--verify")
    record = json.loads(text)
    assert code == 0
    assert record["self_check"]["recall"] >= 0.95
    assert record["images"] == 21
    assert "recall@10" in bigr("index", "info", "ivf")[1]
    code, text, _ = bigr("search", "00001.png", "00002.png", "--id", "--index", "ivf", "-k", 2)
    assert [line for line in text.splitlines() if not line.startswith(" ")][:1] == ["00001.png"]


def test_a_missed_target_is_one_line_that_names_flat(place: Path, bigr: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hard = ("index", "build", place / "data", "--layer", 3, "--kind", "hash", "--effort", 0, "--tables", 1)
    code, text, error = bigr(*hard, "--json")
    assert code == 0
    record = json.loads(text)
    assert record["self_check"]["recall"] < 0.95
    assert error == f"warning: {record['target_missed']}\n"
    assert "below the target of 0.95; --kind flat is exact" in error
    monkeypatch.setattr(sharding, "_built_here", lambda jobs, processes: (sharding._build(*job) for job in jobs))
    code, text, again = bigr(*hard, "--shards", 1, "--out", "shards", "--json")
    assert (code, json.loads(text)["target_missed"], again) == (0, record["target_missed"], error)
    fine = ("index", "build", place / "data", "--layer", 3, "--kind", "ivf", "--nlist", 3, "--nprobe", 3)
    code, text, error = bigr(*fine, "--json")
    assert (json.loads(text)["target_missed"], error) == (None, "")
    assert (json.loads(text)["settings"]["lists"], json.loads(text)["settings"]["effort"]) == (3, 3)


@pytest.mark.slow
def test_codes_and_decoding_go_round(place: Path, tmp_path: Path, bigr: Run) -> None:
    expected = encode_codes(place / "photos", model=place / "model")
    for name in ("c.parquet", "c.npz", "c.npy"):
        assert bigr("codes", place / "photos", "--out", name, "--model", place / "model")[0] == 0
        np.testing.assert_array_equal(read_codes(tmp_path / name).codes, expected)
        done = bigr("decode", name, "--out", f"of-{name}", "--model", place / "model", "--limit", 3)
        assert done[:2] == (0, f"3 pictures: of-{name}\n")
    pictures = decode_codes(load(place / "model"), expected[:3])
    for row, file in enumerate(sorted((tmp_path / "of-c.npz").iterdir())):
        np.testing.assert_array_equal(np.array(Image.open(file)), pictures[row])
    assert bigr("codes", place / "data", "--codes", "pca", "--bits", 8, "--layer", 1, "--out", "p.npz")[0] == 0
    assert read_codes(tmp_path / "p.npz").codes.shape == (21, 1)
    code, _, error = bigr("decode", "p.npz", "--out", "no", "--model", place / "model")
    assert code == 1
    assert "binarized features" in error
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_odd_names_reach_every_output(place: Path, tmp_path: Path, bigr: Run) -> None:
    """Bytes that are no UTF-8, line breaks, markup, and the longest name that a file can have."""
    names = [b"caf\xe9.png", b"two\nlines.png", b"<i>&.png", "\u732b".encode() * 83 + b".png"]
    (tmp_path / "odd").mkdir()
    for number, name in enumerate(names):
        shutil.copy(place / "photos" / f"0000{number}.png", os.fsencode(tmp_path / "odd") + b"/" + name)
    embed_images(tmp_path / "odd", tmp_path / "data", model=str(place / "model"), layers=(), codes=True)
    assert bigr("index", "build", tmp_path / "data", "--codes", "bits")[0] == 0
    model = ("--model", place / "model")
    shown = ("-k", 4, "--html", "p.html", "--montage", "m.png", "--images", tmp_path / "odd", *model)
    for name in names:
        query = os.fsdecode(os.fsencode(tmp_path / "odd") + b"/" + name)
        code, text, error = bigr("search", query, "--index", "index", *shown)
        assert (code, error) == (0, "written: p.html and m.png\n")
        assert len(text.splitlines()) == 5
    assert "&lt;i&gt;&amp;.png" in (tmp_path / "p.html").read_text()
    code, text, _ = bigr("near-duplicates", "index", "--radius", 192)
    assert (code, len(text.splitlines())) == (0, 6)
    assert bigr("decode", "index", "--out", "pictures", *model)[0] == 0
    found = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert [name[:5] for name in found] == ["00000", "00001", "00002", "00003"]
    assert all("\n" not in name for name in found)


def test_a_decoding_that_fails_leaves_no_folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigr_repr.retrieval.codes.files import export_image_codes
    from bigr_repr.retrieval.results import png_folder

    export_image_codes(place / "photos", tmp_path / "c.npz", load(place / "model"))
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(png_folder, "_file_name", lambda row, id: f"{row}.png" if row < 5 else f"no/such/{row}.png")
    for out in ("new", "empty"):
        with pytest.raises(OSError, match="No such file"):
            png_folder.decode_to_folder(tmp_path / "c.npz", tmp_path / out, model=place / "model")
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("suffix", ["parquet", "npz", "npy"])
def test_damaged_code_files_are_errors_in_words(suffix: str, place: Path, tmp_path: Path) -> None:
    from bigr_repr.retrieval.codes.files import export_image_codes

    file = tmp_path / f"c.{suffix}"
    export_image_codes(place / "photos", file, load(place / "model"))
    whole, random, refused = file.read_bytes(), np.random.default_rng(0), 0
    for turn in range(200):
        data = bytearray(whole)
        if turn % 3:
            data[random.integers(len(data))] ^= 1 << random.integers(8)
        else:
            data = data[: random.integers(len(data))]
        file.write_bytes(data)
        try:
            read_codes(file)
        except ValueError as error:
            assert str(file) in str(error)  # noqa: PT017
            refused += 1
    assert refused > 60


def test_options_that_would_do_nothing_are_refused(place: Path, bigr: Run) -> None:
    for option in (("--bits", 8), ("--layer", 3), ("--codes", "pca")):
        assert bigr("codes", place / "photos", "--model", place / "model", *option)[0] == 2
    assert bigr("codes", place / "data", "--model", place / "model")[0] == 2
    assert (
        "codes do not depend on" in bigr("embed", "export", place / "data", "--to", "x.npy", "--codes", "--layer", 1)[2]
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--lists", 8), "applies only to --kind ivf, and this index is flat"),
        (("--kind", "ivf", "--links", 8), "applies only to --kind hnsw, and this index is ivf"),
        (("--kind", "hnsw", "--tables", 2), "applies only to --kind hash, and this index is hnsw"),
        (("--effort", 8), "a flat index is exact"),
        (("--target-recall", 0.9), "a flat index is exact"),
        (("--processes", 2), "applies only to shards; say how many with --shards"),
        (("--engine", "ray"), "applies only to shards; say how many with --shards"),
        (("--shards", 2, "--ray-address", "head:6379"), "applies only to --engine ray"),
        (("--shards", 2, "--engine", "ray", "--processes", 2), "a Ray cluster builds one shard per core"),
        (("--like", "other", "--codes", "itq"), "--like already determines the codes"),
        (("--like", "other", "--bits", 32), "--like already determines the codes"),
    ],
)
def test_options_of_an_index_that_would_do_nothing_are_refused(
    place: Path, bigr: Run, options: tuple[str | int, ...], said: str
) -> None:
    code, text, error = bigr("index", "build", place / "data", "--layer", 3, *options)
    assert (code, text) == (2, "")
    assert said in " ".join(error.replace("│", "").split())
    assert not (place / "index").exists()


def test_options_of_a_store_are_refused_for_a_folder_and_the_other_way_round(place: Path, bigr: Run) -> None:
    code, _, error = bigr("search", "x.png", "--index", place, "--name", "faces")
    assert (code, "names an index in a store" in error) == (2, True)
    code, _, error = bigr("search", "x.png", "--index", "lancedb:there", "--device", "cpu")
    assert (code, "does not apply to stores" in error) == (2, True)
    code, _, error = bigr("search", "x.png", "--index", place, "--processes", 2)
    assert (code, "applies only to sharded indexes" in error) == (2, True)


@pytest.mark.parametrize("source", ["data", "codes"])
def test_what_holds_tokenizer_codes_is_decoded(source: str, place: Path, tmp_path: Path, bigr: Run) -> None:
    """A data set with codes as embed writes it, and a code set to train on: the pictures are those of an index."""
    from bigr_repr.datasets import open_images
    from bigr_repr.train.code_set import write_codes

    pre, model = load(place / "model"), ("--model", place / "model")
    folder = place / "data"
    if source == "codes":
        folder = tmp_path / "codes"
        write_codes(open_images(place / "photos"), pre.tokenizer, folder, tokenizer_name=str(place / "model"))
        model = ()
    assert bigr("decode", folder, "--out", "decoded", "--limit", 3, *model)[:2] == (0, "3 pictures: decoded\n")
    expected = decode_codes(pre, encode_codes(sorted((place / "photos").iterdir())[:3], model=pre))
    files = sorted((tmp_path / "decoded").iterdir())
    for file, pixels in zip(files, expected, strict=True):
        with Image.open(file) as image:
            np.testing.assert_array_equal(np.asarray(image), pixels)
    other = tiny_model(seed=1, name="other")
    save(other, tmp_path / "other")
    code, _, error = bigr("decode", folder, "--out", "again", "--model", tmp_path / "other")
    assert (code, error.count("\n")) == (1, 1)
    assert "model" in error
    assert not (tmp_path / "again").exists()


def test_what_holds_no_tokenizer_codes_says_what_does(place: Path, bigr: Run) -> None:
    code, _, error = bigr("decode", place / "plain")
    assert (code, error) == (
        1,
        f"error: {place / 'plain'} holds no codes; embed with codes (bigr-repr embed --codes)\n",
    )
    code, _, error = bigr("decode", place / "photos")
    assert (code, error.count("\n")) == (1, 1)
    assert "neither embeddings with codes (bigr-repr embed --codes), nor an index, nor a code set" in error
    assert bigr("decode", place / "data", "--id", "nowhere.png")[0] == 1
    assert bigr("decode", "nowhere") == (1, "", "error: nowhere: no such file or folder\n")


@pytest.mark.slow
def test_a_place_that_cannot_be_written_is_known_before_the_work(
    place: Path, bigr: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigr_repr.retrieval.codes import files

    monkeypatch.setattr(files, "encode_codes", lambda *_, **__: pytest.fail("encoded for nothing"))
    for suffix in ("npz", "npy", "parquet"):
        code, _, error = bigr("codes", place / "photos", "--model", place / "model", "--out", f"nowhere/c.{suffix}")
        assert (code, error) == (1, f"error: nowhere/c.{suffix}: No such file or directory\n")


def test_decoded_pictures_are_the_tokenizers(place: Path) -> None:
    import torch

    pre, codes = load(place / "model"), encode_codes(place / "photos", model=place / "model")[:2]
    bits = tokens_to_grid(from_bytes(codes, 192).reshape(2, 16, 12))
    direct = pre.tokenizer.decode(torch.from_numpy(np.ascontiguousarray(bits)).float()).clamp(0, 1)
    expected = (direct * 255).round().byte().permute(0, 2, 3, 1).detach().numpy()
    np.testing.assert_array_equal(decode_codes(pre, codes), expected)


def test_options_go_by_the_librarys_names_too(place: Path, tmp_path: Path, bigr: Run) -> None:
    ours = ("--codes", "rotation", "--bits", 24, "--layer", 3)
    theirs = ("--binarizer", "rotation", "--n-bits", 24, "--layer", 3)
    for out, options in (("a.npz", ours), ("b.npz", theirs)):
        assert bigr("codes", place / "data", "--out", out, *options)[0] == 0
    assert (read_codes(tmp_path / "a.npz").codes == read_codes(tmp_path / "b.npz").codes).all()
    assert bigr("index", "build", place / "data", *theirs)[0] == 0
    assert HammingIndex.load(tmp_path / "index").n_bits == 24


def test_near_duplicates_lists_the_twins(place: Path, bigr: Run) -> None:
    bigr("index", "build", place / "data", "--codes", "bits", "--layer", 1)
    code, text, _ = bigr("near-duplicates", "index", "--radius", 0, "--json")
    assert code == 0
    twins = {"ids": ["00003.png", "twin.png"], "distances": [0, 0], "keep": ["00003.png"], "delete": ["twin.png"]}
    assert twins in json.loads(text)["clusters"]
    assert bigr("near-duplicates", "index", "--radius", 500)[0] == 1
    code, text, _ = bigr("near-duplicates", "index", "--radius", 0, "--new", "0*", "--json")
    assert json.loads(text)["clusters"] == [
        twins | {"keep": ["twin.png"], "delete": ["00003.png"]}
    ]  # the old one stays
    assert bigr("near-duplicates", "index", "--radius", 0, "--new", "00004*")[1].startswith("0 clusters")


def test_near_duplicates_as_a_list_and_a_page(place: Path, tmp_path: Path, bigr: Run) -> None:
    bigr("index", "build", place / "data", "--codes", "bits", "--layer", 1)
    shutil.copytree(place / "photos", tmp_path / "photos")
    with (tmp_path / "photos" / "twin.png").open("ab") as file:
        file.write(bytes(9))
    more = ("--keep", "largest", "--images", "photos", "--list", "list.csv", "--html", "page.html")
    code, _, error = bigr("near-duplicates", "index", "--radius", 0, *more)
    assert (code, error) == (0, "written: list.csv and page.html\n")
    lines = (tmp_path / "list.csv").read_text().splitlines()
    assert lines == ["cluster,action,image,like,distance", "1,delete,00003.png,twin.png,0", "1,keep,twin.png,,"]
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 2
    assert page.index("twin.png</div>") < page.index("00003.png</div>")  # what to keep comes first
    assert "1 cluster of 2 of 21 images within 0 bits" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "nothing.png", "--index", "index"], "nothing.png"),
        (["search", "00001.png", "--id", "--index", "nowhere"], "bigr-repr index build"),
        (["search", "nothing", "--id", "--index", "index"], "'nothing' is not in the index; ids are paths as"),
        (["decode", "index", "--id", "nothing"], "ids are paths as embedded, for example '00000.png'"),
        (["search", "00001.png", "--id", "--index", "index", "-k", "50"], "k=50 is outside 1..21"),
        (["search", "00001.png", "--id", "--index", "index", "--effort", "3"], "a flat index is exact"),
        (["search", "00001.png", "--id", "--index", "index", "--device", "cuda"], "FAISS sees no GPU"),
        (["index", "build", "nowhere"], "bigr-repr embed"),
        (["index", "info", "."], "no index here"),
        (["near-duplicates", "."], "no index here"),
        (["near-duplicates", "index", "--new", "nothing*"], "no image of the index matches 'nothing*'"),
        (["decode", "nothing.npz"], "nothing.npz"),
        (["codes", "nothing.png", "--model", "bigr-none"], "bigr-none"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], message: str, place: Path, bigr: Run) -> None:
    bigr("index", "build", place / "data", "--codes", "bits", "--layer", 3)
    code, _, error = bigr(*arguments)
    assert code == 1
    assert message in error
    assert error.count("\n") == 1


def test_another_models_pictures_are_refused(place: Path, tmp_path: Path, bigr: Run) -> None:
    bigr("index", "build", place / "data", "--codes", "bits", "--layer", 3)
    save(tiny_model(seed=1, name="other"), tmp_path / "other")
    code, _, error = bigr("search", place / "photos" / "00003.png", "--index", "index", "--model", tmp_path / "other")
    assert code == 1
    assert "tiny-random" in error
    assert "other" in error


def test_data_sets_that_lack_what_is_asked_for(place: Path, bigr: Run) -> None:
    for arguments, message in (
        (["--codes", "bits"], "holds no codes"),
        (["--layer", "2"], "layer=2 is not in"),
        (["--codes", "pca", "--bits", "65"], "--bits=65 must be in 1..64"),
        (["--codes", "itq", "--bits", "64"], "21 rows are too few to fit itq of 64 bits"),
        (["--codes", "sign", "--bits", "8"], "gives one bit per feature, 64"),
        (["--kind", "ivf", "--lists", "50"], "--lists=50 is more than the 20 distinct codes"),
    ):
        code, _, error = bigr("index", "build", place / "plain", *arguments)
        assert (code, error.count("\n")) == (1, 1)
        assert message in error
        assert not Path("index").exists()


def test_vectors_that_are_not_finite_are_named(place: Path, tmp_path: Path, bigr: Run) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(place / "plain", tmp_path / "bad")
    (file,) = (tmp_path / "bad").glob("part-*.parquet")
    table = pq.read_table(file, partitioning=None)
    flat = table.column("embedding").combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()
    flat[64 * 7 + 3] = np.nan
    kind = table.schema.field("embedding").type
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)
    pq.write_table(pa.table([table.column("path"), column], schema=table.schema), file)
    code, _, error = bigr("index", "build", tmp_path / "bad")
    assert code == 1
    assert "the vector of 00007.png is not finite" in error


def test_building_in_chunks_is_building_at_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigr_repr.retrieval import build
    from bigr_repr.retrieval.codes import dataset

    whole = build.build_index(place / "data", tmp_path / "a", binarizer="itq", n_bits=8, layer=3)
    monkeypatch.setattr(dataset, "_BATCH", 4 * 64 * 5)
    parts = build.build_index(place / "data", tmp_path / "b", binarizer="itq", n_bits=8, layer=3)
    np.testing.assert_array_equal(whole.rows.codes, parts.rows.codes)
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    np.testing.assert_array_equal(whole.rows.vectors, parts.rows.vectors)  # type: ignore[arg-type]
    assert whole.ids.to_pylist() == parts.ids.to_pylist() == read_embeddings(place / "data", 3).paths


@pytest.mark.slow
def test_memory_of_a_build_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """60 000 rows of 1 024 features, 246 MB, pass through a process that may take 200 MB beyond its libraries."""
    script = f"""
import numpy as np, pyarrow as pa, pyarrow.parquet as pq, resource, sys
sys.path.insert(0, "tests")
from tiny_model import tiny_model
from dataclasses import replace
from bigr_repr.embed.dataset.schema import Recipe
from bigr_repr.retrieval import build_index
pre = tiny_model()
config = replace(pre.config, generator=replace(pre.config.generator, dim=1024))
recipe = Recipe(config=config, weights="0" * 64, layers=(1,))
(folder := __import__("pathlib").Path({str(tmp_path)!r}) / "data").mkdir()
flat = np.random.default_rng(0).standard_normal(4000 * 1024, np.float32)
for part in range(15):
    names = pa.array([f"{{part}}-{{row}}" for row in range(4000)])
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=recipe.schema.field("embedding").type)
    pq.write_table(pa.table([names, column], schema=recipe.schema), folder / f"part-{{part:05d}}.parquet",
                   use_dictionary=False, compression="none")
del flat, column
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
index = build_index(folder, folder.parent / "index", binarizer="rotation", n_bits=64, vectors=None)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
assert len(index) == 60000 and grown < 200, grown
print(grown)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_small_index_is_searched_without_a_number(place: Path, tmp_path: Path, bigr: Run) -> None:
    for rows, listed in ((3, 3), (15, 10)):
        index = HammingIndex.build(np.eye(16, dtype=np.uint8)[:rows], ids=[f"{row}.png" for row in range(rows)])
        index.save(tmp_path / "i")
        code, text, _ = bigr("search", "1.png", "--id", "--index", "i")
        assert (code, len(text.splitlines())) == (0, 1 + listed)
    index.remove([f"{row}.png" for row in range(15)])
    index.save(tmp_path / "i")
    code, _, error = bigr("search", "1.png", "--id", "--index", "i")
    assert (code, error.count("\n")) == (1, 1)


def test_the_index_says_when_it_holds_nothing_to_show(place: Path, bigr: Run) -> None:
    bigr("index", "build", place / "plain", "--vectors", "none")
    index = HammingIndex.load("index")
    assert index.has_tokens is False
    index.source = None  # else its photographs are found where they were embedded from
    index.save("index")
    code, _, error = bigr("search", "00001.png", "--id", "--index", "index", "--html", "p.html")
    assert code == 0
    assert "--images FOLDER" in error
    code, _, error = bigr("search", "00001.png", "--id", "--index", "index", "--rescore", 2)
    assert (code, "this query has no vector" in error) == (1, True)


@pytest.mark.parametrize("form", ["{digest}  codes.npy\n", "{DIGEST} *codes.npy\n", "SHA256 (codes.npy) = {digest}\n"])
def test_a_digest_of_another_form_does_not_refuse_an_array(tmp_path: Path, form: str) -> None:
    file = tmp_path / "codes.npy"
    np.save(file, np.arange(64, dtype=np.uint8).reshape(8, 8))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "codes.npy.sha256").write_text(form.format(digest=digest, DIGEST=digest.upper()))
    assert read_codes(file).codes.shape == (8, 8)
    (tmp_path / "codes.npy.sha256").write_text(f"{'0' * 64}  codes.npy\n")
    with pytest.raises(ValueError, match="its SHA-256 is not the one in"):
        read_codes(file)


@pytest.mark.parametrize("kept", [True, False])
def test_codes_whose_record_is_not_what_was_written_are_refused(place: Path, tmp_path: Path, kept: bool) -> None:
    export_data_codes(DataCodes(place / "data", "bits"), file := tmp_path / "codes.parquet")
    table = pq.read_table(file)
    record = table.schema.metadata[METADATA_KEY].replace(b"token", b"taken")
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: record} if kept else None), file)
    with pytest.raises(ValueError, match=r"codes.parquet: no codes in it, or damaged \((it has changed|the record)"):
        read_codes(file)


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_codes_say_how_they_were_made_and_become_pictures(
    suffix: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigr_repr.retrieval.codes.files import export_image_codes
    from bigr_repr.retrieval.results import png_folder

    pre = load(place / "model")
    file = tmp_path / f"c.{suffix}"
    assert export_image_codes(place / "photos", file, pre) == len(list((place / "photos").iterdir()))
    written = read_codes(file)
    assert written.provenance is not None
    assert written.provenance["weights_sha256"] == pre.fingerprint
    assert written.ids is not None
    monkeypatch.setattr(png_folder, "_BATCH", 2)
    chosen = [written.ids[row] for row in (4, 0, 2)]
    assert png_folder.decode_to_folder(file, tmp_path / "some", only=chosen, model=pre) == 3
    expected = decode_codes(pre, written.codes)
    found = sorted((tmp_path / "some").iterdir())
    assert [int(path.name[:5]) for path in found] == [0, 2, 4]
    for path, row in zip(found, (0, 2, 4), strict=True):
        pixels = np.array(Image.open(path)).astype(int)
        assert np.abs(pixels - expected[row]).max() <= 1  # other batches round otherwise
    with pytest.raises(ValueError, match="id 'nobody' is not among the codes"):
        png_folder.decode_to_folder(file, tmp_path / "none", only=["nobody"], model=pre)


def test_a_hit_says_how_many_bits_are_the_same() -> None:
    from bigr_repr.retrieval.results.page import _hit
    from bigr_repr.retrieval.results.views import HitView, SearchView

    def said(distance: float, n_bits: int) -> tuple[list[str], str]:
        hit = HitView(id="a", distance=distance, photo=None, decoded=None, differing=None)
        view = SearchView(
            name="q", photo=None, decoded=None, hits=[hit], n_bits=n_bits, bits_per_token=0, provenance="", rows=1
        )
        shown = _hit(hit, view)
        return shown["numbers"], shown["alike"]

    assert said(0, 32) == (["0 bits", "100.0 % same"], "100.0")
    assert said(8, 32) == (["8 bits", "75.0 % same"], "50.0")
    assert said(24, 32) == (["24 bits", "25.0 % same"], "0.0")
    assert said(0.25, 0) == (["cosine distance", "0.250"], "75.0")


def test_the_more_bits_differ_the_redder_is_a_token() -> None:
    import base64
    import io

    from bigr_repr.retrieval.results.page import _heat
    from bigr_repr.retrieval.results.views import HitView, SearchView

    hit = HitView(id="a", distance=9, photo=None, decoded=None, differing=np.array([[0, 2], [4, 8]], np.int32))
    view = SearchView(
        name="q", photo=None, decoded=None, hits=[hit], n_bits=32, bits_per_token=8, provenance="", rows=1
    )
    image = Image.open(io.BytesIO(base64.b64decode(_heat(hit, view).partition(",")[2])))
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    assert alpha.tolist() == [[0, 112], [225, 225]]  # half of the bits give full red


def test_why_a_search_found_nothing_is_said(place: Path, bigr: Run) -> None:
    bigr("index", "build", place / "data", "--codes", "bits", "--layer", 3)
    search = ("search", "00003.png", "--id", "--index", "index", "-k", 3)
    for options, why in (
        (("--offset", 500), "no image after the first 500 (--offset): the index holds 21"),
        (("--match", "no*"), "no image matches the filter"),
        (("--radius", 0, "--offset", 5), "no image is within 0 of the query after the first 5 (--offset)"),
        (("--match", "00001*", "--radius", 0), "no image matches the filter and is within 0 of the query"),
    ):
        code, text, error = bigr(*search, *options, "--html", "page.html", "--model", place / "model")
        assert (code, text) == (0, "bits  image\n")
        assert error == f"{why}\nwritten: page.html\n"  # and nothing of photographs
    index = HammingIndex.load("index")
    asked = {"where": Filter(), "radius": None, "offset": 0}
    assert "raise --effort, or build the index with --kind flat" in report._why_none(index, asked)


def test_the_second_page_of_a_table_goes_on_counting(place: Path, bigr: Run) -> None:
    bigr("index", "build", place / "data", "--codes", "bits", "--layer", 3)
    text = bigr("search", "00003.png", "--id", "--index", "index", "-k", 2, "--offset", 4, "--csv")[1]
    assert [row["rank"] for row in csv.DictReader(io.StringIO(text))] == ["5", "6"]


def test_layers_to_choose_from_are_named(place: Path, bigr: Run) -> None:
    code, _, error = bigr("index", "build", place / "data", "--codes", "sign")
    assert (code, error) == (1, f"error: {place / 'data'} holds layers 1, 3; choose one, for example --layer=3\n")


def test_indexes_of_two_kinds_of_codes_are_not_merged(place: Path, bigr: Run) -> None:
    bigr("index", "build", place / "data", "--codes", "bits", "--layer", 3, "--out", "bits")
    bigr("index", "build", place / "data", "--codes", "sign", "--layer", 3, "--out", "features")
    code, _, error = bigr("index", "merge", "bits", "features", "--out", "all")
    assert (code, "query" in error) == (1, False)
    assert "features cannot be merged with bits: their codes differ in of was tokenizer bits, is binarized" in error
    assert "binarized features of tiny-random, layer 3" in bigr("index", "info", "features")[1]
