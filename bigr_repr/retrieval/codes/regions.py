"""Regions of the token grid, and the bits of a tokenizer code inside them. Knows nothing of images or search."""

# N tokens, K bits per token, h w token grid

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Region", "TokenLayout"]


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """The layout of a tokenizer code's bits in the picture: h x w tokens in row-major order, of K bits each."""

    height: int
    width: int
    bits_per_token: int

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width), ("bits_per_token", self.bits_per_token)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 16:
                raise ValueError(f"{name}={value!r} must be a whole number in 1..65536")

    @property
    def n_bits(self) -> int:
        """Bits of a whole code."""
        return self.height * self.width * self.bits_per_token

    @classmethod
    def square(cls, n_bits: int, bits_per_token: int) -> TokenLayout:
        """The layout of a square picture's code.  Raises ValueError if n_bits does not make a square of tokens."""
        side = math.isqrt(n_bits // bits_per_token)
        if side < 1 or side * side * bits_per_token != n_bits:
            raise ValueError(f"{n_bits} bits at {bits_per_token} per token do not make a square of tokens")
        return cls(height=side, width=side, bits_per_token=bits_per_token)


@dataclass(frozen=True, kw_only=True)
class Region:
    """A rectangle of tokens: x, y of its upper left token, from 0; w, h: width and height in tokens."""

    x: int
    y: int
    w: int
    h: int

    @classmethod
    def of_fractions(cls, x: float, y: float, w: float, h: float, layout: TokenLayout) -> Region:
        """The tokens touched by a rectangle given in shares of the picture's side, each in [0, 1].

        Raises ValueError for an empty rectangle or one that extends outside the picture.
        """
        if not (0 <= x < 1 and 0 <= y < 1 and 0 < w <= 1 - x + 1e-9 and 0 < h <= 1 - y + 1e-9):
            raise ValueError(f"region={x:g},{y:g},{w:g},{h:g} is empty or extends outside the picture, 0..1")
        slack = 1e-9  # an edge exactly between two tokens touches the earlier one only by rounding
        left, top = math.floor(x * layout.width + slack), math.floor(y * layout.height + slack)
        right, bottom = math.ceil((x + w) * layout.width - slack), math.ceil((y + h) * layout.height - slack)
        return cls(x=left, y=top, w=right - left, h=bottom - top)

    def shares(self, layout: TokenLayout) -> tuple[float, float, float, float]:
        """The rectangle in shares of the picture's sides: x, y, w, h."""
        return self.x / layout.width, self.y / layout.height, self.w / layout.width, self.h / layout.height

    def mask(self, layout: TokenLayout) -> NDArray[np.uint8]:
        """Which bits of a packed code are in the region: uint8 (bytes).

        Raises ValueError for an empty region or one that extends outside the grid.
        """
        inside = self.x + self.w <= layout.width and self.y + self.h <= layout.height
        if not inside or min(self.x, self.y) < 0 or min(self.w, self.h) < 1:
            raise ValueError(
                f"region={self.x},{self.y},{self.w},{self.h} is empty or extends outside the grid of "
                f"{layout.width} x {layout.height} tokens, which starts at 0,0"
            )
        grid = np.zeros((layout.height, layout.width, layout.bits_per_token), np.bool_)
        grid[self.y : self.y + self.h, self.x : self.x + self.w] = True
        return np.packbits(grid.reshape(-1))
