"""Measures how much of a photograph's detail a model can keep. Knows nothing of masks or files."""

# S side of the canvas in pixels

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.decode import center_crop
from bigr_repr.painting.blend import PixelArray
from bigr_repr.sampling.canvas import decode, encode

LITTLE = 0.5  # share of detail below which people notice the loss


@torch.inference_mode()
def detail_kept(pre: Pretrained, window: PixelArray) -> float:
    """The share of a window's fine detail that survives encoding and decoding by the tokenizer: 0 for none.

    window: uint8 (side, side, 3) of any size; it goes through the canvas, S x S, like every window. This bounds every
    sampler, because it uses the codes of the photograph itself. Detail is the mean difference between neighbors.
    """
    side = pre.config.image_size
    seen = torch.from_numpy(np.array(center_crop(Image.fromarray(window), side))).permute(2, 0, 1)[None].float() / 255
    pixels = (decode(pre, encode(pre, seen))[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    redrawn = np.asarray(Image.fromarray(pixels).resize(window.shape[1::-1], Image.Resampling.BICUBIC))
    there = _steps(window)
    return _steps(redrawn) / there if there > 0 else 1.0


def _steps(pixels: PixelArray) -> float:
    """Mean difference between neighbors, in levels; 0 for a single pixel, which has none."""
    values = pixels.astype(np.float32)
    steps = [np.abs(np.diff(values, axis=axis)).mean() for axis in (0, 1) if values.shape[axis] > 1]
    return float(sum(steps) / len(steps)) if steps else 0.0
