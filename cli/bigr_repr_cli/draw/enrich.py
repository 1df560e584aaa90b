"""`bigr-repr enrich`: a photograph with new detail."""

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
    Label,
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
    scale: Annotated[
        int, typer.Option(min=1, help="Shrink the photograph this many times before redrawing; 1: not at all.")
    ] = 2,
    mask: Masks = None,
    box: Boxes = None,
    label: Label = None,
    count: Count = None,
    out: Out = Path("enriched.png"),
    blend: BlendHow = Blend.none,
    band: Band = None,
    window: WindowSide = None,
    animate: Animate = False,
) -> None:
    """Give a photograph, or the marked part of it, new detail: four rounds that redraw a quarter of the tokens each.

    It works in squares of the model's own size, unless --window is given.

    It follows what is there; --label CLASS with --guidance 10, say, draws it towards a class.
    """
    from bigr_repr.checkpoints.classes import class_list
    from bigr_repr.painting.files import PhotoFile, enrich_file

    boxes, how = parse_boxes(box), pasting(blend, band, window)
    file = PhotoFile(photo=image, out=out, masks=mask or (), boxes=boxes, animate=animate)
    file.check(count)
    pre = sampling.load()
    classes = None if label is None else class_list(pre.config, [label])
    with sampling.reported("enriching") as (on_progress, report):
        report(
            enrich_file(
                pre, file, classes, scale=scale, count=count, pasting=how, on_step=counted(on_progress),
                **sampling.options(),
            )
        )  # fmt: skip
