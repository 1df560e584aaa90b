"""How the tokens of a block become one vector. Knows no models, and loads torch only to pool."""

# B batch, N tokens, h w token grid, D width

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NONE", "POOLS", "pool_tokens", "pool_width", "vector_shape"]

POOLS: Final = ("avg", "max", "avg+max", "grid2")
NONE: Final = "none"  # one vector a token


def pool_tokens(states: Tensor, pool: str, grid: tuple[int, int] | None = None) -> Tensor:
    """Hidden states (B, N, D) -> (B, D), or (B, 2 D) for "avg+max", or (B, 4 D) for "grid2".

    "grid2" sets the means over the four quarters of the picture side by side, rows first. grid: (h, w), h * w = N;
    None: a square. Raises ValueError for an unknown pool, or tokens that make no such grid.
    """
    import torch
    import torch.nn.functional as F

    if pool not in POOLS:
        raise ValueError(f"pool={pool!r} is unknown; choose one of {', '.join(POOLS)}")
    if pool == "grid2":
        side = round(states.shape[1] ** 0.5)
        height, width = grid or (side, side)
        if height * width != states.shape[1]:
            raise ValueError(f"{states.shape[1]} tokens are no grid of {height} x {width}; pool='grid2' needs one")
        planes = states.transpose(1, 2).unflatten(2, (height, width))  # type: ignore[no-untyped-call]
        return F.adaptive_avg_pool2d(planes, 2).flatten(2).transpose(1, 2).flatten(1)
    parts = {"avg": states.mean(dim=1), "max": states.amax(dim=1)}
    return torch.cat([parts[name] for name in pool.split("+")], dim=1)


def pool_width(pool: str, width: int) -> int:
    """Width of the vector that a pool makes of tokens of this width."""
    return width * {"avg+max": 2, "grid2": 4}.get(pool, 1)


def vector_shape(pool: str, tokens: int, width: int, blocks: int = 1) -> tuple[int, ...]:
    """Of one image's features, so many blocks side by side: (D,), or (N, D) with "none"."""
    size = blocks * pool_width(pool, width)
    return (tokens, size) if pool == NONE else (size,)
