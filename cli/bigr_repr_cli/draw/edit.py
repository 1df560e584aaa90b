"""`bigr-repr edit`: a part of a photograph replaced by something of a class."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.draw.photo import (
    Animate,
    Band,
    Blend,
    BlendHow,
    Boxes,
    Count,
    Masks,
    Out,
    Photo,
    WindowSide,
    counted,
    parse_boxes,
    pasting,
)
from bigr_repr_cli.draw.sampling import Sampling, sampling_command


@sampling_command
def command(
    sampling: Sampling,
    image: Photo,
    to: Annotated[
        str,
        typer.Option(
            metavar="CLASS", help="What to paint: a class by number or name; several, as 3,cat: a version of each."
        ),
    ],
    mask: Masks = None,
    box: Boxes = None,
    count: Count = None,
    out: Out = Path("edited.png"),
    blend: BlendHow = Blend.none,
    band: Band = None,
    window: WindowSide = None,
    animate: Animate = False,
) -> None:
    """Replace the marked part of a photograph by something of the given class."""
    from bigr_repr.checkpoints.classes import class_list
    from bigr_repr.painting.files import PhotoFile, edit_file

    boxes, how = parse_boxes(box), pasting(blend, band, window)
    file = PhotoFile(photo=image, out=out, masks=mask or (), boxes=boxes, animate=animate)
    file.check(count)
    pre = sampling.load()
    classes = class_list(pre.config, [to])
    with sampling.reported("editing") as (on_progress, report):
        report(
            edit_file(pre, file, classes, count=count, pasting=how, on_step=counted(on_progress), **sampling.options())
        )
