"""The options that commands share which paint into a photograph, and their common course. Knows no single command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigr_repr.painting.pasting import Pasting
from bigr_repr_cli.draw.adapter import Group, declared, fields_of
from bigr_repr_cli.draw.sampling import Sampling

if TYPE_CHECKING:
    from bigr_repr.painting.files import Box, Written


def _image(
    image: Annotated[
        Path,
        typer.Argument(metavar="IMAGE", help="Photograph to work on, of any size; transparent parts count as white."),
    ],
) -> None:
    """Only its signature is used, and that of the next three."""


def _marks(
    mask: Annotated[
        list[Path] | None,
        typer.Option(
            "--mask",
            help="Mask image of the photograph's size: paint where it is light (128 or more) and opaque. May be "
            "repeated.",
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            "--box", help="Rectangle to paint, as left,top,right,bottom in pixels from the upper left. May be repeated."
        ),
    ] = None,
) -> None: ...


def _label(
    label: Annotated[
        str | None,
        typer.Option(
            "--label",
            help=r"What to paint: a class by number or name; several, as 3,cat, or all: a version of each "
            r"\[default: what fits the surroundings].",
        ),
    ] = None,
) -> None: ...


def _result(
    count: Annotated[
        int | None, typer.Option(min=1, help=r"Versions to paint, the classes in turn \[default: one per class].")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="PNG file to write; several versions are numbered: NAME-0.png, NAME-1.png and so on.")
    ] = Path("painted.png"),
    animate: Annotated[
        bool,
        typer.Option(
            "--animate", help="Also write how the tokens of the first version are drawn: a GIF beside OUT, of its name."
        ),
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help=r"Refuse photographs and masks of more pixels than this \[default: 200,000,000]."),
    ] = None,
) -> None: ...


class PhotoCall:
    """A photograph, what is marked in it, and where the result goes, as given."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.boxes = parse_boxes(values.get("box"))

    def paint(self, sampling: Sampling, doing: str, paint: Callable[..., Written], **own: Any) -> None:
        """See to the files, load the model, call the library and print what it wrote."""
        from bigr_repr.checkpoints.classes import class_list
        from bigr_repr.images.decode import MAX_PIXELS
        from bigr_repr.painting.files import PhotoFile

        v = self.values
        how = Pasting(**{name: v[name] for name in fields_of(Pasting) if v[name] is not None})
        file = PhotoFile(
            photo=v["image"], out=v["out"], masks=v.get("mask") or (), boxes=self.boxes, animate=v["animate"],
            max_pixels=v["max_pixels"] or MAX_PIXELS,
        )  # fmt: skip
        file.check(v["count"])
        pre, label = sampling.load(), v.get("label")
        classes = None if label is None else class_list(pre.config, [label])
        with sampling.reported(doing) as (on_progress, report):
            report(
                paint(
                    pre, file, classes, count=v["count"], pasting=how,
                    on_step=lambda painted: on_progress(painted.done, painted.total), **own, **sampling.options(),
                )
            )  # fmt: skip


def photo_options(out: str, *, marks: bool = True, label: Any = None) -> Group:
    """The options of a command that paints into a photograph.

    out: the result's usual name.  marks: whether it takes masks and boxes.  label: how it asks for the class, a
    function to take the parameter `label` of; None: as most do.
    """
    result = declared(_result)
    result["out"] = result["out"].replace(default=Path(out))
    parts = declared(_image) | (declared(_marks) if marks else {}) | declared(label or _label) | result
    return Group(parts | fields_of(Pasting), PhotoCall)


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
