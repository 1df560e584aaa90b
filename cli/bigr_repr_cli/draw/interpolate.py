"""`bigr-repr interpolate`: pictures on the way from one class to another."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.draw.adapter import takes
from bigr_repr_cli.draw.sampling import Sampling, sampling_options


@takes(sampling=sampling_options("--iterations"))
def command(
    sampling: Sampling,
    start: Annotated[str, typer.Option("--from", metavar="CLASS", help="First class, by number or name.")],
    to: Annotated[
        str,
        typer.Option(metavar="CLASS", help="Last class, by number or name; several, as 3,cat: by way of the others."),
    ],
    frames: Annotated[
        int,
        typer.Option("--steps", "--frames", min=2, max=1000, help="Pictures from the first class to the last, both."),
    ] = 9,
    out: Annotated[
        Path, typer.Option(help="PNG file for the strip of pictures; a GIF of the same name is written beside it.")
    ] = Path("interpolated.png"),
) -> None:
    """Draw the way from one class to another, all pictures with the same noise, as a strip and as a GIF."""
    from bigr_repr.checkpoints.classes import class_list
    from bigr_repr.painting.files import interpolate_file

    pre = sampling.load()
    classes = class_list(pre.config, [start, to])
    with sampling.reported("interpolating") as (on_progress, report):
        report(interpolate_file(pre, classes, out, frames=frames, on_progress=on_progress, **sampling.options()))
