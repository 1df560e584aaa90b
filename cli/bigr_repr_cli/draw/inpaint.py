"""`bigr-repr inpaint`: a part of a photograph painted anew."""

from pathlib import Path

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
    mask: Masks = None,
    box: Boxes = None,
    label: Label = None,
    count: Count = None,
    out: Out = Path("inpainted.png"),
    blend: BlendHow = Blend.none,
    band: Band = None,
    window: WindowSide = None,
    animate: Animate = False,
) -> None:
    """Paint the marked part of a photograph anew, and put it back at the photograph's own resolution.

    With --blend none, pixels outside the mask stay bit for bit.
    """
    from bigr_repr.checkpoints.classes import class_list
    from bigr_repr.painting.files import PhotoFile, inpaint_file

    boxes, how = parse_boxes(box), pasting(blend, band, window)
    file = PhotoFile(photo=image, out=out, masks=mask or (), boxes=boxes, animate=animate)
    file.check(count)
    pre = sampling.load()
    classes = None if label is None else class_list(pre.config, [label])
    with sampling.reported("inpainting") as (on_progress, report):
        report(
            inpaint_file(
                pre, file, classes, count=count, pasting=how, on_step=counted(on_progress), **sampling.options()
            )
        )
