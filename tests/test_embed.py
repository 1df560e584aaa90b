"""Embedding data sets: every input is accounted for, in order, once, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_model import picture, tiny_model, write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import from_bytes
from bigr_repr.embed import EmbeddingSet, EmbedSummary, Progress, embed_images, read_embeddings
from bigr_repr.embed.dataset import lists, plan
from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.embed.dataset.shards import read_shard
from bigr_repr.features.extract import encode_codes, extract_features
from bigr_repr.features.extractor import FeatureExtractor
from bigr_repr.images import isolated
from bigr_repr.images.decode import center_crop, load_image
from bigr_repr.images.find import Source, find_images, unescape_path

Rows = dict[str, bytes]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_pictures(folder / "a", 13)
    write_pictures(folder / "b", 10, first=13)
    return folder


def run(inputs: Any, out: Path, model: Pretrained, **options: Any) -> EmbedSummary:
    """Embeds in small units and batches, decoding in threads: processes take a while to start."""
    usual = {"layers": [2], "unit_size": 5, "batch_size": 3, "decode_timeout": None}
    return embed_images(inputs, out, model=model, **{**usual, **options})


@pytest.mark.parametrize("codes", [False, True])
def test_no_column_may_lack_a_value(codes: bool, photos: Path, pre: Pretrained, tmp_path: Path) -> None:
    out = tmp_path / "day=3"  # which says nothing of the rows
    run([photos / "a"], out, pre, codes=codes, sha256=True, labels_from_folders=True, thumbnails=16 if codes else None)
    schema = pq.read_schema(next(out.glob("part-*.parquet")))
    assert ("image" in schema.names) == codes
    assert [name for name in schema.names if schema.field(name).nullable] == []
    assert read_shard(next(out.glob("part-*.parquet"))).column_names == schema.names


def rows_of(out: Path, layer: int | None = None) -> Rows:
    data = read_embeddings(out, layer)
    assert len(set(data.paths)) == len(data.paths)
    return {path: vector.tobytes() for path, vector in zip(data.paths, data.vectors, strict=True)}


def failures_of(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "failures.jsonl").read_text("utf-8").splitlines()]


def state_of(out: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_ino, path.read_bytes()) for path in sorted(out.rglob("*")) if path.is_file()}


# ---- what is written


def test_rows_are_the_features_in_the_order_of_the_inputs(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    summary = run(photos, tmp_path / "out", pre)
    assert (summary.inputs, summary.rows, summary.failures, summary.shards, summary.embedded) == (23, 23, 0, 5, 23)
    assert summary.seconds > 0
    data = read_embeddings(tmp_path / "out")
    assert data.paths == [source.path for source in find_images(photos)]
    assert data.paths[0] == "a/00000.png"
    assert data.vectors.dtype == np.float32
    np.testing.assert_allclose(data.vectors, extract_features(photos, model=pre, layer=2), rtol=0, atol=1e-5)
    assert data.codes is None
    assert data.labels is None
    assert failures_of(tmp_path / "out") == []


def test_layers_codes_and_labels_are_columns(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, pre, layers=[3, "mid", 0, -1], codes=True, labels_from_folders=True)
    schema = pq.read_schema(out / "part-00000.parquet")
    assert schema.names == ["path", "embedding_3", "embedding_2", "embedding_0", "code", "label"]
    assert schema.field("embedding_3").type.list_size == 64
    assert schema.field("code").type == pa.binary(24)
    expected = extract_features(photos, model=pre, layer=[3, 2, 0])
    for layer, values in expected.items():
        assert isinstance(layer, int)
        np.testing.assert_allclose(read_embeddings(out, layer).vectors, values, rtol=0, atol=1e-5)
    data = read_embeddings(out, 0)
    np.testing.assert_array_equal(data.codes, encode_codes(photos, model=pre))
    assert data.labels == ["a"] * 13 + ["b"] * 10
    with pytest.raises(ValueError, match="holds layers 3, 2, 0"):
        read_embeddings(out)


def test_tokens_unpooled_and_half_precision(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", pre, pool="none", store_dtype="float16")
    data = read_embeddings(tmp_path / "out")
    assert data.vectors.shape == (23, 16, 64)
    assert data.vectors.dtype == np.float16
    expected = extract_features(photos, model=pre, layer=2, pool="none")
    np.testing.assert_allclose(data.vectors, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["max", "avg+max", "grid2"])
def test_pools_mirrors_and_blocks_side_by_side_are_those_of_extract_features(
    pre: Pretrained, photos: Path, tmp_path: Path, pool: str
) -> None:
    out = tmp_path / "out"
    run(photos, out, pre, pool=pool, mirror=True, layers=["mid+-1", 1])
    opened = EmbeddingSet(out)
    assert opened.layers == ("2+3", 1)
    assert (opened.provenance["pooling"], opened.provenance["mirror"]) == (pool, True)
    expected = extract_features(photos, model=pre, layer=["2+3", 1], pool=pool, mirror=True)
    for layer in opened.layers:
        found = read_embeddings(out, layer).vectors
        assert found.shape == expected[layer].shape == (23, *opened.shape(layer))
        np.testing.assert_allclose(found, expected[layer], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="mirror was true, is null"):
        run(photos, out, pre, pool=pool, layers=["mid+-1", 1])


def test_tokens_of_blocks_side_by_side_keep_their_shape(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path, pre, pool="none", layers=["1+3"])
    found = read_embeddings(tmp_path, "1+3").vectors
    np.testing.assert_allclose(found, extract_features(photos, model=pre, layer="1+3", pool="none"), atol=1e-5)


def test_codes_alone(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", pre, layers=(), codes=True)
    opened = EmbeddingSet(tmp_path / "out")
    assert opened.n_bits == 192
    parts = list(opened.code_batches(rows=4))
    np.testing.assert_array_equal(np.concatenate([codes for _, codes in parts]), encode_codes(photos, model=pre))
    assert [path for paths, _ in parts for path in paths][-1] == "b/00022.png"
    with pytest.raises(ValueError, match="only codes"):
        opened.read()
    with pytest.raises(ValueError, match="nothing to store"):
        run(photos, tmp_path / "none", pre, layers=())


def test_every_file_states_its_origin(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", pre, codes=True)
    for file in (tmp_path / "out").glob("part-*.parquet"):
        origin = json.loads(pq.read_schema(file).metadata[b"bigr_repr"])
        assert origin["model"] == "tiny-random"
        assert origin["weights_sha256"] == pre.fingerprint
        assert (origin["layers"], origin["pooling"], origin["n_bits"]) == ([2], "avg", 192)
        assert origin["condition"].startswith("no class")
        assert origin["preprocessing"]["image_size"] == 32
        assert origin["decoder"]["version"]
        assert "most significant bit" in origin["bit_order"]
        assert origin["package_version"]


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 64}, {"unit_size": 1}, {"unit_size": None}])
@pytest.mark.slow
def test_how_it_is_run_changes_nothing(pre: Pretrained, photos: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    run(photos, tmp_path / "one", pre, codes=True, workers=1)
    run(photos, tmp_path / "two", pre, codes=True, workers=4, **options)
    one, two = read_embeddings(tmp_path / "one"), read_embeddings(tmp_path / "two")
    assert one.paths == two.paths
    np.testing.assert_array_equal(one.codes, two.codes)
    np.testing.assert_allclose(one.vectors, two.vectors, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_order_does_not_depend_on_how_long_decoding_takes(
    pre: Pretrained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(photos, tmp_path / "one", pre)

    def dawdling(image: Image.Image, size: int) -> np.ndarray:
        time.sleep(random.random() * 0.02)
        return center_crop(image, size)

    monkeypatch.setattr(isolated, "center_crop", dawdling)
    run(photos, tmp_path / "two", pre, workers=5)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")


def test_progress_counts_to_the_end(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    run(photos, tmp_path / "out", pre, on_progress=seen.append)
    listing = [progress.done for progress in seen if progress.total is None]
    embedding = [progress.done for progress in seen if progress.total == 23]
    assert listing == [5, 10, 15, 20, 23]
    assert embedding == [0, 3, 5, 8, 10, 13, 15, 18, 20, 23]


# ---- bad input


def spoil(folder: Path) -> dict[str, str]:
    """Spoil every third picture in its own way; returns {name: kind of failure}."""
    good = (folder / "00001.png").read_bytes()
    (folder / "00000.png").write_bytes(good[: len(good) // 2])
    (folder / "00003.png").write_bytes(b"")
    (folder / "00006.png").write_bytes(b"no picture at all")
    (folder / "00009.png").write_bytes(b"%PDF-1.7 something")
    Image.new("1", (20000, 20000)).save(folder / "00012.png")
    (folder / "00015.png").unlink()
    (folder / "00015.png").symlink_to("00015.png")
    (folder / "00018.png").unlink()
    (folder / "00018.png").symlink_to("nowhere.png")
    return {
        "00000.png": "truncated", "00003.png": "empty", "00006.png": "not-an-image", "00009.png": "unsupported",
        "00012.png": "too-large", "00015.png": "unreadable", "00018.png": "missing",
    }  # fmt: skip


@pytest.mark.slow
def test_a_bad_file_becomes_a_line_and_shifts_no_row(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "clean", 23)
    write_pictures(tmp_path / "spoiled", 23)
    kinds = spoil(tmp_path / "spoiled")
    run(tmp_path / "clean", tmp_path / "one", pre)
    summary = run(tmp_path / "spoiled", tmp_path / "two", pre)
    assert (summary.rows, summary.failures) == (16, 7)
    lines = failures_of(tmp_path / "two")
    assert {line["path"]: line["error"] for line in lines} == kinds
    assert all(line["path"] in line["message"] and "\n" not in line["message"] for line in lines)
    clean, spoiled = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert spoiled == {path: vector for path, vector in clean.items() if path not in kinds}


def test_a_file_that_vanished_is_a_failure(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    listed = [str(photos / "a/00000.png"), str(tmp_path / "gone.png"), str(photos / "b/00014.png")]
    summary = run(iter(listed), tmp_path / "out", pre, literal=True)
    assert (summary.rows, summary.failures) == (2, 1)
    assert read_embeddings(tmp_path / "out").paths == [listed[0], listed[2]]
    assert [(line["path"], line["error"]) for line in failures_of(tmp_path / "out")] == [(listed[1], "missing")]


def test_names_of_any_kind_come_back(pre: Pretrained, tmp_path: Path) -> None:
    names = [b"caf\xe9.png", "日本.png".encode(), b"two\nlines.png", b" .png", b"back\\x41slash.png", b"q\"'.png"]
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(names):
        picture(number).save(folder / "x.png")
        (folder / "x.png").rename(Path(os.fsdecode(os.fsencode(folder) + b"/" + name)))
    run(folder, tmp_path / "out", pre)
    data = read_embeddings(tmp_path / "out")
    found = {os.fsencode(unescape_path(path)): row for path, row in zip(data.paths, data.vectors, strict=True)}
    assert sorted(found) == sorted(names)
    for number, name in enumerate(names):
        expected = extract_features(picture(number), model=pre, layer=2)[0]
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5)


def test_an_input_named_twice_gives_two_rows(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    one = photos / "a/00003.png"
    run([one, photos / "b", one], tmp_path / "out", pre)
    data = read_embeddings(tmp_path / "out")
    assert len(data.paths) == 12
    assert data.paths[0] == data.paths[-1] == str(one)
    np.testing.assert_allclose(data.vectors[0], data.vectors[-1], rtol=0, atol=1e-6)


def test_links_in_a_circle_end(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 3)
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    assert run(tmp_path / "in", tmp_path / "out", pre).rows == 3


@contextmanager
def ordinary_user() -> Iterator[Path]:
    """A folder open to all; inside, this process is nobody, since root may read and write whatever it likes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        previous = os.geteuid()
        try:
            if previous == 0:
                os.seteuid(65534)
            yield folder
        finally:
            os.seteuid(previous)


def test_what_may_not_be_read_or_written(pre: Pretrained) -> None:
    with ordinary_user() as folder:
        paths = write_pictures(folder / "in", 4)
        paths[2].chmod(0)
        assert run(folder / "in", folder / "out", pre).rows == 3
        assert [line["error"] for line in failures_of(folder / "out")] == ["unreadable"]
        (folder / "shut").mkdir(mode=0o555)
        with pytest.raises(PermissionError, match="shut"):
            run(folder / "in", folder / "shut" / "out", pre)
        with pytest.raises(PermissionError, match="shut"):
            run(folder / "in", folder / "shut", pre)
        (folder / "in" / "closed").mkdir(mode=0o000)
        with pytest.raises(PermissionError, match="closed"):
            run(folder / "in", folder / "out2", pre)
        (folder / "in" / "closed").chmod(0o700)
        (folder / "in" / "closed").rmdir()
        for name in ("half/deep/inner/a.png", "parts.parquet/half/deep/a.parquet"):  # can be listed, not entered
            write_pictures((folder / "in" / name).parent, 1)
            half = folder / "in" / name.partition("/deep")[0]
            half.chmod(0o644)
            with pytest.raises(PermissionError, match=r"deep/?: the folder cannot be listed; change its permissions"):
                run(half.parent if half.parent.suffix else folder / "in", folder / "out", pre, update=True)
            half.chmod(0o700)
        write_pictures(folder / "elsewhere" / "in", 1)
        (folder / "in" / "link").symlink_to(folder / "elsewhere" / "in")
        (folder / "elsewhere").chmod(0)
        with pytest.raises(PermissionError, match="link: the folder cannot be listed"):
            run(folder / "in", folder / "out", pre, update=True)
        (folder / "elsewhere").chmod(0o700)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ("nothing", FileNotFoundError, "nothing: no such file"),
        ("empty", FileNotFoundError, "holds no image"),
        ("*.png", FileNotFoundError, "matches no image"),
        ([], ValueError, "no inputs"),
    ],
)
def test_no_inputs_leave_no_trace(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: Any, error: type[Exception], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run(inputs, Path("out"), pre)
    assert not Path("out").exists()


# ---- numbers that are not finite


def spoil_features(monkeypatch: pytest.MonkeyPatch, spoiled: Any) -> None:
    forward = FeatureExtractor.forward

    def spoiling(self: FeatureExtractor, batch: torch.Tensor) -> Any:
        features = forward(self, batch)
        for row, image in enumerate(batch):
            if spoiled(image):
                features.layers[2][row, 5] = torch.inf
        return features

    monkeypatch.setattr(FeatureExtractor, "forward", spoiling)


@pytest.mark.slow
def test_a_row_that_is_not_finite_is_a_failure(
    pre: Pretrained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(photos, tmp_path / "one", pre)
    odd = torch.from_numpy(load_image(photos / "a/00004.png", 32)).permute(2, 0, 1)
    spoil_features(monkeypatch, lambda image: torch.equal(image, odd))
    assert run(photos, tmp_path / "two", pre).failures == 1
    line = failures_of(tmp_path / "two")[0]
    assert (line["path"], line["error"]) == ("a/00004.png", "non-finite")
    clean = rows_of(tmp_path / "one")
    del clean["a/00004.png"]
    assert rows_of(tmp_path / "two") == clean


def test_a_model_that_gives_nothing_finite_ends_the_run(photos: Path, tmp_path: Path) -> None:
    broken = tiny_model()
    broken.tokenizer.quantize.proj[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="16 images in a row"):
        run(photos, tmp_path / "out", broken, layers=(), codes=True)
    assert EmbeddingSet(tmp_path / "out").rows == 0
    assert run(photos / "b", tmp_path / "few", broken).rows == 0


def test_what_float16_cannot_hold_is_not_written(photos: Path, tmp_path: Path) -> None:
    large = tiny_model()
    large.generator.transformer.tok_embeddings.bias.data.fill_(1e5)
    with pytest.raises(ValueError, match="store float32"):
        run(photos, tmp_path / "out", large, store_dtype="float16")
    assert run(photos, tmp_path / "wide", large).rows == 23


# ---- stopping and going on


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_equals_an_unbroken_one(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "whole", pre)

    def interrupt(progress: Progress) -> None:
        if progress.total and progress.done > 11:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(photos, out, pre, on_progress=interrupt)
    sealed = {path: path.stat().st_ino for path in out.glob("part-*")}
    assert len(sealed) == 2
    assert not list(out.glob(".*"))
    first: list[Progress] = []
    summary = run(photos, out, pre, on_progress=first.append)
    assert next(progress for progress in first if progress.total).done == 10
    assert (summary.rows, summary.embedded) == (23, 13)
    assert {path: path.stat().st_ino for path in sealed} == sealed
    assert rows_of(out) == rows_of(tmp_path / "whole")
    assert run(photos, out, pre).embedded == 0


@pytest.mark.parametrize("wreck", ["no shard", "torn shard", "no record", "torn record", "left-overs"])
def test_what_is_not_whole_is_done_again(pre: Pretrained, photos: Path, tmp_path: Path, wreck: str) -> None:
    out = tmp_path / "out"
    run(photos, out, pre)
    whole = rows_of(out)
    shard, record = out / "part-00001.parquet", out / "_run/units/00001.json"
    if wreck == "no shard":
        shard.unlink()
    elif wreck == "torn shard":
        shard.write_bytes(shard.read_bytes()[:100])
    elif wreck == "no record":
        record.unlink()
    elif wreck == "torn record":
        record.write_bytes(record.read_bytes()[:20])
    else:
        (out / ".part-00001.parquet.part").write_bytes(b"half")
        (out / "_run/units/.00001.json.part").write_bytes(b"half")
    assert run(photos, out, pre).embedded == (0 if wreck == "left-overs" else 5)
    assert rows_of(out) == whole
    assert not list(out.rglob(".*"))


def test_what_a_lost_worker_left_half_written_is_gone_when_others_have_done_its_work(
    pre: Pretrained, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def leave(progress: Progress) -> None:
        if progress.total and progress.done > 11:
            for name in (".part-00001.parquet.lost.part", ".failures.jsonl.part", "_run/.inputs.parquet.part"):
                (out / name).write_bytes(b"half")
            (out / ".notes").touch()

    run(photos, out, pre, on_progress=leave)
    assert sorted(path.name for path in out.rglob(".*")) == [".notes"]
    assert rows_of(out)


@pytest.mark.parametrize("call", range(1, 22, 2))
@pytest.mark.slow
def test_a_full_disk_at_any_moment_loses_nothing(
    pre: Pretrained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    out, calls, fsync = tmp_path / "out", 0, os.fsync

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            run(photos, out, pre)
    assert str(out) in str(caught.value.filename)
    summary = run(photos, out, pre)
    assert (summary.rows, summary.failures) == (23, 0)
    run(photos, tmp_path / "whole", pre)
    assert rows_of(out) == rows_of(tmp_path / "whole")


@pytest.mark.slow
def test_failed_images_are_tried_again_and_only_they(pre: Pretrained, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "in", 23)
    spoil(tmp_path / "in")
    out = tmp_path / "out"
    run(tmp_path / "in", out, pre)
    before, state = rows_of(out), state_of(out)
    picture(3).save(paths[3])
    picture(9).save(paths[9])
    assert run(tmp_path / "in", out, pre).embedded == 0
    assert {name: state_of(out)[name] for name in state if "part-" in name} == {
        name: value for name, value in state.items() if "part-" in name
    }
    summary = run(tmp_path / "in", out, pre, retry_failed=True)
    assert (summary.rows, summary.failures, summary.embedded) == (18, 5, 7)
    after = read_embeddings(out)
    assert after.paths == sorted(after.paths)
    rows = rows_of(out)
    assert {path: rows[path] for path in before} == before
    expected = extract_features([paths[3], paths[9]], model=pre, layer=2)
    found = np.stack([np.frombuffer(rows[name], np.float32) for name in ("00003.png", "00009.png")])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert len(failures_of(out)) == 5
    assert run(tmp_path / "in", out, pre, retry_failed=True).rows == 18


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [1]}, r"layers was \[2\], is \[1\]"),
        ({"pool": "none"}, "pooling was avg, is none"),
        ({"store_dtype": "float16"}, "store_dtype was float32, is float16"),
        ({"dtype": "bfloat16"}, "dtype was float32, is bfloat16"),
        ({"codes": True}, "n_bits was null, is 192"),
        ({"unit_size": 7}, "unit_size was 5, is 7"),
        ({"resume": False}, "already holds embeddings"),
    ],
)
def test_data_of_another_kind_is_refused(
    pre: Pretrained, photos: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run(photos, tmp_path / "out", pre)
    before = state_of(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        run(photos, tmp_path / "out", pre, **change)
    assert state_of(tmp_path / "out") == before


@pytest.mark.slow
def test_color_profiles_are_recorded_and_kept_by_resumed_runs(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, pre, icc="ignore")
    assert EmbeddingSet(out).provenance["preprocessing"]["colours"].endswith("ICC profiles not applied")
    assert run(photos, out, pre).embedded == 0
    with pytest.raises(ValueError, match=r"preprocessing.colours was .*not applied, is .*converted to sRGB"):
        run(photos, out, pre, icc="convert")
    run(photos, tmp_path / "new", pre)
    assert EmbeddingSet(tmp_path / "new").provenance["preprocessing"]["colours"].endswith("converted to sRGB")
    assert rows_of(tmp_path / "new") == rows_of(out)  # none of these pictures has a profile
    with pytest.raises(ValueError, match="icc='maybe' is unknown"):
        run(photos, tmp_path / "odd", pre, icc="maybe")


def test_another_model_and_other_inputs_are_refused(pre: Pretrained, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "in", 12)
    out = tmp_path / "out"
    run(tmp_path / "in", out, pre, unit_size=None)
    with pytest.raises(ValueError, match=r"weights_sha256 was [0-9a-f]{12}…, is"):
        run(tmp_path / "in", out, tiny_model(seed=1), unit_size=None)
    with pytest.raises(ValueError, match=r"model was tiny-random, is other"):
        run(tmp_path / "in", out, tiny_model(name="other"), unit_size=None)
    with pytest.raises(ValueError, match=r": preprocessing.image_size was 32, is 64;"):
        run(tmp_path / "in", out, tiny_model(side=64), unit_size=None)
    paths[11].unlink()
    with pytest.raises(ValueError, match=r"inputs were 12, are 11 \(input 11 was .*00011.png, is none\)"):
        run(tmp_path / "in", out, pre, unit_size=None)
    write_pictures(tmp_path / "in", 2, first=11)
    with pytest.raises(ValueError, match=r"inputs were 12, are 13 \(input 12 was none, is .*00012.png\)"):
        run(tmp_path / "in", out, pre, unit_size=None)
    paths[4].rename(tmp_path / "in" / "zzz.png")
    with pytest.raises(ValueError, match=r"\(input 4 was .*00004.png, is .*00005.png\)"):
        run(tmp_path / "in", out, pre, unit_size=None)


def test_overwriting_begins_anew_but_not_for_nothing(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, pre)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "typo", out, pre, overwrite=True)
    assert len(rows_of(out)) == 23
    summary = run(photos / "b", out, pre, layers=[1], overwrite=True)
    assert (summary.rows, summary.shards) == (10, 2)
    assert len(rows_of(out)) == 10
    assert EmbeddingSet(out).layers == (1,)
    assert (out / "notes.txt").read_text() == "mine"


def test_foreign_files_and_running_processes_are_respected(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    pq.write_table(pa.table({"x": [1]}), foreign / "part-0.parquet")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="not written by bigr-repr"):
            run(photos, foreign, pre, overwrite=overwrite)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        run(photos, tmp_path / "file", pre)
    seen = []

    def second(progress: Progress) -> None:
        if not seen:
            seen.append(progress)
            with pytest.raises(RuntimeError, match="another process"):
                run(photos, tmp_path / "out", pre)

    assert run(photos, tmp_path / "out", pre, on_progress=second).rows == 23
    assert seen


# ---- reading back


def test_reading_in_batches_gives_all_rows_once(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", pre, codes=True, labels_from_folders=True)
    opened = EmbeddingSet(tmp_path / "out")
    assert (opened.rows, opened.layers, opened.n_bits) == (23, (2,), 192)
    whole = opened.read()
    batches = list(opened.batches(rows=3))
    assert max(len(batch.paths) for batch in batches) == 3
    np.testing.assert_array_equal(np.concatenate([batch.vectors for batch in batches]), whole.vectors)
    assert whole.codes is not None
    np.testing.assert_array_equal(
        np.concatenate([batch.codes for batch in batches if batch.codes is not None]), whole.codes
    )
    assert [path for batch in batches for path in batch.paths] == whole.paths
    assert [label for batch in batches for label in batch.labels or []] == whole.labels
    assert from_bytes(whole.codes, 192).any()


@pytest.mark.slow
def test_what_cannot_be_read_is_said(
    pre: Pretrained, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FileNotFoundError, match="no embeddings here"):
        read_embeddings(tmp_path)
    run(photos, tmp_path / "one", pre)
    run(photos, tmp_path / "two", pre, layers=[1])
    with pytest.raises(ValueError, match="holds no codes"):
        next(EmbeddingSet(tmp_path / "one").code_batches())
    shutil.copy(tmp_path / "two/part-00001.parquet", tmp_path / "one/part-00001.parquet")
    with pytest.raises(ValueError, match=r"layers was \[2\], is \[1\]"):
        read_embeddings(tmp_path / "one")
    (tmp_path / "one/part-00001.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(ValueError, match="damaged"):
        read_embeddings(tmp_path / "one")
    (tmp_path / "one/part-00001.parquet").unlink()
    assert len(read_embeddings(tmp_path / "one").paths) == 18
    assert "incomplete (4 of 5 parts)" in caplog.text
    pq.write_table(pa.table({"x": [1]}), tmp_path / "part-00009.parquet")
    with pytest.raises(ValueError, match="not written by bigr-repr embed"):
        read_embeddings(tmp_path)


@pytest.mark.slow
def test_the_list_of_inputs_is_not_held_in_memory(tmp_path: Path) -> None:
    sources = (Source(f"folder/{n:08d}.jpg", f"/root/folder/{n:08d}.jpg") for n in range(50_000))
    lists.list_inputs(tmp_path, [Source("a", "a")], 1000, lambda count: None)  # imports pandas
    tracemalloc.start()
    try:
        listed = lists.list_inputs(tmp_path, sources, 1000, lambda count: None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3e6
    assert listed.inputs == 50_000
    written = plan.commit_plan(tmp_path, listed, 1000, {})
    assert written.entries(49)[-1] == Entry("folder/00049999.jpg", "/root/folder/00049999.jpg")
    assert (tmp_path / "inputs.parquet").stat().st_size < 500_000
