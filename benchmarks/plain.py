"""The yardstick of throughput.py: the same network run as a first straightforward version would run it, same weights.

float32, default memory format, whole batches, a mask of ones in attention, norms and rotations spelled out as in the
papers. It computes what bigr_repr computes (throughput.py asserts so) and stops after the same block.
"""

# B batch, S sequence (condition token + N tokens), D width, M heads, d head width

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import bigr_repr as br
from bigr_repr.images import as_rgb, center_crop


def decode(paths: list[str], side: int) -> Tensor:
    """Files one after the other -> (B, 3, H, W) in [0, 1]."""
    pixels = [center_crop(as_rgb(Image.open(path)), side) for path in paths]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous().float() / 255


@torch.no_grad()
def tokenize(pre: br.Pretrained, images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> codes (B, N, K) of 0 and 1."""
    bits = (pre.tokenizer.bit_probabilities(images) > 0.5).float()
    return bits.flatten(2).transpose(1, 2).contiguous()


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps) * weight


def _rotary_angles(grid: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    frequencies = 1.0 / base ** (torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = torch.cat([rows.reshape(-1, 1) * frequencies, columns.reshape(-1, 1) * frequencies], dim=1)
    nothing = torch.zeros(1, head_dim // 2)  # the condition token's row
    return torch.cat([nothing, angles.cos()]), torch.cat([nothing, angles.sin()])


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


@torch.no_grad()
def features(pre: br.Pretrained, codes: Tensor, layer: int) -> Tensor:
    """Codes (B, N, K) -> mean hidden state after block `layer`, (B, D)."""
    config, model = pre.config.generator, pre.generator.transformer
    batch, head_dim = len(codes), config.dim // config.heads
    condition = model.cls_embedding.embedding_table.weight[config.classes].expand(batch, -1)
    shared = model.adaLN(condition).reshape(batch, 1, 6, config.dim)
    x = torch.cat([condition[:, None], model.tok_embeddings(codes)], dim=1)
    cos, sin = _rotary_angles(config.grid, head_dim, config.rope_base)
    mask = torch.ones(batch, 1, x.shape[1], x.shape[1], dtype=torch.bool)
    blocks: Any = model.layers[: layer + 1]
    for block in blocks:
        shift1, scale1, gate1, shift2, scale2, gate2 = (shared + block.ada_gss).unbind(2)
        attention, feed_forward = block.attention, block.feed_forward
        h = _rms_norm(x, block.attention_norm.weight, config.norm_eps) * (1 + scale1) + shift1
        q, k, v = (
            part.reshape(batch, -1, config.heads, head_dim).transpose(1, 2)
            for part in attention.wqkv(h).chunk(3, dim=-1)
        )
        h = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v, attn_mask=mask)
        x = x + gate1 * attention.wo(h.transpose(1, 2).reshape(batch, -1, config.dim))
        h = _rms_norm(x, block.ffn_norm.weight, config.norm_eps) * (1 + scale2) + shift2
        x = x + gate2 * feed_forward.w2(F.silu(feed_forward.w1(h)) * feed_forward.w3(h))
    return x[:, 1:].mean(dim=1)
