"""The synthetic world: scenes of plain shapes, drawn at any size, with captions. Knows nothing of files or models.

A scene is a function of (seed, number). Some pairs of color and shape are held out: they never occur in training.
"""

# S side of the picture in pixels; lengths of things are fractions of it

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

BACKGROUND: Final = (245, 245, 245)
COLORS: Final = {
    "red": (214, 39, 40),
    "green": (40, 190, 70),
    "blue": (31, 90, 220),
    "yellow": (250, 210, 30),
    "purple": (150, 50, 190),
    "black": (20, 20, 20),
}
SHAPES: Final = ("circle", "square", "triangle", "cross")
# Pairs that never occur in a training scene.
HELD_OUT: Final = (("red", "triangle"), ("green", "circle"), ("blue", "cross"), ("yellow", "square"))
KINDS: Final = ("single", "placed", "sized", "counted", "related")
RELATIONS: Final = ("left of", "right of", "above", "below")
PLACES: Final = ("left", "right", "top", "bottom", "center")
SIZES: Final = {"small": (0.08, 0.105), "large": (0.165, 0.2)}  # radii
_USUAL: Final = (0.12, 0.15)
_KIND_SHARES: Final = (0.15, 0.1, 0.1, 0.15, 0.5)
_EDGE: Final = 0.03  # minimum distance between a thing and the edge, and between two things
_GAP: Final = 0.06
_FINER: Final = 4  # supersampling factor, for smooth edges
_ARM = 0.36  # half the width of a cross's arms, as a fraction of its radius

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One shape: its center (x, y) and its radius, half its height, as fractions of the picture's side."""

    color: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The content of a picture, and which facts its captions tell.

    kind: single (one thing), placed (and where), sized (and how large), counted (two or three equal ones) or related
    (two things and their relation). word: the place, size or relation.
    """

    kind: str
    things: tuple[Thing, ...]
    word: str = ""

    @property
    def held_out(self) -> bool:
        """Whether it shows a held-out pair of color and shape."""
        return any((thing.color, thing.shape) in HELD_OUT for thing in self.things)


def make_scene(seed: int, number: int, *, held_out: bool = False) -> Scene:
    """Scene `number` of a seed; with `held_out`, it shows a held-out pair, otherwise none."""
    rng = np.random.default_rng([seed, number, int(held_out)])
    kind = KINDS[int(rng.choice(len(KINDS), p=_KIND_SHARES))]
    count = {"counted": int(rng.integers(2, 4)), "related": 2}.get(kind, 1)
    pairs = _pairs(rng, 2 if kind == "related" else 1, held_out)
    word = {"placed": PLACES, "sized": tuple(SIZES), "related": RELATIONS}.get(kind, ("",))
    chosen = word[int(rng.integers(len(word)))]
    sizes = SIZES[chosen] if kind == "sized" else _USUAL
    radii = [float(rng.uniform(*sizes))] * count if kind == "counted" else [float(rng.uniform(*sizes)) for _ in pairs]
    while (centers := _centers(rng, kind, chosen, radii)) is None:
        pass
    things = [
        Thing(color=pairs[i % len(pairs)][0], shape=pairs[i % len(pairs)][1], x=x, y=y, radius=radius)
        for i, ((x, y), radius) in enumerate(zip(centers, radii, strict=True))
    ]
    return Scene(kind=kind, things=tuple(things), word=chosen)


def _pairs(rng: np.random.Generator, count: int, held_out: bool) -> list[tuple[str, str]]:
    """Different pairs of color and shape, the held-out one, if any, at a random position."""
    usual = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in HELD_OUT]
    found = [usual[i] for i in rng.choice(len(usual), count, replace=False)]
    if held_out:
        found[int(rng.integers(count))] = HELD_OUT[int(rng.integers(len(HELD_OUT)))]
    return found


def _centers(rng: np.random.Generator, kind: str, word: str, radii: list[float]) -> list[tuple[float, float]] | None:
    """Random positions of the things; None if they touch or do not match the word."""
    centers = [(_spot(rng, radius), _spot(rng, radius)) for radius in radii]
    for i, (x, y) in enumerate(centers):
        for j in range(i):
            near = radii[i] + radii[j] + _GAP
            if max(abs(x - centers[j][0]), abs(y - centers[j][1])) < near:
                return None
    fits = (kind != "placed" or is_at(word, *centers[0], third=0.3)) and (
        kind != "related" or is_related(word, centers[0], centers[1], slack=0.5)
    )
    return centers if fits else None


def _spot(rng: np.random.Generator, radius: float) -> float:
    edge = radius + _EDGE
    return float(rng.uniform(edge, 1 - edge))


def is_at(place: str, x: float, y: float, *, third: float = 1 / 3) -> bool:
    """Whether a center is in the named part of the picture: a third at a side, or the middle."""
    inside = {
        "left": x < third, "right": x > 1 - third, "top": y < third, "bottom": y > 1 - third,
        "center": max(abs(x - 0.5), abs(y - 0.5)) < third / 2,
    }  # fmt: skip
    return inside[place]


def is_related(relation: str, first: tuple[float, float], second: tuple[float, float], *, slack: float = 1.0) -> bool:
    """Whether the relation holds between two centers: the offset in its direction exceeds the sideways offset.

    slack: maximum sideways offset, as a multiple of the offset in that direction.
    """
    dx, dy = second[0] - first[0], second[1] - first[1]
    along, across = {"left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[relation]
    return along > 0 and abs(across) < slack * along


def draw(scene: Scene, side: int = 64) -> Image.Image:
    """The picture of a scene: RGB, S x S."""
    large = Image.new("RGB", (side * _FINER, side * _FINER), BACKGROUND)
    pen = ImageDraw.Draw(large)
    for thing in scene.things:
        x, y, radius = (value * side * _FINER for value in (thing.x, thing.y, thing.radius))
        outline = shape_outline(thing.shape, x, y, radius)
        if thing.shape == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLORS[thing.color])
        else:
            pen.polygon(outline, fill=COLORS[thing.color])
    return large.resize((side, side), Image.Resampling.BOX)


def shape_outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a shape in its square of 2 x radius; for a circle, those of an approximating polygon."""
    if shape == "circle":
        turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        return [(x + radius * float(np.cos(turn)), y + radius * float(np.sin(turn))) for turn in turns]
    arm = _ARM
    corners: dict[str, list[tuple[float, float]]] = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "triangle": [(0, -1), (1, 1), (-1, 1)],
        "cross": [
            (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
            (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
        ],
    }  # fmt: skip
    return [(x + dx * radius, y + dy * radius) for dx, dy in corners[shape]]
