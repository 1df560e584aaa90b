"""Pools a block's tokens into one vector. Knows no models, and loads torch only to pool."""

# B batch, N tokens, h w token grid, D width

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NONE", "POOLS", "pool_tokens", "pool_width", "vector_shape"]

POOLS: Final = ("avg", "max", "avg+max", "grid2")
NONE: Final = "none"  # one vector per token


def pool_tokens(states: Tensor, pool: str, grid: tuple[int, int] | None = None) -> Tensor:
    """Hidden states (B, N, D) -> (B, D), or (B, 2 D) for "avg+max", or (B, 4 D) for "grid2".

    "grid2" concatenates the means over the four quarters of the picture, row-major. grid: (h, w), h * w = N; None: a
    square. Raises ValueError for an unknown pool, no tokens, or tokens that do not make such a grid.
    """
    import torch
    import torch.nn.functional as F

    if pool not in POOLS:
        raise ValueError(f"pool={pool!r} is unknown; choose one of {', '.join(POOLS)}")
    if not states.shape[1]:
        raise ValueError(f"states have shape {tuple(states.shape)}; there are no tokens to pool")
    if pool == "grid2":
        side = round(states.shape[1] ** 0.5)
        height, width = grid or (side, side)
        if height * width != states.shape[1]:
            raise ValueError(
                f"{states.shape[1]} tokens do not make a grid of {height} x {width}; pool='grid2' needs one"
            )
        planes = states.transpose(1, 2).unflatten(2, (height, width))  # type: ignore[no-untyped-call]
        return F.adaptive_avg_pool2d(planes, 2).flatten(2).transpose(1, 2).flatten(1)
    parts = {"avg": states.mean(dim=1), "max": states.amax(dim=1)}
    return torch.cat([parts[name] for name in pool.split("+")], dim=1)


def pool_width(pool: str, width: int) -> int:
    """The width of pooled vectors, given the width of tokens."""
    return width * {"avg+max": 2, "grid2": 4}.get(pool, 1)


def vector_shape(pool: str, tokens: int, width: int, blocks: int = 1) -> tuple[int, ...]:
    """The shape of one image's features, with `blocks` concatenated: (D,), or (N, D) with "none"."""
    size = blocks * pool_width(pool, width)
    return (tokens, size) if pool == NONE else (size,)
