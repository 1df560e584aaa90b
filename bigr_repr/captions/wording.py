"""Writes captions for scenes of the synthetic world, and parses them. Knows nothing of pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bigr_repr.captions.scenes import COLORS, SHAPES, SIZES, Scene

_NUMBERS: Final = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
_PLURALS: Final = {f"{shape}es" if shape == "cross" else f"{shape}s": shape for shape in SHAPES}
_OPENINGS: Final = ("", "a picture of ", "there is ")
_OPPOSITE: Final = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_AT: Final = {
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "center": ("in the center", "in the middle"),
}
_LYING: Final = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_SHAPE_WORDS: Final = {shape: shape for shape in SHAPES} | _PLURALS
_THING: Final = re.compile(
    rf"\b(?P<number>{'|'.join(_NUMBERS)})\s+(?:(?P<size>{'|'.join(SIZES)})\s+)?"
    rf"(?P<color>{'|'.join(COLORS)})\s+(?P<shape>{'|'.join(sorted(_SHAPE_WORDS, key=len, reverse=True))})\b"
)


@dataclass(frozen=True, kw_only=True)
class Demanded:
    """Things of one color and shape in a caption, and how many."""

    number: int
    color: str
    shape: str
    size: str | None = None


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The content of a caption: the things, the place of the first, and its relation to the second."""

    things: tuple[Demanded, ...]
    place: str | None = None
    relation: str | None = None


def captions_of(scene: Scene) -> tuple[str, ...]:
    """All captions of a scene, the simplest first."""
    named = [f"a {thing.color} {thing.shape}" for thing in scene.things]
    first = named[0]
    if scene.kind == "related":
        second, turned = named[1], _OPPOSITE[scene.word]
        plain = [f"{first} {words} {second}" for words in _LYING[scene.word]]
        plain += [f"{second} {words} {first}" for words in _LYING[turned]]
        return (*plain, *(f"{_OPENINGS[1]}{each}" for each in plain), f"{_LYING[scene.word][1]} {second} is {first}")
    if scene.kind == "counted":
        plural = next(word for word, shape in _PLURALS.items() if shape == scene.things[0].shape)
        number = next(word for word, value in _NUMBERS.items() if value == len(scene.things))
        first = f"{number} {scene.things[0].color} {plural}"
    if scene.kind == "sized":
        first = f"a {scene.word} {scene.things[0].color} {scene.things[0].shape}"
    ends = _AT[scene.word] if scene.kind == "placed" else ("",)
    openings = ("", "a picture of ", "there are ") if scene.kind == "counted" else _OPENINGS
    return tuple(f"{opening}{first} {end}".rstrip() for opening in openings for end in ends)


def read_caption(text: str) -> Demand:
    """The content of a caption of this world; case, commas and periods do not matter.

    Raises ValueError for a text that names nothing in this world.
    """
    plain = " ".join(re.sub(r"[.,;:!]", " ", text.lower()).split())
    found = list(_THING.finditer(plain))
    if not found:
        raise ValueError(
            f"{text[:80]!r} names nothing in the synthetic world; try, for example, 'a red circle left of a blue "
            "square' "
            f"(colors {', '.join(COLORS)}; shapes {', '.join(SHAPES)})"
        )
    things = tuple(
        Demanded(
            number=_NUMBERS[match["number"]],
            color=match["color"],
            shape=_SHAPE_WORDS[match["shape"]],
            size=match["size"],
        )
        for match in found
    )
    if len(found) < 2:
        return Demand(things=things, place=_named(_AT, plain[found[0].end() :]))
    relation = _named(_LYING, plain[found[0].end() : found[1].start()])
    if relation is None and (turned := _named(_LYING, plain[: found[0].start()])) is not None:
        relation = _OPPOSITE[turned]  # "left of a blue square is a red circle"
    return Demand(things=things, relation=relation)


def _named(table: Mapping[str, tuple[str, ...]], text: str) -> str | None:
    """The word for the first phrase that occurs in a text; None if none does."""
    for word, phrases in table.items():
        if any(re.search(rf"\b{phrase}\b", text) for phrase in phrases):
            return word
    return None
