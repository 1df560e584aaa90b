"""Laws of alignment and of the faster step: what is left out or batched changes nothing but time and rounding."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from test_train import MODEL, TOKENIZER, losses, settings
from tiny_model import write_pictures

from bigr_repr.datasets import ImageSet, open_images
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.models.transcoder import Denoiser
from bigr_repr.system.sums import without_seal
from bigr_repr.train import generator_task
from bigr_repr.train.alignment import AlignmentFeatures, AlignmentHeads, FrozenNetwork, write_features
from bigr_repr.train.batches import batches
from bigr_repr.train.code_set import CodeSet, write_codes
from bigr_repr.train.frozen import frozen_maps
from bigr_repr.train.generator import train_generator
from bigr_repr.train.masking import WHOLE, draw_masks, read_positions
from bigr_repr.train.muon import Muon, orthogonalize
from bigr_repr.train.recipe import GeneratorRecipe

NETWORK = "test_efficientnet"  # timm's own for tests: 0.4 million weights
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root / "cat", 7)
    write_pictures(root / "dog", 6, first=7)
    return open_images(root)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network's weights under names that are not timm's."""
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("network") / "weights.pth"
    state = timm.create_model(NETWORK).state_dict()
    torch.save({f"other.{number}": value for number, value in enumerate(state.values())}, file)
    return file


@pytest.fixture(scope="module")
def codes(images: ImageSet, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> CodeSet:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("codes")
    packed = write_codes(images, BinaryAutoencoder(TOKENIZER), out, tokenizer_name="test")
    write_features(images, packed, FrozenNetwork(f"timm:{NETWORK}", grid=4, weights=weights), batch_size=5)
    return packed


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_efficientnet", "test_resnet"])
def test_a_networks_maps_are_of_the_weights_in_the_file(name: str, tmp_path: Path) -> None:
    """Blocks that are taken apart have other names than in the file, in many families."""
    network = timm.create_model(name)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    given = {value.numpy().tobytes() for value in network.state_dict().values()}
    maps = frozen_maps(name, tmp_path / "weights.pth")
    assert all(value.numpy().tobytes() in given for value in maps.state_dict().values())
    assert "state_dict" not in maps.pretrained_cfg  # timm would keep a second copy


# Features of another network


def test_features_have_a_position_a_token_and_follow_the_view(images: ImageSet, weights: Path, codes: CodeSet) -> None:
    network = FrozenNetwork(f"timm:{NETWORK}", grid=4, weights=weights)
    assert (network.name, network.side) == (f"timm:{NETWORK}:3", 4 * 16)
    found = AlignmentFeatures(codes)
    assert found.header.network == network.name
    index = np.array([2, 2, 9])
    tokens, pooled = found.rows(index, np.array([0, 1, 0]))
    pixels = np.stack([images.load_square(int(i), network.side) for i in index])
    pixels[1] = pixels[1, :, ::-1]
    own_tokens, own_pooled = network.features(pixels, CPU)
    torch.testing.assert_close(tokens, own_tokens, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(pooled, own_pooled, rtol=1e-3, atol=1e-3)
    assert tokens.shape[1] == codes.header.tokens
    assert not torch.equal(tokens[0], tokens[1])


def test_batches_bring_the_features_of_the_view_whose_codes_they_bring(codes: CodeSet) -> None:
    found = AlignmentFeatures(codes)
    batch = next(batches(codes, batch_size=6, seed=1, first_step=0, image_size=32, features=found))
    assert batch.codes is not None
    assert batch.features is not None
    every = [(i, v) for i in range(len(codes)) for v in range(2)]
    for bits, features in zip(batch.codes, batch.features, strict=True):
        mine = [(i, v) for i, v in every if torch.equal(found.rows(np.array([i]), np.array([v]))[0][0], features)]
        assert len(mine) == 1
        index, view = (np.array([part]) for part in mine[0])
        assert np.array_equal(codes.bits(index, view)[0], bits.numpy())


@pytest.mark.parametrize(
    ("spec", "said"),
    [("vgg", "give timm:NAME"), ("timm:nothing", "timm.list_models"), (f"timm:{NETWORK}:9", "outside 0..4")],
)
def test_networks_that_cannot_be_are_refused(spec: str, said: str, weights: Path) -> None:
    with pytest.raises(ValueError, match=said):
        FrozenNetwork(spec, grid=4, weights=weights)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not hold the weights of"):
        FrozenNetwork(f"timm:{NETWORK}", grid=4, weights=tmp_path / "w.pth")


def test_alignment_without_features_says_how_to_make_them(images: ImageSet, tmp_path: Path) -> None:
    packed = write_codes(images, BinaryAutoencoder(TOKENIZER), tmp_path / "c", tokenizer_name="t")
    recipe = GeneratorRecipe(align_weight=1.0)
    with pytest.raises(FileNotFoundError, match="train codes --align"):
        train_generator(packed, MODEL, settings(tmp_path / "g"), recipe)
    with pytest.raises(ValueError, match="train codes --align"):
        train_generator(images, MODEL, settings(tmp_path / "g"), recipe, tokenizer=BinaryAutoencoder(TOKENIZER))
    with pytest.raises(ValueError, match="layer=7 is outside"):
        train_generator(packed, MODEL, settings(tmp_path / "g"), dataclasses.replace(recipe, align_block=7))
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda old: "not json", "it is not JSON"),
        (lambda old: "[]", "a list where an object is expected"),
        (lambda old: '{"network": "x"}', "lacks the fields"),
        (lambda old: old.replace('"side"', '"sides"'), r"unknown fields \['sides'\]"),
        (lambda old: old.replace('"side": 64', '"side": 65'), "it has changed since it was written"),
        (lambda old: json.dumps({**json.loads(old), "mean": 3}), "TypeError"),
    ],
)
def test_damaged_features_say_what_is_wrong_and_how_to_make_them_again(
    codes: CodeSet, tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(codes.folder, folder)
    (file := folder / "features.json").write_text(change(file.read_text()))
    with pytest.raises(ValueError, match=f"^{file} cannot be used: .*{said}.*; make them with: bigr-repr train codes"):
        AlignmentFeatures(CodeSet(folder))


def test_features_of_older_versions_have_no_seal(codes: CodeSet, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(codes.folder, folder)
    file = folder / "features.json"
    file.write_text(json.dumps(without_seal(json.loads(file.read_text()))))
    assert AlignmentFeatures(CodeSet(folder)).header == AlignmentFeatures(codes).header


# Aligned training


RECIPE = GeneratorRecipe(
    align_weight=0.7, pool_weight=0.5, masking="half", light_share=0.3, read_share=0.5, optimizer="muon", dropout=0
)


@pytest.mark.slow
def test_features_that_are_a_pickle_are_not_opened(codes: CodeSet, tmp_path: Path) -> None:
    folder = tmp_path / "codes"
    shutil.copytree(codes.folder, folder)
    np.save(folder / "pooled.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"pooled\.npy.*make them with: bigr-repr train codes"):
        AlignmentFeatures(CodeSet(folder))


def test_an_aligned_run_learns_the_features_and_leaves_no_trace_of_the_heads(codes: CodeSet, tmp_path: Path) -> None:
    run = settings(tmp_path / "a", steps=120, learning_rate=3e-3, batch_size=8, save_every=120)
    whole = train_generator(codes, MODEL, run, RECIPE)
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    for key in ("align", "align_pooled"):
        assert np.mean([line[key] for line in lines[-9:]]) < np.mean([line[key] for line in lines[:9]]) - 0.04
    assert set(whole.state_dict()) == set(BiGR(MODEL.generator).state_dict())


def test_a_broken_aligned_run_resumes_exactly(codes: CodeSet, tmp_path: Path) -> None:
    whole = dataclasses.replace(RECIPE, read_share=1.0)
    train_generator(codes, MODEL, settings(tmp_path / "a", steps=6), whole)
    train_generator(codes, MODEL, settings(tmp_path / "b", steps=4), whole)
    train_generator(codes, MODEL, settings(tmp_path / "b", steps=6), whole)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_an_aligned_batch_in_passes_takes_the_same_step(codes: CodeSet, tmp_path: Path) -> None:
    config = dataclasses.replace(MODEL, generator=dataclasses.replace(MODEL.generator, objective="bce"))
    recipe = dataclasses.replace(RECIPE, masking="cosine", light_share=0.0)
    found = []
    for accumulate in (1, 2):
        out = settings(tmp_path / str(accumulate), steps=3, batch_size=8)
        train_generator(codes, config, out, dataclasses.replace(recipe, accumulate=accumulate))
        found.append(losses(tmp_path / str(accumulate)))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_heads_are_zero_where_the_prediction_is_the_feature(codes: CodeSet) -> None:
    heads = AlignmentHeads(8, AlignmentFeatures(codes).header)
    states = torch.randn(2, 5, 8)
    features = heads.tokens(states) * heads.std + heads.mean
    pooled = heads.pooled(states.mean(1)) * heads.pooled_std + heads.pooled_mean
    assert heads(states, states, features, pooled).abs().max() < 1e-5
    assert heads(states, states, -features, pooled)[0] > 0.5


# Masks and reading


@pytest.mark.parametrize("masking", ["cosine", "half", "mixed"])
@pytest.mark.parametrize("light", [0.0, 0.5])
def test_masks_lie_among_the_tokens_read_and_none_is_empty(masking: str, light: float) -> None:
    torch.manual_seed(0)
    for read in (None, torch.tensor([1, 4, 5, 9, 11, 12, 13, 15])):
        masked = draw_masks(200, 16, masking=masking, light_share=light, read=read, device=CPU)
        assert masked.shape == (200, 16)
        assert masked.any(1).all()
        if read is not None:
            assert not masked[:, [i for i in range(16) if i not in read.tolist()]].any()


def test_shares_around_one_half_and_light_ones() -> None:
    torch.manual_seed(0)
    half = draw_masks(4000, 64, masking="half", light_share=0.0, read=None, device=CPU).float().mean(1)
    assert half.mean() == pytest.approx(0.5, abs=0.02)
    assert half.std() == pytest.approx(0.2, abs=0.02)
    assert half.min() >= 0.14
    mixed = draw_masks(4000, 64, masking="mixed", light_share=0.0, read=None, device=CPU).float().mean(1)
    assert mixed.mean() == pytest.approx((0.5 + 2 / torch.pi) / 2, abs=0.02)
    assert (mixed > 0.9).float().mean() == pytest.approx((0.287 + 0.023) / 2, abs=0.03)
    light = draw_masks(4000, 64, masking="half", light_share=0.25, read=None, device=CPU).float().mean(1)
    assert (light < 0.11).float().mean() == pytest.approx(0.25, abs=0.03)


def test_a_run_reads_a_part_and_all_at_its_end() -> None:
    positions = read_positions(64, 0.5, 0.0, CPU)
    assert positions is not None
    assert len(positions) == 32
    assert torch.equal(positions, positions.unique())
    assert read_positions(64, 0.5, 1 - WHOLE, CPU) is None
    assert read_positions(64, 1.0, 0.0, CPU) is None


def test_a_causal_model_reads_all_tokens(codes: CodeSet, tmp_path: Path) -> None:
    causal = dataclasses.replace(MODEL, generator=dataclasses.replace(MODEL.generator, attention="causal"))
    with pytest.raises(ValueError, match=r"read_share=0\.5 is for attention='full'"):
        train_generator(codes, causal, settings(tmp_path), GeneratorRecipe(read_share=0.5))


def test_reading_every_position_is_reading_all() -> None:
    torch.manual_seed(0)
    model = BiGR(MODEL.generator).eval()
    codes, masked = (torch.rand(3, 16, 6) > 0.5).float(), torch.rand(3, 16) > 0.5
    found = [
        model(codes, None, masked, generator=torch.Generator().manual_seed(1), read=read, layers=(0,))
        for read in (None, torch.arange(16))
    ]
    assert found[0].loss.item() == pytest.approx(found[1].loss.item(), rel=1e-6)
    torch.testing.assert_close(found[0].states[0], found[1].states[0])
    part = model(codes, None, masked, read=torch.tensor([0, 3, 7]), layers=(1,))
    assert part.states[1].shape == (3, 3, 16)


# A faster step is the same step


def test_many_rows_share_the_embeddings_of_times_and_conditions() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(MODEL.generator)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rows, times = 90, MODEL.generator.train_timesteps
    noisy, t = (torch.rand(rows, 6) > 0.5).float(), torch.randint(1, times + 1, (rows,))
    condition = torch.randn(rows // 3, 16)
    together = denoiser(noisy, t, condition)
    alone = torch.cat([denoiser(noisy[i : i + 1], t[i : i + 1], condition[[i % 30]]) for i in range(rows)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch 2.9 brought it")
def test_stacked_muon_takes_the_steps_of_pytorchs() -> None:
    shapes = [(12, 8), (8, 12), (12, 8), (8, 8)]
    found = []
    for ours in (True, False):
        torch.manual_seed(0)
        matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        muon: torch.optim.Optimizer = (
            Muon(matrices, lr=0.1, weight_decay=0.02)
            if ours
            else torch.optim.Muon(matrices, lr=0.1, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
        )
        for _ in range(5):
            for matrix in matrices:
                matrix.grad = torch.randn(matrix.shape)
            muon.step()
        found.append(matrices)
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=4e-3)  # theirs is in bfloat16


def test_orthogonal_matrices_have_singular_values_about_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, 20, 9)).float())
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_muon_takes_matrices_only() -> None:
    with pytest.raises(ValueError, match=r"not shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch 2.9 brought it")
def test_a_hundred_losses_are_those_of_the_plain_step(
    codes: CodeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a step that embeds the time of every row by itself, and of PyTorch's Muon."""

    def train(out: Path) -> list[float]:
        recipe = GeneratorRecipe(optimizer="muon", diffusion_draws=2)
        train_generator(codes, MODEL, settings(out, steps=100, learning_rate=1e-3, save_every=100), recipe)
        return losses(out)

    fast = train(tmp_path / "fast")
    monkeypatch.setattr(Denoiser, "forward", _plain_forward)
    monkeypatch.setattr(
        generator_task, "Muon", lambda matrices, weight_decay: torch.optim.Muon(
            matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
    )  # fmt: skip
    assert fast == pytest.approx(train(tmp_path / "plain"), rel=1e-3)


def _plain_forward(self: Denoiser, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    c = self.c_embedder(condition.repeat(len(x_t) // len(condition), 1)) + self.t_embedder(t - 1)
    x = self.x_embedder(2 * x_t - 1)
    for block in self.blocks:
        x = block(x, c)
    found: torch.Tensor = self.final_layer(x, c)
    return found
