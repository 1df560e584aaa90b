"""Laws of bit codes: packing is exact, layouts are inverse, distances are those that counting bit by bit gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bigr_repr import codes


def random_bits(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, shape).astype(bool)


@pytest.mark.parametrize("n_bits", [1, 7, 8, 9, 24, 1536, 6144, 6145])
def test_unpacking_gives_back_what_was_packed(n_bits: int) -> None:
    bits = random_bits(3, 2, n_bits)
    packed = codes.to_bytes(bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (3, 2, codes.code_bytes(n_bits))
    np.testing.assert_array_equal(codes.from_bytes(packed, n_bits), bits)


def test_first_bit_is_the_most_significant_and_padding_is_zero() -> None:
    assert codes.to_bytes([1, 0, 0, 0, 0, 0, 0, 0, 1]).tolist() == [0b1000_0000, 0b1000_0000]
    assert codes.to_bytes(np.ones((1, 12), bool)).tolist() == [[0xFF, 0xF0]]


def test_bit_k_of_token_n_is_bit_n_times_k_bits_plus_k() -> None:
    grid = np.zeros((1, 24, 4, 4), np.float32)
    grid[0, 5, 2, 3] = 1  # bit 5 of the token in row 2, column 3: token 11
    tokens = codes.grid_to_tokens(grid)
    flat = codes.from_bytes(codes.to_bytes(tokens.reshape(1, -1)), 16 * 24)
    assert np.flatnonzero(flat[0]).tolist() == [11 * 24 + 5]


def test_layouts_are_inverse_for_arrays_and_tensors_and_any_grid() -> None:
    for grid in (random_bits(2, 5, 3, 4), torch.arange(2 * 5 * 3 * 4).reshape(2, 5, 3, 4)):
        tokens = codes.grid_to_tokens(grid)
        assert tuple(tokens.shape) == (2, 12, 5)
        assert bool((tokens[1, 7, 2] == grid[1, 2, 1, 3]).all())
        assert bool((codes.tokens_to_grid(tokens, (3, 4)) == grid).all())
    square = random_bits(5, 4, 4)
    np.testing.assert_array_equal(codes.tokens_to_grid(codes.grid_to_tokens(square)), square)


@pytest.mark.parametrize("n_bits", [8, 24, 100, 1536, 6144])
def test_distance_is_the_count_of_differing_bits(n_bits: int) -> None:
    a, b = random_bits(7, n_bits, seed=1), random_bits(5, n_bits, seed=2)
    expected = (a[:, None] != b).sum(-1)
    packed_a, packed_b = codes.to_bytes(a), codes.to_bytes(b)
    distances = codes.hamming(packed_a[:, None], packed_b)
    assert distances.dtype == np.int32
    np.testing.assert_array_equal(distances, expected)
    np.testing.assert_array_equal(codes.hamming(packed_b, packed_a[0]), expected[0])
    assert codes.hamming(packed_a, packed_a).max() == 0
    assert codes.hamming(packed_a[0], ~packed_a[0]) == 8 * codes.code_bytes(n_bits)


@pytest.mark.parametrize("limit", [1, 40, 1000])
def test_distances_in_pieces_equal_those_at_once(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    a, b = codes.to_bytes(random_bits(9, 64, seed=1)), codes.to_bytes(random_bits(13, 64, seed=2))
    all_pairs, to_first = codes.hamming(a[:, None], b), codes.hamming(a, b[0])
    monkeypatch.setattr(codes, "_CHUNK", limit)
    np.testing.assert_array_equal(codes.hamming(a[:, None], b), all_pairs)
    np.testing.assert_array_equal(codes.hamming(a, b[0]), to_first)


def test_distances_without_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    a = codes.to_bytes(random_bits(4, 24))
    expected = codes.hamming(a[:, None], a)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    np.testing.assert_array_equal(codes.hamming(a[:, None], a), expected)


def test_no_codes_have_no_distances() -> None:
    none = np.empty((0, 768), np.uint8)
    assert codes.hamming(none, none).shape == (0,)
    assert codes.from_bytes(none, 6144).shape == (0, 6144)


def test_what_is_not_a_code_is_refused() -> None:
    packed = codes.to_bytes(random_bits(2, 24))
    with pytest.raises(ValueError, match="threshold"):
        codes.to_bytes([0.2, 0.9])
    with pytest.raises(ValueError, match="at least one bit"):
        codes.to_bytes(np.empty((3, 0)))
    with pytest.raises(ValueError, match="int8"):
        codes.hamming(packed.view(np.int8), packed)
    with pytest.raises(ValueError, match="3 bytes per code and b has 4"):
        codes.hamming(packed, np.zeros((2, 4), np.uint8))
    with pytest.raises(ValueError, match="n_bits=32 takes 4"):
        codes.from_bytes(packed, 32)
    with pytest.raises(ValueError, match="past n_bits=20"):
        codes.from_bytes(np.full((1, 3), 255, np.uint8), 20)
    with pytest.raises(ValueError, match="at least 1"):
        codes.code_bytes(0)
    with pytest.raises(ValueError, match="do not make a square"):
        codes.tokens_to_grid(np.zeros((12, 3)))
    with pytest.raises(ValueError, match="holds 10"):
        codes.tokens_to_grid(np.zeros((12, 3)), (2, 5))


@pytest.mark.parametrize(
    ("tokens", "grid", "said"),
    [
        (np.zeros(4), None, r"tokens has shape \(4,\); expected \(\.\.\., N, K\)"),
        (np.zeros((5, 3)), None, r"tokens has 5 tokens; give grid=\(h, w\), because they do not make a square"),
        (np.zeros((6, 3)), (2, 2), r"tokens has 6 tokens; grid=\(2, 2\) holds 4"),
    ],
)
def test_tokens_that_make_no_grid_are_refused(tokens: np.ndarray, grid: tuple[int, int] | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        codes.tokens_to_grid(tokens, grid)
    with pytest.raises(ValueError, match=r"grid has shape \(3, 4\); expected"):
        codes.grid_to_tokens(np.zeros((3, 4)))
    tokens = np.arange(2 * 6 * 3).reshape(2, 6, 3)
    assert np.array_equal(codes.grid_to_tokens(codes.tokens_to_grid(tokens, (2, 3))), tokens)
    assert codes.tokens_to_grid(tokens, (2, 3))[1, 2, 1, 0] == tokens[1, 3, 2]
