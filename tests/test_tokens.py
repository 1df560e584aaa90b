"""Laws of looking inside: tokens as colors, how sure their bits are, what the model expects of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bigr_repr_cli.bench import app
from matplotlib.colors import to_rgba
from PIL import Image
from tiny_model import picture, tiny_model, write_pictures
from typer.testing import CliRunner

from bigr_repr.checkpoints.pretrained import Pretrained, save
from bigr_repr.codes import grid_to_tokens
from bigr_repr.evaluate.reports import plots, token_pictures
from bigr_repr.evaluate.reports.token_pictures import draw_tokens
from bigr_repr.features.attention import near_tokens, token_attention
from bigr_repr.features.extract import encode_codes, extract_features
from bigr_repr.features.tokens import token_pca, token_views
from bigr_repr.models.bits import bit_entropy, bit_surprise
from bigr_repr.retrieval.codes.decoding import decode_codes
from bigr_repr.sampling.prediction import predict_bits

PICTURES = [picture(seed, 32, 32) for seed in range(5)]


def test_views_are_those_of_the_model(pre: Pretrained) -> None:
    found = token_views(PICTURES, pre, [1, "mid"])
    decoded = decode_codes(pre, encode_codes(PICTURES, model=pre)).astype(int)
    assert np.abs(found.reconstruction - decoded).max() <= 1  # rounding
    assert (found.states[1] == extract_features(PICTURES, model=pre, layer=1, pool="none")).all()
    pixels = torch.from_numpy(np.stack([np.asarray(each) for each in PICTURES])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        probabilities = grid_to_tokens(pre.tokenizer.bit_probabilities(pixels))
    assert (found.bits == (probabilities > 0.5).numpy()).mean() > 0.99
    np.testing.assert_allclose(found.entropy, bit_entropy(probabilities).numpy(), atol=1e-5)
    alone = token_views(PICTURES[2], pre, [1])
    assert (alone.bits[0] == found.bits[2]).all()
    assert found.states["mid"].shape == (5, 16, 64)
    with pytest.raises(ValueError, match="no images"):
        token_views([], pre, [1])


def test_colors_are_the_first_three_components() -> None:
    """Of tokens on three axes of falling spread: red, green and blue run along them, each over its whole range."""
    random = np.random.default_rng(0)
    scores = random.uniform(-1, 1, (99, 16, 3)) * [9, 3, 1]
    axes = np.linalg.qr(random.normal(size=(20, 3)))[0].T
    colors = token_pca(scores @ axes + 5).reshape(-1, 3)
    for channel in range(3):
        assert abs(np.corrcoef(colors[:, channel], scores.reshape(-1, 3)[:, channel])[0, 1]) > 0.98
        assert colors[:, channel].min() == 0
        assert colors[:, channel].max() == 255


def test_colors_of_several_images_go_together() -> None:
    """Equal tokens have equal colors in every image, and their place on the grid does not matter."""
    random = np.random.default_rng(1)
    one = random.normal(size=(16, 8)).astype(np.float32)
    order = random.permutation(16)
    first, second = token_pca(np.stack([one, one[order]])).reshape(2, 16, 3)
    assert (first[order] == second).all()
    assert (token_pca(np.stack([one, one[order]])) == token_pca(np.stack([one, one[order]]))).all()


@pytest.mark.parametrize(
    ("states", "grid", "words"),
    [
        (np.zeros((16, 8)), None, "expected"),
        (np.zeros((1, 15, 8)), None, "grid"),
        (np.zeros((1, 16, 8)), (2, 7), "grid"),
        (np.full((1, 16, 8), np.nan), None, "finite"),
    ],
)
def test_what_are_no_tokens_is_refused(states: np.ndarray, grid: tuple[int, int] | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        token_pca(states, grid)


def test_tokens_without_spread_are_gray() -> None:
    assert (token_pca(np.ones((2, 6, 8)), (2, 3)) == 128).all()
    two = token_pca(np.random.default_rng(0).normal(size=(1, 16, 2)))
    assert (two[..., 2] == 128).all()
    assert np.ptp(two[..., 0]) == 255


def test_surprise_is_entropy_on_average_and_counts_wrong_bits() -> None:
    p = torch.tensor([[0.9, 0.5, 0.2]])
    mean = sum(
        float(bit_surprise(p, torch.tensor([[a, b, c]])))
        * float(torch.where(torch.tensor([[a, b, c]]) > 0, p, 1 - p).prod())
        for a in (0, 1)
        for b in (0, 1)
        for c in (0, 1)
    )
    assert mean == pytest.approx(float(bit_entropy(p)), abs=1e-6)
    assert bit_surprise(torch.tensor([1.0, 0.0]), torch.tensor([1, 0])).item() == pytest.approx(0, abs=1e-5)
    assert bit_surprise(torch.tensor([1.0, 0.0]), torch.tensor([0, 1])).item() > 15


def test_a_token_is_predicted_without_itself(pre: Pretrained) -> None:
    """With a round to each token, flipping all its bits changes nothing of what is expected of it, but of others."""
    codes = torch.rand(1, 16, 12, generator=torch.Generator().manual_seed(0)) > 0.5
    before = predict_bits(pre, codes, rounds=16)
    flipped = codes.clone()
    flipped[0, 5] = ~codes[0, 5]
    after = predict_bits(pre, flipped, rounds=16)
    assert torch.equal(before[0, 5], after[0, 5])
    others = [n for n in range(16) if n != 5]
    assert not torch.equal(before[0, others], after[0, others])
    assert ((before > 0) & (before < 1)).all()
    both = predict_bits(pre, torch.cat([codes, flipped]), rounds=16)
    torch.testing.assert_close(both[0], before[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rounds", "shape"), [(1, (1, 16, 12)), (17, (1, 16, 12)), (4, (1, 15, 12)), (4, (16, 12))])
def test_what_cannot_be_predicted_is_refused(pre: Pretrained, rounds: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"rounds|codes"):
        predict_bits(pre, torch.zeros(shape), rounds=rounds)


def test_attention_is_what_the_block_mixes_values_by(pre: Pretrained) -> None:
    """The weights, times the values, are what the block's own attention gives at that position."""
    bits, token = token_views(PICTURES, pre, [1]).bits, 6
    weights = token_attention(bits, pre, 1, token)
    assert weights.shape == (5, 2, 17)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    attention = pre.generator.transformer.layers[1].attention
    heard: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = attention.register_forward_hook(lambda module, inputs, output: heard.append((inputs[0], output)))
    with torch.no_grad():
        codes = torch.from_numpy(bits).float()
        pre.generator.transformer(codes, pre.generator.transformer.condition_embedding(None, 5), layers=(1,))
        hook.remove()
        (x, output) = heard[0]
        values = attention.wqkv(x).unflatten(-1, (3, 2, -1))[:, :, 2]  # (B, S, M, d)
        mixed = torch.einsum("bms,bsmd->bmd", torch.from_numpy(weights), values).flatten(1)
        torch.testing.assert_close(attention.wo(mixed), output[:, 1 + token], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"token=16 is outside 0\.\.15"):
        token_attention(bits, pre, 1, 16)


def test_tokens_are_near_whatever_all_have_in_common() -> None:
    random = np.random.default_rng(0)
    states = random.normal(size=(3, 4, 6)).astype(np.float32)
    states[2, 1] = states[0, 3]
    found = near_tokens(states + 100, 0, 3, k=2)
    assert found.nearest[0].tolist() == [2, 1]
    assert (found.nearest[:, 0] != 0).all()
    assert found.similarity[0, 3] == pytest.approx(1, abs=1e-4)
    centered = states - states.mean((0, 1))
    cosine = centered[1, 2] @ centered[0, 3] / np.linalg.norm(centered[1, 2]) / np.linalg.norm(centered[0, 3])
    assert found.similarity[1, 2] == pytest.approx(cosine, abs=1e-3)
    assert near_tokens(states[:1], 0, 3).nearest.shape == (0, 2)
    with pytest.raises(ValueError, match="image=3 is outside"):
        near_tokens(states, 3, 0)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["tokenizer", "generator"])
def test_what_is_not_finite_has_no_views(part: str) -> None:
    pre = tiny_model()
    broken = pre.tokenizer.quantize.proj[0] if part == "tokenizer" else pre.generator.transformer.layers[1].attention.wo
    broken.weight.data[0, 0] = torch.nan
    for layers in ((1,), ()) if part == "tokenizer" else ((1,),):
        with pytest.raises(ValueError, match="image 0: its features are not finite: the model's weights are damaged"):
            token_views(PICTURES, pre, layers)
    states = np.random.default_rng(0).normal(size=(2, 16, 8))
    states[1, 3, 0] = np.nan
    with pytest.raises(ValueError, match="states are not all finite; compute them in float32"):
        near_tokens(states, 0, 1)


def test_the_picture_of_tokens_has_a_row_an_image(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", 3)
    save(pre, tmp_path / "model")
    arguments = ["tokens", str(tmp_path / "images"), "--out", str(tmp_path / "t.png"), "--layer", "1,-1"]
    arguments += ["--model", str(tmp_path / "model"), "--device", "cpu", "--at", "0.99,0"]
    found = CliRunner().invoke(app, [*arguments, "--json"])
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert (record["layers"], record["token"], len(record["entropy"])) == ([1, 3], 3, 3)
    assert all(image in (1, 2) for image, _ in record["nearest"])
    with Image.open(tmp_path / "t.png") as drawn:
        assert drawn.width > drawn.height > 400
    for wrong in (["--at", "1,0"], ["--at", "x"], ["--layer", "9"], ["--out", "t.txt"]):
        assert CliRunner().invoke(app, [*arguments, *wrong]).exit_code != 0


def test_the_picture_shows_the_views_of_every_image(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(token_pictures, "save_figure", lambda figure, path: figures.append(figure))
    monkeypatch.setattr(token_pictures, "load", lambda model: pre)
    files = write_pictures(tmp_path, 3)
    found = draw_tokens(files, "x.png", model="tiny", layers=[1, 2], at=(0.3, 0.8), k=4, device="cpu")
    views = token_views(files, pre, [1, 2])
    near = near_tokens(views.states[2], 0, 13, k=4)
    attention = token_attention(views.bits, pre, 2, 13).mean(axis=1)[:, 1:]
    assert (found.layers, found.token) == ((1, 2), 13)  # the second of the last row of four
    assert np.array_equal(found.entropy, views.entropy.mean(axis=1))
    assert np.array_equal(found.nearest, near.nearest)
    assert np.array_equal(found.attention, attention)
    panes = np.array(figures[0].axes).reshape(3, 7)
    titles = ["image", "decoded bits", "entropy of bits", "layer 1", "layer 2", "like the token, 2", "attention, 2"]
    assert [pane.get_title() for pane in panes[0]] == titles
    assert figures[0].get_size_inches().tolist() == pytest.approx([1.55 * 7, 1.5 * 3 + 0.4])
    shown = [views.reconstruction, views.entropy, token_pca(views.states[1]), token_pca(views.states[2])]
    for row, line in enumerate(panes):
        images = [pane.images[0] for pane in line]
        assert not any(pane.axison for pane in line)
        for values, image in zip([*shown, near.similarity, attention], images[1:], strict=True):
            assert np.array_equal(np.asarray(image.get_array()).ravel(), values[row].ravel())
        assert np.asarray(images[0].get_array()).shape == (32, 32, 3)
        assert (images[2].get_clim(), images[5].get_clim(), images[6].get_clim()[0]) == ((0, 1), (-1, 1), 0)
    boxes = [[(each.get_xy(), each.get_width(), each.get_edgecolor()) for each in pane.patches] for pane in panes.flat]
    red = to_rgba("#ff3b30")
    assert boxes[5] == boxes[6] == [((0.5, 2.5), 1.0, red)]
    assert boxes[0] == [((7.5, 23.5), 8.0, red)]
    for row in (1, 2):
        green = [((place % 4 * 8 - 0.5, place // 4 * 8 - 0.5), 8.0, to_rgba("#34c759"))
                 for image, place in near.nearest.tolist() if image == row]  # fmt: skip
        assert boxes[7 * row] == green
    assert not any(each for number, each in enumerate(boxes) if number % 7 and number not in (5, 6))
    plots.pyplot().close("all")


@pytest.mark.parametrize(
    ("at", "layers", "count", "said"),
    [
        ((1.0, 0.5), [1], 1, r"at=\(1.0, 0.5\) must lie in \[0, 1\)"), ((0.5, -0.1), [1], 1, "must lie in"),
        ((0.0, 0.0), [], 1, r"layers=\[\] is empty"), ((0.0, 0.0), [1], 0, r"0 images; a picture of tokens takes"),
        ((0.0, 0.0), [1], 33, "33 images"),
    ],
)  # fmt: skip
def test_a_picture_of_tokens_that_cannot_be_is_refused(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: Any, layers: list[int], count: int, said: str
) -> None:
    monkeypatch.setattr(token_pictures, "load", lambda model: pre)
    files = write_pictures(tmp_path, 1) * count
    with pytest.raises(ValueError, match=said):
        draw_tokens(files, tmp_path / "x.png", model="tiny", layers=layers, at=at, device="cpu")
