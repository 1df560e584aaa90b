"""Which tokens are unmasked first: pure functions of probabilities and grids. Knows nothing of models or images."""

# B batch, N tokens (raster order), K bits per token

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bigr_repr.models.bits import bit_entropy


def bit_margin(probabilities: Tensor) -> Tensor:
    """Mean of |2p - 1| over the bits of each token: (..., K) in [0, 1] -> (...) in [0, 1].

    The released code ranks by this. It differs from entropy: bits (1, 0.5) and (0.75, 0.75) tie here.
    """
    return (2 * probabilities - 1).abs().mean(dim=-1)


def confidence(order: str, probabilities: Tensor) -> Tensor:
    """The score of a ranked order, highest first: (..., K) -> (...) in [0, 1]. KeyError for any other order."""
    scores = {"entropy": lambda p: 1 - bit_entropy(p), "margin": bit_margin, "reversed": bit_entropy}
    return scores[order](probabilities)


def gumbel_noise(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniforms in [0, 1), same shape."""
    tiny = torch.finfo(uniform.dtype).tiny
    return -(-uniform.clamp(min=tiny).log()).log()


@functools.cache
def halton_order(grid: int) -> tuple[int, ...]:
    """The cells of a grid x grid canvas (raster indices) in the order in which a Halton sequence first visits them.

    Bases 2 (rows) and 3 (columns). Every prefix is evenly spread. Source: Halton scheduler for masked generative image
    transformers (arXiv 2503.17076).
    """
    powers = [_first_power(2, grid), _first_power(3, grid)]
    # Any 2**a * 3**b successive points visit each box of the 2**a x 3**b grid once, and each cell contains such a box.
    points = range(powers[0] * powers[1])
    return tuple(dict.fromkeys(_cell(i, 2, grid) * grid + _cell(i, 3, grid) for i in points))


def _first_power(base: int, grid: int) -> int:
    """The smallest power of `base` whose division of [0, 1) has an interval inside each of `grid` equal parts."""
    power = 1
    while power % grid and power < 2 * grid:
        power *= base
    return power


def _cell(index: int, base: int, grid: int) -> int:
    """floor(grid * x), where x is the index's radical inverse in `base`. In integers, so without rounding."""
    numerator, denominator = 0, 1
    while index:
        index, digit = divmod(index, base)
        numerator, denominator = numerator * base + digit, denominator * base
    return grid * numerator // denominator


def fixed_scores(order: str, grid: int, uniform: Tensor) -> Tensor:
    """Scores of an order that does not depend on probabilities, highest first: (B, N), float32.

    `uniform` (B, N) in [0, 1) determines the order "random", and the shape and device of the others. KeyError for
    any order except "random", "raster" and "halton".
    """
    if order == "random":
        return uniform
    tokens = {"raster": range(grid * grid), "halton": halton_order(grid)}[order]
    scores = torch.empty(grid * grid)
    scores[torch.tensor(tokens)] = -torch.arange(grid * grid, dtype=torch.float32)
    return scores.to(uniform.device).expand_as(uniform)


def choose(scores: Tensor, masked: Tensor, counts: Sequence[int]) -> Tensor:
    """The counts[b] masked tokens of image b with the highest scores: (B, N), bool. Ties: raster order.

    scores: (B, N) float; masked: (B, N) bool; tokens that are not masked are never chosen.
    """
    ranking = scores.masked_fill(~masked, -math.inf).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(ranking)
    ranks = torch.empty_like(ranking).scatter_(1, ranking, places)
    return (ranks < torch.tensor(counts, device=scores.device)[:, None]) & masked
