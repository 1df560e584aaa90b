"""Keeps features near those of the model that training started from. Knows nothing of files, classes or steps.

A generator's loss does not constrain its features: a minute of adaptation to other pictures can ruin them. As in
learning without forgetting (arXiv 1606.09282), the old model takes part in every step.
"""

# B batch, A images of it that are anchored, N tokens, K bits per token, D width

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from bigr_repr.models.bigr import BiGR, usual_block

_SHARE: Final = 4  # every fourth image of a batch


class Anchor:
    """Keeps the features of some images of each batch near those of an old model.

    They are extracted as users extract them: nothing masked, no class. weight: of the term in the loss.
    """

    def __init__(self, old: BiGR, weight: float) -> None:
        self._old, self.weight, self.block = old.requires_grad_(False).eval(), weight, usual_block(old.config.layers)

    def beside(self, codes: Tensor, labels: Tensor | None, masked: Tensor, no_class: int) -> tuple[Tensor, ...]:
        """A batch (B, N, K), (B,) or None, (B, N) with its first A images repeated, unmasked and without a class."""
        count = self._count(len(codes))
        if labels is None:
            labels = torch.full((len(codes),), no_class, device=codes.device)
        without = torch.full((count,), no_class, device=codes.device)
        whole = torch.zeros_like(masked[:count])
        return torch.cat([codes, codes[:count]]), torch.cat([labels, without]), torch.cat([masked, whole])

    def term(self, states: dict[int, Tensor], codes: Tensor) -> Tensor:
        """1 - cosine of new and old features, a scalar. states: of the batch that `beside` made from `codes`."""
        count = self._count(len(codes))
        with torch.no_grad():
            old = self._old.to(codes.device).hidden_states(codes[:count], layers=(self.block,))[self.block]
        new = states[self.block][-count:]
        return 1 - F.cosine_similarity(new.float().mean(1), old.float().mean(1)).mean()

    @staticmethod
    def _count(batch: int) -> int:
        return max(1, batch // _SHARE)
