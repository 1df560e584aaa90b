"""Laws of probes on augmented images and of fine-tuning: crops, rates by depth, and what is trained and what is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bigr_repr_cli.bench import app
from PIL import Image
from tiny_model import picture, tiny_model, write_pictures
from typer.testing import CliRunner

from bigr_repr.checkpoints.pretrained import save
from bigr_repr.evaluate.data.splits import open_data
from bigr_repr.evaluate.probes import protocols
from bigr_repr.evaluate.representations.base import Reading
from bigr_repr.evaluate.representations.open import open_representation
from bigr_repr.evaluate.representations.trainable import trainable
from bigr_repr.evaluate.runs import augmented
from bigr_repr.evaluate.runs.augmented import bench_augmented
from bigr_repr.evaluate.runs.bench import bench
from bigr_repr.evaluate.runs.finetune import FineTuning, bench_finetune
from bigr_repr.evaluate.runs.settings import BenchSettings
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
    said = CliRunner().invoke(app, [*arguments, "--protocol", "mae"])
    assert said.exit_code == 0, said.output
    assert "2 steps" in json.loads(said.stdout)["rows"][0]["linear_probe"]["protocol"]
    assert "take mae, mage or dinov2" in str(CliRunner().invoke(app, arguments).exception)


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
