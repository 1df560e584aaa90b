"""Laws of a start from other weights: what agrees is kept exactly, classes go by name, new bits change nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import types
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from test_train import MODEL, PLAIN, TOKENIZER, losses, settings
from tiny_model import write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained, load, load_tokenizer, save, save_tokenizer
from bigr_repr.config import ModelConfig
from bigr_repr.datasets import ImageSet, open_images
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.sampling import applications
from bigr_repr.train import AdaptRecipe, card, initial
from bigr_repr.train import tokenizer as tokenizer_module
from bigr_repr.train.batches import Batch
from bigr_repr.train.initial import begun_from, widened
from bigr_repr.train.losses import (
    PerceptualDistance,
    adaptive_weight,
    augment,
    hinge_discriminator,
)
from bigr_repr.train.muon import Muon
from bigr_repr.train.run import run_generator_training, run_tokenizer_training, sample_grid
from bigr_repr.train.tokenizer import TokenizerRecipe, TokenizerTask, bit_usage, make_optimizers, train_tokenizer
from bigr_repr.train.trained_part import TrainedPart

NAMES = ("cat", "dog")
TABLE = "transformer.cls_embedding.embedding_table.weight"
NETWORK = "test_efficientnet"  # timm's own for tests


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    root = tmp_path_factory.mktemp("pictures")
    for name in NAMES:
        write_pictures(root / name, 4)
    return open_images(root)


@pytest.fixture
def start() -> Pretrained:
    torch.manual_seed(0)
    config = dataclasses.replace(MODEL, class_names=NAMES)
    generator = BiGR(config.generator).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.1)
    return Pretrained(config=config, tokenizer=BinaryAutoencoder(TOKENIZER).eval(), generator=generator)


def _config(**changes: Any) -> ModelConfig:
    names = changes.pop("class_names", NAMES)
    generator = dataclasses.replace(MODEL.generator, **changes)
    tokenizer = dataclasses.replace(TOKENIZER, code_bits=generator.code_bits)
    return dataclasses.replace(MODEL, generator=generator, tokenizer=tokenizer, class_names=names)


def test_a_start_of_the_same_kind_is_taken_whole(start: Pretrained) -> None:
    begun = begun_from(start, start.config).state_dict()
    assert all(torch.equal(begun[name], value) for name, value in start.generator.state_dict().items())


def test_classes_are_matched_by_name_and_no_class_stays_no_class(
    start: Pretrained, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        begun = begun_from(start, _config(classes=3, class_names=("owl", "dog", "cat"))).state_dict()
    old = start.generator.state_dict()
    assert torch.equal(begun[TABLE][1:], old[TABLE][[1, 0, 2]])  # dog, cat, no class
    assert not torch.equal(begun[TABLE][0], old[TABLE][0])
    assert "1 of 3 classes are new" in caplog.text
    assert all(torch.equal(begun[name], old[name]) for name in old.keys() - {TABLE})


def test_new_bits_that_are_zero_change_no_state_of_the_generator(
    start: Pretrained, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        begun = begun_from(start, _config(code_bits=9)).eval()
    codes = torch.randint(0, 2, (2, 16, 6)).float()
    wide = torch.cat([codes, torch.zeros(2, 16, 3)], 2)
    with torch.no_grad():
        ours, theirs = begun.hidden_states(wide)[-1], start.generator.hidden_states(codes)[-1]
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert "transformer.tok_embeddings.weight" in caplog.text
    rows = begun.state_dict()["diffusion.denoiser.final_layer.linear.weight"]
    old = start.generator.state_dict()["diffusion.denoiser.final_layer.linear.weight"]
    assert float(rows[6:].std() / old.std()) == pytest.approx(0.4, rel=0.2)  # quieter than what was trained


def test_places_are_resized_over_the_grid_and_kept_on_their_own() -> None:
    places = torch.randn(1, 16, 5)
    assert initial._resized(places, 4) is places
    level = torch.arange(4.0).repeat(4).view(1, 16, 1).expand(-1, -1, 5)  # grows from left to right
    found = initial._resized(level.contiguous(), 8)
    assert found.shape == (1, 64, 5)
    rows = found[0, :, 0].view(8, 8)
    assert torch.allclose(rows, rows[:1].expand(8, -1), atol=1e-5)
    assert bool((rows[0].diff() > 0).all())


def test_another_depth_or_grid_is_refused_by_name(start: Pretrained) -> None:
    with pytest.raises(ValueError, match=r"^initial=test is of another architecture: generator.layers was 2, is 4; "):
        begun_from(start, _config(layers=4))


def test_a_widened_tokenizer_keeps_its_bits(start: Pretrained) -> None:
    wide, pixels = widened(start.tokenizer, 9).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(wide.encode(pixels)[:, :6], start.tokenizer.encode(pixels))
    same = widened(start.tokenizer, 6).state_dict()
    assert all(torch.equal(same[name], value) for name, value in start.tokenizer.state_dict().items())
    with pytest.raises(ValueError, match=r"^code_bits=5 is less than the 6 "):
        widened(start.tokenizer, 5)


def test_a_wider_model_of_other_classes_trains_from_files(images: ImageSet, start: Pretrained, tmp_path: Path) -> None:
    save(start, tmp_path / "start")
    save_tokenizer(start.tokenizer, tmp_path / "narrow")
    (tmp_path / "data").mkdir()
    for name in ("dog", "owl", "yak"):
        write_pictures(tmp_path / "data" / name, 2)
    data = [str(tmp_path / "data")]
    tokenizer = run_tokenizer_training(
        data, settings(tmp_path / "t", steps=2), PLAIN, preset="tiny", code_bits=8, initial=str(tmp_path / "narrow")
    )
    assert load_tokenizer(tokenizer).config.code_bits == 8
    from bigr_repr.train import run as module
    from bigr_repr.train.recipe import GeneratorRecipe

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "architecture", lambda preset, **changes: _config(class_names=(), **changes))
        made = run_generator_training(
            data, str(tokenizer), settings(tmp_path / "g", steps=2), GeneratorRecipe(), preset="tiny",
            initial=str(tmp_path / "start"),
        )  # fmt: skip
    trained = load(made).config
    assert (trained.generator.classes, trained.generator.code_bits) == (3, 8)
    assert len(losses(tmp_path / "g")) == 2


def test_muon_takes_kernels_as_matrices_of_their_output_channels() -> None:
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(4, 3, 2, 2))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    gradient = torch.randn(4, 12)
    kernel.grad, matrix.grad = gradient.view(4, 3, 2, 2), gradient
    for parameter in (kernel, matrix):
        Muon([parameter], lr=0.1).step()
    assert torch.equal(kernel.detach().flatten(1), matrix.detach())


def test_muon_of_a_tokenizer_has_its_inner_kernels_and_every_weight_has_one_optimizer() -> None:
    model = BinaryAutoencoder(TOKENIZER)
    adam, muon = make_optimizers(model, "muon")
    held = [p for optimizer in (adam, muon) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    inner = {id(p) for p in muon.param_groups[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in inner}
    assert "encoder.blocks.1.conv1.weight" in names
    assert not {"encoder.blocks.0.weight", "quantize.proj.0.weight", "generator.blocks.1.bias"} & names


def test_a_tokenizer_trained_with_muon_and_a_judge_from_a_file_resumes_exactly(
    images: ImageSet, tmp_path: Path
) -> None:
    torch.save(timm.create_model(NETWORK).state_dict(), tmp_path / "weights.pth")

    def recipe(weights: Path) -> TokenizerRecipe:
        return TokenizerRecipe(
            perceptual=NETWORK, perceptual_weights=str(weights), perceptual_weight=0.1, gan_start=None, optimizer="muon"
        )

    whole = train_tokenizer(images, TOKENIZER, settings(tmp_path / "a", steps=4), recipe(tmp_path / "weights.pth"))
    train_tokenizer(images, TOKENIZER, settings(tmp_path / "b", steps=2), recipe(tmp_path / "weights.pth"))
    (tmp_path / "weights.pth").rename(tmp_path / "moved.pth")  # where it lies does not matter
    parts = train_tokenizer(images, TOKENIZER, settings(tmp_path / "b", steps=4), recipe(tmp_path / "moved.pth"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_a_judge_tells_pictures_apart_and_its_weights_file_is_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model(NETWORK).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    judge = PerceptualDistance(NETWORK, weights=tmp_path / "weights.pth")
    a, b = torch.rand(2, 2, 3, 32, 32)
    assert judge(a, a) == 0
    assert judge(a, b) > 0
    assert torch.equal(judge.network.state_dict()["conv_stem.weight"], state["conv_stem.weight"])
    with pytest.raises(FileNotFoundError):
        PerceptualDistance(NETWORK, weights=tmp_path / "nowhere.pth")


@pytest.mark.parametrize(("field", "value"), [("optimizer", "'lion'"), ("perceptual_weight", "-1")])
def test_recipes_out_of_range_are_named(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}={value} "):
        TokenizerRecipe(**{field: eval(value)})


# ---- a step of a tokenizer's training, written out


class OneRun:
    """Of a running loop what a step needs: gradients are kept, the weights stay."""

    def __init__(self) -> None:
        self.accelerator: Any = types.SimpleNamespace(autocast=contextlib.nullcontext)
        self.descended: list[tuple[list[Any], Any, float]] = []

    def check(self, loss: torch.Tensor, step: int) -> torch.Tensor:
        return loss.detach()

    def descend(self, loss: torch.Tensor, optimizers: Any, module: Any, step: int) -> torch.Tensor:
        self.descended.append((list(optimizers), module, float(loss.detach())))
        loss.backward()
        return torch.tensor(float(len(self.descended)))


def _task(**fields: Any) -> TokenizerTask:
    torch.manual_seed(0)
    model = BinaryAutoencoder(TOKENIZER)
    recipe = TokenizerRecipe(**{"perceptual": None, "gan_start": None, "gan_width": 4, "sample_bits": False} | fields)
    return TokenizerTask(model, recipe, torch.arange(2 * 3 * 16 * 16).reshape(2, 3, 16, 16).to(torch.uint8))


def _batch() -> Batch:
    side, random = TOKENIZER.image_size, torch.Generator().manual_seed(1)
    return Batch(torch.randint(0, 256, (4, 3, side, side), generator=random, dtype=torch.uint8), None, None)


@pytest.mark.parametrize("pixel_loss", ["l1", "l2"])
def test_a_tokenizer_learns_by_the_difference_of_pixels_and_the_use_of_its_bits(pixel_loss: str) -> None:
    task, run, batch = _task(pixel_loss=pixel_loss, bit_entropy=0.3), OneRun(), _batch()
    found = task.update(batch, 0, run)  # type: ignore[arg-type]
    assert batch.images is not None
    pixels, model = batch.images / 255, task.modules[0]
    with torch.no_grad():
        decoded, probabilities, _ = model(pixels, sample=False)
    difference = (decoded - pixels).abs() if pixel_loss == "l1" else (decoded - pixels) ** 2
    rate = probabilities.mean(dim=(0, 2, 3))
    entropy = -(rate * rate.log2() + (1 - rate) * (1 - rate).log2()).mean()
    assert float(found[pixel_loss]) == pytest.approx(float(difference.mean()), rel=1e-3)
    assert float(found["loss"]) == pytest.approx(float(difference.mean() - 0.3 * entropy), rel=1e-3)
    assert float(found["gradient_norm"]) == 1
    ((optimizers, module, _),) = run.descended
    assert (optimizers, module) == (task.optimizers, model)
    assert not {"gan", "discriminator", "perceptual"} & found.keys()


def test_a_judge_of_features_counts_by_its_weight(tmp_path: Path) -> None:
    torch.save(timm.create_model(NETWORK).state_dict(), tmp_path / "weights.pth")
    task = _task(perceptual=NETWORK, perceptual_weights=str(tmp_path / "weights.pth"), perceptual_weight=2.5)
    found = task.update(_batch(), 0, OneRun())  # type: ignore[arg-type]
    assert float(found["perceptual"]) > 0
    assert float(found["loss"]) == pytest.approx(float(found["l1"] + 2.5 * found["perceptual"]), rel=1e-5)
    assert len(task.perceptual_sha256) == 64
    assert _task().perceptual_sha256 == ""


def test_a_discriminator_takes_part_from_its_step_on_and_learns_after_the_tokenizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer_module, "augment", lambda images: images)
    task, run, batch = _task(gan_start=3), OneRun(), _batch()
    assert "gan" not in task.update(batch, 2, run)  # type: ignore[arg-type]
    assert batch.images is not None
    model, judge = task.modules
    pixels = batch.images / 255
    model.zero_grad()
    with torch.no_grad():
        decoded = model(pixels, sample=False)[0]
        real, fake = judge(torch.cat([pixels, decoded])).chunk(2)
    hinge = (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()) / 2
    found = task.update(batch, 3, run)  # type: ignore[arg-type]
    assert 0 <= float(found["gan_weight"]) <= 1
    assert float(found["loss"]) == pytest.approx(float(found["l1"] + found["gan_weight"] * found["gan"]), rel=1e-4)
    assert float(found["discriminator"]) == pytest.approx(float(hinge), rel=0.05)  # of other statistics of its batch
    (_, first), (own, second), (theirs, third) = [(each[0], each[1]) for each in run.descended]
    assert (first, second, third) == (model, model, judge)
    assert own == task.optimizers[:1]
    assert theirs == task.optimizers[1:]
    assert all(p.grad is not None for p in judge.parameters() if p.requires_grad)
    assert {id(p) for group in theirs[0].param_groups for p in group["params"]} == {id(p) for p in judge.parameters()}


def test_samples_are_originals_above_their_reconstructions() -> None:
    side = TOKENIZER.image_size
    shown = torch.randint(0, 256, (3, 3, side, side), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    task = TokenizerTask(BinaryAutoencoder(TOKENIZER), TokenizerRecipe(perceptual=None, gan_start=None), shown)
    other = BinaryAutoencoder(TOKENIZER)
    grid = task.samples(other.state_dict())
    assert (grid.dtype, tuple(grid.shape)) == (torch.uint8, (3, 2 * side + 6, 3 * side + 8))
    with torch.no_grad():
        decoded = (other.decode(other.encode(shown / 255)).clamp(0, 1) * 255).round().to(torch.uint8)
    for number in range(3):
        left = 2 + number * (side + 2)
        assert torch.equal(grid[:, 2 : 2 + side, left : left + side], shown[number])
        below = grid[:, side + 4 : 2 * side + 4, left : left + side].int()
        assert int((below - decoded[number].int()).abs().max()) <= 1


def test_use_of_bits_is_counted_over_all_places() -> None:
    probabilities = torch.zeros(2, 4, 1, 2) + torch.tensor([0.9, 0.6, 0.2, 0.4])[:, None, None]
    probabilities[0, 3] = 0.7  # on in half of the places
    usage = bit_usage(probabilities)
    assert float(usage["dead_bits"]) == 3
    assert float(usage["bit_entropy"]) == pytest.approx(1 / 4)
    assert float(usage["bit_certainty"]) == pytest.approx((0.8 + 0.2 + 0.6 + (0.4 + 0.2) / 2) / 4)


def test_the_hinge_and_the_weight_of_the_discriminator() -> None:
    assert float(hinge_discriminator(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5]))) == pytest.approx(
        (0.25 + 0.75) / 2
    )
    last = torch.tensor([3.0, 4.0], requires_grad=True)
    weight = adaptive_weight((last * torch.tensor([3.0, 4.0])).sum(), (last * torch.tensor([6.0, 8.0])).sum(), last)
    assert float(weight) == pytest.approx(0.5, rel=1e-4)
    assert float(adaptive_weight((4 * last).sum(), last.sum(), last)) == 1


def test_augmentation_moves_a_picture_by_an_eighth_at_most_and_fills_with_black() -> None:
    flat = torch.full((64, 3, 16, 8), 0.5)
    torch.manual_seed(0)
    found = augment(flat)
    assert found.shape == flat.shape
    moved = set()
    for image in found:
        assert len(image[0].unique()) <= 2  # one color, and black
        rows, columns = (image[0] != 0).any(1), (image[0] != 0).any(0)
        moved.add((16 - int(rows.sum()), 8 - int(columns.sum())))
        assert rows[0] or rows[-1]
    assert {down for down, _ in moved} == {0, 1, 2}
    assert {right for _, right in moved} == {0, 1}
    colors = found.amax(dim=(1, 2, 3))
    assert 0 < float(colors.min()) < 0.2
    assert 0.8 < float(colors.max()) < 1
    ramp = torch.linspace(0, 1, 8).expand(64, 3, 16, 8).clone()
    ramp[:, 1] *= 0.5
    spread = augment(ramp)
    contrasts = (spread[:, 0, 8, 3] - spread[:, 0, 8, 2]) * 7
    assert 0.2 < float(contrasts.min()) < float(contrasts.max()) < 2.3
    assert len({round(float(each), 3) for each in contrasts}) > 30  # one draw an image


# ---- pictures of a model in training, and of one that is published


def test_a_sample_is_sixteen_images_of_the_labels_in_turn(start: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def drawn(model: Pretrained, **given: Any) -> torch.Tensor:
        asked.append({"model": model, **given})
        return torch.linspace(-0.5, 1.5, 16)[:, None, None, None].expand(16, 3, 32, 32)

    monkeypatch.setattr(applications, "generate", drawn)
    grid = sample_grid(start.config, start.tokenizer, [1, 0, 1])(start.generator)
    assert (grid.dtype, tuple(grid.shape)) == (torch.uint8, (3, 2 * 34 + 2, 8 * 34 + 2))
    assert [int(grid[0, 5, 5 + 34 * n]) for n in (0, 7)] == pytest.approx([0, 255 * (-0.5 + 7 * 2 / 15)], abs=1)
    assert int(grid[0, 40, 5 + 34 * 7]) == 255
    (given,) = asked
    assert given["labels"] == [(1, 0, 1)[i % 3] for i in range(16)]
    assert (given["count"], given["seed"], given["prompt"]) == (16, 0, None)
    assert (given["settings"].steps, given["diffusion_steps"]) == (8, start.config.generator.sample_timesteps)
    assert given["model"].generator is start.generator
    assert given["model"].tokenizer is not start.tokenizer
    sample_grid(start.config, start.tokenizer, None, ["a"])(start.generator)
    assert (asked[1]["labels"], asked[1]["prompt"]) == (None, ["a"])


def test_a_card_has_pictures_of_classes_spread_over_all(
    start: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, int, int]] = []

    def drawn(pre: Pretrained, label: int | None, count: int, *, seed: int) -> list[Image.Image]:
        asked.append((label, count, seed))
        return [Image.new("RGB", (32, 32), (10 * seed, 0, 0))] * count

    monkeypatch.setattr(card, "class_pictures", drawn)
    with Image.open(io.BytesIO(card.sample_sheet(start, 10))) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 8 * 32 > sheet.height > 2 * 32
    assert asked == [(number * 2 // 10, 1, number) for number in range(10)]
    folder = save(start, tmp_path / "model")
    text, pictures = card.card_and_pictures(folder, "user/mine", license="mit", samples=2)
    assert "![Drawn by the model](samples.png)" in text
    assert "license: mit" in text
    assert list(pictures) == ["samples.png"]
    assert card.card_and_pictures(folder, "user/mine", samples=0)[1] == {}
    (folder / "README.md").write_text("my own, ä", encoding="utf-8")
    assert card.card_and_pictures(folder, "user/mine", samples=0)[0] == "my own, ä"


# ---- what an adaptation trains


@pytest.mark.parametrize("method", ["classes", "lora", "full"])
def test_a_method_trains_what_it_says_and_of_the_classes_the_rows_of_the_pictures(
    start: Pretrained, method: str
) -> None:
    if method == "lora":
        pytest.importorskip("peft")
    taken = torch.tensor([0, -1, 2])  # the second class is new
    names = {name for name, _ in start.generator.named_parameters()}
    part = TrainedPart(start.generator, taken, [0], AdaptRecipe(method=method, rank=2))
    assert part._rows.tolist() == [True, True, method != "classes"]  # "no class" too, where features may move
    if method == "full":
        assert part.names == names
        assert part.count == sum(weight.numel() for weight in start.generator.parameters())
        return
    assert TABLE in part.names
    assert (part.names == {TABLE}) == (method == "classes")
    if method == "lora":
        assert {name.rpartition("lora_")[0] != "" for name in part.names - {TABLE}} == {True}
    table = part.model.get_parameter(TABLE)
    table.sum().backward()
    assert table.grad is not None
    assert table.grad.any(dim=1).tolist() == part._rows.tolist()
    trained = [(name, weight) for name, weight in part.model.named_parameters() if weight.requires_grad]
    others = sum(weight.numel() for name, weight in trained if name != TABLE)
    assert part.count == others + int(part._rows.sum()) * table.shape[1]


@pytest.mark.parametrize(
    ("images", "fields", "batch", "steps", "rate"),
    [
        (20, {}, 8, 300, 1e-3), (80, {}, 10, 480, 1e-3), (600, {}, 64, 562, 1e-3), (90_000, {}, 64, 4000, 1e-3),
        (20, {"method": "full"}, 8, 300, 2e-4), (20, {"method": "classes"}, 8, 300, 1e-2),
        (20, {"batch_size": 5, "steps": 7, "learning_rate": 0.5}, 5, 7, 0.5),
    ],
)  # fmt: skip
def test_the_usual_length_of_an_adaptation(
    images: int, fields: dict[str, Any], batch: int, steps: int, rate: float
) -> None:
    recipe = AdaptRecipe(**fields)
    assert (recipe.batch(images), recipe.length(images), recipe.rate()) == (batch, steps, rate)
