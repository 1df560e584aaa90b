"""`bigr-repr outpaint`: a photograph continued beyond its edges."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.draw.photo import (
    Animate,
    Band,
    Blend,
    BlendHow,
    Count,
    Label,
    Out,
    Photo,
    WindowSide,
    counted,
    parse_aspect,
    pasting,
)
from bigr_repr_cli.draw.sampling import Sampling, sampling_command

AddedPixels = Annotated[int, typer.Option(min=0, help="Pixels to add on this side.")]


@sampling_command
def command(
    sampling: Sampling,
    image: Photo,
    left: AddedPixels = 0,
    top: AddedPixels = 0,
    right: AddedPixels = 0,
    bottom: AddedPixels = 0,
    aspect: Annotated[
        str | None,
        typer.Option(help="Add what makes width:height this, as 16:9 or 1.78, equally on opposite sides."),
    ] = None,
    label: Label = None,
    count: Count = None,
    out: Out = Path("outpainted.png"),
    blend: BlendHow = Blend.none,
    band: Band = None,
    window: WindowSide = None,
    animate: Animate = False,
) -> None:
    """Continue a photograph beyond its edges, at its own scale, by pixels or to an aspect.

    What is larger than one window of the model is painted in several, each seeing what stands beside it.
    """
    sides = (left, top, right, bottom)
    if any(sides) == (aspect is not None):
        raise typer.BadParameter(
            "say how far, either in pixels (--left --top --right --bottom) or by --aspect, not both",
            param_hint="--left, --top, --right, --bottom, --aspect",
        )
    ratio = parse_aspect(aspect)
    from bigr_repr.checkpoints.classes import class_list
    from bigr_repr.painting.files import PhotoFile, outpaint_file
    from bigr_repr.painting.windows import Margins

    how, file = pasting(blend, band, window), PhotoFile(photo=image, out=out, animate=animate)
    margins = Margins(*sides) if ratio is None else None
    file.check(count)
    pre = sampling.load()
    classes = None if label is None else class_list(pre.config, [label])
    with sampling.reported("outpainting") as (on_progress, report):
        report(
            outpaint_file(
                pre, file, classes, margins=margins, aspect=ratio, count=count, pasting=how,
                on_step=counted(on_progress), **sampling.options(),
            )
        )  # fmt: skip
