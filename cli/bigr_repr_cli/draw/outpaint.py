"""`bigr-repr outpaint`: extends a photograph beyond its edges."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.draw.photo import Label, Out, Photo, parse_aspect
from bigr_repr_cli.draw.sampling import PromptedSampling
from bigr_repr_cli.flatten import flattened

AddedPixels = Annotated[int, typer.Option(min=0, help="Pixels to add on this side.")]


@flattened
def command(
    photo: Photo,
    sampling: PromptedSampling,
    left: AddedPixels = 0,
    top: AddedPixels = 0,
    right: AddedPixels = 0,
    bottom: AddedPixels = 0,
    aspect: Annotated[
        str | None,
        typer.Option(help="Extend to this ratio of width to height, such as 16:9 or 1.78, equally on opposite sides."),
    ] = None,
    label: Label = None,
    out: Out = Path("outpainted.png"),
) -> None:
    """Extend a photograph beyond its edges, at its own scale, by a number of pixels or to an aspect ratio.

    An area larger than the model's window is painted in several windows, each of which sees its surroundings.
    """
    sides = (left, top, right, bottom)
    if any(sides) == (aspect is not None):
        raise typer.BadParameter(
            "say how far: either in pixels (--left --top --right --bottom) or by --aspect, not both",
            param_hint="--left, --top, --right, --bottom, --aspect",
        )
    ratio = parse_aspect(aspect)
    from bigr_repr.painting.files import outpaint_file
    from bigr_repr.painting.windows import Margins

    margins = Margins(*sides) if ratio is None else None
    photo.paint(outpaint_file, sampling, "outpainting", label=label, out=out, margins=margins, aspect=ratio)
