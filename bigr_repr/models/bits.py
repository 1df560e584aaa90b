"""Measures of bits' probabilities: pure functions. Knows nothing of networks, orders or images."""

# K bits per token

from __future__ import annotations

import math

import torch
from torch import Tensor


def bit_entropy(probabilities: Tensor) -> Tensor:
    """Mean binary entropy of each token, in bits: (..., K) in [0, 1] -> (...) in [0, 1]. Source: BiGR, section 3.3."""
    entropy: Tensor = torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)
    return entropy.mean(dim=-1) / math.log(2)


def bit_surprise(probabilities: Tensor, bits: Tensor) -> Tensor:
    """Mean cross-entropy of each token's bits, in bits: probabilities and bits (..., K) -> (...), 0 or more.

    0: every bit was certain. 1: no better than guessing. Probabilities are clamped to 1e-6 from 0 and 1.
    """
    near = probabilities.clamp(1e-6, 1 - 1e-6)
    found: Tensor = -torch.where(bits > 0.5, near, 1 - near).log2()
    return found.mean(dim=-1)
