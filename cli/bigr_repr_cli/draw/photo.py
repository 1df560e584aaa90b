"""The options that commands share which paint into a photograph. Knows no single command."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from bigr_repr.painting.files import Box, OnStep
    from bigr_repr.painting.photos import Pasting

Blend = StrEnum("Blend", ["none", "feather", "poisson"])

Photo = Annotated[
    Path, typer.Argument(metavar="IMAGE", help="Photograph to work on, of any size; transparent parts count as white.")
]
Masks = Annotated[
    list[Path] | None,
    typer.Option(
        "--mask",
        help="Mask image of the photograph's size: paint where it is light (128 or more) and opaque. May be repeated.",
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box", help="Rectangle to paint, as left,top,right,bottom in pixels from the upper left. May be repeated."
    ),
]
Out = Annotated[
    Path, typer.Option(help="PNG file to write; several versions are numbered: NAME-0.png, NAME-1.png and so on.")
]
Count = Annotated[
    int | None, typer.Option(min=1, help=r"Versions to paint, the classes in turn \[default: one per class].")
]
Label = Annotated[
    str | None,
    typer.Option(
        "--label",
        help=r"What to paint: a class by number or name; several, as 3,cat, or all: a version of each "
        r"\[default: what fits the surroundings].",
    ),
]
BlendHow = Annotated[
    Blend,
    typer.Option(
        help="How the painting meets the photograph. none: hard edges, all else unchanged; feather: fades out around "
        "the marked part; poisson: colors fitted to the surroundings (needs OpenCV)."
    ),
]
Band = Annotated[
    int | None,
    typer.Option(min=1, help=r"Width in pixels over which --blend feather fades out \[default: half a token]."),
]
WindowSide = Annotated[
    int | None,
    typer.Option(
        "--window",
        min=1,
        help="Side, in pixels, of the square windows the model sees; smaller: finer detail, less context "
        r"\[default: the photograph's shorter side; enrich: the model's image size].",
    ),
]
Animate = Annotated[
    bool,
    typer.Option(
        "--animate", help="Also write how the tokens of the first version are drawn: a GIF beside OUT, of its name."
    ),
]


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
    from bigr_repr.painting.photos import Pasting

    return Pasting(window=window, blend=str(blend), band=band)


def counted(on_progress: Callable[[float, float], None]) -> OnStep:
    """A call's steps shown as progress."""
    return lambda painted: on_progress(painted.done, painted.total)
