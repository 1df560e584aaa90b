"""The categorical head: one softmax over all 2^K codes of a token, instead of the binary transcoder.

For comparison with it (BiGR, arXiv 2410.14672, section 4.2). Knows nothing of images, grids or files.
"""

# R rows (tokens of any images), K bits per token, D width of the condition, W width of the head

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr_repr.config import GeneratorConfig


def class_of(bits: Tensor) -> Tensor:
    """The number of a code, bit k counting 2^k: (..., K) of 0/1 -> (...), int64 in 0..2^K-1."""
    places = torch.arange(bits.shape[-1], device=bits.device)
    return ((bits > 0.5).long() << places).sum(dim=-1)


def bits_of(classes: Tensor, count: int) -> Tensor:
    """The inverse of `class_of`: (...) -> (..., K) of 0/1, float32."""
    places = torch.arange(count, device=classes.device)
    return (classes[..., None] >> places & 1).float()


class _Residual(nn.Module):
    """x + MLP(LN(x)). (..., W) -> (..., W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))  # type: ignore[no-any-return]


class CategoricalHead(nn.Module):
    """Logits of a token's code from its condition, in one step: as deep and as wide as the transcoder."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width = config.transcoder_dim
        self.code_bits = config.code_bits
        self.c_embedder = nn.Linear(config.dim, width)
        self.blocks = nn.ModuleList(_Residual(width) for _ in range(config.transcoder_blocks))
        self.final_layer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2**config.code_bits))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.final_layer[1].weight)  # type: ignore[arg-type]  # at first all codes are equally likely

    def forward(self, condition: Tensor) -> Tensor:
        """(..., D) -> (..., 2^K)."""
        x = self.c_embedder(condition)
        for block in self.blocks:
            x = block(x)
        return self.final_layer(x)  # type: ignore[no-any-return]

    def loss(
        self, clean: Tensor, condition: Tensor, *, draws: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Mean cross-entropy of the codes in nats: bits (R, K), conditions (R, D) -> scalar, float32.

        Draws nothing: draws and generator are ignored.
        """
        return F.cross_entropy(self(condition).float(), class_of(clean))
