"""Laws of looking inside: tokens as colors, how sure their bits are, what the model expects of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_model import picture, tiny_model

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import grid_to_tokens
from bigr_repr.features.extract import encode_codes, extract_features
from bigr_repr.features.tokens import token_pca, token_views
from bigr_repr.models.bits import bit_entropy, bit_surprise
from bigr_repr.retrieval.codes.decoding import decode_codes
from bigr_repr.sampling.prediction import predict_bits


@pytest.fixture(scope="module")
def pre() -> Pretrained:
    return tiny_model()


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
