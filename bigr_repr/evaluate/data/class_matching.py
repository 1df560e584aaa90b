"""Matches the classes of two data sets by name, alias or WordNet id. Knows no images or rows."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from bigr_repr._typing import PathLike

__all__ = ["Aliases", "Classes", "match_classes", "read_aliases"]

_ID: Final = re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of one data set: names, and WordNet ids if known ("" if not)."""

    names: tuple[str, ...]
    ids: tuple[str, ...] = ()

    def keys(self, number: int) -> set[str]:
        """All names of a class, in lower case: its name, each of its comma-separated names, its WordNet id."""
        name = self.names[number].strip().lower()
        wordnet = self.ids[number] if self.ids else _id_of(name)
        return {name, *(part.strip() for part in name.split(",")), *([wordnet] if wordnet else [])}


@dataclass(frozen=True, kw_only=True)
class _Group:
    """One entry of an alias file: names of a class, narrower names and ids, and ranges of ids."""

    same: frozenset[str]
    kinds: frozenset[str]
    ranges: tuple[tuple[str, str], ...]

    def is_same(self, keys: set[str]) -> bool:
        return bool(keys & self.same)

    def holds(self, keys: set[str]) -> bool:
        within = any(low <= key <= high for key in keys if _ID.fullmatch(key) for low, high in self.ranges)
        return within or bool(keys & self.kinds)


Aliases = tuple[_Group, ...]


def read_aliases(path: PathLike | None = None) -> Aliases:
    """Aliases from a YAML file, or the package's: CLASS: {same: [NAME, …], kinds: [NAME, ID, ID-ID, …]}.

    Raises ValueError that names the file for anything else, OSError if it cannot be read.
    """
    import yaml

    bundled = resources.files(__package__) / "aliases.yaml"
    text = bundled.read_text("utf-8") if path is None else Path(path).read_text("utf-8-sig")
    try:
        found = yaml.safe_load(text) or {}
        return tuple(_group(str(name), entry) for name, entry in found.items())
    except (AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
        message = f"{path} is not an alias file ({' '.join(str(error).split())})"
        raise ValueError(f"{message}; write CLASS: {{same: [NAME], kinds: [NAME]}}") from error


def _group(name: str, entry: Mapping[str, Any]) -> _Group:
    if strange := set(entry) - {"same", "kinds"}:
        raise ValueError(f"{name}: {', '.join(sorted(map(str, strange)))} is unknown; known are same and kinds")
    kinds = [str(kind).strip().lower() for kind in entry.get("kinds", ())]
    ranges = [kind.split("-") for kind in kinds if re.fullmatch(r"n\d{8}-n\d{8}", kind)]
    return _Group(
        same=frozenset({name.lower(), *(str(other).strip().lower() for other in entry.get("same", ()))}),
        kinds=frozenset(kinds),
        ranges=tuple((low, high) for low, high in ranges),
    )


def match_classes(ours: Classes, theirs: Classes, aliases: Aliases) -> tuple[list[int], list[int], tuple[str, ...]]:
    """A common numbering: for each class of ours and of theirs its index in the third result, the names; -1: no match.

    Classes match by a common name or id, or if, by `aliases`, one is another name or a kind of the other.
    Several classes of one side that match one class of the other become that class; two kinds of a class do not match.
    """
    left, right = ([side.keys(i) for i in range(len(side.names))] for side in (ours, theirs))
    pairs = _pairs(left, right, aliases)
    parent = list(range(len(left) + len(right)))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for i, j in pairs:
        low, high = sorted((root(i), root(len(left) + j)))
        parent[high] = low
    matched = sorted({root(i) for i, _ in pairs})
    number = {node: place for place, node in enumerate(matched)}
    places = [number.get(root(node), -1) for node in range(len(parent))]
    return places[: len(left)], places[len(left) :], tuple(_name(places, node, ours, theirs) for node in matched)


def _name(places: Sequence[int], node: int, ours: Classes, theirs: Classes) -> str:
    """The name on the side that has a single class for it; ours if both do."""
    mine = [i for i in range(len(ours.names)) if places[i] == places[node]]
    other = [j for j in range(len(theirs.names)) if places[len(ours.names) + j] == places[node]]
    return theirs.names[other[0]] if len(mine) > len(other) else ours.names[mine[0]]


def _pairs(left: Sequence[set[str]], right: Sequence[set[str]], aliases: Aliases) -> list[tuple[int, int]]:
    """Matching pairs (class of one side, class of the other)."""
    named: dict[str, list[int]] = {}
    for j, keys in enumerate(right):
        for key in keys:
            named.setdefault(key, []).append(j)
    pairs = {(i, j) for i, keys in enumerate(left) for key in keys for j in named.get(key, ())}
    for group in aliases:
        same = [[i for i, keys in enumerate(side) if group.is_same(keys)] for side in (left, right)]
        kinds = [[i for i, keys in enumerate(side) if group.holds(keys)] for side in (left, right)]
        pairs |= {(i, j) for i in same[0] for j in same[1] + kinds[1]} | {(i, j) for i in kinds[0] for j in same[1]}
    return sorted(pairs)


def _id_of(name: str) -> str:
    """The WordNet id if the class name is one, or if the name is unique among ImageNet's classes; "" for none."""
    return name if _ID.fullmatch(name) else _imagenet_ids().get(name, "")


@functools.cache
def _imagenet_ids() -> dict[str, str]:
    """{name in lower case: WordNet id} of ImageNet's 1000 classes, from timm's tables; without ambiguous names."""
    from timm.data.imagenet_info import ImageNetInfo

    info: Any = ImageNetInfo("imagenet-1k")
    found: dict[str, str] = {}
    for number in range(info.num_classes()):
        for name in {info.index_to_description(number).lower(), *_parts(info.index_to_description(number))}:
            found[name] = "" if name in found else str(info.index_to_label_name(number))
    return found


def _parts(text: str) -> list[str]:
    return [part.strip().lower() for part in text.split(",")]
