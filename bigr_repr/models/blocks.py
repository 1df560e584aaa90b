"""Blocks of the transformer: normalization, rotary positions, attention, feed-forward. Knows no codes, no conditions.

Module and parameter names follow the released weights. Source: BiGR (arXiv 2410.14672), section 3.2.
"""

# B batch, D width, S sequence, M heads, d head width

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr_repr.config import GeneratorConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalization, computed in float32. (..., D) -> (..., D)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], None, self.eps).to(x.dtype) * self.weight


def rotary_table(grid: int, head_dim: int, base: float, device: torch.device, *, captions: int = 0) -> Tensor:
    """Cosines and sines of 2-D rotary positions, the condition in front: (2, captions + 1 + grid*grid, head_dim / 2).

    The first half of a head turns by row, the second by column; caption tokens do not turn. float32.
    """
    half = head_dim // 2
    frequencies = base ** (-torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
    angles = torch.arange(grid, dtype=torch.float32, device=device)[:, None] * frequencies
    by_row = angles[:, None].expand(grid, grid, -1)
    by_column = angles[None, :].expand(grid, grid, -1)
    angles = torch.cat([by_row, by_column], dim=-1).reshape(grid * grid, half)
    table = torch.stack([angles.cos(), angles.sin()])
    # The condition token has cos = sin = 0: its rotated query and key are zero vectors. Released weights rely on it.
    unturned = torch.stack([table.new_ones(captions, half), table.new_zeros(captions, half)])
    return torch.cat([unturned, table.new_zeros(2, 1, half), table], dim=1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn interleaved pairs (0,1), (2,3)... of x (B, M, S, d) by `table` (2, S, d/2)."""
    cos, sin = table
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    if torch.compiler.is_compiling():  # the compiler fuses this form and has no kernels for complex numbers
        a, b = pairs.unbind(-1)
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:  # one kernel instead of seven
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return turned.flatten(-2).to(x.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, present: Tensor | None) -> Tensor:
    """Softmax attention, (B, M, S, d) each -> (B, M, S, d); causal: each position attends to itself and earlier ones.

    present: (B, 1, 1, S), bool, which positions exist; None: all.
    """
    if torch.is_grad_enabled() and q.device.type == "cpu":
        # The fused kernel's backward pass is slow there: without it a step in bfloat16 takes 0.6 of the time.
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        if present is not None:
            scores = scores.masked_fill(~present, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1, dtype=torch.float32)
        mixed: Tensor = weights.to(v.dtype) @ v
        return mixed
    if present is None:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=causal
        )  # without a mask all fused kernels are available
    if causal:
        present = present & torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        present = present | torch.eye(
            q.shape[-2], dtype=torch.bool, device=q.device
        )  # padding attends to itself, to avoid NaN
    return F.scaled_dot_product_attention(q, k, v, attn_mask=present)


class Attention(nn.Module):
    """Self-attention without biases, bidirectional unless the configuration says causal. (B, S, D) -> (B, S, D)."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.heads, self.causal = config.heads, config.attention == "causal"
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def _parts(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, turned, and values: (B, M, S, d) each."""
        q, k, v = self.wqkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return rotate(q, table), rotate(k, table), v

    def weights(self, x: Tensor, table: Tensor, place: int) -> Tensor:
        """How much position `place` attends to each, without padding: x (B, S, D) -> (B, M, S), float32, sum 1."""
        q, k, _ = self._parts(x, table)
        scores = (q[:, :, place : place + 1].float() @ k.float().mT)[:, :, 0] * q.shape[-1] ** -0.5
        if self.causal:
            scores[..., place + 1 :] = -torch.inf
        weights: Tensor = scores.softmax(-1)
        return weights

    def forward(self, x: Tensor, table: Tensor, present: Tensor | None = None) -> Tensor:
        q, k, v = self._parts(x, table)
        mixed = _attend(q, k, v, self.causal, present)
        return self.wo(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x), no biases. (..., D) -> (..., D)."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One transformer block, modulated by the condition. (B, S, D) -> (B, S, D)."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, config.dim))
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, x: Tensor, shared: Tensor, table: Tensor, dropout: float = 0.0, present: Tensor | None = None
    ) -> Tensor:
        """`shared` is the modulation shared by all blocks, (B, 1, 6, D); present: as in attention."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (shared + self.ada_gss).unbind(2)
        h = self.attention(torch.addcmul(shift1, self.attention_norm(x), 1 + scale1), table, present)
        x = torch.addcmul(x, gate1, F.dropout(h, dropout, self.training))
        h = self.feed_forward(torch.addcmul(shift2, self.ffn_norm(x), 1 + scale2))
        return torch.addcmul(x, gate2, F.dropout(h, dropout, self.training))
