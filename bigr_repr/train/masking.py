"""Which tokens a training step reads, and which of them it masks. Knows nothing of models."""

# B batch, N tokens, n of them read

from __future__ import annotations

import torch
from torch import Tensor

from bigr_repr.models.bigr import draw_mask

WHOLE = 0.2  # last share of a run that reads all tokens, whatever its `read_share`
_LIGHT = 0.1
_HALF, _SPREAD, _LEAST = 0.5, 0.2, 0.15


def read_positions(tokens: int, share: float, done: float, device: torch.device) -> Tensor | None:
    """A random subset of n = round(share * N) positions for all images of a step: int64 (n,), in raster order.

    None, meaning all, once `done` (0..1 of the run) is past 1 - WHOLE, because the model is used that way.
    """
    count = max(1, round(share * tokens))
    if count == tokens or done >= 1 - WHOLE:
        return None
    return torch.randperm(tokens, device=device)[:count].sort()[0]


def draw_masks(
    batch: int, tokens: int, *, masking: str, light_share: float, read: Tensor | None, device: torch.device
) -> Tensor:
    """Masked positions (B, N), bool, at least one per image, all among those read.

    "cosine": one step of the sampler's schedule per batch. "half": a share per image, drawn around one half (normal,
    0.2, clipped to 0.15..1). "mixed": either one per image, with its own iteration in the first case. `light_share` of
    the images have at most a tenth masked, because features are extracted with nothing masked.
    """
    count = tokens if read is None else len(read)
    masked = draw_mask(batch, count, device=device)
    if masking != "cosine" or light_share:
        order = masked.sum(1)
        if masking != "cosine":
            share = (_HALF + _SPREAD * torch.randn(batch, device=device)).clamp(_LEAST, 1)
            if masking == "mixed":
                sampler = torch.cos(torch.pi / 2 * torch.rand(batch, device=device))
                share = torch.where(torch.rand(batch, device=device) < 0.5, sampler, share)
            order = (share * count).round().long()
        light = (_LIGHT * count * torch.rand(batch, device=device)).long()
        counts = torch.where(torch.rand(batch, device=device) < light_share, light, order).clamp(1, count)
        masked = torch.rand(batch, count, device=device).argsort(1).argsort(1) < counts[:, None]
    if read is None:
        return masked
    whole = torch.zeros(batch, tokens, dtype=torch.bool, device=device)
    whole[:, read] = masked
    return whole
