"""`bigr-repr edit`: a part of a photograph replaced by something of a class."""

from functools import partial
from typing import Annotated

import typer

from bigr_repr_cli.draw.adapter import takes
from bigr_repr_cli.draw.photo import PhotoCall, photo_options
from bigr_repr_cli.draw.sampling import Sampling, sampling_options


def _to(
    label: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="CLASS",
            help="What to paint: a class by number or name; several, as 3,cat: a version of each.",
        ),
    ],
) -> None:
    """Only its signature is used."""


@takes(photo=photo_options("edited.png", label=_to), sampling=sampling_options())
def command(photo: PhotoCall, sampling: Sampling) -> None:
    """Replace the marked part of a photograph with something of the given class."""
    from bigr_repr.painting.files import inpaint_file

    photo.paint(sampling, "editing", partial(inpaint_file, command="edit"))
