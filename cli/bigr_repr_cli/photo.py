"""The options that commands share which paint into a photograph. Knows no single command."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bigr_repr.sampling.files import Box
    from bigr_repr.sampling.photos import Pasting

Blend = StrEnum("Blend", ["none", "feather", "poisson"])

Photo = Annotated[Path, typer.Argument(metavar="IMAGE", help="A photograph of any size; what is transparent is white.")]
Masks = Annotated[
    list[Path] | None,
    typer.Option("--mask", help="An image of its size, light and opaque where to paint; may be repeated."),
]
Boxes = Annotated[list[str] | None, typer.Option("--box", help="left,top,right,bottom in pixels; may be repeated.")]
Out = Annotated[Path, typer.Option(help="The PNG to write; with --count: its name and a number.")]
Count = Annotated[int | None, typer.Option(min=1, help="Versions; default: one a class.")]
Label = Annotated[str | None, typer.Option("--label", help="What to paint, a class by number or name.")]
BlendHow = Annotated[Blend, typer.Option(help="How the painting meets the rest.")]
Band = Annotated[int | None, typer.Option(min=1, help="Pixels that feather fades over; default: half a token.")]
WindowSide = Annotated[int | None, typer.Option("--window", min=1, help="Side of the squares the model sees.")]
Animate = Annotated[bool, typer.Option("--animate", help="Also a GIF of the unmasking, beside OUT.")]


def parse_boxes(values: list[str] | None) -> list[Box]:
    """Boxes out of options such as "10,20,110,90". Raises BadParameter for anything else."""
    boxes: list[Box] = []
    for value in values or []:
        parts = [part.strip() for part in value.split(",")]
        if len(parts) != 4 or not all(part.removeprefix("-").isdecimal() for part in parts):
            raise typer.BadParameter(f"{value!r} is not left,top,right,bottom in pixels", param_hint="--box")
        left, top, right, bottom = map(int, parts)
        boxes.append((left, top, right, bottom))
    return boxes


def parse_aspect(value: str | None) -> float | None:
    """Width over height out of "16:9" or "1.78". Raises BadParameter for anything else."""
    if value is None:
        return None
    try:
        width, _, height = value.partition(":")
        return float(width) / float(height or 1)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{value!r} is neither width:height nor a number", param_hint="--aspect") from None


def pasting(blend: Blend, band: int | None, window: int | None) -> Pasting:
    """The options as the library takes them."""
    from bigr_repr.sampling.photos import Pasting

    return Pasting(window=window, blend=str(blend), band=band)
