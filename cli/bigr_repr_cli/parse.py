"""Parsers of option values that several commands share. Independent of models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from bigr_repr.retrieval import HammingIndex, Region
    from bigr_repr.retrieval.stores.base import StoreIndex


def parse_layers(values: list[str], names: tuple[str, ...] = ("mid",), *, joined: bool = False) -> list[int | str]:
    """Parse layers such as "12", "-1", "4,8,12" and the names; joined: also "4+8", which stays as it is.

    Raises BadParameter for anything else.
    """
    layers: list[int | str] = []
    for part in ",".join(values).split(","):
        text = part.strip()
        if joined and "+" in text:
            layers.append("+".join(map(str, parse_layers(text.split("+")))))
            continue
        if text not in names and not text.removeprefix("-").isdecimal():
            listed = " or ".join(f'"{name}"' for name in names)
            raise typer.BadParameter(f"{text!r} is neither a whole number nor {listed}", param_hint="--layer")
        layers.append(text if text in names else int(text))
    return layers


def stored_layer(text: str | None) -> int | str | None:
    """The data set's layer that an option names. Raises BadParameter for several."""
    layers = parse_layers([text], (), joined=True) if text is not None else [None]
    if len(layers) > 1:
        raise typer.BadParameter(f"{text!r} names several layers; give one", param_hint="--layer")
    return layers[0]


def parse_decimals(text: str, option: str) -> list[float]:
    """Parse numbers separated by commas.  Raises BadParameter for anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers, such as 1,1,-0.5", param_hint=option) from None


def repeat_layer(words: list[str]) -> list[str]:
    """Rewrite `--layer 4 8 12` in a command line as the parser expects: `--layer 4 --layer 8 --layer 12`.

    A number that is also the name of a file or folder is left in place: it is one of the inputs.
    """
    found: list[str] = []
    value_next = inside = False
    for word in words:
        more = inside and word.removeprefix("-").isdecimal() and not os.path.lexists(word)
        found += ["--layer", word] if more else [word]
        inside = value_next or more
        value_next = word == "--layer"
    return found


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Parse "90", "90s", "45m", "2h", "1.5h" or "1d" as seconds. Raises BadParameter for anything else."""
    unit = text[-1:] if text[-1:].isalpha() else ""
    try:
        seconds = float(text.removesuffix(unit)) * _UNITS[unit]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise typer.BadParameter(f"{text!r} is not a time such as 90s, 45m, 2h or 1d")
    return seconds


def parse_batch_size(text: str | None) -> int | str | None:
    """Parse a batch size: a positive integer, "auto", or None. Raises BadParameter for anything else."""
    if text is None or text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither a positive integer nor auto", param_hint="--batch-size")
    return int(text)


def parse_region(value: str, index: HammingIndex | StoreIndex) -> Region:
    """Parse a region such as "2,2,4,4" (tokens) or "0.25,0.25,0.5,0.5" (shares of the side). Raises BadParameter.

    Raises ValueError for an index that cannot be searched by region.
    """
    from bigr_repr.retrieval import Region

    parts = value.split(",")
    shares = any("." in part for part in parts)
    try:
        x, y, w, h = (float(part) if shares else int(part) for part in parts)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not x,y,w,h, such as 2,2,4,4", param_hint="--region") from None
    layout = index.token_layout()
    return Region.of_fractions(x, y, w, h, layout) if shares else Region(x=int(x), y=int(y), w=int(w), h=int(h))


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """Parse positive integers separated by commas. Raises BadParameter for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of positive integers, such as 10,20", param_hint=option)
    return tuple(int(part) for part in parts)
