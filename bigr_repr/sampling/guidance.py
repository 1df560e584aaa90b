"""Classifier-free guidance: two halves of one batch, with the class and without. Knows no chains or images.

Source: BiGR (arXiv 2410.14672), section 3.3.
"""

# G guidance halves (1, or 2: with class, without), R rows (tokens of any images), D width of the condition

from __future__ import annotations

import torch
from torch import Tensor


def check_halves(condition: Tensor, guidance: float) -> None:
    """Raise ValueError unless a condition is (G, R, D), with G = 2 if guidance is above 1, else G = 1."""
    halves = 2 if guidance > 1 else 1
    if condition.ndim != 3 or condition.shape[0] != halves:
        expected = f"({halves}, R, D) at guidance={guidance:g}"
        raise ValueError(f"condition has shape {tuple(condition.shape)}; expected {expected}")


def guided(logits: Tensor, guidance: float) -> Tensor:
    """Logits of both halves mixed, (G, R, ...) -> (R, ...): past those with class, away from those without."""
    return torch.lerp(logits[1], logits[0], guidance) if guidance > 1 else logits[0]
