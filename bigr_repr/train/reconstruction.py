"""Measures how well a tokenizer reconstructs pictures. Knows nothing of generators."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from bigr_repr.datasets import ImageSet
from bigr_repr.models.tokenizer import BinaryAutoencoder

_LOOKED_AT = 64
_BATCH = 16


@torch.inference_mode()
def reconstruction_db(tokenizer: BinaryAutoencoder, images: ImageSet, rows: NDArray[np.int64]) -> float:
    """Mean PSNR, in dB, of up to 64 of the images after encoding and decoding; RGB in [0, 1], as training records.

    They are spread evenly over the rows, which may be sorted by class.
    """
    device, side = next(tokenizer.parameters()).device, tokenizer.config.image_size
    found: list[float] = []
    looked_at = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _LOOKED_AT)).astype(np.int64))]
    for start in range(0, len(looked_at), _BATCH):
        chosen = looked_at[start : start + _BATCH]
        pixels = np.stack([images.load_square(int(row), side) for row in chosen])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device).float() / 255
        decoded = tokenizer.decode(tokenizer.encode(batch)).clamp(0, 1)
        errors = (decoded - batch).square().mean((1, 2, 3)).clamp(min=1e-10)
        found += (-10 * errors.log10()).tolist()
    return round(float(np.mean(found)), 2)
