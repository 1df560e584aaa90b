"""Classes by number or name, as typed by users. Knows nothing of sampling."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping

from bigr_repr.checkpoints.catalog import imagenet_class_names
from bigr_repr.config import ModelConfig

ALL = "all"  # every class once
_SUGGESTIONS = 3
_DIGITS = 20  # of the longest number that is looked up
_LIST = "bigr-repr models info {} --classes"


def class_names(config: ModelConfig) -> tuple[str, ...]:
    """One name per class: from the configuration; for models of ImageNet-1k without names, ImageNet's; else empty."""
    if config.class_names or config.generator.classes != 1000:
        return config.class_names
    return imagenet_class_names() if str(config.training.get("data", "")).startswith("ImageNet-1k") else ()


def has_classes(config: ModelConfig) -> bool:
    """Whether the model was trained with classes."""
    if config.generator.condition == "text":
        return False
    settings = config.training.get("settings")
    return not (isinstance(settings, Mapping) and settings.get("conditional") is False)


def class_number(config: ModelConfig, text: str) -> int:
    """The class with a given number or name, in either case; any part of a name with commas will do.

    Raises ValueError for a number outside 0..C-1, for a name shared by several classes and, with the nearest names,
    for one that no class has.
    """
    if config.generator.condition == "text":
        raise ValueError(f"class {text!r}: {config.name} draws from captions, not classes; pass a prompt")
    wanted, count = text.strip(), config.generator.classes
    if wanted.removeprefix("-").isdecimal():
        if len(wanted) > _DIGITS or not 0 <= int(wanted) < count:  # int() refuses thousands of digits
            shown = wanted if len(wanted) <= _DIGITS else f"{wanted[:_DIGITS]}…"
            raise ValueError(
                f"class {shown} is outside 0..{count - 1} for {config.name}; see: {_LIST.format(config.name)}"
            )
        return int(wanted)
    names = class_names(config)
    if not names:
        raise ValueError(f"class {wanted!r} cannot be looked up: {config.name} has no names; give 0..{count - 1}")
    table = _table(names)
    found = table.get(_plain(wanted), ())
    if len(found) > 1:
        numbers = f"{', '.join(map(str, found[:-1]))} and {found[-1]}"
        raise ValueError(f"class {wanted!r} is {numbers} of {config.name}; give the number")
    if not found:
        near = difflib.get_close_matches(_plain(wanted), table, n=_SUGGESTIONS, cutoff=0.5)
        listed = ", ".join(dict.fromkeys(repr(names[table[name][0]]) for name in near))  # two parts may share a name
        remedy = f"nearest: {listed}" if near else f"give a number 0..{count - 1}, or see: {_LIST.format(config.name)}"
        raise ValueError(f"class {wanted!r} is not one of {config.name}'s; {remedy}")
    return found[0]


def class_list(config: ModelConfig, texts: Iterable[str]) -> list[int]:
    """Classes from several texts, each a comma-separated list or "all". Raises as `class_number`, also for none."""
    found: list[int] = []
    for text in texts:
        if config.generator.condition == "text":
            class_number(config, text)  # raises the error that there are none
        whole = _plain(text) in _table(class_names(config))  # a name may contain commas
        for part in [text] if whole else filter(str.strip, text.split(",")):
            every = part.strip().lower() == ALL
            found += range(config.generator.classes) if every else [class_number(config, part)]
    if not found:
        raise ValueError("no class is named; give numbers or names, separated by commas")
    return found


@functools.lru_cache(maxsize=4)
def _table(names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The numbers of the classes for each normalized name; whole names take precedence over parts."""
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        whole.setdefault(_plain(name), []).append(number)
        for part in dict.fromkeys(map(_plain, name.split(","))):
            parts.setdefault(part, []).append(number)
    return {name: tuple(numbers) for name, numbers in (parts | whole).items()}


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())
