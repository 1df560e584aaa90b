"""The categorical head with the interface of a chain: one pass gives the probabilities of all codes of a token.

Knows nothing of orders or images.
"""

# G guidance halves (1, or 2: with class, without), R rows (tokens of any images), K bits per token, D width

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bigr_repr.models.categorical import CategoricalHead, bits_of
from bigr_repr.sampling.guidance import check_halves, guided

__all__ = ["CategoricalChain"]


class CategoricalChain:
    """Like `Chain`, but predicts the probability of each of a row's 2^K codes."""

    def __init__(self, head: CategoricalHead) -> None:
        self._head, self._bits = head, head.code_bits
        weight = head.c_embedder.weight
        self._table = bits_of(torch.arange(2**head.code_bits, device=weight.device), head.code_bits)  # (2^K, K)

    @torch.inference_mode()
    def __call__(
        self,
        condition: Tensor,
        uniform: Callable[[int], Tensor],
        *,
        guidance: float = 1.0,
        temperature: float = 1.0,
        prior: Tensor | None = None,
    ) -> Tensor:
        """P(code) of each row: (R, 2^K), float32. Arguments as in `Chain`; draws nothing.

        Guidance mixes the logits of both halves. A prior (R, K) adds the logits of a code's bits to the code's logit.
        """
        check_halves(condition, guidance)
        mixed = guided(self._head(condition).float(), guidance) / temperature
        return (mixed if prior is None else mixed + prior @ self._table.T).softmax(dim=-1)

    def bit_probabilities(self, predicted: Tensor) -> Tensor:
        """Marginal P(bit = 1): (R, K)."""
        return predicted @ self._table

    def confidence(self, order: str, predicted: Tensor) -> Tensor:
        """The score of a ranked order, highest first: (R, 2^K) -> (R,) in [0, 1]. KeyError for any other order.

        From the entropy of the code; for margin: the difference between the two highest probabilities.
        """
        scores = {"entropy": lambda p: 1 - self._entropy(p), "margin": _margin, "reversed": self._entropy}
        return scores[order](predicted)

    def bits(self, predicted: Tensor, uniform: Callable[[int], Tensor], *, deterministic: bool) -> Tensor:
        """Codes drawn as a whole, or the most likely ones: (R, K) of 0/1, float32. uniform: gives (R, width) in [0,
        1)."""
        if deterministic:
            return bits_of(predicted.argmax(dim=-1), self._bits)
        reached = predicted.double().cumsum(dim=-1)
        drawn = uniform(1).double() * reached[:, -1:]
        found = torch.searchsorted(reached, drawn, right=True)[:, 0]
        return bits_of(found.clamp(max=len(self._table) - 1), self._bits)

    def _entropy(self, predicted: Tensor) -> Tensor:
        entropy: Tensor = torch.special.entr(predicted).sum(dim=-1)
        return entropy / (self._bits * math.log(2))


def _margin(predicted: Tensor) -> Tensor:
    first, second = predicted.topk(2, dim=-1).values.unbind(dim=-1)
    return first - second
