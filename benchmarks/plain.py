"""The baseline of throughput.py and generation.py: the same network and weights in a straightforward implementation.

float32, default memory format, whole batches, a mask of ones in attention, and norms and rotations written out as in
the papers. It computes what bigr_repr computes (throughput.py asserts this) and stops after the same block.
"""

# B batch, S sequence (condition token + N tokens), D width, M heads, d head width

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import bigr_repr as br
from bigr_repr.images.decode import as_rgb, center_crop


def decode(paths: list[str], side: int) -> Tensor:
    """Read files one at a time -> (B, 3, H, W) in [0, 1]."""
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
    model = pre.generator.transformer
    nothing = torch.full((len(codes),), pre.config.generator.classes)
    return _states(pre, model.tok_embeddings(codes), nothing, layer)[:, 1:].mean(dim=1)


def _states(pre: br.Pretrained, tokens: Tensor, labels: Tensor, layer: int) -> Tensor:
    """Embedded tokens (B, N, D) and labels (B,) -> hidden states after block `layer`, (B, S, D)."""
    config, model = pre.config.generator, pre.generator.transformer
    batch, head_dim, device = len(tokens), config.dim // config.heads, tokens.device
    condition = model.cls_embedding.embedding_table.weight[labels.to(device)]
    shared = model.adaLN(condition).reshape(batch, 1, 6, config.dim)
    x = torch.cat([condition[:, None], tokens], dim=1)
    cos, sin = (part.to(device) for part in _rotary_angles(config.grid, head_dim, config.rope_base))
    mask = torch.ones(batch, 1, x.shape[1], x.shape[1], dtype=torch.bool, device=device)
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
    return x


@torch.no_grad()
def generate(
    pre: br.Pretrained,
    labels: Tensor,
    *,
    iterations: int,
    chain: int,
    guidance: float,
    gumbel: float,
    draw: Callable[[tuple[int, ...]], Tensor],
) -> Tensor:
    """Sample codes (B, N, K) for classes (B,), most certain tokens first by entropy. draw(shape) gives uniform samples.

    Follows the paper literally: each iteration runs the transformer with and without the class, then the whole chain
    for all tokens, including finished ones, with a separate denoiser call for each half.
    """
    config, model = pre.config.generator, pre.generator.transformer
    batch, tokens = len(labels), config.tokens
    codes = torch.zeros(batch, tokens, config.code_bits, device=pre.device)
    masked = torch.ones(batch, tokens, dtype=torch.bool, device=pre.device)
    for iteration in range(1, iterations + 1):
        embedded = torch.where(masked[:, :, None], model.mask_tok, model.tok_embeddings(codes))
        halves = []
        for classes in (labels, torch.full_like(labels, config.classes)):
            hidden = _states(pre, embedded, classes, config.layers - 1)[:, 1:]
            hidden = _rms_norm(hidden, model.norm.weight, config.norm_eps) + model.diffusion_pos_embed_learned
            halves.append(hidden.reshape(batch * tokens, -1))
        p = _chain(pre, halves, chain, guidance, draw).reshape(codes.shape)
        entropy = -(p * p.clamp(min=1e-30).log2() + (1 - p) * (1 - p).clamp(min=1e-30).log2()).mean(dim=-1)
        noise = -torch.log(-torch.log(draw((batch, tokens)).clamp(min=1e-30)))
        score = (1 - entropy + gumbel * noise).masked_fill(~masked, float("inf"))
        left = int(tokens * math.cos(math.pi / 2 * iteration / iterations))
        kept = torch.zeros_like(masked).scatter_(
            1, score.argsort(dim=1, descending=True, stable=True)[:, tokens - left :], True
        )
        new = masked & ~kept
        codes = torch.where(new[:, :, None], (draw(tuple(codes.shape)) < p).float(), codes)
        masked = kept
    return codes


def _chain(
    pre: br.Pretrained, halves: list[Tensor], steps: int, guidance: float, draw: Callable[[tuple[int, ...]], Tensor]
) -> Tensor:
    """P(bit = 1), (R, K), from the conditions with and without class, (R, D) each."""
    diffusion, total = pre.generator.diffusion, pre.config.generator.train_timesteps
    rows, bits = len(halves[0]), pre.config.generator.code_bits
    times = [int(i) + 1 for i in np.linspace(0, 1, steps) * (total - 1)][::-1]
    x = (draw((rows, bits)) < 0.5).float()
    for index, t in enumerate(times):
        at = torch.full((rows,), t, device=x.device)
        with_class, without = (diffusion.denoiser(x, at, half) for half in halves)
        p_0 = diffusion.clean_probability(without + guidance * (with_class - without), x)
        if index + 1 == len(times):
            return p_0
        x = (draw((rows, bits)) < diffusion.step_probability(p_0, x, t, times[index + 1])).float()
    raise AssertionError("a chain has at least one step")
