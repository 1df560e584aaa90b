"""Decodes stored tokenizer codes, and shows where two codes differ on the token grid. Knows nothing of indexes."""

# n rows, N tokens, K bits per token, h w token grid, S side in pixels

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import code_bytes, from_bytes, tokens_to_grid
from bigr_repr.retrieval.codes.regions import TokenLayout

__all__ = ["decode_codes", "token_distances"]

_BATCH = 32


@torch.no_grad()
def decode_codes(pre: Pretrained, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode packed tokenizer codes (n, bytes) to pictures: uint8 (n, S, S, 3), RGB.

    Raises ValueError if the codes' length is not the model's.
    """
    generator = pre.config.generator
    length = code_bytes(pre.config.code_size)
    if codes.ndim != 2 or codes.shape[1] != length:
        raise ValueError(
            f"codes have shape {codes.shape}; {pre.config.name} decodes (n, {length}): {generator.tokens} tokens of "
            f"{generator.code_bits} bits; use the model that made them"
        )
    side, device = pre.config.image_size, pre.device
    pictures = np.empty((len(codes), side, side, 3), np.uint8)
    for start in range(0, len(codes), _BATCH):
        bits = from_bytes(codes[start : start + _BATCH], pre.config.code_size)
        grid = tokens_to_grid(bits.reshape(len(bits), generator.tokens, generator.code_bits))
        decoded = pre.tokenizer.decode(torch.from_numpy(np.ascontiguousarray(grid)).float().to(device))
        pixels = (decoded.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
        pictures[start : start + _BATCH] = pixels.cpu().numpy()
    return pictures


def token_distances(a: NDArray[np.uint8], b: NDArray[np.uint8], layout: TokenLayout) -> NDArray[np.int32]:
    """Number of differing bits per token of packed codes (…, bytes), broadcast: int32 (…, h, w)."""
    different = from_bytes(a ^ b, layout.n_bits)
    shape = (*different.shape[:-1], layout.height, layout.width, layout.bits_per_token)
    return different.reshape(shape).sum(axis=-1, dtype=np.int32)  # type: ignore[no-any-return]
