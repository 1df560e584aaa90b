"""`bigr-repr edit`: a part of a photograph replaced by something of a class."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.draw.photo import Marks, Out, Photo
from bigr_repr_cli.draw.sampling import Sampling
from bigr_repr_cli.flatten import flattened


@flattened
def command(
    photo: Photo,
    marks: Marks,
    sampling: Sampling,
    label: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="CLASS",
            help="What to paint: a class by number or name; several, as 3,cat: a version of each.",
        ),
    ],
    out: Out = Path("edited.png"),
) -> None:
    """Replace the marked part of a photograph with something of the given class."""
    from bigr_repr.painting.files import inpaint_file

    paint = partial(inpaint_file, command="edit")
    photo.paint(paint, sampling, "editing", label=label, out=out, marks=marks)
