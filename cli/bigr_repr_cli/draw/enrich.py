"""`bigr-repr enrich`: adds detail to a photograph."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.draw.photo import Label, Marks, Out, Photo
from bigr_repr_cli.draw.sampling import PromptedSampling
from bigr_repr_cli.flatten import flattened


@flattened
def command(
    photo: Photo,
    marks: Marks,
    sampling: PromptedSampling,
    scale: Annotated[
        int, typer.Option(min=1, help="Factor by which to shrink the photograph before redrawing; 1: not at all.")
    ] = 2,
    label: Label = None,
    out: Out = Path("enriched.png"),
) -> None:
    """Add detail to a photograph, or to its marked part, in four rounds that each redraw a quarter of the tokens.

    Works in squares of the model's own size, unless --window is given.

    The result follows the photograph; to pull it toward a class, use, for example, --label CLASS --guidance 10.
    """
    from bigr_repr.painting.files import enrich_file

    photo.paint(enrich_file, sampling, "enriching", label=label, out=out, marks=marks, scale=scale)
