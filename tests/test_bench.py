"""Laws of benchmarks: features are computed once and survive a break, sides match, `bench` says what is wrong."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from bigr_repr_cli.bench import app
from bigr_repr_cli.main import main
from tiny_model import picture, tiny_model, write_pictures
from typer.testing import CliRunner

from bigr_repr.checkpoints.pretrained import save
from bigr_repr.datasets import open_images
from bigr_repr.embed import embed_images
from bigr_repr.evaluate.data.splits import open_data, transfer
from bigr_repr.evaluate.probes.linear_probe import linear_probe
from bigr_repr.evaluate.representations.hidden import Hidden
from bigr_repr.evaluate.representations.open import open_representation
from bigr_repr.evaluate.representations.pixels import PixelRepresentation
from bigr_repr.evaluate.runs import cache as cache_module
from bigr_repr.evaluate.runs.bench import bench, best_row
from bigr_repr.evaluate.runs.best_layer import noted
from bigr_repr.evaluate.runs.cache import DIGESTS, FeatureCache
from bigr_repr.evaluate.runs.extraction import BenchSettings, features_of
from bigr_repr.features.condition import FeatureCondition
from bigr_repr.features.extract import encode_codes, extract_features


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tiny_model(), tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders a and b, 8 training and 4 test pictures each."""
    root = tmp_path_factory.mktemp("photos")
    for number, name in enumerate("ab"):
        write_pictures(root / "train" / name, 8, first=100 * number)
        write_pictures(root / "test" / name, 4, first=100 * number + 50)
    return root


@pytest.fixture
def settings(tmp_path: Path) -> BenchSettings:
    return BenchSettings(cache=tmp_path / "cache", k=(1, 3), workers=1, device="cpu")


def _parquet(path: Path, seeds: list[int], labels: list[int], classes: str = "a,b") -> None:
    files = []
    for seed in seeds:
        file = path.with_suffix(".png")
        picture(seed).save(file)
        files.append(file.read_bytes())
        file.unlink()
    table = pa.table({"image": pa.array(files, pa.binary()), "label": pa.array(labels, pa.int16())})
    pq.write_table(table.replace_schema_metadata({"classes": classes}), path)


# ---- features


@pytest.mark.slow
def test_features_are_what_users_get(model: str, photos: Path, settings: BenchSettings) -> None:
    data = open_data(str(photos))
    found = features_of(model, data, settings, layers=[1, -1])
    expected = extract_features(photos / "train", model=model, layer=[1, 3])
    for view, layer in zip(found.train, (1, 3), strict=True):
        assert view.layer == layer
        np.testing.assert_allclose(found.train[view], expected[layer], atol=1e-5)
    with pytest.MonkeyPatch.context() as patch:  # the pass that gave the layers gave the bits
        patch.setattr(Hidden, "compute", None)
        codes = features_of("tokenizer-bits:" + model, data, settings)
    assert np.array_equal(next(iter(codes.test.values())), encode_codes(photos / "test", model=model))


@pytest.mark.slow
def test_pools_come_from_the_tokens(model: str, photos: Path, tmp_path: Path) -> None:
    tokens = extract_features(photos / "train", model=model, layer=2, pool="none")
    expected = {"max": tokens.max(axis=1), "avg+max": np.hstack([tokens.mean(axis=1), tokens.max(axis=1)])}
    for pool, values in expected.items():
        settings = BenchSettings(cache=tmp_path, pool=pool, device="cpu")
        found = features_of(model, open_data(str(photos)), settings, layers=[2])
        np.testing.assert_allclose(next(iter(found.train.values())), values, atol=1e-5)
    with pytest.raises(ValueError, match="avg, max"):
        features_of(model, open_data(str(photos)), BenchSettings(cache=tmp_path, pool="sum"), layers=[2])


def test_nothing_is_computed_twice_and_a_break_costs_a_block(
    model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_BLOCK", 5)
    data, seen = open_data(str(photos)), []
    pixels, cache = PixelRepresentation("pixels:8", "8"), FeatureCache(tmp_path, workers=1)
    prepare, armed = pixels.prepare, [True]

    def counted(image: Any) -> Any:
        seen.append(image)
        if armed and len(seen) == 8:
            raise RuntimeError("killed")
        return prepare(image)

    monkeypatch.setattr(pixels, "prepare", counted)
    with pytest.raises(RuntimeError, match="killed"):
        cache.get(pixels, data.train, ["pixels"])
    seen.clear()
    armed.clear()
    progress: list[tuple[int, int]] = []
    found = cache.get(pixels, data.train, ["pixels"], lambda done, total: progress.append((done, total)))
    assert (len(seen), progress[-1]) == (11, (11, 11))
    again = cache.get(pixels, data.train, ["pixels", DIGESTS])
    assert np.array_equal(found["pixels"], again["pixels"])
    assert again[DIGESTS].shape == (16, 16)
    assert not list(tmp_path.rglob("*.part"))
    assert cache.get(PixelRepresentation("pixels:4", "4"), data.train, ["pixels"])["pixels"].shape == (16, 48)


def test_changed_images_are_other_images(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    for name in "ab":
        write_pictures(root / name, 5, first=ord(name))
    cache, pixels = FeatureCache(tmp_path / "cache"), PixelRepresentation("pixels:4", "4")
    first = cache.get(pixels, open_data(str(root)).train, ["pixels"])["pixels"]
    picture(7, 50, 50).save(root / "a" / "00097.png")
    assert not np.array_equal(first, cache.get(pixels, open_data(str(root)).train, ["pixels"])["pixels"])


@pytest.mark.slow
def test_untrained_networks_differ_where_they_should(model: str, photos: Path, settings: BenchSettings) -> None:
    data = open_data(str(photos))
    trained, both, generator = (
        features_of(f"{kind}{model}", data, settings, layers=[1]) for kind in ("", "random:", "random-generator:")
    )
    assert len({each.facts["model"]["model_sha256"] for each in (trained, both, generator)}) == 3
    codes = BenchSettings(cache=settings.cache, codes=True, device="cpu")
    bits = [
        next(iter(features_of(f"{kind}{model}", data, codes).train.values()))
        for kind in ("", "random:", "random-generator:")
    ]
    assert np.array_equal(bits[0], bits[2])
    assert not np.array_equal(bits[0], bits[1])


# ---- the rows


@pytest.mark.slow
def test_a_row_is_the_probe_of_the_features_and_says_how_it_came(
    model: str, photos: Path, settings: BenchSettings
) -> None:
    data = open_data(str(photos))
    rows = bench(model, data, settings, layers=None)
    assert [row.view.layer for row in rows] == [0, 1, 2, 3]
    features = features_of(model, data, settings, layers=[2])
    view = next(iter(features.train))
    expected = linear_probe(features.train[view], data.train.labels, features.test[view], data.test.labels)
    assert rows[2].probe is not None
    assert rows[2].probe.top1 == expected.top1
    record = json.loads(json.dumps(rows[2].record()))
    assert record["linear_probe"]["protocol"] == expected.protocol
    assert record["linear_probe"]["seeds"] == [0]
    assert len(record["model"]["model_sha256"]) == 64
    assert record["machine"]["cores"] >= 1
    assert (record["train"]["images"], record["test"]["images"], record["layer"]) == (16, 8, 2)
    assert list(record["knn"]["top1"]) == ["1", "3"]
    named = bench(model, data, settings, layers=["best"], neighbors=False)
    assert named[0].view.layer == best_row(rows).view.layer
    with pytest.raises(ValueError, match="bench layers --model"):
        bench("random:" + model, data, settings, layers=["best"])


@pytest.mark.slow
def test_probe_on_timm_features_is_a_plain_pytorch_probe(photos: Path, settings: BenchSettings) -> None:
    import timm
    from PIL import Image
    from torch.optim import LBFGS

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("test_vit", pretrained=False, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    sides, labels = [], []
    for side in ("train", "test"):
        files = sorted((photos / side).rglob("*.png"))
        with torch.no_grad():
            sides.append(network(torch.stack([transform(Image.open(file).convert("RGB")) for file in files])).double())
        labels.append(torch.tensor([file.parent.name == "b" for file in files]).long())
    features = features_of("timm:test_vit?random", open_data(str(photos)), settings)
    view = next(iter(features.train))
    np.testing.assert_allclose(features.train[view], sides[0].float().numpy(), atol=1e-4)
    mean, deviation = sides[0].mean(dim=0), sides[0].std(dim=0, correction=0)
    train, test = ((side - mean) / deviation for side in sides)
    weight, bias = torch.zeros(train.shape[1], 2, dtype=torch.double), torch.zeros(2, dtype=torch.double)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = LBFGS(parameters, max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(train @ weight + bias, labels[0])
        value = value + weight.square().sum() / (2 * 0.1 * len(train))
        value.backward()
        return value

    optimizer.step(loss)
    theirs = (test @ weight + bias).argmax(dim=1)
    ours = linear_probe(
        features.train[view], labels[0].numpy(), features.test[view], labels[1].numpy(), grid=[0.1], device="cpu"
    )
    assert np.array_equal(ours.predicted, theirs.numpy())
    assert ours.top1 == pytest.approx(100 * float((theirs == labels[1]).double().mean()))


def test_timm_blocks_are_forward_intermediates(photos: Path, settings: BenchSettings) -> None:
    backbone = open_representation("timm:test_vit?random", device="cpu")
    assert backbone.layers > 2
    found = features_of("timm:test_vit?random", open_data(str(photos)), settings, layers=[1, -1])
    assert [view.layer for view in found.train] == [1, backbone.layers - 1]
    batch = [backbone.prepare(picture(seed).convert("RGB")) for seed in range(3)]
    arrays = backbone.compute(batch, ["layer-1", "pooled"])
    alone = backbone.compute(batch, ["layer-1"])
    np.testing.assert_allclose(arrays["layer-1"], alone["layer-1"], atol=1e-5)
    np.testing.assert_allclose(arrays["pooled"], backbone.compute(batch, ["pooled"])["pooled"], atol=1e-5)


@pytest.mark.slow
def test_embeddings_on_disk_are_measured_without_images(
    model: str, photos: Path, tmp_path: Path, settings: BenchSettings
) -> None:
    for side in ("train", "test"):
        embed_images(
            [str(photos / side)], tmp_path / side, model=model, layers=[1, 2], codes=True, labels_from_folders=True,
            device="cpu",
        )  # fmt: skip
    data = transfer(str(tmp_path / "train"), str(tmp_path / "test"))
    stored = bench(None, data, settings)
    fresh = bench(model, open_data(str(photos)), settings, layers=[1, 2])
    assert [row.view.layer for row in stored] == [1, 2]
    for one, other in zip(stored, fresh, strict=True):
        assert one.knn is not None
        assert other.knn is not None
        assert one.probe is not None
        assert other.probe is not None
        assert (one.probe.top1, one.knn.top1) == (other.probe.top1, other.knn.top1)
    assert stored[0].facts["model"]["model_sha256"] == fresh[0].facts["model"]["model_sha256"]
    bits = bench(None, data, BenchSettings(cache=settings.cache, codes=True, k=(1,)), probe=False)
    assert bits[0].knn is not None
    assert bits[0].knn.metric == "hamming"
    with pytest.raises(ValueError, match="leave model out"):
        bench("bigr-tiny", data, settings)
    with pytest.raises(ValueError, match="layer=7 is not in"):
        bench(None, data, settings, layers=[7])
    with pytest.raises(ValueError, match="two of a kind"):
        bench(None, transfer(str(tmp_path / "train"), str(photos)), settings)
    embed_images([str(photos / "test")], tmp_path / "mirrored", model=model, layers=[1, 2], mirror=True, device="cpu",
                 labels_from_folders=True)  # fmt: skip
    with pytest.raises(ValueError, match=r"are not comparable: .*mirror"):
        bench(None, transfer(str(tmp_path / "train"), str(tmp_path / "mirrored")), settings)


# ---- data


def test_limits_are_stratified_recorded_and_reproducible() -> None:
    data = open_data("digits", limit=105, test_limit=50, seed=3)
    assert len(data.train) == 105
    counts = np.bincount(data.train.labels)
    assert counts.max() - counts.min() <= 2
    assert data.train.record == {
        "source": "digits train", "images": 105, "classes": 10, "of": 1198, "drawn": "stratified, seed 3"
    }  # fmt: skip
    assert np.array_equal(data.train.rows, open_data("digits", limit=105, seed=3).train.rows)
    assert not np.array_equal(data.train.rows, open_data("digits", limit=105, seed=4).train.rows)


def test_sources_of_every_kind_are_found(photos: Path, tmp_path: Path) -> None:
    _parquet(tmp_path / "cifar10-train.parquet", [1, 2, 3], [0, 1, 0])
    _parquet(tmp_path / "cifar10-test.parquet", [4, 5], [0, 1])
    for name, root in (("cifar10", tmp_path), (str(tmp_path / "cifar10"), Path()), (str(tmp_path), Path())):
        data = open_data(name, root=root)
        assert (len(data.train), len(data.test)) == (3, 2)
    assert len(transfer(str(tmp_path / "cifar10-tr*.parquet"), str(tmp_path / "cifar10-test.parquet")).train) == 3
    single = open_data(str(photos / "train"))
    assert (len(single.train), len(single.test)) == (12, 4)
    assert not set(single.train.rows) & set(single.test.rows)
    tiny = tmp_path / "tiny-imagenet-200"
    for wnid in ("n2", "n1"):
        write_pictures(tiny / "train" / wnid / "images", 3)
    write_pictures(tiny / "val" / "images", 2)
    (tiny / "val" / "val_annotations.txt").write_text("00000.png\tn2\t0\t0\t1\t1\n00001.png\tn1\t0\t0\t1\t1\n")
    found = open_data("tiny-imagenet", root=tmp_path)
    assert found.test.labels.tolist() == [1, 0]
    assert len(found.train) == 6


def test_torchvision_data_sets_by_name(tmp_path: Path) -> None:
    eurosat = tmp_path / "eurosat" / "2750"
    for name in ("Forest", "River"):
        write_pictures(eurosat / name, 10, suffix=".jpg")
    data = open_data("eurosat", root=tmp_path)
    assert (len(data.train), len(data.test), data.train.class_names) == (16, 4, ("Forest", "River"))
    pets = tmp_path / "oxford-iiit-pet"
    (pets / "images").mkdir(parents=True)
    (pets / "annotations").mkdir()
    for side, seeds in (("trainval", (1, 2)), ("test", (3, 4))):
        names = [f"{animal}_{seed}" for animal, seed in zip(("Beagle", "Persian"), seeds, strict=True)]
        for name, seed in zip(names, seeds, strict=True):
            picture(seed).save(pets / "images" / f"{name}.jpg")
        lines = [f"{name} {number} 1 1" for number, name in enumerate(names, 1)]
        (pets / "annotations" / f"{side}.txt").write_text("\n".join(lines))
    found = open_data("pets", root=tmp_path)
    assert found.test.labels.tolist() == [0, 1]
    assert found.train.class_names == ("Beagle", "Persian")


def test_transfer_matches_classes_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _parquet(tmp_path / "one.parquet", [1, 2, 3, 4, 5], [0, 1, 2, 0, 1], "cat,dog,ship")
    _parquet(tmp_path / "two.parquet", [6, 7, 8], [0, 1, 2], "Dog,horse,cat")
    data = transfer(str(tmp_path / "one.parquet"), str(tmp_path / "two.parquet"))
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    assert data.test.labels.tolist() == [1, 0]
    assert data.test.rows.tolist() == [0, 2]
    assert "1 images" in data.test.record["left_out"]
    assert "left out" in caplog.text
    _parquet(tmp_path / "three.parquet", [6, 7], [0, 1], "car,tree")
    with pytest.raises(ValueError, match="share 0"):
        transfer(str(tmp_path / "one.parquet"), str(tmp_path / "three.parquet"))


def test_test_images_in_the_training_set_are_counted(
    tmp_path: Path, settings: BenchSettings, caplog: pytest.LogCaptureFixture
) -> None:
    _parquet(tmp_path / "x-train.parquet", [1, 2, 3, 4], [0, 1, 0, 1])
    _parquet(tmp_path / "x-test.parquet", [5, 3], [1, 0])
    rows = bench("pixels:8", open_data(str(tmp_path / "x")), settings, probe=False)
    assert rows[0].facts["test_images_in_train"] == 1
    assert "1 of 2 test images are also training images" in caplog.text


@pytest.mark.slow
def test_equal_rows_of_embeddings_are_counted_by_what_is_there(
    model: str, tmp_path: Path, settings: BenchSettings, caplog: pytest.LogCaptureFixture
) -> None:
    for side, seeds in (("train", range(6)), ("test", range(4, 8))):
        for seed in seeds:
            write_pictures(tmp_path / side / "ab"[seed % 2], 1, first=seed)
        out = tmp_path / f"{side}-out"
        embed_images([str(tmp_path / side)], out, model=model, layers=[1], codes=True, labels_from_folders=True)
    data = transfer(str(tmp_path / "train-out"), str(tmp_path / "test-out"))
    assert bench(None, data, settings, probe=False)[0].facts["test_images_in_train"] == 2
    assert "2 of 4 test images are also training images, going by their features" in caplog.text
    bench(None, data, dataclasses.replace(settings, codes=True), probe=False)
    assert "going by their bits" in caplog.text


def test_classes_without_test_images_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _parquet(tmp_path / "x-train.parquet", [1, 2, 3, 4], [0, 1, 2, 3], "a,b,c,d")
    _parquet(tmp_path / "x-test.parquet", [5, 6, 7, 8], [0, 3, 3, 0], "a,b,c,d")
    open_data(str(tmp_path / "x"))
    assert "x test has no images of 2 classes: b, c" in caplog.text


@pytest.mark.slow
def test_tokens_on_disk_are_pooled_as_asked_and_means_only_as_they_are(
    model: str, photos: Path, tmp_path: Path, settings: BenchSettings
) -> None:
    for pool in ("none", "avg", "max"):
        for side in ("train", "test"):
            out = tmp_path / pool / side
            embed_images([str(photos / side)], out, model=model, layers=[2], pool=pool, labels_from_folders=True)
    largest = dataclasses.replace(settings, pool="max")
    tokens = features_of(None, transfer(str(tmp_path / "none" / "train"), str(tmp_path / "none" / "test")), largest)
    fresh = features_of(model, open_data(str(photos)), largest, layers=[2])
    np.testing.assert_allclose(next(iter(tokens.train.values())), next(iter(fresh.train.values())), atol=1e-5)
    means = transfer(str(tmp_path / "avg" / "train"), str(tmp_path / "avg" / "test"))
    assert "leave pool out" in _fails(lambda: features_of(None, means, largest))
    maxima = transfer(str(tmp_path / "max" / "train"), str(tmp_path / "max" / "test"))
    stored = features_of(None, maxima, settings)
    assert stored.facts["pool"] == "max"
    np.testing.assert_allclose(next(iter(stored.train.values())), next(iter(fresh.train.values())), atol=1e-5)


def test_stored_blocks_stand_side_by_side_as_stored_or_as_asked(
    model: str, photos: Path, tmp_path: Path, settings: BenchSettings
) -> None:
    for side in ("train", "test"):
        how = {"pool": "max", "mirror": True, "labels_from_folders": True, "decode_timeout": None}
        embed_images([str(photos / side)], tmp_path / side, model=model, layers=[1, 2, "1+3"], **how)
    data = transfer(str(tmp_path / "train"), str(tmp_path / "test"))
    reading = dataclasses.replace(settings, pool="max", mirror=True)
    for layers in ((1, 3), (1, 2), 2):
        stored, fresh = (features_of(m, d, reading, layers=[layers])
                         for m, d in ((None, data), (model, open_data(str(photos)))))  # fmt: skip
        for side in ("train", "test"):
            values = (next(iter(getattr(found, side).values())) for found in (stored, fresh))
            np.testing.assert_allclose(*values, atol=1e-5)
    assert "holds layers 1, 2, 1+3" in _fails(lambda: features_of(None, data, settings, layers=[(2, 3)]))


def test_neighbors_that_are_not_there_are_said_and_not_hidden(
    photos: Path, settings: BenchSettings, caplog: pytest.LogCaptureFixture
) -> None:
    rows = bench("pixels:8", open_data(str(photos)), dataclasses.replace(settings, k=(3, 17)), probe=False)
    assert rows[0].knn is not None
    assert list(rows[0].knn.top1) == [3]
    assert "has 16 images: k=17 is left out" in caplog.text


def _fails(call: Callable[[], object]) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_bad_data_is_refused_before_anything_is_extracted(tmp_path: Path, photos: Path) -> None:
    assert "cifar10, cifar100" in _fails(lambda: open_data("no/such/place"))
    assert "download=True" in _fails(lambda: open_data("stl10", root=tmp_path))
    told = _fails(lambda: open_data("tiny-imagenet", root=tmp_path))
    assert "tiny-imagenet-200.zip" in told
    assert "pass root=FOLDER" in told
    assert "image-net.org" in _fails(lambda: open_data("imagenet", root=tmp_path))
    assert "limit=9 images for 10 classes" in _fails(lambda: open_data("digits", limit=9))
    _parquet(tmp_path / "y-train.parquet", [1, 2, 3], [0, 0, 1], "a,b,c,d")
    _parquet(tmp_path / "y-test.parquet", [1, 2, 3, 4], [0, 1, 2, 3], "a,b,c,d")
    assert "3 images for 4 classes" in _fails(lambda: open_data(str(tmp_path / "y")))
    _parquet(tmp_path / "y-train.parquet", [1, 2, 3, 4], [0, 0, 1, 2], "a,b,c,d")
    assert "without any image in y train (3)" in _fails(lambda: open_data(str(tmp_path / "y")))
    _parquet(tmp_path / "y-train.parquet", [1, 2, 3, 4], [0, 0, 1, 9], "a,b,c,d")
    assert "label 9 is outside 0..3" in _fails(lambda: open_data(str(tmp_path / "y")))
    write_pictures(tmp_path / "flat", 3)
    assert "no labels" in _fails(lambda: open_data(str(tmp_path / "flat")))
    write_pictures(tmp_path / "sides" / "train" / "a", 3)
    write_pictures(tmp_path / "sides" / "train" / "b", 3)
    write_pictures(tmp_path / "sides" / "val" / "c", 3)
    assert "1 classes that sides train lacks (c)" in _fails(lambda: open_data(str(tmp_path / "sides")))


def test_a_limit_is_named_by_its_side() -> None:
    assert "digits test: test_limit=3 images for 10 classes" in _fails(lambda: open_data("digits", test_limit=3))


def test_a_side_without_images_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        write_pictures(tmp_path / "one" / name, 1)
    told = _fails(lambda: open_data(str(tmp_path / "one")))
    assert "one: 2 images, one of each class, are too few to hold any back for testing" in told
    few, many = str(tmp_path / "few.parquet"), str(tmp_path / "many.parquet")
    _parquet(Path(few), [1, 2], [0, 1], "a,b")
    _parquet(Path(many), [1, 2, 3, 4], [2, 3, 2, 3], "a,b,c,d")
    assert "many.parquet test: none of its 4 images has a class" in _fails(lambda: transfer(few, many))
    assert "many.parquet train: none of its 4 images has a class" in _fails(lambda: transfer(many, few))


@pytest.mark.parametrize(
    ("changes", "options", "same"),
    [
        ({}, "", "--seed and --cache"),
        ({"pool": "max", "mirror": True}, " --pool max --mirror", "--seed and --cache"),
        ({"condition": FeatureCondition(masked_share=0.5)}, "", "--seed, --cache and condition"),
    ],
)
def test_an_unknown_best_block_is_found_by_what_is_said(changes: dict[str, Any], options: str, same: str) -> None:
    train, key = open_data("digits", limit=100).train, BenchSettings(**changes).pool_key
    told = _fails(lambda: noted("none", "0" * 64, key, train=train, model="m", dataset="digits"))
    assert f"on the same data set (digits), with the same --limit, {same}: " in told
    assert told.endswith(f": bigr-repr bench layers --model m{options}")


def test_an_unreadable_image_is_named(tmp_path: Path, settings: BenchSettings) -> None:
    for name in "ab":
        write_pictures(tmp_path / name, 3)
    (tmp_path / "b" / "00001.png").write_bytes((tmp_path / "b" / "00001.png").read_bytes()[:60])
    message = _fails(lambda: bench("pixels", open_data(str(tmp_path)), settings))
    assert "00001.png" in message


def test_bad_models_are_refused_in_one_line(model: str, photos: Path, settings: BenchSettings) -> None:
    data = open_data(str(photos))
    assert "timm has no model" in _fails(lambda: bench("timm:resnet9000", data, settings))
    message = _fails(lambda: bench("timm:vit_small_patch16_224.dino", data, settings))
    assert "cache" in message
    assert "?random" in message
    assert "pixels:32" in _fails(lambda: bench("pixels:huge", data, settings))
    assert "has no layers" in _fails(lambda: bench("pixels", data, settings, layers=[3]))
    assert "outside 0..3" in _fails(lambda: bench(model, data, settings, layers=[4]))
    assert "models list" in _fails(lambda: bench("nonesuch", data, settings))
    bits = BenchSettings(cache=settings.cache, codes=True)
    assert "has no bits" in _fails(lambda: bench("pixels", data, bits))
    assert "leave layer out, or codes" in _fails(lambda: bench(model, data, bits, layers=[1]))
    assert "not for pixels, which supports avg" in _fails(
        lambda: bench("pixels", data, dataclasses.replace(settings, pool="max"))
    )
    assert "has no layers" in _fails(lambda: bench("pixels", data, settings, layers=["best"]))
    assert "device='cuda:99'" in _fails(lambda: bench("pixels", data, dataclasses.replace(settings, device="cuda:99")))
    assert "device='abacus'" in _fails(lambda: bench("pixels", data, dataclasses.replace(settings, device="abacus")))
    assert "all above" in _fails(lambda: bench("pixels", data, BenchSettings(cache=settings.cache, k=(500,))))
    assert not Path(settings.cache).exists()  # nothing was extracted for any of them
    damaged = tiny_model()
    damaged.tokenizer.encoder.blocks[0].weight.data.fill_(float("nan"))  # type: ignore[union-attr,operator]
    hidden = Hidden("damaged", damaged, torch.device("cpu"))
    assert "not finite" in _fails(lambda: hidden.compute([np.zeros((32, 32, 3), np.uint8)], ["codes"]))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"protocol": "moco"}, "logreg, mae"),
        ({"pool": "sum"}, "avg, max"),
        ({"seeds": ()}, "seeds"),
        ({"k": (0,)}, "k="),
        ({"codes": True, "center": True}, "no mean to subtract (center=True)"),
    ],
)
def test_settings_are_checked(settings: BenchSettings, changes: dict[str, Any], named: str) -> None:
    assert named in _fails(lambda: dataclasses.replace(settings, **changes))


def test_the_mean_of_bits_is_not_subtracted(model: str, photos: Path, settings: BenchSettings) -> None:
    centered, data = dataclasses.replace(settings, center=True), open_data(str(photos))
    assert "has bits, which have no mean to subtract (center=True)" in _fails(
        lambda: bench(f"tokenizer-bits:{model}", data, centered, probe=False)
    )
    assert not Path(settings.cache).exists()


# ---- commands


def _run(*arguments: str) -> str:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
def test_commands_on_digits(model: str, tmp_path: Path) -> None:
    shared = ("--dataset", "digits", "--limit", "200", "--test-limit", "100", "--cache", str(tmp_path), "--model")
    text = _run("linear-probe", *shared, "pixels:8", "--seeds", "2")
    assert "200 of 1,198 training images" in text
    assert "logreg" in text
    assert "seeds 0, 1" in text
    text = _run("knn", *shared, "pixels:8", "-k", "1,5")
    assert text.splitlines()[1].split() == ["features", "k", "top-1", "top-5", "95", "%"]
    found = json.loads(_run("linear-probe", *shared, "pixels:8", "--json"))["rows"][0]
    assert found["linear_probe"]["top1"] > 80
    found = json.loads(_run("knn", *shared, "pixels:8", "-k", "5", "--center", "--json"))["rows"][0]
    assert found["knn"]["top1"]["5"] > 85
    assert "mean subtracted" in found["knn"]["protocol"]
    plot = tmp_path / "layers.svg"
    text = _run("layers", *shared, model, "-k", "5", "--plot", str(plot))
    assert text.count("(best)") == 1
    assert "<svg" in plot.read_text()
    assert "layer" in _run("linear-probe", *shared, model, "--layer", "best")


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["linear-probe"], 2, "--dataset"),
        (["linear-probe", "--dataset", "digits", "--train-on", "digits", "--test-on", "digits"], 2, "--dataset"),
        (["knn", "--dataset", "digits", "-k", "0"], 2, "--k"),
        (["linear-probe", "--dataset", "digits", "--layer", "last"], 2, "best"),
        (["layers", "--dataset", "digits", "--plot", "a.jpg"], 2, ".svg"),
        (["layers", "--dataset", "digits", "--plot", "no/such/a.svg"], 2, "not a folder"),
        (["linear-probe", "--dataset", "digit"], 1, "digits"),
        (["linear-probe", "--dataset", "digits", "--model", "pixels", "--protocol", "x", "--limit", "50"], 2, "mage"),
    ],
)
def test_wrong_usage_and_failures_are_one_line(
    arguments: list[str],
    code: int,
    named: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["bigr-repr", "bench", *arguments, "--cache", str(tmp_path)])
    monkeypatch.setattr(logging.getLogger("bigr_repr"), "disabled", True)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    assert named in capsys.readouterr().err


def test_class_names_of_a_file_lose_their_wordnet_ids(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([b""], pa.binary()), "label": pa.array([0], pa.int16())})
    path = tmp_path / "named.parquet"
    pq.write_table(
        table.replace_schema_metadata({"classes": "n01443537:goldfish|n09428293:seashore, coast|n1:x"}), path
    )
    assert open_images(path).class_names == ("goldfish", "seashore, coast", "n1:x")
