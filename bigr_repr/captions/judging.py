"""Reads pictures of the synthetic world exactly, and judges how well a picture matches a caption.

Works only on pixels, so that it can judge any generator's pictures.
"""

# S side of the picture in pixels

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bigr_repr.captions.scenes import BACKGROUND, COLORS, SHAPES, SIZES, Pixels, Thing, is_at, is_related, shape_outline
from bigr_repr.captions.wording import Demand, read_caption

_FAR: Final = 90.0  # distance from the background, in levels, from which a pixel belongs to a thing
_LEAST: Final = 0.05  # radius of the smallest thing, as a fraction of the side; smaller ones are specks
_ALIKE: Final = 0.6  # intersection over union with the best shape, below which the shape is unknown
_COLOR_OFF: Final = 80.0  # levels between a thing's median color and the nearest known one; above, it is unknown
_TEMPLATE: Final = 32
_BETWEEN: Final = (sum(SIZES["small"]) / 2, sum(SIZES["large"]) / 2)


def read_picture(picture: Image.Image | Pixels) -> tuple[Thing, ...]:
    """The things in a picture, RGB, S x S, in raster order of their upper edges.

    A thing is a connected region that differs from the background. "?" stands for an unknown color or shape.
    """
    from scipy.ndimage import find_objects, label

    pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    side = pixels.shape[0]
    apart = np.linalg.norm(pixels.astype(np.float32) - np.array(BACKGROUND, np.float32), axis=2) > _FAR
    numbers, _ = label(apart)
    found = []
    for number, area in enumerate(find_objects(numbers), start=1):
        own = numbers[area] == number
        if own.sum() >= 2 * (_LEAST * side) ** 2:
            found.append(_thing(pixels[area], own, area, side))
    return tuple(found)


def _thing(pixels: Pixels, own: NDArray[np.bool_], area: tuple[slice, ...], side: int) -> Thing:
    rows, columns = area
    y, x = (rows.start + rows.stop) / 2 / side, (columns.start + columns.stop) / 2 / side
    radius = max(rows.stop - rows.start, columns.stop - columns.start) / 2 / side
    return Thing(color=_color(pixels[own]), shape=_shape(own), x=x, y=y, radius=radius)


def _color(pixels: Pixels) -> str:
    """The known color nearest to the median of a thing's pixels (n, 3)."""
    middle = np.median(pixels.astype(np.float32), axis=0)
    off = {name: float(np.linalg.norm(middle - np.array(value, np.float32))) for name, value in COLORS.items()}
    best = min(off, key=lambda name: off[name])
    return best if off[best] <= _COLOR_OFF else "?"


def _shape(own: NDArray[np.bool_]) -> str:
    """The shape with the largest overlap in the thing's bounding box (h, w)."""
    height, width = own.shape
    if not 0.6 < height / width < 1 / 0.6:
        return "?"
    frame = np.asarray(Image.fromarray(own).resize((_TEMPLATE, _TEMPLATE), Image.Resampling.NEAREST))
    shared = {name: float((frame & each).sum() / (frame | each).sum()) for name, each in _templates().items()}
    best = max(shared, key=lambda name: shared[name])
    return best if shared[best] >= _ALIKE else "?"


@functools.cache
def _templates() -> dict[str, NDArray[np.bool_]]:
    """The part of its bounding box that each shape covers."""
    found = {}
    for shape in SHAPES:
        image = Image.new("1", (_TEMPLATE, _TEMPLATE))
        middle = (_TEMPLATE - 1) / 2
        ImageDraw.Draw(image).polygon(shape_outline(shape, middle, middle, _TEMPLATE / 2), fill=1)
        found[shape] = np.asarray(image)
    return found


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How well a picture matches its caption.

    things: number of things in the caption. `colors`, `shapes`: how many of them match a thing in the picture by color
    or shape, each thing counted once; `pairs`: by both at once. `placed`, `sized`, `related`: None if the caption does
    not say; `counted`: whether the picture has exactly as many things as the caption.
    """

    things: int
    colors: int
    shapes: int
    pairs: int
    counted: bool
    placed: bool | None = None
    sized: bool | None = None
    related: bool | None = None

    @property
    def right(self) -> bool:
        """Whether the picture matches the caption in every respect."""
        told = (self.placed, self.sized, self.related)
        return self.counted and self.pairs == self.things and all(each is not False for each in told)


def judge(picture: Image.Image | Pixels, caption: str | Demand) -> Verdict:
    """How well a picture, RGB, S x S, matches a caption. Raises ValueError as `read_caption`."""
    demand = read_caption(caption) if isinstance(caption, str) else caption
    seen = read_picture(picture)
    wanted = [(each.color, each.shape) for each in demand.things for _ in range(each.number)]
    first = [thing for thing in seen if (thing.color, thing.shape) == wanted[0]]
    size = demand.things[0].size
    related = None
    if demand.relation is not None:
        other = [thing for thing in seen if (thing.color, thing.shape) == wanted[demand.things[0].number]]
        apart = [(a, b) for a, b in product(first, other) if a is not b]
        related = any(is_related(demand.relation, (a.x, a.y), (b.x, b.y)) for a, b in apart)
    return Verdict(
        things=len(wanted),
        colors=_shared([thing.color for thing in seen], [color for color, _ in wanted]),
        shapes=_shared([thing.shape for thing in seen], [shape for _, shape in wanted]),
        pairs=_shared([(thing.color, thing.shape) for thing in seen], wanted),
        counted=len(seen) == len(wanted),
        placed=None if demand.place is None else any(is_at(demand.place, thing.x, thing.y) for thing in first),
        sized=None if size is None else any(_is_of_size(size, thing) for thing in first),
        related=related,
    )


def _shared(seen: Sequence[Any], wanted: Sequence[Any]) -> int:
    return (Counter(seen) & Counter(wanted)).total()


def _is_of_size(size: str, thing: Thing) -> bool:
    middle = sum(_BETWEEN) / 2
    return thing.radius < middle if size == "small" else thing.radius > middle


def summarize(verdicts: Sequence[Verdict]) -> dict[str, float | int | None]:
    """Fractions over many pictures: of things for color, shape and pair; of applicable pictures for the others.

    None if no picture applies.
    """
    things = sum(each.things for each in verdicts)
    found: dict[str, float | int | None] = {"pictures": len(verdicts)}
    for name, field in (("color", "colors"), ("shape", "shapes"), ("pair", "pairs")):
        found[name] = sum(getattr(each, field) for each in verdicts) / things if things else None
    for name, field in (
        ("count", "counted"), ("place", "placed"), ("size", "sized"), ("relation", "related"), ("all", "right"),
    ):  # fmt: skip
        told = [getattr(each, field) for each in verdicts if getattr(each, field) is not None]
        found[name] = sum(told) / len(told) if told else None
    return found
