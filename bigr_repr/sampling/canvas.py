"""Converts users' images and masks to a model's square canvas. Knows nothing of sampling or files."""

# B batch, S side of the canvas in pixels, g grid (tokens per side), N = g*g tokens in raster order, K bits per token

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import grid_to_tokens, tokens_to_grid
from bigr_repr.images.pictures import ImageLike, MaskLike, to_batch, to_marks


def to_canvas(pre: Pretrained, image: ImageLike) -> Tensor:
    """Like `to_batch`, but raises ValueError unless the images fill the model's canvas: (B, 3, S, S)."""
    batch, side = to_batch(image), pre.config.image_size
    if batch.shape[2:] != (side, side):
        size = f"{batch.shape[3]}x{batch.shape[2]}"
        raise ValueError(f"image is {size} pixels; {pre.config.name} needs {side}x{side}: resize or crop it first")
    return batch


def token_mask(pre: Pretrained, mask: MaskLike) -> Tensor:
    """Which tokens to paint: (B, N), bool.

    mask: (S, S) or (B, S, S) for pixels, or (g, g) or (B, g, g) for tokens, or a mask image as for `to_marks`. A token
    is painted if any of its pixels is. Raises ValueError for another shape and for an empty mask.
    """
    marked = torch.from_numpy(to_marks(mask))
    shape = tuple(marked.shape)
    marked = marked[None] if marked.ndim == 2 else marked
    side, grid = pre.config.image_size, pre.config.generator.grid
    if marked.ndim != 3 or tuple(marked.shape[1:]) not in ((side, side), (grid, grid)) or not len(marked):
        expected = f"({side}, {side}) pixels or ({grid}, {grid}) tokens, or a batch of these"
        raise ValueError(f"mask has shape {shape}; expected {expected}")
    if not marked.any():
        raise ValueError("mask is empty: there is nothing to paint; mark the area to replace with 1 (True)")
    if marked.shape[1] != grid:
        marked = F.max_pool2d(marked.float(), side // grid) > 0
    return marked.flatten(1)


def place(pre: Pretrained, image: Tensor, at: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Place images (B, 3, H, W) on empty canvases: (B, 3, S, S), and the tokens to paint (1, N), bool.

    at: (left, top) in pixels; None: centered. Tokens entirely inside the image are known. The canvas around it repeats
    the image's nearest pixel, so that what the tokenizer sees beyond the edge is smooth.
    """
    side, step = pre.config.image_size, pre.config.tokenizer.downsample
    height, width = image.shape[2:]
    left, top = at if at is not None else ((side - width) // 2, (side - height) // 2)
    if left < 0 or top < 0 or left + width > side or top + height > side:
        raise ValueError(
            f"image of {width}x{height} pixels at {(left, top)} extends outside the canvas of {side}x{side}; resize "
            "it, or place it elsewhere with at=(left, top)"
        )
    canvas = F.pad(image, (left, side - left - width, top, side - top - height), mode="replicate")
    edges = torch.arange(0, side, step)
    inside_x = (edges >= left) & (edges + step <= left + width)
    inside_y = (edges >= top) & (edges + step <= top + height)
    masked = ~(inside_y[:, None] & inside_x[None, :])
    if not masked.any():
        raise ValueError(f"image of {width}x{height} pixels fills the canvas: there is nothing to paint around it")
    return canvas, masked.flatten()[None]


def encode(pre: Pretrained, images: Tensor) -> Tensor:
    """Codes of canvases: (B, 3, S, S) in [0, 1] -> (B, N, K) of 0/1, float32, on the model's device."""
    weight = pre.generator.transformer.mask_tok
    bits = pre.tokenizer.encode(images.to(weight.device, weight.dtype))
    return grid_to_tokens(bits.float())


def bit_logits(pre: Pretrained, images: Tensor) -> Tensor:
    """Logits of P(bit = 1) of canvases: as `encode`, before thresholding."""
    weight = pre.generator.transformer.mask_tok
    return grid_to_tokens(pre.tokenizer.bit_logits(images.to(weight.device, weight.dtype)).float())


def decode(pre: Pretrained, codes: Tensor) -> Tensor:
    """Images of codes: (B, N, K) of 0/1 -> (B, 3, S, S) in [0, 1], float32, on the model's device."""
    images = pre.tokenizer.decode(tokens_to_grid(codes).to(pre.generator.transformer.mask_tok.dtype))
    return images.float().clamp(0, 1)


def lower_detail(images: Tensor, scale: int) -> Tensor:
    """Images (B, 3, S, S) shrunk by `scale` and enlarged again: the coarse content without the detail."""
    if scale == 1:
        return images
    side = images.shape[-1]
    small = F.interpolate(images, size=max(1, side // scale), mode="area")
    return F.interpolate(small, size=side, mode="bicubic", align_corners=False).clamp(0, 1)


def partly(pre: Pretrained, images: Tensor, masked: Tensor) -> Tensor:
    """Images (B, 3, S, S) with the masked tokens (B, N), bool, in gray, to show progress."""
    grid, step = pre.config.generator.grid, pre.config.tokenizer.downsample
    hidden = masked.view(-1, 1, grid, grid).repeat_interleave(step, 2).repeat_interleave(step, 3)
    return images.masked_fill(hidden, 0.5)
