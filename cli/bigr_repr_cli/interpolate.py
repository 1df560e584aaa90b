"""`bigr-repr interpolate`: pictures on the way from one class to another."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.sampling import Sampling, sampling_command


@sampling_command
def command(
    sampling: Sampling,
    start: Annotated[str, typer.Option("--from", metavar="CLASS", help="Where to begin: a class by number or name.")],
    to: Annotated[str, typer.Option(metavar="CLASS", help="Where to end; several, as 3,cat: by way of them.")],
    steps: Annotated[int, typer.Option(min=2, max=1000, help="Pictures from the first class to the last.")] = 9,
    out: Annotated[Path, typer.Option(help="The PNG strip; beside it goes a GIF.")] = Path("interpolated.png"),
) -> None:
    """Draw the way from one class to another, all pictures with the same noise, as a strip and as a GIF."""
    from bigr_repr.sampling.files import interpolate_file
    from bigr_repr.sampling.labels import class_list

    pre = sampling.load()
    classes = class_list(pre.config, [start, to])
    with sampling.reported("interpolating") as (on_progress, report):
        report(interpolate_file(pre, classes, out, frames=steps, on_progress=on_progress, **sampling.options()))
