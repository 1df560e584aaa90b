"""Laws of probes on augmented images and of fine-tuning: crops, rates by depth, and what is trained and what is not."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bigr_repr_cli.bench import app
from PIL import Image
from tiny_model import picture, tiny_model, write_pictures
from typer.testing import CliRunner

from bigr_repr.checkpoints.pretrained import save
from bigr_repr.evaluate.data.splits import open_data
from bigr_repr.evaluate.probes import attentive, protocols
from bigr_repr.evaluate.probes.attentive import AttentiveProbe
from bigr_repr.evaluate.representations.base import Reading
from bigr_repr.evaluate.representations.open import open_representation
from bigr_repr.evaluate.representations.trainable import trainable
from bigr_repr.evaluate.runs import augmented, finetune
from bigr_repr.evaluate.runs.attention import bench_attentive
from bigr_repr.evaluate.runs.augmented import bench_augmented
from bigr_repr.evaluate.runs.bench import bench
from bigr_repr.evaluate.runs.finetune import FineTuning, bench_finetune
from bigr_repr.evaluate.runs.settings import BenchSettings
from bigr_repr.images import augment
from bigr_repr.images.augment import random_resized_crop


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tiny_model(), tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two classes that a network can learn: dark and bright pictures."""
    folder = tmp_path_factory.mktemp("photos")
    for side, count in (("train", 20), ("test", 10)):
        for shade, name in enumerate(("dark", "bright")):
            for number, file in enumerate(write_pictures(folder / side / name, count, first=100 * shade + count)):
                dimmed = np.asarray(picture(number + count)) // 3 + 150 * shade
                Image.fromarray(dimmed.astype(np.uint8)).save(file)
    return str(folder)


@pytest.fixture
def settings(tmp_path: Path) -> BenchSettings:
    return BenchSettings(cache=tmp_path / "cache", device="cpu", workers=1, k=(1,))


# ---- crops


def test_crops_lie_in_the_picture_and_have_the_published_sizes() -> None:
    """A picture whose colors say where they are: of every crop the place and size are read back."""
    across, down = np.meshgrid(np.arange(200), np.arange(120))
    image = Image.fromarray(np.stack([across, down, across * 0], axis=-1).astype(np.uint8))
    random, areas, ratios, mirrored = np.random.default_rng(0), [], [], 0
    for _ in range(300):
        crop = np.asarray(random_resized_crop(image, 64, random)).astype(float)
        wide, high = (crop[:, -1, 0].mean() - crop[:, 0, 0].mean()), crop[-1, :, 1].mean() - crop[0, :, 1].mean()
        mirrored += wide < 0
        wide, high = abs(wide) * 64 / 63, high * 64 / 63
        areas.append(wide * high / (200 * 120))
        ratios.append(wide / high)
    assert 0.05 < min(areas) < 0.15
    assert 0.6 < max(areas) <= 1.02
    assert 0.7 < min(ratios) < max(ratios) < 1.42
    assert 100 < mirrored < 200
    narrow = random_resized_crop(Image.new("RGB", (300, 2)), 8, random)
    assert narrow.size == (8, 8)


@pytest.mark.parametrize(
    ("size", "box"), [((400, 30), (180, 0, 220, 30)), ((30, 400), (0, 180, 30, 220)), ((40, 36), (0, 0, 40, 36))]
)
def test_where_no_crop_fits_it_is_the_largest_middle_of_such_a_ratio(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert augment._fallback(*size) == box


# ---- the probe on crops


def test_without_crops_the_augmented_probe_is_the_probe(
    model: str, photos: str, settings: BenchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augmented, "random_resized_crop", lambda image, side, random: image)
    short = dataclasses.replace(protocols.PROTOCOLS["mae"], epochs=4, warmup=1)
    monkeypatch.setitem(protocols.PROTOCOLS, "mae", short)
    data = open_data(photos)
    fixed = dataclasses.replace(settings, protocol="mae", batch=16, rates=(0.05, 0.4))
    plain = bench(model, data, fixed, layers=[1, 3], neighbors=False)
    found = bench_augmented(model, data, fixed, layers=[1, 3])
    for one, other in zip(plain, found, strict=True):
        assert one.view == other.view
        assert one.probe is not None
        assert other.probe is not None
        assert (one.probe.top1, one.probe.settings) == (other.probe.top1, other.probe.settings)
        assert one.probe.held_out_top1 == pytest.approx(other.probe.held_out_top1)
        assert (one.probe.predicted == other.probe.predicted).all()
        assert "random resized crops" in other.probe.protocol


def test_a_given_rate_of_the_augmented_probe_needs_nothing_held_out(
    model: str, photos: str, settings: BenchSettings
) -> None:
    data = open_data(photos, limit=2)  # one image of each class
    single = dataclasses.replace(settings, protocol="mae", rates=(0.1,))
    (row,) = bench_augmented(model, data, single, epochs=2, layers=[1])
    assert row.probe is not None
    assert row.probe.held_out_top1 is None
    assert row.probe.settings == ({"rate": 0.1},)
    assert row.probe.predicted.shape == (20,)
    with pytest.raises(ValueError, match="2 images of 2 classes are too few to hold any out"):
        bench_augmented(model, data, dataclasses.replace(single, rates=(0.1, 0.2)), epochs=2, layers=[1])


@pytest.mark.parametrize("rates", [(1e30,), (0.1, 1e30), (1e30, 1e38)])
def test_augmented_heads_that_diverge_are_no_accuracy(
    rates: tuple[float, ...], model: str, photos: str, settings: BenchSettings
) -> None:
    wild, data = dataclasses.replace(settings, protocol="mae", batch=8, rates=rates), open_data(photos)
    if min(rates) < 1:
        (row,) = bench_augmented(model, data, wild, epochs=4, layers=[1])
        assert row.probe is not None
        assert row.probe.settings == ({"rate": 0.1},)
        return
    with pytest.raises(ValueError, match=r"rates=1e\+30.*: training diverged; give smaller rates"):
        bench_augmented(model, data, wild, epochs=4, layers=[1])


def test_rates_at_the_edge_of_their_grid_are_logged_by_layer(
    model: str, photos: str, settings: BenchSettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forms for programs have no lines below the table."""
    for module in (augmented, attentive):
        monkeypatch.setattr(module, "edge_of", lambda name, chosen, *rest: f"{name}={chosen:g} is an edge")
    data = open_data(photos)
    bench_augmented(model, data, dataclasses.replace(settings, protocol="mae", rates=(0.1, 0.2)), epochs=1, layers=[1])
    bench_attentive(model, data, settings, probe=AttentiveProbe(queries=2, epochs=1), layers=[2])
    for layer in (1, 2):
        assert re.search(rf"layer {layer}: rate=\S+ is an edge; a better one may lie beyond", caplog.text)


def test_crops_of_an_epoch_are_always_the_same_and_of_others_not(
    model: str, photos: str, settings: BenchSettings
) -> None:
    data, representation = open_data(photos), open_representation(model, device="cpu")
    views = representation.views([2], Reading())
    first, again, next_ = (augmented._cropped(representation, data.train, views, settings, e) for e in (0, 0, 1))
    assert first.shape == (1, 40, 64)
    assert torch.equal(first, again)
    assert not torch.allclose(first, next_)


@pytest.mark.slow
def test_the_command_names_its_protocol(model: str, photos: str, tmp_path: Path) -> None:
    arguments = ["augmented-probe", "--model", model, "--dataset", photos, "--layer", "2", "--epochs", "2"]
    arguments += ["--cache", str(tmp_path), "--device", "cpu", "--json"]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    protocol = json.loads(said.stdout)["rows"][0]["linear_probe"]["protocol"]
    assert protocol.startswith("mae: ")
    assert "2 steps" in protocol


def test_the_augmented_probe_refuses_a_protocol_on_fixed_features_before_it_reads_data(
    photos: str, settings: BenchSettings
) -> None:
    wrong = CliRunner().invoke(app, ["augmented-probe", "--dataset", "no-such-data", "--protocol", "logreg"])
    assert wrong.exit_code == 2
    assert "is not one of" in wrong.output
    with pytest.raises(ValueError, match="use mae, mage or dinov2"):
        bench_augmented("no-such-model", open_data(photos), settings, layers=[1])


# ---- fine-tuning


def test_rates_fall_with_depth_and_vectors_do_not_decay(model: str) -> None:
    hidden = open_representation(model, device="cpu")
    network = trainable(hidden, 2, "avg")
    groups = network.groups(0.1, 0.5)
    block = {id(value): number for number, layer in enumerate(network.modules.layers) for value in layer.parameters()}
    assert len(network.modules.layers) == 3
    for group in groups:
        depths = {block.get(id(value), -1) for value in group["params"]}
        assert {0.5 ** (3 - depth) for depth in depths} == {group["lr_scale"]}
        assert {value.squeeze().ndim < 2 for value in group["params"]} == {group["weight_decay"] == 0}
    count = sum(value.numel() for group in groups for value in group["params"])
    unused = (*network.modules.norm.parameters(), network.modules.diffusion_pos_embed_learned)
    assert count == sum(value.numel() for value in network.modules.parameters()) - sum(u.numel() for u in unused)
    backbone = open_representation("timm:test_vit?random", device="cpu")
    scales = {group["lr_scale"] for group in trainable(backbone, None, "avg").groups(0.1, 0.5)}
    assert len(scales) > 5
    assert max(scales) == 1


def test_a_network_to_be_trained_leaves_the_model_its_blocks(model: str) -> None:
    hidden = open_representation(model, device="cpu")
    batch, item = [hidden.prepare(picture(0))], f"layer-{hidden.layers - 1}"
    before = hidden.arrays(batch, [item])[item]
    network = trainable(hidden, 1, "avg")
    assert len(network.modules.layers) == 2
    assert len(hidden.pretrained.generator.transformer.layers) == hidden.layers
    assert np.array_equal(hidden.arrays(batch, [item])[item], before)
    assert network.modules.layers[1] is hidden.pretrained.generator.transformer.layers[1]


@pytest.mark.parametrize("pool", ["avg", "grid2"])
def test_what_is_trained_is_what_is_measured(model: str, pool: str) -> None:
    hidden = open_representation(model, device="cpu")
    batch = [hidden.prepare(picture(number)) for number in range(3)]
    (view,) = hidden.views([2], Reading(pool=pool))
    expected = hidden.arrays(batch, [view.item])[view.item]
    found = trainable(hidden, 2, pool).forward(batch)
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)
    found.sum().backward()
    assert hidden.pretrained.generator.transformer.tok_embeddings.weight.grad is not None
    assert all(value.grad is None for value in hidden.pretrained.tokenizer.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bigr-tiny", "timm:test_vit?random"])  # random bits would not tell the classes apart
def test_fine_tuning_learns_and_is_repeatable(name: str, photos: str, settings: BenchSettings) -> None:
    tuning, data = FineTuning(epochs=6, batch=8, rate=0.02), open_data(photos)
    rows = [bench_finetune(name, data, settings, tuning=tuning) for _ in range(2)]
    probes = [row.probe for row in rows]
    assert probes[0] is not None
    assert probes[1] is not None
    assert probes[0].top1 >= 90
    assert probes[0].top1 == probes[1].top1
    assert rows[0].record()["features"] == "fine-tuned"


def test_fine_tuning_is_a_plain_loop(model: str, photos: str, settings: BenchSettings) -> None:
    """Written out: the head, the order of the images, label smoothing, rates by step and depth, decay of matrices."""
    seeded = dataclasses.replace(settings, seeds=(5, 1))
    tuning = FineTuning(epochs=2, batch=12, rate=0.3, weight_decay=0.2, layer_decay=0.5, smoothing=0.2, crops=False)
    data = open_data(photos, limit=32)
    told: list[tuple[str, int, int]] = []
    row = bench_finetune(
        model, data, seeded, tuning=tuning, layer=1, on_progress=lambda *each: told.append(each)
    )  # fmt: skip
    assert told == [("fine-tuning", step, 6) for step in range(1, 7)]

    hidden = open_representation(model, device="cpu", seed=5)
    network, head = trainable(hidden, 1, "avg"), torch.nn.Linear(64, 2)
    head.weight.data = 0.01 * torch.randn(2, 64, generator=torch.Generator().manual_seed(5))
    head.bias.data.zero_()
    groups = [*network.groups(0.2, 0.5), {"params": list(head.parameters()), "weight_decay": 0.2, "lr_scale": 1.0}]
    optimizer = torch.optim.AdamW(groups)
    images = [hidden.prepare(data.train.source.load(int(place))) for place in data.train.rows]
    labels, step = torch.from_numpy(data.train.labels), 0
    for epoch in range(2):
        order = np.random.default_rng((5, epoch)).permutation(32)
        for places in (order[:12], order[12:24], order[24:]):
            for group in optimizer.param_groups:  # the first of six steps is a tenth of them, and warms up
                falling = 1 if step == 0 else (1 + np.cos(np.pi * (step - 1) / 5)) / 2
                group["lr"] = 0.3 * 12 / 256 * falling * group["lr_scale"]
            logits = head(network.forward([images[place] for place in places]))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels[places], label_smoothing=0.2).backward()
            optimizer.step()
            step += 1
    tested = [hidden.prepare(data.test.source.load(int(place))) for place in data.test.rows]
    with torch.no_grad():
        logits = torch.cat([head(network.forward([each])) for each in tested])
    assert row.probe is not None
    assert row.probe.predicted.tolist() == logits.argmax(dim=1).tolist()
    assert row.probe.top1 == pytest.approx(100 * float((logits.argmax(dim=1).numpy() == data.test.labels).mean()))
    assert (row.view.item, row.view.layer, row.probe.held_out_top1) == ("fine-tuned", 1, None)
    assert "2 epochs of 32 images, batch 12, rate 0.3 x batch/256, layer decay 0.5" in row.probe.protocol


def test_rates_of_fine_tuning_warm_up_for_a_tenth_and_fall(model: str, photos: str, settings: BenchSettings) -> None:
    hidden = open_representation(model, device="cpu")
    network = trainable(hidden, 1, "avg")
    tuner = finetune._Tuner(
        hidden, network, FineTuning(batch=64, rate=0.5, layer_decay=0.5), settings, 2, torch.device("cpu")
    )
    rates = []
    for step in range(40):
        tuner._rates(step, 40)
        rates.append(tuner._optimizer.param_groups[-1]["lr"])
        below = [group["lr"] / rates[-1] for group in tuner._optimizer.param_groups]
        assert below == pytest.approx([group["lr_scale"] for group in tuner._optimizer.param_groups])
    assert rates[:5] == pytest.approx([0.125 * share for share in (0.25, 0.5, 0.75, 1, 1)])
    assert rates[4 + 36 // 2] == pytest.approx(0.125 / 2)
    assert rates[-1] < 0.01 * 0.125
    assert all(one > following > 0 for one, following in pairwise(rates[4:]))


def test_crops_are_of_the_training_images_by_seed_epoch_and_row(
    model: str, photos: str, settings: BenchSettings
) -> None:
    hidden, data = open_representation(model, device="cpu"), open_data(photos)
    network = trainable(hidden, 1, "avg")
    tuner, plain = (
        finetune._Tuner(hidden, network, FineTuning(crops=crops), settings, 2, torch.device("cpu"))
        for crops in (True, False)
    )
    image = data.train.source.load(int(data.train.rows[3]))
    random = np.random.default_rng((0, 1, int(data.train.rows[3])))
    expected = hidden.prepare(random_resized_crop(image, 32, random))
    assert np.array_equal(tuner._loader(data.train, 1)(3), expected)
    assert not np.array_equal(tuner._loader(data.train, 2)(3), expected)
    for whole in (tuner._loader(data.train, None), plain._loader(data.train, 1)):
        assert np.array_equal(whole(3), hidden.prepare(image))


def test_fine_tuning_counts_test_images_that_are_also_training_images(
    model: str, photos: str, settings: BenchSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    for number, file in enumerate(sorted((tmp_path / "photos" / "train" / "dark").iterdir())[:3]):
        shutil.copy(file, tmp_path / "photos" / "test" / "dark" / f"again{number}{file.suffix}")
    data, tuning = open_data(str(tmp_path / "photos")), FineTuning(epochs=1, batch=40)
    counted = bench("pixels:4", data, settings, probe=False)[0].facts["test_images_in_train"]
    found = bench_finetune(model, data, settings, tuning=tuning, layer=0)
    assert found.record()["test_images_in_train"] == counted >= 3
    assert f"{counted} of {len(data.test)} test images are also training images, pixel for pixel" in caplog.text
    assert bench_finetune(model, open_data(photos), settings, tuning=tuning, layer=0).facts["test_images_in_train"] == 0


def test_a_loss_that_is_not_finite_ends_it(model: str, photos: str, settings: BenchSettings) -> None:
    wild = FineTuning(epochs=9, batch=40, rate=1e30, crops=False)
    with pytest.raises(ValueError, match=r"the loss is not finite after \d+ steps; use a smaller rate than 1e\+30"):
        bench_finetune(model, open_data(photos), settings, tuning=wild)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"epochs": 0}, "epochs=0"), ({"batch": 0}, "batch=0"), ({"rate": 0.0}, "rate=0.0"),
        ({"weight_decay": -0.1}, "the last at least 0"), ({"layer_decay": 0.0}, "layer_decay=0.0"),
        ({"layer_decay": 1.1}, "layer_decay=1.1"), ({"smoothing": 1.0}, "smoothing=1.0"),
        ({"smoothing": -0.1}, "smoothing=-0.1"),
    ],
)  # fmt: skip
def test_recipes_out_of_range_are_named(fields: dict[str, Any], said: str) -> None:
    FineTuning(epochs=1, batch=1, rate=1e-9, weight_decay=0.0, layer_decay=1.0, smoothing=0.0)
    with pytest.raises(ValueError, match=re.escape(said)):
        FineTuning(**fields)


def test_fine_tuning_takes_no_means_over_mirror_images(model: str, photos: str, settings: BenchSettings) -> None:
    mirrored = dataclasses.replace(settings, mirror=True)
    with pytest.raises(ValueError, match=r"no means over mirror images \(mirror=True\); leave it out"):
        bench_finetune(model, open_data(photos), mirrored, tuning=FineTuning(epochs=1), layer=0)


def test_what_cannot_be_fine_tuned_is_refused(model: str, photos: str, settings: BenchSettings) -> None:
    data = open_data(photos)
    for name, layer, said in (
        ("pixels:8", None, "cannot be fine-tuned"), (f"tokenizer-bits:{model}", None, "cannot be fine-tuned"),
        ("timm:test_vit?random", 2, "fine-tuned whole"), (model, 9, "outside 0..3"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            bench_finetune(name, data, settings, layer=layer)
    with pytest.raises(ValueError, match="layer_decay=2"):
        FineTuning(layer_decay=2)
