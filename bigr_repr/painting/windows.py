"""Squares of a photograph that a model sees one after another. Knows nothing of models, colors or files."""

# H W pixels of the photograph, g tokens per side of the canvas

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bigr_repr.images.decode import MAX_PIXELS

Mask = NDArray[np.bool_]
_KNOWN = 0.25  # minimum share of a single window that is known, as context


class Window(NamedTuple):
    """A square of a photograph, in its pixels."""

    left: int
    top: int
    side: int

    @property
    def area(self) -> tuple[slice, slice]:
        """Its slices of an array (H, W, ...)."""
        return slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)

    def with_margins(
        self, band: int, shape: tuple[int, ...]
    ) -> tuple[tuple[slice, slice], tuple[tuple[int, int], tuple[int, int]]]:
        """Its area extended by `band` within an array (H, W), and by how much: (top, bottom), (left, right)."""
        starts = [max(0, start - band) for start in (self.top, self.left)]
        ends = [min(n, start + self.side + band) for n, start in zip(shape, (self.top, self.left), strict=True)]
        before = self.top - starts[0], self.left - starts[1]
        after = ends[0] - self.top - self.side, ends[1] - self.left - self.side
        area = slice(starts[0], ends[0]), slice(starts[1], ends[1])
        return area, ((before[0], after[0]), (before[1], after[1]))


class Margins(NamedTuple):
    """Pixels by which a photograph grows on each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


def window_side(width: int, height: int, window: int | None) -> int:
    """The side to use: `window`, or the shorter side. Raises ValueError unless it is in 1..the shorter side."""
    shorter = min(width, height)
    if window is None:
        return shorter
    if not 1 <= window <= shorter:
        raise ValueError(
            f"window={window!r} is outside 1..{shorter}, the shorter side of the {width}x{height} photograph"
        )
    return int(window)


def usual_side(mask: Mask, least: int) -> int:
    """The side of a window that is twice as wide as the marked area: at least `least`, at most the shorter side.

    So the model sees about as much context as area to paint, and no more of the photograph than that.
    """
    spans = [found[-1] + 1 - found[0] for axis in (0, 1) if len(found := np.flatnonzero(mask.any(axis=axis)))]
    return int(min(max(least, 2 * int(max(spans, default=0))), *mask.shape))


def windows(mask: Mask, side: int) -> Iterator[Window]:
    """Windows that cover every marked pixel of (H, W), in painting order.

    A mark that fits into one window, leaving a quarter of it known, gets one centered on it if the edges allow.
    Otherwise windows half a side apart: each time the one with the most pixels that are known or already painted; among
    ties, the one with the most painted pixels, which it continues.
    """
    if (single := _around(mask, side)) is not None:
        yield single
        return
    left, (tops, lefts) = mask.copy(), (_starts(length, side) for length in mask.shape)
    marked = _marked(left, tops, lefts, side)
    counts = marked.copy()
    while counts.any():
        # The fewest pixels left, but at least one; then the most marked ones.
        rank = np.where(counts > 0, counts * (side * side + 1) - marked, np.iinfo(np.int64).max)
        row, column = np.unravel_index(rank.argmin(), rank.shape)
        window = Window(int(lefts[column]), int(tops[row]), side)
        left[window.area] = False
        near = [np.flatnonzero(np.abs(n - n[at]) < side) for n, at in ((tops, row), (lefts, column))]
        counts[np.ix_(*near)] = _marked(left, tops[near[0]], lefts[near[1]], side)
        yield window


def most_windows(mask: Mask, side: int) -> int:
    """An upper bound on the number of windows for a mask, without listing them."""
    tops, lefts = (_starts(length, side) for length in mask.shape)
    return int((_marked(mask, tops, lefts, side) > 0).sum())


def most_windows_around(width: int, height: int, margins: Margins, side: int) -> int:
    """`most_windows` for the margins around a photograph of this size, without an array of the result's size."""
    rows = _starts(height + margins.top + margins.bottom, side), margins.top, height
    columns = _starts(width + margins.left + margins.right, side), margins.left, width
    within = [
        ((first <= starts) & (starts + side <= first + length)).sum() for starts, first, length in (rows, columns)
    ]
    return len(rows[0]) * len(columns[0]) - int(within[0] * within[1])


def _around(mask: Mask, side: int) -> Window | None:
    """The window centered on the mark, if there is a mark and it fits."""
    starts = []
    for axis in (1, 0):
        found, length = np.flatnonzero(mask.any(axis=axis)), mask.shape[1 - axis]
        if not len(found) or found[-1] + 1 - found[0] > side:
            return None
        first, last = int(found[0]), int(found[-1]) + 1
        starts.append(min(max(0, (first + last - side) // 2), length - side))
    window = Window(starts[1], starts[0], side)
    return window if mask[window.area].mean() <= 1 - _KNOWN else None


def _marked(mask: Mask, tops: NDArray[np.int64], lefts: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """The number of marked pixels in each window: (tops, lefts)."""
    rows, columns = (slice(starts[0], starts[-1] + side) for starts in (tops, lefts))
    sums = np.pad(mask[rows, columns].astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    above, before = tops - tops[0], lefts - lefts[0]
    counts: NDArray[np.int64] = (
        sums[np.ix_(above + side, before + side)]
        - sums[np.ix_(above, before + side)]
        - sums[np.ix_(above + side, before)]
        + sums[np.ix_(above, before)]
    )
    return counts


def _starts(length: int, side: int) -> NDArray[np.int64]:
    """Start positions of windows along a side of `length` pixels: every half window, the last one at the very end."""
    return np.unique(np.append(np.arange(0, length - side, max(1, side // 2)), length - side))


def tokens_of(mask: Mask, grid: int) -> Tensor:
    """Tokens of the canvas that contain a marked pixel of a window (side, side): (1, g*g), bool."""
    marked = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
    return (F.adaptive_max_pool2d(marked, grid) > 0).flatten(1)


def box_mask(width: int, height: int, box: tuple[int, int, int, int]) -> Mask:
    """A mask (H, W) that marks a box (left, top, right, bottom), right and bottom excluded.

    Raises ValueError for a box without any pixel of the photograph.
    """
    left, top, right, bottom = box
    inside = max(left, 0) < min(right, width) and max(top, 0) < min(bottom, height)
    if not inside:
        raise ValueError(
            f"box={left},{top},{right},{bottom} contains no pixel of the {width}x{height} photograph; "
            "give left,top,right,bottom in pixels from the upper left corner"
        )
    mask = np.zeros((height, width), np.bool_)
    mask[max(top, 0) : bottom, max(left, 0) : right] = True
    return mask


def margins_to_aspect(width: int, height: int, aspect: float, *, max_pixels: int = MAX_PIXELS) -> Margins:
    """The smallest margins, equal on opposite sides, that bring a photograph to width / height = `aspect`.

    Raises ValueError for an aspect that is not a positive number, that the photograph already has, or that would need
    more than max_pixels.
    """
    if not (math.isfinite(aspect) and aspect > 0):
        raise ValueError(f"aspect={aspect!r} is not allowed: it must be a positive number, width over height")
    if max(height * height * aspect, width * width / aspect) > max_pixels:
        raise ValueError(
            f"aspect={aspect:g} takes more than max_pixels={max_pixels:,} around a {width}x{height} photograph; choose "
            "one closer to its own, or allow more pixels"
        )
    across, down = max(0, round(height * aspect) - width), max(0, round(width / aspect) - height)
    if across == down == 0:
        raise ValueError(f"aspect={aspect:g} is that of the {width}x{height} photograph: there is nothing to paint")
    return Margins(across // 2, down // 2, across - across // 2, down - down // 2)


def check_margins(margins: Margins) -> None:
    """Raise ValueError for negative margins or none."""
    if min(margins) < 0 or not any(margins):
        raise ValueError(f"margins={tuple(margins)} leave nothing to paint; give at least one side 1 pixel or more")


def grow(photo: NDArray[np.uint8], margins: Margins) -> tuple[NDArray[np.uint8], Mask]:
    """A photograph (H, W, 3) with margins that repeat its outermost pixels, and the mask of these margins.

    Raises ValueError for negative margins or none.
    """
    check_margins(margins)
    rows, columns = (margins.top, margins.bottom), (margins.left, margins.right)
    grown: NDArray[Any] = np.pad(photo, (rows, columns, (0, 0)), mode="edge")
    mask = np.pad(np.zeros(photo.shape[:2], np.bool_), (rows, columns), constant_values=True)
    return grown, mask
