"""Options and the common workflow of the commands that paint into a photograph. Knows no single command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigr_repr.painting.pasting import Pasting
from bigr_repr_cli.draw.sampling import Sampling

if TYPE_CHECKING:
    from bigr_repr.painting.files import Box, Written

Label = Annotated[
    str | None,
    typer.Option(
        help="What to paint: a class by number or name; several, such as 3,cat, or all: one version each "
        r"\[default: whatever fits the surroundings].",
    ),
]
Out = Annotated[
    Path, typer.Option(help="PNG file to write; several versions are numbered: NAME-0.png, NAME-1.png and so on.")
]


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The area to paint."""

    mask: Annotated[
        list[Path] | None,
        typer.Option(
            help="Mask image of the photograph's size: paint where it is light (128 or more) and opaque. May be "
            "repeated.",
        ),
    ] = None
    box: Annotated[
        list[str] | None,
        typer.Option(
            help="Rectangle to paint: left,top,right,bottom in pixels from the upper left corner. May be repeated."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photograph, and how it is painted into."""

    image: Annotated[
        Path,
        typer.Argument(metavar="IMAGE", help="Photograph to work on, of any size; transparent parts count as white."),
    ]
    count: Annotated[
        int | None,
        typer.Option(
            min=1, help=r"Number of versions, cycling through the classes, at most 10,000 \[default: one per class]."
        ),
    ] = None
    animate: Annotated[
        bool,
        typer.Option(
            "--animate",
            help="Also write a GIF, named like OUT, that shows how the first version is painted, token by token.",
        ),
    ] = False
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=r"Refuse photographs, masks and results of outpaint with more pixels than this "
            r"\[default: 200,000,000].",
        ),
    ] = None
    pasting: Pasting

    def paint(
        self, paint: Callable[..., Written], sampling: Sampling, doing: str, *,
        label: str | None, out: Path, marks: Marks | None = None, **own: Any,
    ) -> None:  # fmt: skip
        """Check the files, load the model, call the library and print what it wrote."""
        from bigr_repr.checkpoints.classes import class_list
        from bigr_repr.images.decode import MAX_PIXELS
        from bigr_repr.painting.files import PhotoFile

        marks = marks or Marks()
        file = PhotoFile(
            photo=self.image, out=out, masks=marks.mask or (), boxes=parse_boxes(marks.box), animate=self.animate,
            max_pixels=self.max_pixels or MAX_PIXELS,
        )  # fmt: skip
        file.check(self.count)
        pre = sampling.load()
        classes = None if label is None else class_list(pre.config, [label])
        with sampling.reported(doing) as (on_progress, report):
            report(
                paint(
                    pre, file, classes, count=self.count, pasting=self.pasting,
                    on_step=lambda painted: on_progress(painted.done, painted.total), **own, **sampling.options(),
                )
            )  # fmt: skip


def parse_boxes(values: list[str] | None) -> list[Box]:
    """Parse boxes such as "10,20,110,90". Raises BadParameter for anything else."""
    boxes: list[Box] = []
    for value in values or []:
        parts = [part.strip() for part in value.split(",")]
        if len(parts) != 4 or not all(part.removeprefix("-").isdecimal() for part in parts):
            raise typer.BadParameter(f"{value!r} is not left,top,right,bottom in pixels", param_hint="--box")
        left, top, right, bottom = map(int, parts)
        boxes.append((left, top, right, bottom))
    return boxes


def parse_aspect(value: str | None) -> float | None:
    """Parse "16:9" or "1.78" as width over height. Raises BadParameter for anything else."""
    if value is None:
        return None
    try:
        width, colon, height = value.partition(":")
        return float(width) / float(height if colon else 1)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{value!r} is neither width:height nor a number", param_hint="--aspect") from None
