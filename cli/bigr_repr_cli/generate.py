"""`bigr-repr generate`: new pictures of classes, as many as wanted."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.sampling import Sampling, sampling_command


@sampling_command
def command(
    sampling: Sampling,
    labels: Annotated[
        list[str] | None,
        typer.Option("--labels", "-l", help='Classes by number or name, as 3,goldfish, or "all"; may be repeated.'),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Pictures, classes in turn; default: one a class.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for 000000.png, 000001.png, …")] = Path("generated"),
    grid: Annotated[Path | None, typer.Option(help="Also a PNG with the first 64 side by side.")] = None,
    npz: Annotated[Path | None, typer.Option(help="Also all of them as an array, for ADM's evaluator.")] = None,
    animate: Annotated[Path | None, typer.Option(help="Also a GIF of the unmasking of the first 64.")] = None,
) -> None:
    """Generate pictures of the given classes; without labels, of none in particular.

    Pictures that OUT holds are not drawn again: a run that was stopped goes on, and a larger count adds to it.
    """
    from bigr_repr.sampling.labels import class_list
    from bigr_repr.sampling.series import generate_files

    pre = sampling.load()
    classes = class_list(pre.config, labels) if labels else None
    with sampling.reported("generating") as (on_progress, report):
        report(
            generate_files(
                pre, out, classes, count=count, sheet=grid, npz=npz, animation=animate, on_progress=on_progress,
                **sampling.options(),
            )
        )  # fmt: skip
